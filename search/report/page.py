"""A study as one HTML page that needs no network.

Knows rows and the page's template; computes no statistics.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from ..format import duration, score
from ..leaderboard.board import Leaderboard, Row, read_leaderboard
from ..leaderboard.columns import board_view, parent_name
from ..leaderboard.kinds import with_interval
from ..leaderboard.sentences import caveat_lines, verdict_sentence
from ..storage.files import write_atomically
from ..storage.journal import Journal
from .html import PLOTS, TABLES, embedded, now, render, script, text
from .importance import Importances, importances
from .plots import failures, kind_of, pairs, plots

REPORT = "report.html"
BEATS = "It beats"
MOST_ROWS = 500
"""Best rows of the page's table, besides the baselines; the CSV file has all."""


def write_report(board: Leaderboard, journal: Journal, out: Path | None = None) -> Path:
    """Write a study's page, atomically.

    Args:
        board: The leaderboard.
        journal: The journal it was read from.
        out: The file; default: ``report.html`` in the study's folder.
    """
    path = out or board.folder / REPORT
    write_atomically(path, page(board, journal.begun, _importances(board, journal)))
    return path


def _importances(board: Leaderboard, journal: Journal) -> Importances | None:
    """Importances of genes, from all trials that were scored."""
    values = {row.candidate.number: row.candidate.value for row in board.rows}
    scored = [(t, value) for t in journal.trials if (value := values[t.number]) is not None]
    return importances([trial for trial, _ in scored], [value for _, value in scored])


def draw(folder: Path, out: Path | None = None) -> tuple[Leaderboard, Path]:
    """Read a study and write its page; return both.

    Raises:
        StudyError: If there is no study in the folder, or it has not begun, or it is damaged.
    """
    journal = Journal(folder)
    board = read_leaderboard(folder, journal)
    return board, write_report(board, journal, out)


def page(
    board: Leaderboard,
    begun: Mapping[str, Any],
    estimated: Importances | None = None,
    drawn: str | None = None,
) -> str:
    """Return the page of a study: verdict, table, plots, failures, and how to reproduce it.

    Args:
        board: The leaderboard.
        begun: The study's manifest.
        estimated: Importances of genes from all trials, if any.
        drawn: Time at which it was drawn; default: now.
    """
    rows, columns = shown_rows(board.rows), board_view(board, "page")
    return render(
        "report.html.j2",
        title=board.name,
        finished=board.finished,
        drawn=drawn or now(),
        sentences=list(sentences(board)),
        caveats=list(caveat_lines(board)),
        summary=_summary(board),
        figures=list(_figures(board)),
        objective=board.objective.phrase,
        points=board.in_points,
        confirmed=any(row.confirm for row in board.rows),
        head=[(column.title, column.kind.is_number) for column in columns],
        rows=[
            (kind_of(board, row), [column.cell(row, board.in_points) for column in columns])
            for row in rows
        ],
        left_out=len(board.rows) - len(rows),
        failures=failures(board),
        facts=_facts(begun),
        commands=_commands(board),
        config=yaml.safe_dump(begun.get("config", {}), sort_keys=False, allow_unicode=True),
        data=embedded(
            {
                **plots(board, estimated),
                "pairs": list(pairs(board)),
                "finished": board.finished,
            }
        ),
        scripts=[script(PLOTS), script(TABLES), text("report.js")],
    )


def shown_rows(rows: Sequence[Row]) -> list[Row]:
    """Return the best rows, all baselines, and failures while there is room."""
    ranked = [r for r in rows if r.candidate.is_baseline or (r.place and r.place <= MOST_ROWS)]
    failed = [r for r in rows if r.candidate.failure and not r.candidate.is_baseline]
    return ranked + failed[: max(MOST_ROWS - len(ranked), 0)]


