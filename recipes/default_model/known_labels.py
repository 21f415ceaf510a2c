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
from dataclasses import replace
from pathlib import Path, PurePosixPath

import torch

from faces.workers import load_batches
from labels.label_table import Label, read_labels, resolve, write_labels
from model import load
from model.fast import accelerate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("labels", help="table of generate_labels.py")
    parser.add_argument("damage", help="damage.tsv of make_faces.py")
    parser.add_argument("output", help="table for train.py, in the same folder as the first")
    parser.add_argument("--mfn", default="mfn", help="factor network (default: the one in weights/)")
    options = parser.parse_args()
    with open(options.damage, newline="", encoding="utf-8") as file:
        damage = {row["path"]: row for row in csv.DictReader(file, delimiter="\t")}
    labels = read_labels(options.labels)
    originals = judge_blur([label for label in labels if "~" not in label.path], options.labels, options.mfn)
    write_labels(options.output, [with_known(label, originals, damage) for label in labels])
    print(f"{Path(options.output)}: {len(labels)} rows, {len(labels) - len(originals)} of them damaged versions")


def name(label: Label) -> str:
    """Identity and file name without the ending and without what follows `~`."""
    path = PurePosixPath(label.path)
    return f"{path.parent.name}/{path.stem.split('~')[0]}"


@torch.inference_mode()
def judge_blur(labels: list[Label], table: str, mfn: str) -> dict[str, Label]:
    """The labels by `name`, with the blur that the factor network sees (its class 0, none, is our best level, 2)."""
    network, judged = load(mfn), []
    fast = accelerate(network, torch.float32, torch.device("cpu"))
    paths = [str(resolve(label, table)) for label in labels]
    for batch in load_batches(paths, network.preprocessing.resize, batch_size=64, workers=1):
        crops = torch.stack([torch.from_numpy(loaded.value) for loaded in batch])
        judged += (2 - fast(network.preprocessing.normalise(crops))["blur"].argmax(dim=1)).tolist()
    return {name(label): replace(label, blur=blur) for label, blur in zip(labels, judged, strict=True)}


def with_known(label: Label, originals: dict[str, Label], damage: dict[str, dict[str, str]]) -> Label:
    """A damaged version keeps its original's pose and expression and has the worse of both for the other factors."""
    original = originals[name(label)]
    done = damage.get("/".join(PurePosixPath(label.path).parts[-2:]))
    if done is None:
        return original
    factors = ("blur", "illumination", "occlusion")
    worse = {factor: min(getattr(original, factor), int(done[factor])) for factor in factors}
    return replace(label, pose=original.pose, expression=original.expression, status=original.status, **worse)


if __name__ == "__main__":
    main()
