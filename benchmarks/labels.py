"""Labelling faces with an IResNet-50 and the factor network at full size (random weights): one image at a time, as the
published code does it, against generate_labels.py.

    python benchmarks/labels.py --data ../shared/data/faces/lfw

The published procedure is written here from the same parts, so that only the order of the work differs: for each image
it is read, its blur measured, its landmarks searched at four times the size, then both networks see it in fp32, alone.
Ours searches landmarks in worker processes while the networks see batches. Floors on two cores: 1.4 times in fp32; 3
times in bf16, where the CPU multiplies bf16 at least 2.3 times as fast as fp32 (AMX), which the last lines measure.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[1]))

from faces.blur import blur_class, sharpness
from faces.dlib_models import face_detector, find_landmarks, landmark_predictor
from faces.listing import list_images
from faces.pose import euler_angles, pose_class
from faces.reader import read_image
from labels.anchors import EmbeddedFaces, Header, identity_of, quality_anchor
from labels.factors import NETWORK_FACTORS, label_faces, load_factor_labels, prepare_face
from labels.measure import measure
from labels.recognition import load_recognizer
from model import load
from model.checkpoint import save_checkpoint
from model.fast import PRECISIONS
from model.iresnet import ArcFaceHeader, IResNet
from model.mobilefacenet import FactorNetwork
from model.statistics import rank_correlation

COMPARED = ("fp32", "bf16")
BATCH = 32


def save_networks(folder: Path) -> tuple[Path, Path]:
    """Random weights whose activations keep a sane size through all layers."""
    torch.manual_seed(0)
    paths = folder / "iresnet50.safetensors", folder / "mfn.safetensors"
    for path, network in zip(paths, (IResNet(), FactorNetwork()), strict=True):
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
        save_checkpoint(path, network.state_dict(), {})
    return paths


@torch.inference_mode()
def published(folder: Path, names: list[str], network: IResNet, factors: FactorNetwork, header: Header) -> np.ndarray:
    """Anchors (N,) and, as a by-product, the factor labels, one image at a time."""
    anchors = []
    for name in names:
        rgb = read_image(folder / name)
        labels = [blur_class(sharpness(rgb))]
        points = find_landmarks(rgb)
        labels.append(0 if points is None else pose_class(euler_angles(points, rgb.shape[1], rgb.shape[0])[1]))
        image = network.preprocessing.normalise(torch.from_numpy(network.preprocessing.resize(rgb))[None]).contiguous()
        probabilities = factors.probabilities(image)
        labels += [int(probabilities[factor].argmax() == 0) for factor in NETWORK_FACTORS]
        embedding = network(image)[0].numpy()
        anchors.append(quality_anchor(*header.similarities(EmbeddedFaces(embedding, [name]))))
    return np.concatenate(anchors)


def ours(folder: Path, names: list[str], networks: tuple[Path, Path], precision: str, header: Header) -> Callable:
    """What generate_labels.py does after loading its networks."""
    recognizer = load_recognizer(networks[0], precision=precision)
    factors = load_factor_labels(networks[1], "cpu", precision)
    prepare = partial(prepare_face, recognizer.preprocessing, factors.preprocessing, None)

    def run() -> np.ndarray:
        with tempfile.TemporaryDirectory() as parts:
            compute = partial(label_faces, recognizer, factors)
            columns = measure(folder, names, prepare, compute, Path(parts), BATCH, torch.get_num_threads())
        return quality_anchor(*header.similarities(EmbeddedFaces(columns["embeddings"], names)))

    return run


def seconds(function: Callable) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def milliseconds(function: Callable, count: int, rounds: int = 3) -> float:
    """For one of `count` images, the best of some rounds after one to warm up."""
    function()
    return min(seconds(function) for _ in range(rounds)) / count * 1000


def print_parts(folder: Path, names: list[str], networks: tuple[Path, Path]) -> None:
    """What the steps cost by themselves, for one image, and how fast matrices multiply."""
    images = [read_image(folder / name) for name in names[:BATCH]]
    batch = np.stack([load_recognizer("dlib").preprocessing.resize(image) for image in images])
    say("landmarks, on one core", milliseconds(lambda: [find_landmarks(image) for image in images], BATCH, 1))
    for path, title in zip(networks, ("IResNet-50", "MFN"), strict=True):
        network = load(path)
        one = network.preprocessing.normalise(torch.from_numpy(batch[:1])).contiguous()
        with torch.inference_mode():
            say(f"{title} alone, fp32", milliseconds(partial(network, one), 1))
    for precision in COMPARED:
        recognizer = load_recognizer(networks[0], precision=precision)
        factors = load_factor_labels(networks[1], "cpu", precision)
        say(f"IResNet-50 in a batch, {precision}", milliseconds(partial(recognizer.embed, batch), BATCH))
        say(f"MFN in a batch, {precision}", milliseconds(partial(factors.predict, batch), BATCH))
        matrix = torch.randn(2048, 2048).to(PRECISIONS[precision])
        say(f"product of 2048x2048 matrices, {precision}", milliseconds(partial(torch.mm, matrix, matrix), 1))


def compare(args: argparse.Namespace, names: list[str], networks: tuple[Path, Path]) -> None:
    """All three in turn, so that whatever else the machine does meets each of them."""
    few = names[: args.published_images]
    identities = {identity_of(name) for name in names}
    header = Header(ArcFaceHeader(512, len(identities) + 1), {name: row for row, name in enumerate(identities)})
    fp32, bf16 = (ours(args.data, names, networks, precision, header) for precision in COMPARED)
    baseline = partial(published, args.data, few, load(networks[0]), load(networks[1]), header)
    alone, exact, half = baseline(), fp32(), bf16()
    counts = (baseline, len(few)), (fp32, len(names)), (bf16, len(names))
    rounds = [[seconds(function) / count * 1000 for function, count in counts] for _ in range(args.rounds)]
    slow, fast, faster = map(statistics.median, zip(*rounds, strict=True))
    print(f"{args.threads} threads, {len(names)} images, an image, median of {args.rounds} rounds:")
    say("published, one at a time", slow)
    say("ours, fp32", fast, f"{slow / fast:.2f} times as fast (floor 1.4)")
    say("ours, bf16", faster, f"{slow / faster:.2f} times as fast (floor 3)")
    print(f"anchors (standard deviation {exact.std():.4f}), largest difference: "
          f"ours in fp32 to published {np.abs(exact[: len(few)] - alone).max():.1e}, "
          f"bf16 to fp32 {np.abs(exact - half).max():.1e} (rank correlation {rank_correlation(exact, half):.4f})")


def say(title: str, duration: float, remark: str = "") -> None:
    print(f"{title:42} {duration:7.1f} ms   {remark}", flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("samples"), help="a folder of 112x112 faces")
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--published-images", type=int, default=32, help="enough for the published procedure")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    found = [path.relative_to(args.data).as_posix() for path in list_images(args.data)]
    names = (found * (args.images // len(found) + 1))[: args.images]
    face_detector(), landmark_predictor()   # loaded before the clock runs
    with tempfile.TemporaryDirectory() as folder:
        networks = save_networks(Path(folder))
        compare(args, names, networks)
        print_parts(args.data, names, networks)
    return 0


if __name__ == "__main__":
    sys.exit(main())
