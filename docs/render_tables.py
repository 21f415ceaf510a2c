"""Render the tables of the docs from `results/*.json`: `make docs-tables`, or `python -m docs.render_tables`.

A table stands between `<!-- table: NAME -->` and `<!-- end -->` and comes from `results/NAME.json`. With `--check`
nothing is written, and the exit code is 1 when a table and its JSON differ.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import exit_code
from model.files import write_text
from recipes.default_model.reports.results import as_markdown, read_result

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "results"
MARKED = re.compile(r"<!-- table: (\S+) -->\n(.*?)<!-- end -->", flags=re.DOTALL)


def documents() -> list[Path]:
    """Where tables may stand."""
    return [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("methods/*/README.md"))]


def names_in(text: str) -> list[str]:
    """The tables that a document shows."""
    return [match[1] for match in MARKED.finditer(text)]


def rendered(text: str) -> str:
    """The document with its tables as the JSON has them. Raises OSError or ValueError when one cannot be read."""

    def table(match: re.Match[str]) -> str:
        markdown = as_markdown(read_result(RESULTS / f"{match[1]}.json"))
        return f"<!-- table: {match[1]} -->\n\n{markdown}\n\n<!-- end -->"

    return MARKED.sub(table, text)


def run(args: argparse.Namespace) -> int:
    changed = 0
    for path in documents():
        old = path.read_text(encoding="utf-8")
        if (new := rendered(old)) == old:
            continue
        changed += 1
        print(f"{path.relative_to(ROOT)}: {'differs from results/' if args.check else 'written'}")
        if not args.check:
            write_text(path, new)
    return 1 if args.check and changed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 when `--check` finds a difference; 2 when a result is missing or damaged."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 when a table differs")
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; some documents may be as they were")


if __name__ == "__main__":
    sys.exit(main())
