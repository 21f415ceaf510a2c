"""Leave identities out of a label table: those of which a list of images, one path a line, holds any.

    python -m methods.default_model.leave_out TABLE LIST OUTPUT        # OUTPUT in the folder of TABLE
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import exit_code
from faces.label_table import read_labels, write_labels


def run(table: Path, images: Path, output: Path) -> int:
    if output.parent.resolve() != table.parent.resolve():
        raise ValueError(f"{output} must lie in {table.parent}: the paths of the table start there")
    held_out = {Path(line).parent.name for line in images.read_text(encoding="utf-8").splitlines()}
    labels = read_labels(table)
    kept = [label for label in labels if label.identity not in held_out]
    write_labels(output, kept)
    print(f"{output}: {len(kept)} of {len(labels)} rows, without {len(held_out)} identities")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("table", "images", "output"):
        parser.add_argument(name, type=Path)
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args.table, args.images, args.output), stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
