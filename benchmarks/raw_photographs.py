"""Finding, aligning and scoring faces in photographs: how well, and how fast.

    python benchmarks/raw_photographs.py --data ../shared/data --results results
    python benchmarks/raw_photographs.py --every 6      # every sixth original only

The 1,200 originals of DATA/raw are searched as they are, turned by quarters (`--rotate auto`) and turned by 30 degrees.
Their points are compared with the reference points, and the default model's scores with those of the reference crops.
The crops are JPEG files, and LFW's lie up to a pixel beside, so that not even the reference points give their scores.
With `--folds A B`, the two networks of points that `recipes/raw_photographs/train_points.py --folds A B` wrote, each
original is measured with the one that did not learn its identity. Small faces, large pictures, pictures of 112x112
pixels that show an aligned face or not, and the speed follow.
"""

from __future__ import annotations

import argparse
import csv
import resource
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from scipy.stats import spearmanr

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from command_line import positive  # noqa: E402
from faces import detect as detector  # noqa: E402
from faces.degradations import KINDS, degrade  # noqa: E402
from faces.detect import Face, detect, is_plain, points_are_placed, shows_aligned_face  # noqa: E402
from faces.reader import read_image  # noqa: E402
from faces.template import ARCFACE_POINTS, SIZE, mapped, similarity_transform, warp, warped  # noqa: E402
from recipes.default_model.crops import lfw_test_paths  # noqa: E402
from recipes.default_model.reports.results import Cell, Column, Output, add_results_option  # noqa: E402
from recipes.raw_photographs.train_crop_check import MEASURED  # noqa: E402
from recipes.raw_photographs.train_points import composed, folds_of, originals, similarity  # noqa: E402
from scoring import Scorer  # noqa: E402

COLUMNS = [
    Column("photographs"),
    Column("originals"),
    Column("no face, %", "{:.2f}"),
    Column("another place, %", "{:.2f}"),
    Column("mean point error, % of the eye distance", "{:.1f}"),
    Column("rank correlation with the crops' scores", "{:.4f}"),
    Column("… aligned by the reference points", "{:.4f}"),
]
FOUND_COLUMNS = [Column("pictures"), Column("faces"), Column("found, %", "{:.1f}")]
CROP_COLUMNS = [
    Column("112x112"),
    Column("pictures"),
    Column("doubtful, %", "{:.1f}"),
    Column("looked at twice, %", "{:.1f}"),
    Column("doubtful by the second look alone, %", "{:.1f}"),
]
SPEED_COLUMNS = [
    Column("640x480"),
    Column("processor ms a photograph", "{:.0f}"),
    Column("photographs/s that two free cores allow", "{:.0f}"),
]
TURNS = ((0, "no"), (90, "auto"), (180, "auto"), (270, "auto"), (30, "no"), (-30, "no"))  # degrees, --rotate
CROPS = 1200  # of each set, with --every 1
BESIDE = 12.0  # mean distance in pixels of the points from the template's, from which on a picture is not aligned
PLACED = 0.5  # mean point error, in eye distances, from which on another face or none was found


