"""Make a set in the published layout from photographs, rated by what was done to them and not by people.

    python -m methods.dsl_fiqa.make_set PHOTOS [MORE ...] --output SET --versions 6

PHOTOS is a folder with a sub-folder for each person. SET/train, SET/val and SET/test hold other people. Each photograph
is there undamaged, with the score 1, and in `--versions` damaged ones. A kind of `--held-out` is in the test part only.
SET/*/damage.tsv names photograph, kind and strength of each picture, SET/unseen.txt all people who must not train.

Strengths of different kinds are made comparable by structural similarity (SSIM). The score of a kind falls linearly
with its strength, from the mean SSIM of damaged and undamaged training photographs at strength 0 to that at strength 1.
SET/ends.json holds both numbers of each kind.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image

from command_line import exit_code, natural, positive
from faces.degradations import degrade, require_photographic
from faces.dlib_models import largest_face
from faces.random_crops import fit
from faces.reader import ImageError, read_image
from faces.workers import load_batches
from methods.dsl_fiqa.data import left_out, photographs
from model.files import printable, write_text

PARTS = (("train", 0.8), ("val", 0.05), ("test", 0.15))  # shares of the people
CHUNK = 16
UNDAMAGED = "none"  # in place of a kind
SIMILARITY_PHOTOS = 60  # training photographs whose similarity to their damaged versions is measured

Ends = Mapping[str, tuple[float, float]]  # kind -> scores at the strengths 0 and 1


class Version(NamedTuple):
    """One picture of a set."""

    image: np.ndarray
    points: np.ndarray
    kind: str
    strength: float


def part_of(person: str, seed: int) -> str:
    """The part in which all photographs of a person are."""
    place = int.from_bytes(hashlib.sha256(f"{seed} {person}".encode("utf-8", "surrogateescape")).digest()[:4]) / 2**32
    for name, share in PARTS:
        if place < share:
            return name
        place -= share
    return PARTS[-1][0]


def versions_of(
    size: int, kinds: Sequence[str], held_out: Sequence[str], count: int, seed: int, rgb: np.ndarray
) -> list[Version]:
    """The undamaged face and `count` damaged versions of it, `held_out` kinds behind the others' count.

    The picture is brought to a crop's surroundings: the shorter side is at most 4/3 of `size`, and at least `size`.
    Raises ImageError (no_face).
    """
    image, points = fit(rgb, largest_face(rgb), size)
    assert points is not None, "largest_face gave points"
    rng = np.random.default_rng((seed, *hashlib.sha256(rgb.tobytes()).digest()[:8]))
    drawn = [(kinds[i], rng.random()) for i in rng.permutation(np.arange(count) % len(kinds))]
    drawn += [(kind, rng.random()) for kind in held_out]
    damaged = [Version(degrade(image, kind, strength, rng), points, kind, strength) for kind, strength in drawn]
    return [Version(image, points, UNDAMAGED, 0.0), *damaged]


def similarity(a: np.ndarray, b: np.ndarray) -> float:
    """SSIM of two RGB uint8 pictures (H, W, 3) in (-1, 1]: the mean over places and channels.

    Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity", 2004: a Gaussian window of
    11 pixels and sigma 1.5, K1 = 0.01, K2 = 0.03.
    """
    x, y = a.astype(np.float64), b.astype(np.float64)

    def local(values: np.ndarray) -> np.ndarray:
        return cv2.GaussianBlur(values, (11, 11), 1.5)

    mean_x, mean_y = local(x), local(y)
    variances = local(x * x) - mean_x**2 + local(y * y) - mean_y**2
    covariance = local(x * y) - mean_x * mean_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    light = (2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
    return float((light * (2 * covariance + c2) / (variances + c2)).mean())


def ends_of(kinds: Sequence[str], paths: Sequence[Path], size: int, seed: int) -> dict[str, tuple[float, float]]:
    """Mean SSIM of some of these photographs and their damaged versions, at the strengths 0 and 1 of each kind."""
    rng = np.random.default_rng(seed)
    found = []
    for row in rng.permutation(len(paths)):
        try:
            image, _ = fit(read_image(str(paths[row])), None, size)
        except ImageError:
            continue
        damaged = ((degrade(image, kind, strength, rng) for strength in (0.0, 1.0)) for kind in kinds)
        found.append([[similarity(image, one) for one in pair] for pair in damaged])
        if len(found) == SIMILARITY_PHOTOS:
            break
    if not found:
        raise ValueError("no photograph of the training part can be read")
    return {kind: (float(low), float(high)) for kind, (low, high) in zip(kinds, np.mean(found, axis=0), strict=True)}


def score_of(ends: Ends, kind: str, strength: float) -> float:
    """The score in place of opinions: 1 for an undamaged picture."""
    if kind == UNDAMAGED:
        return 1.0
    first, last = ends[kind]
    return first + (last - first) * strength


def make_set(args: argparse.Namespace) -> int:
    """Exit code 0. Photographs in which no face is found, or that cannot be read, are reported and left out."""
    held_out = tuple(args.held_out)
    require_photographic(held_out)
    kinds = [kind for kind in require_photographic(tuple(args.kinds)) if kind not in held_out]
    if not kinds:
        raise ValueError("no kind is left to train on: hold fewer out")
    paths = chosen(args)
    people = sorted({path.parent.name for path in paths})
    ends = ends_of(
        [*kinds, *held_out], [p for p in paths if part_of(p.parent.name, args.seed) == "train"], args.size, args.seed
    )
    parts: dict[str, list[tuple[str, str, str, float]]] = {name: [] for name, _ in PARTS}
    for part in parts:
        for sub in ("img", "landmark"):
            (Path(args.output) / part / sub).mkdir(parents=True, exist_ok=True)
    write_text(Path(args.output) / "ends.json", json.dumps(ends, indent=1) + "\n")
    unseen = {name for name in people if part_of(name, args.seed) != "train"} | left_out(args.without)
    write_text(Path(args.output) / "unseen.txt", "".join(f"{name}\n" for name in sorted(unseen)))
    for number, path, versions in _made(args, kinds, held_out, paths):
        part = part_of(path.parent.name, args.seed)
        for index, version in enumerate(versions):
            if version.kind in held_out and part != "test":
                continue
            name = f"{number:05}_{path.stem}_{index}"
            Image.fromarray(version.image).save(Path(args.output) / part / "img" / f"{name}.png", compress_level=1)
            np.save(Path(args.output) / part / "landmark" / f"{name}.npy", version.points)
            parts[part].append((f"{name}.png", str(path), version.kind, version.strength))
    for part, rows in parts.items():
        write_part(Path(args.output) / part, rows, ends)
    return 0


def chosen(args: argparse.Namespace) -> list[Path]:
    """The photographs to take: at most `--limit` of each folder, drawn by the seed."""
    paths: list[Path] = []
    for folder in args.photos:
        found = [Path(path) for path in photographs([folder], args.without)]
        if not found:
            raise ValueError(f"{folder} holds no image")
        order = np.random.default_rng(args.seed).permutation(len(found))
        paths += [found[row] for row in sorted(order[: args.limit or len(found)])]
    return paths


def write_part(folder: Path, rows: Sequence[tuple[str, str, str, float]], ends: Ends) -> None:
    """label.json and damage.tsv of (picture, photograph, kind, strength)."""
    scores = [score_of(ends, kind, strength) for _, _, kind, strength in rows]
    write_text(folder / "label.json", json.dumps({"Image": [row[0] for row in rows], "MOS": scores}))
    lines = (f"{name}\t{source}\t{kind}\t{strength:.6f}\n" for name, source, kind, strength in rows)
    write_text(folder / "damage.tsv", "".join(["image\tphotograph\tkind\tstrength\n", *lines]))
    print(f"{folder}: {len(rows)} pictures")


def _made(
    args: argparse.Namespace, kinds: Sequence[str], held_out: Sequence[str], paths: Sequence[Path]
) -> Iterator[tuple[int, Path, list[Version]]]:
    prepare = partial(versions_of, args.size, kinds, held_out, args.versions, args.seed)
    loaded = load_batches(map(str, paths), prepare, CHUNK, args.workers, read_image)
    for number, (path, item) in enumerate(zip(paths, chain.from_iterable(loaded), strict=True)):
        if item.value is None:
            print(printable(f"left out: {path} ({item.status})"), file=sys.stderr)
        else:
            yield number, path, item.value


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "methods.dsl_fiqa.make_set", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )

    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    parser.add_argument("photos", nargs="+", help="folders with a sub-folder for each person")
    parser.add_argument("--limit", type=natural, default=0, help="photographs of each folder; 0: all (default)")
    parser.add_argument("--output", required=True)
    parser.add_argument("--kinds", type=names, default=[], help="degradations, with commas between them; default: all")
    parser.add_argument("--held-out", type=names, default=[], help="degradations of the test part only")
    parser.add_argument("--versions", type=positive, default=6, help="damaged ones of each photograph (default: 6)")
    parser.add_argument("--size", type=positive, default=128, help="side of the crops to be taken (default: 128)")
    parser.add_argument("--without", nargs="*", default=[], help="files that name folders to leave out, one a line")
    parser.add_argument("--seed", type=natural, default=20)
    parser.add_argument("--workers", type=natural, default=2)
    return parser.parse_args(arguments)


def main() -> int:
    """Exit code 0, 2 for a call that was wrong, 130 for Ctrl-C."""
    return exit_code(lambda: make_set(parse_arguments()), "stopped; the set is not complete: run it again")


if __name__ == "__main__":
    sys.exit(main())
