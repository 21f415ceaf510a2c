"""The label table of the faces that the default model learns from: what is known of them, and the rest from networks.

- Blur, occlusion, illumination and expression of an original of LFW and CelebA are what the factor network sees. (The
  published blur measure, the mean Sobel gradient, calls seven in ten of LFW's crops of 112 pixels blurry.) Of other
  sets, whose borders and lights it does not know, only the blur counts: it calls half of the painted masks extremely
  lit, and one in six of CFP's faces obstructed.
- Pose comes from dlib's landmarks, as published. Where dlib finds no face, the pose head of the factor network tells
  profiles from frontal faces. CFP says which of its faces are frontal and which are profiles.
- Expression: LFW's human labels. A smile is an exaggerated expression when the mouth is wide open, else typical
  (`smile_label`). What the network calls exaggerated without a human label must show an open mouth as well.
- The labels of factors/ hold for its faces.
- A damaged version has the pose and expression of its original and the worse of both for the other factors.

Qualities are left empty for recipes.default_model.anchors.

    python -m recipes.default_model.known_labels runs/default --data ../shared/data
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from command_line import exit_code
from faces.pose import euler_angles, pose_class
from faces.workers import load_batches
from labels.anchors import photo_of
from labels.label_table import Label, write_labels
from model import load
from model.fast import accelerate
from model.files import open_text
from model.prompts import AXES
from recipes.default_model.crops import factor_rows, is_oblique
from recipes.default_model.landmarks import OPEN, landmarks_of, mouth_opening

SIZE = 112
HELD = ("occlusion_real", "occlusion", "illumination", "illumination_b", "expression")  # of factors/, labels by subject


def run(options: argparse.Namespace) -> int:
    """Write known.tsv into the folder of faces."""
    folder, data = options.folder, options.data
    originals = read_rows(folder / "originals.tsv")
    damage = read_rows(folder / "damage.tsv")
    seen = judge([str(folder / row["path"]) for row in originals], options.mfn)
    points = landmarks_of([data / row["source"] for row in originals], folder / "landmarks.npz")
    known = known_levels(data)
    labels = {}
    for row, levels in zip(originals, seen, strict=True):
        label = label_of(row, levels, points[row["source"]], known.get(row["source"], {}))
        labels[photo_of(row["path"])] = label
    table = [*labels.values(), *(with_damage(row, labels) for row in damage)]
    write_labels(folder / "known.tsv", sorted(table, key=lambda label: label.path))
    print(f"{folder / 'known.tsv'}: {len(table)} rows, {len(damage)} of them versions")
    return 0


def label_of(
    row: Mapping[str, str], seen: Mapping[str, int], points: np.ndarray | None, known: Mapping[str, int]
) -> Label:
    """The row of an original. `seen`: what the factor network sees. `known`: levels that people or angles say; a level
    of -1 is a smile."""
    levels = dict(seen)
    if points is not None:
        levels["pose"] = pose_class(euler_angles(points, SIZE, SIZE)[1])
    name = Path(row["path"]).name
    if name.startswith("cfp_"):
        levels["pose"] = 0 if name.startswith("cfp_p") else len(AXES["pose"]) - 1
    opening = None if points is None else mouth_opening(points)
    if name.startswith("cfp_") or not row["identity"]:
        levels |= {"occlusion": 1, "illumination": 1, "expression": 1}
    levels |= known
    if levels["expression"] == -1:
        levels["expression"] = smile_label(opening)
    elif "expression" not in known and (opening is None or opening < OPEN):
        levels["expression"] = 1
    return Label(row["path"], None, **levels, identity=row["identity"] or None, status="ok")


def smile_label(opening: float | None) -> int:
    """Exaggerated (0) for a smile with an open mouth, else typical (1)."""
    return int(opening is None or opening < OPEN)


def known_levels(data: Path) -> dict[str, dict[str, int]]:
    """Path below the data folder -> the levels that a table of factors/ gives it."""
    known: dict[str, dict[str, int]] = {}
    for name in (*HELD, "expression_lfw"):
        factor = name.split("_")[0]
        # All of LFW's training identities: a held-out one in this table has its human labels too, not a guess.
        for row in factor_rows(data, name, held_out=None if name == "expression_lfw" else False):
            level = AXES[factor].index(row["label"]) if row["label"] else None
            if name == "expression_lfw" and row["condition"] == "happiness":
                level = -1
            elif name == "illumination_b" and is_oblique(row):
                level = 0
            if level is not None:
                known.setdefault(row["path"], {})[factor] = level
    return known


@torch.inference_mode()
def judge(paths: Sequence[str], mfn: str) -> list[dict[str, int]]:
    """What the factor network sees in each image, as levels of AXES. Of its two poses, the one beside the profile is
    taken for frontal, and half of its three occlusions for obstructed. Raises ValueError for an unreadable image."""
    network = load(mfn)
    fast = accelerate(network, torch.float32, torch.device("cpu"))
    found: list[dict[str, int]] = []
    for batch in load_batches(paths, network.preprocessing.resize, batch_size=64, workers=1):
        if bad := [loaded for loaded in batch if loaded.value is None]:
            raise ValueError(f"{bad[0].path} is {bad[0].status}; make the faces anew")
        crops = torch.stack([torch.from_numpy(loaded.value) for loaded in batch])
        classes = {head: logits.argmax(dim=1) for head, logits in fast(network.preprocessing.normalise(crops)).items()}
        levels = {
            "blur": 2 - classes["blur"],
            "occlusion": (classes["occlusion"] == 0).long(),
            "illumination": 1 - classes["illumination"],
            "expression": 1 - classes["expression"],
            "pose": 2 * (1 - classes["pose"]),
        }
        found += [
            {factor: int(values[i]) for factor, values in levels.items()} for i in range(len(batch))
        ]
    return found


def with_damage(row: Mapping[str, str], originals: Mapping[str, Label]) -> Label:
    """The row of a version. Raises ValueError when its original is missing."""
    original = originals.get(photo_of(row["path"]))
    if original is None:
        raise ValueError(f"{row['path']} is a version of a photograph that has no row in the table")
    factors = ("blur", "occlusion", "illumination")
    worse = {factor: min(getattr(original, factor), int(row[factor])) for factor in factors}
    return replace(original, path=row["path"], **worse)


def read_rows(path: Path) -> list[dict[str, str]]:
    """A table of make_faces.py."""
    with open_text(path) as file:
        return list(csv.DictReader(file, delimiter="\t"))


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: `command_line.exit_code`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="folder of make_faces.py")
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with factors/")
    parser.add_argument("--mfn", default="mfn", help="factor network (default: the one in weights/)")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options), stopped="stopped; nothing was written")


if __name__ == "__main__":
    sys.exit(main())
