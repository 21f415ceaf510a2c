"""Fit the calibration of the factors' probabilities, and store it in a checkpoint (model/calibration.py).

    python -m recipes.default_model.calibrate weights/clib_fiqa_tiny.safetensors --data ../shared/data

The faces are of people who trained nothing: LFW's training identities that are held out from the factor network
(`crops.identities`), and that have too few images to be in the label table of the default model. They are taken as
they are and in two damaged versions each, made as the recipe makes them. Their blur, occlusion and illumination are
known from what was done, their pose from dlib's landmarks, and their expression from human labels. No image of an LFW
test identity is read.

Expression gets weights too (`BORDERS`). Strong expressions are rare in training, so the network names too few of them
at a probability of 0.5. The border is where cross-fitting over the people that train calls 3 to 4 % of the everyday
smiles exaggerated (`reports/borders.py`).

The file is written again with the same tensors. Its sha256 changes: model/weights.py names the new one, and bands are
measured afterwards. Numbers that were measured of qualities stay true, those of probabilities do not.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from command_line import exit_code
from faces.pose import pose_class
from faces.reader import read_image
from model.calibration import LEAST, Calibration, Scaling
from model.checkpoint import read_checkpoint, save_checkpoint, sha256_of
from model.prompts import AXES, FACTORS
from recipes.default_model.crops import crop_paths, factor_rows, identities, read_crops
from recipes.default_model.landmarks import key_of, yaw_of
from recipes.default_model.make_faces import damage_once_or_twice
from scoring import Scorer

SET = "LFW training identities that trained nothing, clean and damaged"
FEWEST = 3  # images of an identity in the label table (make_faces.py, --min-images)
SEED = 323_323  # of the damage; the training's is another
BORDERS = {"expression": 0.28}  # probability of the worse level from which it is named
SCALES = np.geomspace(0.05, 20, 400).tolist()  # neighbours differ by 1.5 %


def unseen_people(data: Path) -> list[Path]:
    """The crops of held-out identities with too few images for the label table."""
    paths = crop_paths(data, identities(data, held_out=True))
    images = Counter(path.parent for path in paths)
    return [path for path in paths if images[path.parent] < FEWEST]


def known_levels(
    data: Path, cache: Path, paths: Sequence[Path], more: Sequence[Path]
) -> Iterator[tuple[np.ndarray, dict[str, int]]]:
    """Crops (112, 112, 3) and what is known of them: factor -> index into its levels. The expression is that of `more`,
    all else of `paths` and their damaged versions."""
    yaw = yaw_of(paths, cache)
    for index, path in enumerate(paths):
        crop = read_image(path)
        known = {"blur": 2, "occlusion": 1, "illumination": 1}
        if (angle := yaw[key_of(path)]) is not None:
            known["pose"] = pose_class(angle)
        yield crop, known
        for copy in (1, 2):
            rng = np.random.default_rng((SEED, index, copy))
            changed, (blur, illumination, occlusion), _ = damage_once_or_twice(crop, rng)
            yield changed, {"blur": blur, "occlusion": occlusion, "illumination": illumination}
    expressions = factor_rows(data, "expression_lfw", held_out=None)
    labels = {row["path"]: row["label"] for row in expressions}
    named = [(path, label) for path in more if (label := labels.get(path.relative_to(data).as_posix()))]
    for crop, (_, label) in zip(read_crops([path for path, _ in named]), named, strict=True):
        yield crop, {"expression": AXES["expression"].index(label)}


def fit_scaling(probabilities: np.ndarray, levels: np.ndarray, border: float = 0.5) -> Scaling:
    """Scales of the least cross-entropy: probabilities (N, levels) of the network, known levels (N,).

    The known levels are smoothed by Platt's rule, which keeps the scale finite where every face was seen right. A level
    that is never the most probable one keeps the scale 1. A `border` other than 0.5 is the probability from which the
    first of two levels is named: it becomes weights. Raises ValueError for a border between more than two levels.
    """
    if border != 0.5 and probabilities.shape[1] != 2:
        raise ValueError(f"a border of {border} is of two levels, and there are {probabilities.shape[1]}")
    weights = () if border == 0.5 else (round((1 - border) / border, 4), 1.0)
    target = torch.from_numpy(levels)
    inputs = torch.from_numpy(probabilities).clamp_min(LEAST) * torch.tensor(weights or 1.0, dtype=torch.float64)
    seen, scales = inputs.argmax(dim=1), []
    for level in range(inputs.shape[1]):
        rows = seen == level
        count = int(rows.sum())
        losses = [loss(inputs[rows], target[rows], scale) for scale in SCALES] if count else [0.0]
        scales.append(SCALES[int(np.argmin(losses))] if count else 1.0)
    return Scaling(tuple(round(scale, 4) for scale in scales), len(levels), weights)


def loss(probabilities: torch.Tensor, levels: torch.Tensor, scale: float) -> float:
    """Cross-entropy of rows (N, L) with one scale."""
    logits = scale * probabilities.clamp_min(LEAST).log()
    smoothing = 1 / (len(levels) + 2)
    return float(torch.nn.functional.cross_entropy(logits, levels, label_smoothing=smoothing))


def store_calibration(weights: Path, data: Path, cache: Path) -> Calibration:
    """Score the faces, fit the calibration and write it into the checkpoint."""
    if weights.suffix != ".safetensors":
        raise ValueError(f"{weights}: only .safetensors have metadata, and the calibration goes there")
    people = unseen_people(data)
    crops, known = map(list, zip(*known_levels(data, cache, people, people), strict=True))
    scores = Scorer(weights=weights, calibrated=False).score(crops)
    factors = {}
    for factor in FACTORS:
        rows = [i for i, one in enumerate(known) if factor in one]
        probabilities = np.array([list(scores[i].factors[factor].values()) for i in rows])
        levels = np.array([known[i][factor] for i in rows])
        factors[factor] = fit_scaling(probabilities, levels, BORDERS.get(factor, 0.5))
    calibration = Calibration(SET, factors)
    metadata = read_checkpoint(weights)[1]
    save_checkpoint(weights, load_file(weights), metadata | {"calibration": calibration.to_json()})
    return calibration


def run(args: argparse.Namespace) -> int:
    for weights in args.weights:
        before = sha256_of(weights)
        calibration = store_calibration(weights, args.data, args.cache)
        for factor, one in calibration.factors.items():
            scales = ", ".join(f"{level} {scale:.2f}" for level, scale in zip(AXES[factor], one.scales, strict=True))
            shown = f"; weights {', '.join(map(str, one.weights))}" if one.weights else ""
            print(f"{weights}: {factor} ({one.images} faces): {scales}{shown}")
        print(f"{weights}: sha256 {before} -> {sha256_of(weights)}")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("weights", nargs="+", type=Path, help="checkpoints, .safetensors")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="with faces/, factors/ and splits/")
    cache = Path("runs/landmarks.npz")
    parser.add_argument("--cache", type=Path, default=cache, help="dlib's landmarks of each face, found once")
    args = parser.parse_args(arguments)
    return exit_code(lambda: run(args), stopped="stopped; a checkpoint that is not named above is as it was")


if __name__ == "__main__":
    sys.exit(main())
