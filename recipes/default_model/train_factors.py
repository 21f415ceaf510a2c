"""Train the small factor network (MFN) that `generate_labels.py` uses, since the published one's training is lost.

CLIB-FIQA (CVPR 2024) labels expression, illumination and occlusion with a MobileFaceNet of five heads trained on
WIDER FACE. This one learns the same five heads from data that can be obtained:

* expression from human labels on LFW's training identities and the posed Yale faces,
* illumination from Yale's side lights and from synthetic darkness, over-exposure, side light and coloured light,
* occlusion (none, partial, heavy) from painted masks and from synthetic occluders of known size,
* blur from synthetic blur of known strength,
* pose (|yaw| up to 25 degrees, or more) from dlib's landmarks on the clean crops.

The trunk starts from a face recognition network of the same shape, its ReLU6 turned into PReLU.

    python -m recipes.default_model.train_factors --data ../shared/data --output weights/mfn_small.safetensors
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from command_line import exit_code, natural, positive
from faces.degradations import HEAVY_OCCLUSION, KINDS, covered_share, degrade
from model.checkpoint import read_checkpoint, save_checkpoint
from model.mobilefacenet import HEADS, FactorNetwork
from model.preprocessing import FACE_PREPROCESSING
from recipes.default_model.crops import crop_paths, factor_rows, identities, read_crops
from recipes.default_model.landmarks import yaw_of

UNKNOWN, COVERED = -1, -2  # no label; occluded, but how much is not known
SIDE_YAW = 25.0  # degrees


def run(options: argparse.Namespace) -> int:
    cv2.setNumThreads(0)  # its thread pool does not survive the fork of the workers
    torch.manual_seed(options.seed)
    data = Path(options.data)
    crops, labels = training_set(data, Path(options.cache))
    held_out_crops, held_out_labels = held_out_set(data, Path(options.cache))
    network = start_network(data / "fr" / "mobilefacenet_foamliu.safetensors").to(memory_format=torch.channels_last)
    optimiser = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=1e-3)
    steps = options.epochs * (options.samples // options.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.lr, total_steps=steps, pct_start=0.1)
    batches = torch.utils.data.DataLoader(
        Samples(crops, labels, options), batch_size=None, num_workers=options.workers, prefetch_factor=4
    )
    forward = torch.compile(network) if options.compile else network
    running = None
    for step, (images, targets) in enumerate(tqdm(batches, total=steps, desc="factor network", unit="step")):
        network.train()
        loss = factor_loss(forward(FACE_PREPROCESSING.normalise(images)), targets)
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 5.0)
        optimiser.step()
        schedule.step()
        running = loss.item() if running is None else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % (options.samples // options.batch_size) == 0 or step + 1 == steps:
            accuracy = balanced_accuracy(network, held_out_crops, held_out_labels)
            tqdm.write(json.dumps({"step": step + 1, "loss": round(running, 4), **accuracy}))
            save(network, options, accuracy)
    return 0


def parse_options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="../shared/data", help="folder with faces/, factors/, fr/ and splits/")
    parser.add_argument("--output", default="weights/mfn_small.safetensors", help="where the network goes")
    parser.add_argument("--cache", default="runs/landmarks.npz", help="dlib's landmarks of each crop, found once")
    parser.add_argument("--epochs", type=positive, default=5, help="passes of --samples (5)")
    parser.add_argument("--samples", type=positive, default=6400, help="training samples a pass (6400)")
    parser.add_argument("--batch-size", type=positive, default=64)
    parser.add_argument("--workers", type=natural, default=1, help="processes that make samples")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True, help="about 1.5 times faster")
    parser.add_argument("--seed", type=natural, default=323)
    return parser.parse_args(arguments)


def start_network(trunk_file: Path) -> FactorNetwork:
    """A factor network whose trunk takes over the shapes it shares with the FR network; the rest is fresh."""
    network = FactorNetwork()
    source, _ = read_checkpoint(trunk_file)
    blocks = ["conv_23", *(f"conv_3.model.{i}" for i in range(4)), "conv_34"]
    blocks += [*(f"conv_4.model.{i}" for i in range(6)), "conv_45", *(f"conv_5.model.{i}" for i in range(2))]
    pairs = {"conv1": ("conv1.0", "conv1.1"), "conv2_dw": ("dw_conv.depthwise", "dw_conv.bn1")}
    pairs["conv_6_sep"] = ("conv2.0", "conv2.1")
    for index, block in enumerate(blocks):
        layer = f"features.{index}.conv"
        pairs[f"{block}.conv"] = (f"{layer}.0.0", f"{layer}.0.1")
        pairs[f"{block}.conv_dw"] = (f"{layer}.1.0", f"{layer}.1.1")
        pairs[f"{block}.project"] = (f"{layer}.2", f"{layer}.3")
    tensors = network.state_dict()
    for unit, (convolution, norm) in pairs.items():
        tensors[f"base_backbone.{unit}.conv.weight"] = source[f"{convolution}.weight"]
        for part in ("weight", "bias", "running_mean", "running_var"):
            tensors[f"base_backbone.{unit}.bn.{part}"] = source[f"{norm}.{part}"]
    for key in tensors:
        if key.endswith("prelu.weight"):
            tensors[key] = torch.full_like(tensors[key], 0.05)
    network.load_state_dict(tensors)
    return network


# ---- labels ---------------------------------------------------------------------------------------------------------


def training_set(data: Path, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """Crops (N, 112, 112, 3) and labels (N, 5) in the order of HEADS, without the held-out identities and subjects."""
    return _labelled_set(data, cache, held_out=False)


def held_out_set(data: Path, cache: Path) -> tuple[np.ndarray, np.ndarray]:
    """The same for held-out identities, each LFW crop once as it is and once damaged, with a fixed seed."""
    crops, labels = _labelled_set(data, cache, held_out=True)
    damaged = [damage(crops[i], labels[i], np.random.default_rng(i)) for i in range(len(crops))]
    damaged_crops, damaged_labels = map(np.stack, zip(*damaged, strict=True))
    return np.concatenate([crops, damaged_crops]), np.concatenate([labels, damaged_labels])


def _labelled_set(data: Path, cache: Path, held_out: bool) -> tuple[np.ndarray, np.ndarray]:
    paths = crop_paths(data, identities(data, held_out))
    yaw = yaw_of(crop_paths(data, identities(data)) + crop_paths(data, identities(data, held_out=True)), cache)
    smiles = {row["path"]: row["label"] for row in factor_rows(data, "expression_lfw", None)}
    labels = []
    for path in paths:
        angle = yaw[str(path.relative_to(data))]
        expression = smiles.get(str(path.relative_to(data)), "")
        pose = UNKNOWN if angle is None else int(abs(angle) > SIDE_YAW)
        labels.append([0, UNKNOWN if not expression else int(expression != "typical expression"), 0, 0, pose])
    for file, head in (("occlusion", 3), ("illumination", 2), ("expression", 1)):
        for row in factor_rows(data, file, held_out):
            label = [UNKNOWN] * 5
            label[head] = {
                "obstructed": COVERED, "unobstructed": 0, "normal lighting": 0, "extreme lighting": 1,
                "typical expression": 0, "exaggerated expression": 1,
            }[row["label"]]
            paths.append(data / row["path"])
            labels.append(label)
    return read_crops(paths), np.array(labels, np.int64)


# ---- samples --------------------------------------------------------------------------------------------------------


class Samples(torch.utils.data.IterableDataset):
    """Endless random batches: (uint8 (B, 112, 112, 3), labels (B, 5)). Rare labels are drawn more often."""

    def __init__(self, crops: np.ndarray, labels: np.ndarray, options: argparse.Namespace) -> None:
        self.crops, self.labels = torch.from_numpy(crops), labels
        self.batches = options.epochs * (options.samples // options.batch_size)
        self.batch_size, self.seed = options.batch_size, options.seed
        weights = np.ones(len(labels))
        for head, share in ((1, 0.15), (2, 0.05), (3, 0.10), (4, 0.10)):  # share of a batch that shows the bad class
            rare = (labels[:, head] == 1) | (labels[:, head] == COVERED)
            weights[rare] = np.maximum(weights[rare], share * len(labels) / max(1, rare.sum()))
        self.odds = weights / weights.sum()

    def __iter__(self):
        worker = torch.utils.data.get_worker_info()
        number, count = (worker.id, worker.num_workers) if worker else (0, 1)
        for batch in range(number, self.batches, count):
            rng = np.random.default_rng((self.seed, batch))
            chosen = rng.choice(len(self.labels), self.batch_size, p=self.odds)
            made = [damage(self.crops[i].numpy(), self.labels[i], rng) for i in chosen]
            yield torch.from_numpy(np.stack([m[0] for m in made])), torch.from_numpy(np.stack([m[1] for m in made]))


def damage(crop: np.ndarray, label: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Vary a crop and damage two of three by one or two kinds; the labels follow what was done."""
    label = label.copy()
    image = _vary(crop, rng)
    kinds = rng.choice(list(KINDS), rng.choice([0, 1, 2], p=[0.35, 0.45, 0.2]), replace=False)
    order = sorted(kinds, key=lambda kind: KINDS[kind][1] != "occlusion")  # what stands before the face comes first
    for kind in order:
        strength, before = rng.uniform(), image
        image = degrade(image, kind, strength, rng)
        factor = KINDS[kind][1]
        if factor == "blur" and label[0] != UNKNOWN:
            label[0] = max(label[0], 1 if strength < 0.4 else 2)
        elif factor == "illumination":
            label[2] = 1 if strength >= 0.2 or label[2] == 1 else UNKNOWN
        elif factor == "occlusion":
            label[3] = max(label[3], 1, 2 if covered_share(before, image) > HEAVY_OCCLUSION else 1)
        if factor == "occlusion" or strength > 0.6:  # a hidden or ruined expression teaches nothing
            label[1] = UNKNOWN
    return np.ascontiguousarray(image), label


