"""Put what is known of damaged versions into a label table: what was done to them, and the rest from their originals.

`generate_labels.py` labels every image as it finds it, as published. On a damaged version dlib often finds no face, so
the table would call a blurred frontal face a profile; here we know better. The published blur measure, the mean Sobel
gradient, calls most sharp crops of 112 pixels blurry (seven in ten of LFW); the factor network's blur head, which
learned from blur of known strength, judges the originals instead. Qualities stay as they are.

    python -m recipes.default_model.known_labels runs/default/faces.tsv runs/default/damage.tsv runs/default/train.tsv
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch

from command_line import exit_code
from faces.workers import load_batches
from labels.anchors import photo_of
from labels.label_table import Label, read_labels, resolve, write_labels
from model import load
from model.fast import accelerate
from model.files import open_text


def run(options: argparse.Namespace) -> int:
    """Write the table options.output."""
    with open_text(options.damage) as file:
        damage = {row["path"]: row for row in csv.DictReader(file, delimiter="\t")}
    labels = read_labels(options.labels)
    originals = judge_blur([label for label in labels if "~" not in label.path], options.labels, options.mfn)
    write_labels(options.output, [with_known(label, originals, damage) for label in labels])
    print(f"{Path(options.output)}: {len(labels)} rows, {len(labels) - len(originals)} of them damaged versions")
    return 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: `command_line.exit_code`."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("labels", help="table of generate_labels.py")
    parser.add_argument("damage", help="damage.tsv of make_faces.py")
    parser.add_argument("output", help="table for train.py, in the same folder as the first")
    parser.add_argument("--mfn", default="mfn", help="factor network (default: the one in weights/)")
    options = parser.parse_args(arguments)
    return exit_code(lambda: run(options), stopped="stopped; nothing was written")


def image_of(label: Label) -> str:
    """The path of an image below the folder of faces, as generate_labels.py and make_faces.py know it: `b/ann/1~2.png`.

    Raises ValueError for a row without an identity, which is the path of its folder."""
    if label.identity is None:
        raise ValueError(f"{label.path} has no identity; a table of generate_labels.py was expected")
    return f"{label.identity}/{PurePosixPath(label.path).name}"


@torch.inference_mode()
def judge_blur(labels: list[Label], table: str, mfn: str) -> dict[str, Label]:
    """The labels by photograph, with the blur that the factor network sees: its class 0, none, is our best level, 2.

    Raises ValueError when an image cannot be read."""
    network, judged = load(mfn), []
    fast = accelerate(network, torch.float32, torch.device("cpu"))
    paths = [str(resolve(label, table)) for label in labels]
    for batch in load_batches(paths, network.preprocessing.resize, batch_size=64, workers=1):
        if bad := [loaded for loaded in batch if loaded.value is None]:
            raise ValueError(f"{bad[0].path} is {bad[0].status}; label the faces anew, so that it has no row")
        crops = torch.stack([torch.from_numpy(loaded.value) for loaded in batch])
        judged += (2 - fast(network.preprocessing.normalise(crops))["blur"].argmax(dim=1)).tolist()
    return {photo_of(image_of(label)): replace(label, blur=blur) for label, blur in zip(labels, judged, strict=True)}


def with_known(label: Label, originals: dict[str, Label], damage: dict[str, dict[str, str]]) -> Label:
    """A damaged version keeps its original's pose and expression and has the worse of both for the other factors.

    Raises ValueError when the original is missing."""
    original = originals.get(photo_of(image_of(label)))
    if original is None:
        raise ValueError(f"{label.path} is a version of a photograph that has no row in the table")
    done = damage.get(image_of(label))
    if done is None:
        return original
    factors = ("blur", "occlusion", "illumination")
    worse = {factor: min(getattr(original, factor), int(done[factor])) for factor in factors}
    return replace(label, pose=original.pose, expression=original.expression, status=original.status, **worse)


if __name__ == "__main__":
    sys.exit(main())
