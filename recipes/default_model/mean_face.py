"""Make scoring/mean_face.png: the mean of the aligned faces of LFW's training identities, symmetric.

    python -m recipes.default_model.mean_face --data ../shared/data

`scoring/region_map.py` puts its parts in the place of regions of other faces. A mean of thousands shows nobody.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from command_line import exit_code
from faces.reader import read_image
from model.files import replacing
from recipes.default_model.crops import crop_paths, first_of_each, split
from scoring.region_map import MEAN_FACE


def run(args: argparse.Namespace) -> int:
    paths = first_of_each(crop_paths(args.data, split(args.data, "train")))
    total = np.zeros((112, 112, 3))
    for path in paths:
        total += read_image(path)
    mean = (total + total[:, ::-1]) / (2 * len(paths))
    with replacing(args.output) as temporary:
        Image.fromarray(np.rint(mean).astype(np.uint8)).save(temporary, "PNG")
    print(f"{len(paths)} faces -> {args.output}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with faces/ and splits/")
    parser.add_argument("--output", type=Path, default=MEAN_FACE, help="PNG to write")
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; the file is as it was")


if __name__ == "__main__":
    sys.exit(main())