def _vary(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """What no label depends on: mirror, grey, a shift of up to 4 pixels, mild tone and compression."""
    image = crop[:, ::-1] if rng.uniform() < 0.5 else crop
    if rng.uniform() < 0.2:
        image = np.repeat(cv2.cvtColor(np.ascontiguousarray(image), cv2.COLOR_RGB2GRAY)[..., None], 3, axis=2)
    turn = cv2.getRotationMatrix2D((56, 56), rng.normal(0, 4), rng.uniform(0.94, 1.08))
    turn[:, 2] = turn[:, 2] + rng.uniform(-4, 4, 2)
    image = cv2.warpAffine(np.ascontiguousarray(image), turn, (112, 112), borderMode=cv2.BORDER_REPLICATE)
    gain = rng.uniform(0.85, 1.15, (1, 1, 3) if rng.uniform() < 0.3 else ())
    return np.clip(255 * (image / 255.0) ** rng.uniform(0.75, 1.35) * gain, 0, 255).astype(np.uint8)


def factor_loss(logits: dict[str, Tensor], targets: Tensor) -> Tensor:
    """Sum over the heads of the cross-entropy of the samples that have a label; COVERED asks for either class > 0."""
    total = torch.zeros(())
    for column, head in enumerate(HEADS):
        logs, wanted = F.log_softmax(logits[head], dim=1), targets[:, column]
        known, covered = wanted >= 0, wanted == COVERED
        if known.any():
            total = total + F.nll_loss(logs[known], wanted[known])
        if covered.any():
            total = total - torch.logsumexp(logs[covered, 1:], dim=1).mean()
    return total


@torch.inference_mode()
def balanced_accuracy(network: FactorNetwork, crops: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Mean recall over the classes of each head on labelled crops; occlusion as covered or not."""
    network.eval()
    blocks = (torch.from_numpy(crops[i : i + 128]) for i in range(0, len(crops), 128))
    parts = [network(FACE_PREPROCESSING.normalise(block)) for block in blocks]
    result = {}
    for column, head in enumerate(HEADS):
        predicted = torch.cat([part[head] for part in parts]).argmax(1).numpy()
        wanted = labels[:, column]
        if head == "occlusion":
            predicted, wanted = np.minimum(predicted, 1), np.where(wanted == COVERED, 1, np.minimum(wanted, 1))
        recalls = [(predicted[wanted == level] == level).mean() for level in np.unique(wanted[wanted >= 0])]
        result[head] = round(float(np.mean(recalls)), 4)
    return result


def save(network: FactorNetwork, options: argparse.Namespace, accuracy: dict[str, float]) -> None:
    metadata = {
        "system": "mfn",
        "preprocessing": FACE_PREPROCESSING.to_json(),
        "settings": json.dumps(vars(options)),
        "held_out_balanced_accuracy": json.dumps(accuracy),
        "training_data": "LFW training identities, Yale, painted masks, synthetic damage",
        "licence": "non-commercial research, after its training images",
    }
    Path(options.output).parent.mkdir(parents=True, exist_ok=True)
    save_checkpoint(options.output, network.state_dict(), metadata)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0; 1 when the training failed; 2 when the call was wrong."""
    options = parse_options(arguments)
    return exit_code(lambda: run(options), stopped="stopped; the network of the last finished pass is in --output")


if __name__ == "__main__":
    sys.exit(main())
