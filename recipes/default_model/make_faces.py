"""Make the folder of faces that the default model learns from: originals, and damaged and otherwise varied versions.

    OUTPUT/faces/<Identity>/<Image>.jpg           web photographs of identities with at least --min-images images:
                                                  LFW's training identities, together with their photographs in CFP
                                                  (frontal and profile), and CelebA's
    OUTPUT/factors/<set>/<Image>.jpg              faces with labels of factors, without the held-out subjects
    OUTPUT/.../<Image>~1.png ...                  versions of each
    OUTPUT/originals.tsv                          path below OUTPUT, the file in the data folder, identity
    OUTPUT/damage.tsv                             what was done: path, blur, illumination, occlusion (class), kinds

    python -m recipes.default_model.make_faces --data ../shared/data --output runs/default
"""

from __future__ import annotations

import argparse
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm import tqdm

from command_line import exit_code, natural, positive
from evaluation.inputs import write_tsv
from faces.degradations import KINDS, degrade
from faces.listing import list_images
from faces.reader import read_image
from recipes.default_model.crops import (
    celeba_paths,
    cfp_faces,
    crop_paths,
    factor_faces,
    factor_rows,
    is_oblique,
    split,
)
from recipes.default_model.variation import black_border, varied

SIDE_LIGHT = "side_light"  # the rare extreme lights of Yale, once more
OBLIQUE = "oblique_light"  # of Extended Yale B
POSED = "posed_expression"  # the rare peak expressions of Yale, once more
# Factor set -> versions of each face, of which those of the second number are not damaged: rare kinds get more.
FACTOR_COPIES = {
    "occlusion_real": (6, 0),
    "occlusion": (1, 0),
    "illumination": (8, 4),
    "illumination_b": (1, 0),
    "expression_lfw": (11, 8),  # damage hides an expression
    SIDE_LIGHT: (12, 8),
    OBLIQUE: (4, 2),
    POSED: (11, 8),
}
SAME_FRAME = "illumination_b"  # all lights of a person are aligned alike, and the dark side is no border


@dataclass(frozen=True)
class Face:
    """An original, and what to make of it."""

    source: Path
    path: str  # below the output folder
    identity: str  # "" for a face of factors/
    copies: int
    undamaged: int = 0  # the last of the copies


def run(options: argparse.Namespace) -> int:
    data, output = options.data, options.output
    faces = [*web_faces(data, options.min_images, options.copies)]
    faces += labelled_faces(data)
    work = partial(make_versions, output=output, seed=options.seed)
    with ProcessPoolExecutor() as pool:
        made = list(tqdm(pool.map(work, range(len(faces)), faces, chunksize=32), total=len(faces), unit="face"))
    rows = [(face.path, face.source.relative_to(data).as_posix(), face.identity) for face in faces]
    write_tsv(output / "originals.tsv", ("path", "source", "identity"), rows)
    head = ("path", "blur", "illumination", "occlusion", "kinds")
    write_tsv(output / "damage.tsv", head, (row for rows in made for row in rows))
    print(f"{output}: {len(faces)} faces and {sum(map(len, made))} versions of them")
    return 0


def web_faces(data: Path, min_images: int, copies: int) -> list[Face]:
    """Photographs of identities that have enough of them. A person of CFP is the person of LFW that the data names."""
    found = [(path.parent.name, path, path.name) for path in crop_paths(data, split(data, "train"))]
    found += [(identity, path, f"cfp_{path.name}") for identity, path in cfp_faces(data)]
    found += [(path.parent.name, path, path.name) for path in celeba_paths(data)]
    count = Counter(identity for identity, _, _ in found)
    chosen = sorted(row for row in found if count[row[0]] >= min_images)
    return [Face(path, f"faces/{identity}/{name}", identity, copies, copies // 2) for identity, path, name in chosen]


def labelled_faces(data: Path) -> list[Face]:
    """The faces of factors/, by set; rare ones once more."""
    special = {
        "expression_lfw": partial(factor_faces, data, "expression_lfw", "exaggerated expression"),
        SIDE_LIGHT: partial(factor_faces, data, "illumination", "extreme lighting"),
        OBLIQUE: partial(oblique_faces, data),
        POSED: partial(factor_faces, data, "expression", "exaggerated expression"),
    }
    found = []
    for name, (copies, undamaged) in FACTOR_COPIES.items():
        paths = special[name]() if name in special else factor_faces(data, name)
        for path in paths:
            found.append(Face(path, f"factors/{name}/{path.parent.name}_{path.name}", "", copies, undamaged))
    return found


def oblique_faces(data: Path) -> list[Path]:
    """Faces of Extended Yale B whose light has no label and counts as extreme (crops.py)."""
    rows = factor_rows(data, "illumination_b", held_out=False)
    return sorted({data / row["path"] for row in rows if is_oblique(row)})


def make_versions(index: int, face: Face, output: Path, seed: int) -> list[list]:
    """Copy a crop and write its versions. Returns rows of damage.tsv; of classes, higher is better.

    Every version of an odd number is damaged, with the alignment and border of the original in half of the cases. Those
    of an even number have another alignment and border, and half of them are damaged. The last `undamaged` versions are
    spared, whatever their numbers."""
    target = output / face.path
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(face.source, target)
    image, rows = read_image(face.source), []
    outside = frame_of(face.source.parent) if SAME_FRAME in face.source.parts else black_border(image)
    for copy in range(1, face.copies + 1):
        rng = np.random.default_rng((seed, index, copy))
        both, odd, spared = rng.uniform() < 0.5, copy % 2 == 1, copy > face.copies - face.undamaged
        changed = varied(image, outside, rng) if both or not odd or spared else image
        damaged = (both or odd) and not spared
        changed, classes, kinds = damage_once_or_twice(changed, rng) if damaged else (changed, (2, 1, 1), [])
        version = target.with_name(f"{target.stem}~{copy}.png")
        Image.fromarray(changed).save(version, compress_level=1)
        rows.append([version.relative_to(output).as_posix(), *classes, " ".join(kinds)])
    return rows


@cache
def frame_of(folder: Path) -> np.ndarray:
    """The black border (112, 112) that all crops in the folder share."""
    return black_border(np.maximum.reduce([read_image(path) for path in list_images(folder)]))


def damage_once_or_twice(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, tuple[int, ...], list[str]]:
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
    return image, (blur, illumination, occlusion), done


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with faces/ and splits/")
    parser.add_argument("--output", type=Path, default=Path("runs/default"), help="folder to fill")
    parser.add_argument("--copies", type=natural, default=4, help="versions of each web photograph (4)")
    help_text = "identities with fewer images are left out (3)"
    parser.add_argument("--min-images", type=positive, default=3, help=help_text)
    parser.add_argument("--seed", type=natural, default=323)
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; the output folder is not complete")


if __name__ == "__main__":
    sys.exit(main())
