"""Make the folder of faces that the default model learns from: training identities, and damaged versions of them.

    OUTPUT/clean/<Identity>/<Image>.jpg           all LFW training and CelebA identities, for class centres
    OUTPUT/faces/<Identity>/<Image>.jpg           identities with at least --min-images images
    OUTPUT/faces/<Identity>/<Image>~1.png ...     --copies damaged versions of each
    OUTPUT/damage.tsv                             what was done: path, blur, illumination, occlusion (class), kinds

    python -m recipes.default_model.make_faces --data ../shared/data --output runs/default
"""

from __future__ import annotations

import argparse
import csv
import shutil
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from command_line import exit_code, natural, positive
from faces.degradations import KINDS, degrade
from faces.reader import read_image
from model.files import open_text, replacing
from recipes.default_model.crops import celeba_paths, crop_paths, identities


def run(options: argparse.Namespace) -> int:
    data, output = options.data, options.output
    clean = crop_paths(data, sorted(identities(data) + identities(data, held_out=True))) + celeba_paths(data)
    for path in tqdm(clean, desc="clean", unit="image"):
        copy_to(path, output / "clean")
    counts = {path.parent.name: 0 for path in clean}
    for path in clean:
        counts[path.parent.name] += 1
    chosen = [path for path in clean if counts[path.parent.name] >= options.min_images]
    work = partial(make_versions, folder=output / "faces", copies=options.copies, seed=options.seed)
    with ProcessPoolExecutor() as pool:
        made = list(tqdm(pool.map(work, range(len(chosen)), chosen, chunksize=32), total=len(chosen), desc="damaged"))
    with replacing(output / "damage.tsv") as temporary, open_text(temporary, "w") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["path", "blur", "illumination", "occlusion", "kinds"])
        writer.writerows(row for rows in made for row in rows)
    return 0


def copy_to(path: Path, folder: Path) -> None:
    target = folder / path.parent.name / path.name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path, target)


def make_versions(index: int, path: Path, folder: Path, copies: int, seed: int) -> list[list]:
    """Copy a crop and write its damaged versions. Returns rows of damage.tsv; of classes, higher is better."""
    copy_to(path, folder)
    image, rows = read_image(path), []
    for copy in range(1, copies + 1):
        rng = np.random.default_rng((seed, index, copy))
        changed, blur, illumination, occlusion, kinds = damage_once_or_twice(image, rng)
        target = folder / path.parent.name / f"{path.stem}~{copy}.png"
        Image.fromarray(changed).save(target, compress_level=1)
        rows.append([f"{path.parent.name}/{target.name}", blur, illumination, occlusion, " ".join(kinds)])
    return rows


def damage_once_or_twice(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int, int, int, list[str]]:
    """The damaged image, its blur, illumination and occlusion classes, and what was done.

    One kind of damage in seven of ten cases, else two; strengths are uniform in [0, 1].
    """
    kinds = rng.choice(list(KINDS), 2 if rng.uniform() < 0.3 else 1, replace=False).tolist()
    blur, illumination, occlusion, done = 2, 1, 1, []
    for kind in sorted(kinds, key=lambda kind: KINDS[kind][1] != "occlusion"):  # what is before the face comes first
        strength = float(rng.uniform())
        image = degrade(image, kind, strength, rng)
        done.append(f"{kind}:{strength:.2f}")
        factor = KINDS[kind][1]
        blur = min(blur, 1 if strength < 0.4 else 0) if factor == "blur" else blur
        illumination = 0 if factor == "illumination" and strength >= 0.1 else illumination
        occlusion = 0 if factor == "occlusion" else occlusion
    return image, blur, illumination, occlusion, done


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with faces/ and splits/")
    parser.add_argument("--output", type=Path, default=Path("runs/default"), help="folder to fill")
    parser.add_argument("--copies", type=natural, default=2, help="damaged versions of each image (2)")
    help_text = "identities with fewer images give centres only (3)"
    parser.add_argument("--min-images", type=positive, default=3, help=help_text)
    parser.add_argument("--seed", type=natural, default=323)
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; the output folder is not complete")


if __name__ == "__main__":
    sys.exit(main())