class Original(NamedTuple):
    path: str
    points: np.ndarray
    fold: int


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("--data", type=Path, default=ROOT.parent / "shared" / "data", help="the data folder of docs/data.md")
    add("--every", type=positive, default=1, metavar="N", help="take every N-th original (default: all)")
    add("--turned-every", type=positive, default=1, metavar="N", help="turn every N-th of these only (default: all)")
    add("--detector", metavar="FILE.onnx", help="a detector of OpenCV's YuNet format; measures the turns only")
    add("--folds", nargs=2, metavar="FILE", help="networks of points that left out one half of the identities each")
    parts = ("turns", "sizes", "crops", "speed")
    add("--only", choices=parts, nargs="+", default=parts)
    add_results_option(parser)
    args = parser.parse_args(arguments)
    command = f"python benchmarks/raw_photographs.py{f' --every {args.every}' if args.every > 1 else ''}"
    command += f" --turned-every {args.turned_every}" if args.turned_every > 1 else ""
    command += " --folds LEFT_OUT_0 LEFT_OUT_1" if args.folds else ""
    command += f" --detector {Path(args.detector).name}" if args.detector else ""
    output = Output(args.results, command, ("clib-fiqa", "center-face", "face-points"))
    folds = folds_of(args.data)
    chosen = [Original(path, points, folds[path.split("/")[1]]) for path, points in originals(args.data)][:: args.every]
    if "turns" in args.only:
        rows = turned_rows(args.data, chosen, args.turned_every, args.folds, args.detector)
        name = "raw_photographs_yunet" if args.detector else "raw_photographs"
        output.add(name, "Photographs against their reference points and crops", COLUMNS, rows)
    if args.detector:
        return
    if "sizes" in args.only:
        use_points("face-points")
        rows = size_rows(args.data, chosen, args.every)
        output.add("raw_photographs_sizes", "Small faces, and faces in large pictures", FOUND_COLUMNS, rows)
    if "crops" in args.only:
        rows = crop_rows(args.data, chosen, CROPS // args.every, args.folds)
        of_check = replace(output, weights=(*output.weights, "crop-check"))
        of_check.add("raw_photographs_crops", "Pictures of 112x112 pixels: no aligned face", CROP_COLUMNS, rows)
    if "speed" in args.only:
        use_points("face-points")
        rows = speed_rows(args.data, chosen)
        output.add("raw_photographs_speed", "From photograph files to scores", SPEED_COLUMNS, rows)


# ---- turned originals -----------------------------------------------------------------------------------------------


def turned_rows(
    data: Path, chosen: Sequence[Original], turned_every: int, folds: Sequence[str] | None, yunet: str | None
) -> Iterator[list[Cell]]:
    scorer = Scorer("clib-fiqa", device="cpu")
    reference = qualities(scorer, [read_image(data / "faces" / original.path) for original in chosen])
    for degrees, rotate in TURNS:
        if degrees:
            chosen, reference, turned_every = chosen[::turned_every], reference[::turned_every], 1
        found: dict[int, tuple[float, np.ndarray]] = {}
        best: dict[int, np.ndarray] = {}
        for fold in (0, 1) if folds else (None,):
            if folds and fold is not None:
                use_points(folds[fold])
            for i, original in enumerate(chosen):
                if fold in (None, original.fold):
                    picture, points = turned(read_image(data / "raw" / original.path), original.points, degrees)
                    best[i] = warp(picture, points, ARCFACE_POINTS, SIZE)
                    face = nearest(detect(picture, rotate=rotate, only_largest=True, detector=yunet), points)
                    if face is not None:
                        found[i] = point_error(face.points, points), warp(picture, face.points, ARCFACE_POINTS, SIZE)
        right = [i for i, (error, _) in found.items() if error < PLACED]
        errors = [found[i][0] for i in right]
        rho, ceiling = (
            float(spearmanr(qualities(scorer, list(crops.values())), reference[list(crops)])[0])
            for crops in ({i: crop for i, (_, crop) in found.items()}, best)
        )
        count = len(chosen)
        name = f"turned by {degrees}°" + (", `--rotate auto`" if rotate == "auto" else "") if degrees else "as they are"
        shares = 100 * (count - len(found)) / count, 100 * (len(found) - len(right)) / count
        yield [name, count, *shares, 100 * float(np.mean(errors)), rho, ceiling]


def use_points(file: str) -> None:
    """Let the detector use this network of points."""
    detector.POINTS = file
    detector._face_points.cache_clear()


def turned(rgb: np.ndarray, points: np.ndarray, degrees: float) -> tuple[np.ndarray, np.ndarray]:
    """A picture turned about its middle, all of it kept, with grey corners; and its points."""
    height, width = rgb.shape[:2]
    cosine, sine = (abs(f(np.deg2rad(degrees))) for f in (np.cos, np.sin))
    new = round(width * cosine + height * sine), round(width * sine + height * cosine)
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1)
    matrix[:, 2] += (np.array(new) - (width, height)) / 2
    border = (128, 128, 128)
    return cv2.warpAffine(rgb, matrix, new, flags=cv2.INTER_CUBIC, borderValue=border), mapped(points, matrix)


def nearest(faces: Sequence[Face], points: np.ndarray) -> Face | None:
    """The one that was found, or of several the one that the reference means."""
    return min(faces, key=lambda face: point_error(face.points, points), default=None)


def point_error(found: np.ndarray, points: np.ndarray) -> float:
    """Mean distance of the five points, in eye distances; of a profile, whose eyes coincide, in half the face."""
    eyes = float(np.linalg.norm(points[0] - points[1]))
    return float(np.linalg.norm(found - points, axis=1).mean() / max(eyes, np.ptp(points, axis=0).max() / 2))


