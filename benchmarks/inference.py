"""Speed of scoring at the full size of RN50 (deterministic weights): ours against the published procedure, in one run.

    python benchmarks/inference.py             # about three minutes on two cores
    python benchmarks/inference.py --compile   # and what torch.compile makes of the same tower

The published procedure scores one image at a time in fp32 and sends the 360 sentences, padded to 77 tokens, through the
text tower for each. Floors on two cores: 300 times the published procedure at batch 1; on a CPU that is fast in bf16
(with AMX), 2.8 times the plain fp32 tower and 70 % of the matrix-multiply peak at batch 16; scores in bf16 within 0.005
of fp32.

Times are the best of several rounds, in which everything measured takes its turn: on a machine with other work, the
nearest to a quiet one.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests"), str(ROOT / "tests" / "golden")]

import recipe  # noqa: E402
from published import encode_prompts, use_published_attention  # noqa: E402
from recipe_tensors import recipe_tensors  # noqa: E402

from command_line import keep_freed_memory  # noqa: E402
from model import load  # noqa: E402
from model.checkpoint import save_checkpoint  # noqa: E402
from model.clib_fiqa import ClibFiqa, expected_quality, marginals  # noqa: E402
from model.fast import PRECISIONS, accelerate  # noqa: E402
from model.iresnet import IResNet  # noqa: E402
from scoring import Scorer  # noqa: E402

BATCH = 16
MATRIX_SIZES = (1024, 2048, 4096)


def published_score(model: ClibFiqa, image: np.ndarray) -> float:
    """The published procedure for one RGB image: both towers, every time."""
    pixels = model.preprocessing.normalise(torch.from_numpy(model.preprocessing.resize(image))[None]).contiguous()
    joint = model.logits(pixels, encode_prompts(model.clip)).softmax(dim=-1)
    return float(expected_quality(marginals(joint)["quality"]))


def best_seconds(functions: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """The shortest time of each function, after one call that does not count."""
    for function in functions.values():
        function()
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            times[name].append(time.perf_counter() - start)
    return {name: min(measured) for name, measured in times.items()}


def matrix_peak(dtype: torch.dtype, rounds: int) -> float:
    """Operations a second of the fastest square matrix product."""
    matrices = {str(n): torch.rand(n, n).to(dtype) for n in MATRIX_SIZES}
    products = {name: partial(torch.mm, matrix, matrix) for name, matrix in matrices.items()}
    return max(2 * int(n) ** 3 / seconds for n, seconds in best_seconds(products, rounds).items())


def operations(tower: Callable[[Tensor], Tensor], image: Tensor) -> int:
    """Multiplications and additions of a plain tower for one image."""
    with FlopCounterMode(display=False) as counter:
        tower(image)
    return counter.get_total_flops()


def tower_of(file: Path, precision: str) -> Callable[[Tensor], Tensor]:
    """The image tower as the scorer uses it; prints how long its preparation takes, up to the first batch."""
    tower = load(file).clip.visual
    images = as_input(torch.zeros(BATCH, 3, 224, 224), precision)
    start = time.perf_counter()
    tower = accelerate(tower, PRECISIONS[precision], torch.device("cpu"))
    tower(images)
    print(f"preparation in {precision}: {time.perf_counter() - start:.1f} s")
    return tower


def compiled_tower(file: Path, precision: str) -> Callable[[Tensor], Tensor]:
    """The plain tower through torch.compile with frozen weights; prints how long its compilation takes."""
    import torch._inductor.config

    torch._inductor.config.freezing = True
    tower = load(file).clip.visual.to(PRECISIONS[precision]).to(memory_format=torch.channels_last)
    start = time.perf_counter()
    compiled = torch.compile(tower)
    compiled(as_input(torch.zeros(BATCH, 3, 224, 224), precision))
    print(f"torch.compile in {precision}: {time.perf_counter() - start:.1f} s")
    return compiled


def as_input(images: Tensor, precision: str) -> Tensor:
    """In the precision and memory layout of a fast tower."""
    return images.to(PRECISIONS[precision]).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def measure(folder: Path, precisions: list[str], compile: bool, rounds: int) -> None:
    """Print the table."""
    model = ClibFiqa.from_tensors(recipe_tensors(ROOT / "tests" / "golden" / "clip_rn50_keys.json"))
    file = folder / "rn50.safetensors"
    save_checkpoint(file, model.to_tensors(text_tower=False), {"system": "clib-fiqa"})
    faces = [recipe.mirror_image(seed) for seed in range(BATCH)]
    images = model.preprocessing.normalise(torch.from_numpy(np.stack([model.preprocessing.resize(f) for f in faces])))
    plain_input, plain = images.contiguous(), model.clip.visual
    count = operations(plain, plain_input[:1])
    peaks = {precision: matrix_peak(PRECISIONS[precision], rounds) for precision in precisions}

    use_published_attention(model.clip)
    published = best_seconds({"": lambda: published_score(model, faces[0])}, 2)[""]
    keep_freed_memory()  # as inference.py does
    towers = {precision: tower_of(file, precision) for precision in precisions}
    if compile:
        towers |= {f"{precision}, torch.compile": compiled_tower(file, precision) for precision in precisions}
    inputs = {name: as_input(images, name.split(",")[0]) for name in towers}
    scorers = {precision: Scorer(weights=file, precision=precision) for precision in precisions}
    functions: dict[str, Callable[[], object]] = {"plain": lambda: plain(plain_input)}
    for name, tower in towers.items():
        functions[f"tower {name}"] = lambda tower=tower, x=inputs[name]: tower(x)
    for precision, scorer in scorers.items():
        functions[f"1 {precision}"] = lambda scorer=scorer: scorer.score(faces[0])
        functions[f"{BATCH} {precision}"] = lambda scorer=scorer: scorer.score(faces)
    seconds = best_seconds(functions, rounds)

    print(f"\n{torch.get_num_threads()} threads, {count / 1e9:.1f} GFLOP an image, images 112x112 in memory\n")
    print(f"published procedure     {1 / published:8.3f} images/s")
    print(f"plain fp32 tower, {BATCH:2}    {BATCH / seconds['plain']:8.1f} images/s")
    for name in towers:
        rate, peak = BATCH / seconds[f"tower {name}"], peaks[name.split(",")[0]]
        print(f"tower {name}, {BATCH}: {rate:.1f} images/s, {rate * seconds['plain'] / BATCH:.2f} times the plain one, "
              f"{rate * count / peak:.0%} of the peak of {peak / 1e9:.0f} GFLOP/s")
    reference = expected_quality(marginals(model(images))["quality"]).numpy()
    for precision, scorer in scorers.items():
        difference = np.abs(reference - [score.quality for score in scorer.score(faces)]).max()
        print(f"Scorer {precision}: batch 1 {1 / seconds[f'1 {precision}']:.1f} images/s, "
              f"{published / seconds[f'1 {precision}']:.0f} times the published procedure; batch {BATCH} "
              f"{BATCH / seconds[f'{BATCH} {precision}']:.1f} images/s; scores within {difference:.1g} of plain fp32")


@torch.no_grad()
def measure_cr_fiqa(folder: Path, rounds: int) -> None:
    """Print the rate of CR-FIQA's IResNet-50 in fp32, of the plain network and of the scorer."""
    network = IResNet.from_tensors(recipe_tensors(ROOT / "tests" / "golden" / "iresnet50_qs_keys.json"))
    torch.save(network.state_dict(), folder / "backbone.pth")
    scorer = Scorer("cr-fiqa", folder / "backbone.pth", device="cpu", precision="fp32")
    faces = [recipe.mirror_image(seed) for seed in range(BATCH)]
    images = network.preprocessing.normalise(torch.from_numpy(np.stack(faces))).contiguous()
    seconds = best_seconds({"plain": lambda: network(images), "scorer": lambda: scorer.score(faces)}, rounds)
    print(f"CR-FIQA, IResNet-50 in fp32, {BATCH}: {BATCH / seconds['scorer']:.1f} images/s, "
          f"{seconds['plain'] / seconds['scorer']:.2f} times the plain network")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--precisions", nargs="+", choices=tuple(PRECISIONS), default=["fp32", "bf16"])
    parser.add_argument("--compile", action="store_true", help="measure torch.compile too (needs a C++ compiler)")
    parser.add_argument("--only-cr-fiqa", action="store_true", help="leave the other systems out")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        if not arguments.only_cr_fiqa:
            measure(Path(scratch), arguments.precisions, arguments.compile, arguments.rounds)
        measure_cr_fiqa(Path(scratch), arguments.rounds)
