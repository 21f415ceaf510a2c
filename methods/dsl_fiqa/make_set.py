"""Make a set in the published layout from photographs, rated by what was done to them and not by people.

    python -m methods.dsl_fiqa.make_set PHOTOS [MORE ...] --output SET --versions 6

PHOTOS is a folder with a sub-folder for each person. SET/train, SET/val and SET/test hold other people. Each photograph
is there undamaged, with the score 1, and in `--versions` damaged ones. A kind of `--held-out` is in the test part only.
SET/*/damage.tsv names photograph, kind and strength of each picture, SET/unseen.txt all people who must not train.

The score is the strength in place of an opinion, the same for all kinds. It falls linearly from 0.8 at strength 0,
which is barely visible, to 0 at strength 1, which leaves little of a face (faces/degradations.py).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from command_line import exit_code, natural, positive
from faces.degradations import degrade, require_photographic
from faces.dlib_models import largest_face
from faces.random_crops import fit
from faces.reader import read_image
from faces.workers import load_batches
from methods.dsl_fiqa.data import photographs
from model.files import names_in, printable, write_text

PARTS = (("train", 0.8), ("val", 0.05), ("test", 0.15))  # shares of the people
CHUNK = 16
UNDAMAGED = "none"  # in place of a kind
BEST_DAMAGED = 0.8  # score of a picture damaged with strength 0


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


def score_of(kind: str, strength: float) -> float:
    """The score in place of opinions, in [0, 1]: 1 for an undamaged picture."""
    return 1.0 if kind == UNDAMAGED else BEST_DAMAGED * (1 - strength)


def make_set(args: argparse.Namespace) -> int:
    """Exit code 0. Photographs in which no face is found, or that cannot be read, are reported and left out."""
    held_out = tuple(args.held_out)
    require_photographic(held_out)
    kinds = [kind for kind in require_photographic(tuple(args.kinds)) if kind not in held_out]
    if not kinds:
        raise ValueError("no kind is left to train on: hold fewer out")
    paths = chosen(args)
    people = sorted({path.parent.name for path in paths})
    parts: dict[str, list[tuple[str, str, str, float]]] = {name: [] for name, _ in PARTS}
    for part in parts:
        for sub in ("img", "landmark"):
            (Path(args.output) / part / sub).mkdir(parents=True, exist_ok=True)
    unseen = {name for name in people if part_of(name, args.seed) != "train"} | names_in(args.without)
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
        write_part(Path(args.output) / part, rows)
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


def write_part(folder: Path, rows: Sequence[tuple[str, str, str, float]]) -> None:
    """label.json and damage.tsv of (picture, photograph, kind, strength)."""
    scores = [score_of(kind, strength) for _, _, kind, strength in rows]
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
