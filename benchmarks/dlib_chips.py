"""Ways from an aligned 112x112 crop to the 150x150 chip of dlib's FR network, by the errors of that network.

    python benchmarks/dlib_chips.py FACES          # a folder of identities, such as LFW's training identities
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import torch
from torch.nn import functional as F
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).parents[1]))

from evaluation.edc import fixed_threshold
from faces.dlib_models import dlib_file, face_detector, import_dlib, landmark_predictor
from faces.listing import list_images
from faces.reader import read_image
from faces.template import ARCFACE_POINTS, similarity_transform
from labels.anchors import identity_of
from labels.recognition import DLIB_EYES, DLIB_FILE
from model.dlib_resnet import read_dlib_resnet

SIDE = 150
WHOLE = (12, 20, 100, 108)  # the box that dlib's detector would draw on the template, on average
BORDERS = {"black": cv2.BORDER_CONSTANT, "replicated": cv2.BORDER_REPLICATE, "mirrored": cv2.BORDER_REFLECT_101}

Chip = Callable[[np.ndarray], np.ndarray]


def by_template(border: int) -> Chip:
    """One similarity for all crops, as labels/recognition.py does."""
    to_chip = similarity_transform(ARCFACE_POINTS[:2], DLIB_EYES)
    return lambda face: cv2.warpAffine(face, to_chip, (SIDE, SIDE), borderMode=border)


def by_landmarks(detect: bool) -> Chip:
    """As dlib does, by the landmarks of this face; looked for in the detector's box or always in the same one."""
    dlib, detector, predictor = import_dlib(), face_detector(), landmark_predictor()

    def chip(face: np.ndarray) -> np.ndarray:
        boxes = [*(detector(face, 2) if detect else ()), dlib.rectangle(*WHOLE)]
        return dlib.get_face_chip(face, predictor(face, boxes[0]), SIDE, 0.25)

    return chip


def non_match_rates(embeddings: np.ndarray, identities: np.ndarray, fmrs: tuple[float, ...]) -> list[float]:
    """FNMR at each FMR over all pairs of images."""
    unit = F.normalize(torch.from_numpy(embeddings), dim=1).numpy()
    a, b = np.triu_indices(len(unit), 1)
    similarity, mated = (unit @ unit.T)[a, b].astype(np.float64), identities[a] == identities[b]
    impostors = -np.sort(-similarity[~mated])
    return [float((similarity[mated] < fixed_threshold(impostors, fmr)).mean()) for fmr in fmrs]


def photographs(folder: Path, limit: int) -> tuple[list[Path], np.ndarray]:
    """Images of identities that have two or more, and their identities."""
    files = list_images(folder)
    identities = np.array([identity_of(str(file.relative_to(folder))) for file in files])
    _, identities, counts = np.unique(identities, return_inverse=True, return_counts=True)
    kept = np.flatnonzero(counts[identities] > 1)[:limit]
    return [files[index] for index in kept], identities[kept]


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=1200, help="of identities with two images or more")
    arguments = parser.parse_args()
    files, identities = photographs(arguments.folder, arguments.images)
    network = read_dlib_resnet(dlib_file(DLIB_FILE))
    ways: dict[str, Chip] = {"resized": lambda face: cv2.resize(face, (SIDE, SIDE))}
    ways |= {f"template's eyes, {name}": by_template(border) for name, border in BORDERS.items()}
    ways |= {"own landmarks": by_landmarks(detect=True), "own landmarks, fixed box": by_landmarks(detect=False)}
    for name, chip in ways.items():
        rows = []
        for start in tqdm(range(0, len(files), 32), desc=name, leave=False, disable=None):
            chips = np.stack([chip(read_image(file)) for file in files[start : start + 32]])
            rows.append(network(network.preprocessing.normalise(torch.from_numpy(chips))).numpy())
        at_1, at_01 = non_match_rates(np.concatenate(rows), identities, (1e-2, 1e-3))
        print(f"{name:28} FNMR {at_1:.4f} at FMR 1e-2, {at_01:.4f} at 1e-3", flush=True)


if __name__ == "__main__":
    main()
