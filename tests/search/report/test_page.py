"""The page of a study: what stands first, that it is whole, and that nothing in it is code."""

import errno
import json
import re
import sys
import time
from pathlib import Path

import optuna
import pytest
from heterosis.merge.recipe.recipe import Recipe
from heterosis.search.leaderboard.board import read_leaderboard
from heterosis.search.report import page as report_page
from heterosis.search.report.importance import FEWEST, Importance, Importances, importances
from heterosis.search.report.plots import funnel
from heterosis.search.storage.candidate import Candidate
from heterosis.search.storage.journal import Journal
from heterosis.search.study import page_refresh
from heterosis.search.study.progress import Tracker

from ..conftest import refused
from ..studies import BASELINES, make_study
from ..trials import trials_of, values_of

EVIL = "</script><script>alert(1)</script>"
SEARCHED = [("c4", "candidate", 0.9, 0.8), ("c5", "candidate", 0.85, 0.75)]


@pytest.fixture
def study(tmp_path):
    """A finished study in which a name and a reason of failure try to be code."""
    folder = tmp_path / "results" / "made"
    folder.parent.mkdir()
    make_study(folder, [*BASELINES, *SEARCHED, (EVIL, "candidate", None, None)])
    return folder


def read(path):
    """The page without its scripts, and the data of its plots."""
    text = path.read_text(encoding="utf-8")
    data = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert data
    return re.sub(r"<script.*?</script>", "", text, flags=re.S), json.loads(data[1])


def test_the_verdict_comes_first_with_intervals_in_points(heterosis, study):
    code, out, _ = heterosis("report", study)
    assert (code, out.strip()) == (0, f"report: {study / 'report.html'}")
    page, _ = read(study / "report.html")
    body = page.partition("<body>")[2]
    lead = re.search(r'<p class="lead">(.*?)</p>', body)
    assert lead
    assert body.index("lead") < body.index("<table")
    first = read_leaderboard(study).winner.to_parent
    low, high = f"{100 * first.low:.1f}", f"{100 * first.high:.1f}"
    assert lead[1] == (
        f"c4 beats the best parent (a) by 20.0 [{low}, {high}] points on 800 unseen items "
        "(95 % interval, paired), and every other baseline."
    )
    assert "<p>c4 beats every baseline: 0.8000 against 0.7000" in body


def test_a_candidate_below_the_parents_is_said_to_lose(tmp_path):
    board = make_study(tmp_path, [*BASELINES, ("c4", "candidate", 0.5, 0.3)])
    verdict, first, second = report_page.sentences(board)
    assert verdict.startswith("c4 is worse than the best baseline: 0.3000 against 0.7000")
    assert first.startswith("It loses to the best parent (a) by 30.0 [")
    assert second.startswith("It loses to the uniform merge by 40.0 [")
    assert list(report_page.sentences(make_study(tmp_path / "bare", BASELINES))) == [
        "No candidate has been scored yet, only baselines; the best is uniform."
    ]


def test_a_candidate_that_beats_the_parent_and_not_a_merge_is_led_by_that(tmp_path):
    board = make_study(tmp_path, [*BASELINES, ("c4", "candidate", 0.9, 0.7)])
    verdict, first, _ = report_page.sentences(board)
    assert verdict.startswith("c4 is not shown to beat every baseline (not uniform)")
    assert first.startswith("It beats the best parent (a) by 10.0 [")


def test_names_and_reasons_are_escaped_everywhere(study):
    _, path = report_page.draw(study)
    text = path.read_text(encoding="utf-8")
    assert EVIL not in text
    assert "&lt;/script&gt;&lt;script&gt;alert(1)" in text
    assert text.count("</script>") == 4


