"""Write ``tasks/data/{python,java}.jsonl``, the items of this search's tasks.

The files are committed; running this again must not change them. Needs only the standard
library. ``tasks/data/english.jsonl`` was written by hand and is not changed.

    python configs/smollm2/make_data.py [--check]
"""

import argparse
import itertools
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path

import snippets

DATA = Path(__file__).parent / "tasks" / "data"
ITEMS = 600
RUN_SEED = 1


def document(row: snippets.Row, language: str, rng: random.Random) -> dict[str, object]:
    """Return one item: prompt and target for one task, shuffled choices for the other."""
    choices = list(row.choices(language))
    right = choices[0]
    rng.shuffle(choices)
    return {
        "template": row.template,
        "prompt": row.prompt(language),
        "target": row.target(language),
        "choices": choices,
        "answer": choices.index(right),
    }


def lines(language: str) -> str:
    """Return the JSON lines of one language; both languages have the same specifications."""
    rng = random.Random(RUN_SEED)
    rows = itertools.islice(snippets.rows("tasks", RUN_SEED), ITEMS)
    return "".join(json.dumps(document(row, language, rng)) + "\n" for row in rows)


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the files, or with ``--check`` only report whether they are up to date."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--check", action="store_true", help="write nothing; exit with 1 if a file differs"
    )
    check = parser.parse_args(arguments).check
    differing = 0
    for language in snippets.LANGUAGES:
        path = DATA / f"{language}.jsonl"
        content = lines(language)
        same = path.is_file() and path.read_text(encoding="utf-8") == content
        differing += not same
        if not same and not check:
            path.write_text(content, encoding="utf-8")
        print(f"{path}: {'unchanged' if same else 'differs' if check else 'written'}")
    return int(check and differing > 0)


if __name__ == "__main__":
    sys.exit(main())
