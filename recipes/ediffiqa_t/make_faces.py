"""Make the folder of faces that the quality labels are of: LFW's training identities, and damaged versions of them.

    OUTPUT/<Identity>/<Image>.jpg       of identities with at least --min-images images, the first --most of each
    OUTPUT/<Identity>/<Image>~1.png ... --copies damaged versions of each

Real crops of LFW are nearly all good. Without damage, a network would hardly see what a bad face is.

    python -m recipes.ediffiqa_t.make_faces --data ../shared/data --output runs/quality_labels/faces
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from command_line import exit_code, natural, positive
from faces.reader import read_image
from model.files import only_run
from recipes.default_model.crops import crop_paths, split
from recipes.default_model.make_faces import damage_once_or_twice


def run(args: argparse.Namespace) -> int:
    found = chosen(crop_paths(args.data, split(args.data, "train")), args.min_images, args.most)
    if not found:
        raise ValueError(f"no training identity below {args.data} has {args.min_images} images: lower --min-images")
    args.output.mkdir(parents=True, exist_ok=True)
    with only_run(args.output):
        for index, path in enumerate(tqdm(found, "faces", unit="image", disable=None)):
            write_versions(index, path, args.output, args.copies, args.seed)
    print(f"{args.output}: {len(found)} faces of {len({path.parent for path in found})} identities")
    return 0


def chosen(paths: Sequence[Path], least: int, most: int) -> list[Path]:
    """The first `most` crops of each identity (their folder) that has at least `least`."""
    own: dict[Path, list[Path]] = defaultdict(list)
    for path in paths:
        own[path.parent].append(path)
    return [path for crops in own.values() if len(crops) >= least for path in crops[:most]]


def write_versions(index: int, path: Path, folder: Path, copies: int, seed: int) -> None:
    """Copy a crop, and write its damaged versions."""
    target = folder / path.parent.name / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)
    image = read_image(path)
    for copy in range(1, copies + 1):
        changed, _, _ = damage_once_or_twice(image, np.random.default_rng((seed, index, copy)))
        Image.fromarray(changed).save(target.with_name(f"{path.stem}~{copy}.png"), compress_level=1)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 2 when the call was wrong, 130 after Ctrl-C."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with faces/ and splits/")
    parser.add_argument("--output", type=Path, required=True, metavar="FOLDER", help="folder to fill")
    parser.add_argument("--min-images", type=positive, default=8, help="fewest images of an identity (8)")
    parser.add_argument("--most", type=positive, default=10, help="images of an identity at most (10)")
    parser.add_argument("--copies", type=natural, default=1, help="damaged versions of each image (1)")
    parser.add_argument("--seed", type=natural, default=12, help="of the damage (12)")
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; the folder is not complete, call again")


if __name__ == "__main__":
    sys.exit(main())