def sentences(board: Leaderboard) -> Iterator[str]:
    """Return the verdict, then by how much the winner differs from baselines, with intervals."""
    winner = board.winner
    is_better = winner is not None and winner.verdict == "better"
    first, *rest = [*_interval_sentences(board), None]
    if winner is not None and is_better and first is not None and first.startswith(BEATS):
        name = winner.candidate.name
        yield f"{name} {first.removeprefix('It ').removesuffix('.')}, and every other baseline."
        yield verdict_sentence(board)
    else:
        yield verdict_sentence(board)
        rest = [first, *rest]
    yield from (sentence for sentence in rest if sentence is not None)


def _interval_sentences(board: Leaderboard) -> Iterator[str]:
    """The winner against the best parent and the uniform merge."""
    winner = board.winner
    if winner is None:
        return
    for gain, other in (
        (winner.to_parent, f"the best parent ({parent_name(board.best_parent)})"),
        (winner.to_uniform, "the uniform merge"),
    ):
        if gain is None:
            continue
        amount = with_interval(gain, board.in_points, sign=gain.low <= 0 <= gain.high)
        on = f"on {gain.n} unseen items (95 % interval, paired)"
        if gain.low > 0:
            yield f"{BEATS} {other} by {amount} {on}."
        elif gain.high < 0:
            yield f"It loses to {other} by {amount} {on}."
        else:
            yield f"Its difference to {other} is not significant: {amount} {on}."


def _summary(board: Leaderboard) -> str:
    """What was done, for readers new to such a page."""
    complete = [r.candidate for r in board.rows if r.search is not None and not r.candidate.raced]
    parents = [parent_name(r.candidate.name) for r in board.rows if r.candidate.kind == "parent"]
    items = max((c.items for c in complete), default=0)
    again = board.winner.confirm.n if board.winner and board.winner.confirm else 0
    text = f"{board.searched} merges of {', '.join(sorted(parents)) or 'the parents'} were scored "
    text += f"on up to {items} search items"
    if again:
        text += f"; the best of them and all baselines (simple merges) on {again} other items"
    return f"{text}."


def _figures(board: Leaderboard) -> Iterator[tuple[str, str]]:
    """The key figures at the top of the page: label, value."""
    winner, baseline = board.winner, board.best_baseline
    is_confirmed = winner is not None and winner.confirm is not None
    for label, row in (("winner", winner), ("best baseline", baseline)):
        value = (row.confirm if is_confirmed else row.search) if row else None
        if value is not None:
            items = "confirm" if is_confirmed else "search"
            yield f"{label}, {items} items", score(value.value, value.se)
    raced = sum(row.candidate.is_searched and row.candidate.raced for row in board.rows)
    yield "candidates", f"{board.searched}" + (f" ({raced} stopped early)" if raced else "")
    yield "search items scored", f"{board.items:,}"
    yield "scoring time", duration(sum(row.candidate.seconds for row in board.rows))


def _facts(begun: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Models, seeds, machine and versions: label, text."""
    config, identity = begun.get("config", {}), begun.get("identity", {})
    machine = begun.get("machine", {})
    facts = [("base", str(config.get("base", "-")))]
    facts += [(f"parent {name}", str(path)) for name, path in config.get("parents", {}).items()]
    facts += [("run seed", str(config.get("search", {}).get("run_seed", "-")))]
    facts += [("device", f"{machine.get('device', '-')}, {machine.get('threads', '-')} thread(s)")]
    versions = identity.get("versions", {})
    facts += [("versions", ", ".join(f"{name} {v}" for name, v in versions.items()))]
    hashes = identity.get("parents", {})
    return facts + [(f"SHA-256 of {name}", str(digest)) for name, digest in hashes.items()]


def _commands(board: Leaderboard) -> list[str]:
    folder = shlex.quote(str(board.folder))
    lines = ["heterosis search search.yaml    # the configuration below, saved as search.yaml"]
    if board.winner is not None:
        number = board.winner.candidate.number
        lines += [f"heterosis export {folder} --trial {number} --out merged"]
    return [*lines, f"heterosis report {folder}"]