def test_the_page_has_what_its_plots_need(study):
    report_page.draw(study)
    page, data = read(study / "report.html")
    assert [mark[2] for mark in data["progress"]["dots"]] == ["c4", "c5"]
    assert [line["name"] for line in data["progress"]["lines"]] == ["parent:a", "uniform"]
    assert [recipe["name"] for recipe in data["recipes"]] == ["c4", "c5"]
    assert {entry["task"] for entry in data["forest"]} == {"skill_a", "skill_b"}
    confirm, search = data["pairs"]
    assert (confirm["split"], search["split"]) == ("confirm", "search")
    assert [mark[4] for mark in search["marks"] if mark[6]] == ["c4"]
    assert [mark[4] for mark in confirm["marks"] if mark[6]] == ["c4"]
    assert {mark[5] for mark in confirm["marks"]} == {"winner", "candidate", "parent", "baseline"}
    (won,) = (mark for mark in confirm["marks"] if mark[4] == "c4")
    assert won[:4] == pytest.approx([0.8, 0.8, 1.96 * 0.02, 1.96 * 0.02], rel=1e-2)
    assert {mark[2] for mark in search["marks"]} == {None}
    assert data["estimated"] is None
    assert "<strong>1 ×</strong> NaN in x, by | design" in page
    assert "heterosis export" in page


def test_importances_are_shown_on_the_page(tmp_path):
    board = make_study(tmp_path, [*BASELINES, *SEARCHED])
    genes = {f"g{i}": Importance(0.9 - i / 100, 0.0, 1.0, i < 1) for i in range(45)}
    found = Importances(genes, chance=0.02, trials=150)
    path = tmp_path / "page.html"
    path.write_text(report_page.page(board, {}, found))
    _, data = read(path)
    shown = data["estimated"]
    assert (shown["chance"], shown["trials"], shown["more"]) == (0.02, 150, 5)
    assert [gene["name"] for gene in shown["genes"][:2]] == ["g0", "g1"]
    assert [gene["shown"] for gene in shown["genes"][:2]] == [True, False]


def test_forests_are_drawn_without_a_word_on_the_terminal(heterosis, study, monkeypatch):
    trials = trials_of(FEWEST)
    found = importances(trials, values_of(trials))
    optuna.logging.set_verbosity(optuna.logging.INFO)
    monkeypatch.setattr(
        report_page, "importances", lambda *_: importances(trials, values_of(trials))
    )
    assert heterosis("report", study)[::2] == (0, "")
    shown = read(study / "report.html")[1]["estimated"]
    assert [gene["name"] for gene in shown["genes"]] == list(found.genes)


def test_the_journal_is_read_once(study, monkeypatch):
    read = []
    monkeypatch.setattr(
        report_page, "Journal", lambda folder: read.append(folder) or Journal(folder)
    )
    monkeypatch.setattr("heterosis.search.leaderboard.board.Journal", None)
    report_page.draw(study)
    assert read == [study]


def test_the_page_loads_nothing_and_is_small(study):
    page, _ = read(report_page.draw(study)[1])
    assert "default-src 'none'" in page
    assert not re.findall(r'(?:src|href)="(?!#|data:)', page)
    assert (study / "report.html").stat().st_size < 2.2e6


def test_only_the_best_rows_are_drawn_of_a_large_study(study, monkeypatch):
    monkeypatch.setattr(report_page, "MOST_ROWS", 2)
    page, _ = read(report_page.draw(study)[1])
    assert '<td class="name">c4</td>' in page
    assert '<td class="name">base</td>' in page
    assert "1 more rows are in leaderboard.csv" in page


def test_search_scores_come_first_while_nothing_is_confirmed(tmp_path):
    found = [(*row[:3], None) for row in [*BASELINES, *SEARCHED]]
    make_study(tmp_path, found)
    page, data = read(report_page.draw(tmp_path)[1])
    assert "c4 leads on the search items; nothing is confirmed yet." in page
    assert "<dt>winner, search items</dt><dd>0.9000" in page
    assert "confirm ± SE" not in page
    assert [entry["rows"] for entry in data["forest"]] == [[], []]


def test_the_index_lists_studies_and_tells_which_cannot_be_read(heterosis, study):
    broken = study.parent / "broken"
    broken.mkdir()
    (broken / "study.journal").write_text("")
    code, out, err = heterosis("report", study.parent)
    assert (code, out.strip()) == (0, f"index: {study.parent / 'index.html'}")
    assert "broken" in err
    page, _ = read(study.parent / "index.html")
    assert '<a href="made/report.html">made</a>' in page
    assert "cannot be read" in page
    assert (study / "report.html").is_file()


