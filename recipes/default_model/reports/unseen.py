"""A test set with kinds of damage that no training used: other kinds than those of faces/degradations.py.

Every tenth face of LFW's test identities gets one of twelve kinds with a strength uniform in [0, 1]. The others stay as
they are. With every second face damaged, many non-mated pairs would share a kind of damage and look alike: the
threshold at FMR 1e-3 would rise, and nearly all mated pairs would fail. Names are kept, so pairs/lfw_test.tsv can be
used with embeddings and scores of the new folder.

    python -m recipes.default_model.reports.unseen --data ../shared/data --output runs/unseen
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import cv2
import numpy as np
from tqdm import tqdm

from command_line import exit_code, natural, positive
from faces.reader import read_image
from model.files import open_text, replacing
from recipes.default_model.crops import lfw_test_paths

SIZE, MIDDLE = 112, 55.5
JPEG = [cv2.IMWRITE_JPEG_QUALITY, 95, cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]

Generator = np.random.Generator


def mosaic(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Square blocks of 3 to 14 pixels, as a face is made anonymous."""
    side = round(SIZE / (3 + 11 * strength))
    small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
    return cv2.resize(small, (SIZE, SIZE), interpolation=cv2.INTER_NEAREST)


def smooth_skin(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """A beauty filter: a median over 5 to 17 pixels keeps edges and takes the texture."""
    return cv2.medianBlur(image, 5 + 2 * round(6 * strength))


def salt_and_pepper(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """2 to 30 % of the pixels black or white."""
    share = 0.02 + 0.28 * strength
    hit = rng.random((SIZE, SIZE, 1))
    return np.where(hit < share / 2, 0, np.where(hit < share, 255, image)).astype(np.uint8)


def haze(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Fog, or a dirty lens: the contrast falls to between 60 and 8 %."""
    keep = 0.6 * (0.08 / 0.6) ** strength
    return _clip(image * keep + (1 - keep) * rng.uniform(140, 230))


def zoom_blur(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """A step towards the camera during the exposure: the mean of eleven scales from 1 to 1.1 … 1.6."""
    scales = np.linspace(1, 1.1 + 0.5 * strength, 11)
    turned = [cv2.getRotationMatrix2D((MIDDLE, MIDDLE), 0, scale) for scale in scales]
    return _clip(np.mean([_warp(image, matrix) for matrix in turned], axis=0))


def glare(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """A lamp in the picture: a burnt disc of 8 to 40 pixels with a soft edge."""
    x, y = rng.uniform(20, 92, 2)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE]
    distance = np.hypot(columns - x, rows - y)
    light = 1 / (1 + np.exp((distance - (8 + 32 * strength)) / 4))
    return _clip(image + 255 * light[..., None])


def streaks(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Rain, twigs or a fence: 6 to 60 thin lines of one direction and grey."""
    changed, tilt, grey = image.copy(), rng.uniform(-30, 30), int(rng.uniform(0, 256))
    for x in rng.uniform(-20, 132, round(6 + 54 * strength)):
        top, bottom = rng.uniform(-30, 60), rng.uniform(50, 140)
        ends = (round(x), round(top)), (round(x + tilt * (bottom - top) / SIZE), round(bottom))
        cv2.line(changed, *ends, (grey,) * 3, int(rng.integers(1, 3)), cv2.LINE_AA)
    return changed


def cut_off(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """The edge of the picture runs through the face: 15 to 55 % of one side are black."""
    turns = int(rng.integers(4))
    turned = np.rot90(image, turns).copy()
    turned[: round(SIZE * (0.15 + 0.4 * strength))] = 0
    return np.ascontiguousarray(np.rot90(turned, -turns))


def double_exposure(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """The head has moved 3 to 18 pixels between two halves of the exposure."""
    angle, length = rng.uniform(0, 2 * np.pi), 3 + 15 * strength
    shift = np.array([[1, 0, length * np.cos(angle)], [0, 1, length * np.sin(angle)]])
    return _clip(0.5 * image + 0.5 * _warp(image, shift))


def posterise(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """8 to 2 grey levels a channel, as a photocopy has."""
    steps = round(8 * (2 / 8) ** strength) - 1
    return _clip(np.rint(image / 255 * steps) / steps * 255)


def ripple(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Hot air, or a bent pane: waves of 1 to 7 pixels."""
    rows, columns = np.mgrid[0:SIZE, 0:SIZE].astype(np.float32)
    height, phases, lengths = 1 + 6 * strength, rng.uniform(0, 2 * np.pi, 2), rng.uniform(15, 40, 2)
    x = columns + height * np.sin(2 * np.pi * rows / lengths[0] + phases[0])
    y = rows + height * np.sin(2 * np.pi * columns / lengths[1] + phases[1])
    return cv2.remap(image, x.astype(np.float32), y.astype(np.float32), cv2.INTER_LINEAR, None, cv2.BORDER_REFLECT_101)


def misaligned(image: np.ndarray, strength: float, rng: Generator) -> np.ndarray:
    """Landmarks that were not found well: turned by up to 40 degrees, scaled by up to 1.4, shifted by 16 pixels."""
    turn, scale = rng.choice([-1, 1]) * (5 + 35 * strength), 1.4 ** (strength * rng.uniform(-1, 1))
    matrix = cv2.getRotationMatrix2D((MIDDLE, MIDDLE), float(turn), float(scale))
    shift = np.pad(strength * rng.uniform(-16, 16, (2, 1)), ((0, 0), (2, 0)))
    return _warp(image, matrix + shift)


KINDS: dict[str, Callable[[np.ndarray, float, Generator], np.ndarray]] = {
    function.__name__: function
    for function in (
        *(mosaic, smooth_skin, salt_and_pepper, haze, zoom_blur, glare),
        *(streaks, cut_off, double_exposure, posterise, ripple, misaligned),
    )
}


def damage(index: int, path: Path, folder: Path, seed: int, every: int) -> tuple[str, str, float]:
    """Write a face into `folder`, one in `every` damaged; its name, the kind ("" for none) and the strength."""
    rng, image = np.random.default_rng((seed, index)), read_image(path)
    is_hit = index % every == every - 1
    kind, strength = (str(rng.choice(list(KINDS))), float(rng.uniform())) if is_hit else ("", 0.0)
    changed = KINDS[kind](image, strength, rng) if kind else image
    name = f"{path.parent.name}/{path.name}"
    (folder / path.parent.name).mkdir(parents=True, exist_ok=True)
    if not cv2.imwrite(str(folder / name), np.ascontiguousarray(changed[..., ::-1]), JPEG):
        raise OSError(f"{folder / name} cannot be written")
    return name, kind, strength


def run(options: argparse.Namespace) -> int:
    paths = lfw_test_paths(options.data)
    work = partial(damage, folder=options.output / "lfw", seed=options.seed, every=options.every)
    with ProcessPoolExecutor() as pool:
        rows = list(tqdm(pool.map(work, range(len(paths)), paths, chunksize=32), "unseen", len(paths), disable=None))
    with replacing(options.output / "damage.tsv") as temporary, open_text(temporary, "w") as file:
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(["path", "kind", "strength"])
        writer.writerows(rows)
    print(f"{options.output / 'lfw'}: {len(rows)} faces, {sum(bool(kind) for _, kind, _ in rows)} of them damaged")
    return 0


def _warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    return cv2.warpAffine(image, matrix, (SIZE, SIZE), flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)


def _clip(values: np.ndarray) -> np.ndarray:
    return np.clip(np.rint(values), 0, 255).astype(np.uint8)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with faces/ and splits/")
    parser.add_argument("--output", type=Path, default=Path("runs/unseen"), help="folder to fill")
    parser.add_argument("--every", type=positive, default=10, help="one face in so many is damaged (10)")
    parser.add_argument("--seed", type=natural, default=323)
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; the output folder is not complete")


if __name__ == "__main__":
    sys.exit(main())