def qualities(scorer: Scorer, crops: Sequence[np.ndarray]) -> np.ndarray:
    return np.array([score.quality for score in scorer.score(list(crops))])


# ---- small faces, large pictures ------------------------------------------------------------------------------------


def size_rows(data: Path, chosen: Sequence[Original], every: int) -> Iterator[list[Cell]]:
    for name, side, canvas, count in (
        ("640x480, faces of 80 pixels", 80, (480, 640), 200),
        ("640x480, faces of 40 pixels", 40, (480, 640), 200),
        ("640x480, faces of 32 pixels", 32, (480, 640), 200),
        ("4000x3000, faces of 112 pixels", 112, (3000, 4000), 24),
    ):
        count = max(8, count // every)
        some = chosen[:: max(1, len(chosen) // count)][:count]
        rng = np.random.default_rng(0)
        right = [is_found_in(canvas, side, read_image(data / "raw" / one.path), one.points, rng) for one in some]
        yield [name, len(some), 100 * float(np.mean(right))]


def is_found_in(
    canvas: tuple[int, int], side: int, rgb: np.ndarray, points: np.ndarray, rng: np.random.Generator
) -> bool:
    """Whether the face is found in a picture of this height and width, where it has about `side` pixels."""
    picture, points = pasted(canvas, side, rgb, points, rng)
    face = nearest(detect(picture, only_largest=True), points)
    return face is not None and point_error(face.points, points) < PLACED


def pasted(
    canvas: tuple[int, int], side: int, rgb: np.ndarray, points: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """The original in a smooth grey picture; `side` is the height of the face, 2.7 times the way from eyes to mouth."""
    scale = side / (2.7 * float(np.linalg.norm(points[:2].mean(axis=0) - points[3:].mean(axis=0))))
    height, width = (max(1, round(n * scale)) for n in rgb.shape[:2])
    small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    small = small[: canvas[0], : canvas[1]]
    picture = np.full((*canvas, 3), 128, np.uint8)
    top, left = (int(rng.integers(0, n - m + 1)) for n, m in zip(canvas, small.shape[:2], strict=True))
    picture[top : top + small.shape[0], left : left + small.shape[1]] = small
    return picture, (points + 0.5) * scale - 0.5 + (left, top)


# ---- aligned crops --------------------------------------------------------------------------------------------------


def crop_rows(
    data: Path, chosen: Sequence[Original], count: int, folds: Sequence[str] | None
) -> Iterator[list[Cell]]:
    """How many crops, and how many pictures that are none, `shows_aligned_face` doubts. They are of people that the
    small network has never seen, nor the network of points when there are `folds`."""
    use_points(folds[MEASURED] if folds else "face-points")
    fold_of, rng = folds_of(data), np.random.default_rng(0)
    lfw = [read_image(path) for path in evenly(lfw_test_paths(data), count)]
    celeba = sorted((data / "faces" / "celeba").glob("*/*.jpg"))
    yield doubtful_row("aligned crops of LFW's test identities", lfw)
    damaged = [degrade(crop, str(rng.choice(list(KINDS))), rng.uniform(0, 1), rng) for crop in lfw]
    yield doubtful_row("aligned crops of LFW's test identities, damaged", damaged)
    some = evenly([path for path in celeba if fold_of[path.parent.name] == MEASURED], count)
    yield doubtful_row("aligned crops of CelebA", [read_image(path) for path in some])
    yield doubtful_row("aligned profiles of CFP", list(profiles(data, fold_of)))
    chosen = [one for one in chosen if one.fold == MEASURED]
    crops = [read_image(data / "faces" / one.path) for one in chosen]
    yield doubtful_row("aligned crops, upside down", [np.ascontiguousarray(np.rot90(crop, 2)) for crop in crops])
    yield doubtful_row("aligned crops, moved by half their side", [np.roll(crop, 56, axis=1) for crop in crops])
    for name, degrees, scale in (("turned by 45°", 45, 1.0), ("half as large", 0, 0.5), ("twice as large", 0, 2.0)):
        yield doubtful_row(f"faces {name}", [wrongly_aligned(data, one, degrees, scale) for one in chosen])
    yield doubtful_row("photographs reduced to 112x112", list(reduced(data, chosen)))
    yield doubtful_row("parts of photographs beside the face", list(beside_faces(data, chosen, rng)))
    noise = [rng.integers(0, 256, (SIZE, SIZE, 3), dtype=np.uint8) for _ in range(count // 4)]
    yield doubtful_row("noise", noise)
    yield doubtful_row("smooth colours", [smooth(rng) for _ in range(count // 4)])


def evenly(paths: Sequence[Path], count: int) -> Sequence[Path]:
    """About `count` of the paths, or all when there are fewer."""
    return paths[:: max(1, len(paths) // count)]


def doubtful_row(name: str, pictures: Sequence[np.ndarray]) -> list[Cell]:
    checks = shows_aligned_face, is_plain, points_are_placed
    shares = [100 * float(np.mean([not check(picture) for picture in pictures])) for check in checks]
    return [name, len(pictures), *shares]


def profiles(data: Path, fold_of: Mapping[str, int]) -> Iterator[np.ndarray]:
    """CFP's profiles of the people who are left out."""
    with open(data / "faces" / "cfp_identities.tsv", encoding="utf-8") as file:
        for person in csv.DictReader(file, delimiter="\t"):
            for path in sorted((data / "faces" / "cfp" / person["cfp"]).glob("p*.jpg")):
                if fold_of.get(person["lfw"]) == MEASURED:
                    yield read_image(path)


def wrongly_aligned(data: Path, one: Original, degrees: float, scale: float) -> np.ndarray:
    """A crop of an original in which the face is turned, or too small or too large."""
    matrix = composed(similarity(degrees, scale, np.zeros(2)), similarity_transform(one.points, ARCFACE_POINTS))
    return warped(read_image(data / "raw" / one.path), matrix, SIZE)


def reduced(data: Path, chosen: Sequence[Original]) -> Iterator[np.ndarray]:
    """Whole photographs, without those in which the face lies by chance where the template has it."""
    for one in chosen:
        rgb = read_image(data / "raw" / one.path)
        points = (one.points + 0.5) * SIZE / np.array(rgb.shape[1::-1]) - 0.5
        if np.linalg.norm(points - ARCFACE_POINTS, axis=1).mean() > BESIDE:
            yield cv2.resize(rgb, (SIZE, SIZE), interpolation=cv2.INTER_AREA)


def beside_faces(
    data: Path, chosen: Sequence[Original], rng: np.random.Generator
) -> Iterator[np.ndarray]:
    """A square of each photograph that has room for one beside the face: clothes, hair, walls, landscapes."""
    for one in chosen:
        rgb = read_image(data / "raw" / one.path)
        left, right = one.points[:, 0].min(), one.points[:, 0].max()
        reach = 0.6 * (right - left)
        room = max((0, int(left - reach)), (int(right + reach), rgb.shape[1]), key=lambda ends: ends[1] - ends[0])
        side = min(room[1] - room[0], rgb.shape[0])
        if side >= 40:
            top = int(rng.integers(0, rgb.shape[0] - side + 1))
            yield cv2.resize(rgb[top : top + side, room[0] : room[0] + side], (SIZE, SIZE))


def smooth(rng: np.random.Generator) -> np.ndarray:
    noise = cv2.GaussianBlur(rng.normal(0, 60, (SIZE, SIZE, 3)), (0, 0), rng.uniform(2, 20))
    return np.clip(noise * rng.uniform(1, 12) + rng.integers(0, 256, 3), 0, 255).astype(np.uint8)


# ---- speed ----------------------------------------------------------------------------------------------------------


def speed_rows(data: Path, chosen: Sequence[Original], count: int = 64) -> Iterator[list[Cell]]:
    """Processor time of `Scorer.stream` over JPEG files, with two reading processes. The rate is two seconds of
    processors divided by it, so that other work on the machine does not count."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        rng, paths = np.random.default_rng(0), []
        for i, one in enumerate(chosen[:count]):
            picture, _ = pasted((480, 640), 200, read_image(data / "raw" / one.path), one.points, rng)
            paths.append(f"{folder}/{i}.jpg")
            Image.fromarray(picture).save(paths[-1], quality=92)
        for rotate in ("no", "auto"):
            scorer = Scorer("clib-fiqa", device="cpu", rotate=rotate)
            for _ in scorer.stream(paths[:4], workers=0):  # everything is loaded before the clock starts
                pass
            before = processor_seconds()
            done = sum(1 for _ in scorer.stream(paths, workers=2))
            used = processor_seconds() - before
            yield [f"`--rotate {rotate}`", 1000 * used / done, 2 * done / used]


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


if __name__ == "__main__":
    main()