def test_the_page_can_go_elsewhere(heterosis, study, tmp_path):
    code, _, _ = heterosis("report", study, "--out", tmp_path / "page.html")
    assert code == 0
    assert not (study / "report.html").exists()
    assert [path.name for path in tmp_path.glob("*page*")] == ["page.html"]


def test_a_place_that_cannot_be_written_to_is_refused(heterosis, study, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    for name in ("file", "nowhere"):
        line = refused(heterosis("report", study, "--out", tmp_path / name / "page.html"))
        assert f"{tmp_path / name}: not a folder that a page can be written to (" in line
        assert line.endswith("make it writable, or name a file elsewhere: --out FILE")

    def read_only(path: Path, *_: object, **__: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    monkeypatch.setattr(Path, "write_text", read_only)
    for folder, command in ((study, "--out FILE"), (study.parent, "report STUDY --out FILE")):
        line = refused(heterosis("report", folder))
        assert f"error: {folder}: not a folder that a page can be written to (Read-only" in line
        assert line.endswith(command)


def test_a_full_disk_is_a_failed_run(heterosis, study, monkeypatch):
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    code, _, err = heterosis("report", study)
    assert (code, len(err.splitlines())) == (1, 1)
    assert "No space left on device" in err


def test_a_folder_without_studies_is_refused(heterosis, tmp_path):
    assert "holds no study" in refused(heterosis("report", tmp_path))


def test_the_funnel_counts_candidates_per_rung():
    recipe = Recipe.uniform("linear", ("a",), ("embed",), 0.5)

    def met(number, items):
        return Candidate(number, "c", "candidate", recipe, 0.5, items=items, raced=items < 100)

    found = funnel([met(0, 50), met(1, 50), met(2, 100)])
    assert found == [{"items": 50, "candidates": 3}, {"items": 100, "candidates": 1}]
    assert funnel([met(0, 100)]) == []


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def drawing(folder, code, clock):
    """A reporter that runs some Python instead of drawing; what that writes is in "drawn"."""
    code = f"open({str(folder / 'drawn')!r}, 'a').write('x'); {code}"
    return page_refresh.PageRefresh(Tracker(), folder, [sys.executable, "-c", code], clock)


def wait_for(folder, text):
    for _ in range(1000):
        if (folder / "drawn").exists() and (folder / "drawn").read_text() == text:
            return
        time.sleep(0.01)
    pytest.fail(f"not drawn: {text}")


ONE = Candidate(0, "c", "candidate", Recipe.uniform("linear", ("a",), ("embed",), 0.5), 0.5)


def test_one_page_is_drawn_at_a_time_and_given_up_at_the_end(tmp_path):
    clock = Clock()
    with drawing(tmp_path, "import time; time.sleep(60)", clock) as reporter:
        for clock.now in (page_refresh.FIRST - 1, page_refresh.FIRST, page_refresh.FIRST + 500):
            reporter.finished(ONE, 1)
        wait_for(tmp_path, "x")
    assert (tmp_path / "drawn").read_text() == "x"


def test_a_page_is_drawn_again_after_a_minute_at_the_earliest(tmp_path):
    clock = Clock()
    with drawing(tmp_path, "", clock) as reporter:
        clock.now = page_refresh.FIRST
        reporter.finished(ONE, 1)
        wait_for(tmp_path, "x")
        for clock.now in (page_refresh.FIRST + 1, page_refresh.FIRST + page_refresh.EVERY - 1):
            reporter.finished(ONE, 1)
        assert (tmp_path / "drawn").read_text() == "x"
        for clock.now in range(100, 600):
            reporter.finished(ONE, 1)
            if (tmp_path / "drawn").read_text() == "xx":
                break
            time.sleep(0.02)
    assert (tmp_path / "drawn").read_text() == "xx"
