"""Score faces with DifFIQA (Babnik, Peer, Štruc, IJCB 2023): aligned faces -> a table of qualities, higher is better.

    python -m methods.diffiqa.score FACES --weights DIFFUSION.pt --fr FR_MODEL --output scores.csv
    python -m methods.diffiqa.score FACES --weights DIFFUSION.pt --fr dlib --output scores.csv --preset fast

A PATH is an image, a folder, a pattern, @list.txt, or - for a list on standard input.
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from command_line import channels, exit_code, keep_freed_memory, natural, positive
from evaluation.extract import Extraction, remove_parts, score_images
from evaluation.scores import write_scores
from faces.listing import expand_inputs
from labels.recognition import load_recognizer
from methods.diffiqa.quality import PRESETS, Procedure, make_scorer
from model import load
from model.checkpoint import sha256_of
from model.device import pick_device
from model.diffusion import GaussianDiffusion
from model.fast import PRECISIONS
from model.files import only_writer
from model.weights import find_weights

LARGEST_SEED = 2**63 - 1


def score(args: argparse.Namespace) -> int:
    """Write the table; exit code 1 when a row is not `ok`."""
    procedure = procedure_of(args)
    device = pick_device(args.device)
    diffusion = load(args.weights)
    if not isinstance(diffusion, GaussianDiffusion):
        kind = type(diffusion).__name__
        raise ValueError(f"--weights {args.weights} holds a {kind}; DifFIQA's diffusion model was expected")
    recognizer = load_recognizer(args.fr, args.fr_mean, args.fr_std, args.fr_size, device)
    names = list(expand_inputs(args.paths, sys.stdin))
    output = Path(args.output)
    settings: dict[str, Any] = {
        **asdict(procedure),
        "weights": sha256_of(find_weights(args.weights)),
        "fr": recognizer.sha256,
        "fr_preprocessing": recognizer.preprocessing.to_json(),
        "precision": args.precision,
    }
    print(f"{procedure.passes()} passes through the UNet for each image, on {device}", file=sys.stderr)
    with only_writer(output):
        run = Extraction(output, settings, args.align, args.batch_size, args.workers, args.resume)
        scorer = make_scorer(diffusion, recognizer, procedure, device, PRECISIONS[args.precision])
        rows, _ = score_images(names, diffusion.preprocessing, scorer, run)
        write_scores(output, rows)
        remove_parts(run)
    failed = Counter(status for _, status, _ in rows if status != "ok")
    if failed:
        reasons = ", ".join(f"{count} {status}" for status, count in failed.most_common())
        print(f"{failed.total()} of {len(rows)} images have no score: {reasons}", file=sys.stderr)
    print(output)
    return int(bool(failed))


def procedure_of(args: argparse.Namespace) -> Procedure:
    """The preset, with what the flags change. Raises ValueError for a step that is not there."""
    given = {name: vars(args)[name] for name in asdict(PRESETS["full"]) if vars(args)[name] is not None}
    procedure = replace(PRESETS[args.preset], **given)
    if procedure.seed > LARGEST_SEED:
        raise ValueError(f"--seed must be at most {LARGEST_SEED}; it is {procedure.seed}")
    return procedure


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Exits with code 2 for an unknown flag or an unreadable value."""
    parser = argparse.ArgumentParser(
        "methods.diffiqa.score",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    described = "; ".join(
        f"{name}: --repeats {p.repeats} --step {p.step} --ddim-steps {p.ddim_steps} --views {p.views} --noise {p.noise}"
        for name, p in PRESETS.items()
    )
    add = parser.add_argument
    add("paths", nargs="+", metavar="PATH", help="aligned faces: images, folders, patterns, @list.txt or -")
    add("--weights", required=True, metavar="FILE", help="the diffusion model: published, or of methods.diffiqa.train")
    add("--fr", required=True, metavar="MODEL", help="the FR model: .onnx, .safetensors, .pth, or dlib")
    add("--output", required=True, metavar="SCORES.csv", help="table with the columns path, status, quality")
    add("--preset", choices=PRESETS, default="full", help=f"{described} (default: full, as published)")
    add("--repeats", type=positive, metavar="N", help="noisy versions of each view")
    add("--step", type=positive, metavar="N", help="time step of the noise")
    add("--ddim-steps", type=positive, metavar="N", help="steps that remove the noise; 5 do the work of 6")
    add("--views", type=int, choices=(1, 2), help="2: the image and its mirror image; 1: the image only")
    add("--noise", choices=("own", "shared"), help="own: each image has noise of its own; shared: all have the same")
    add("--seed", type=natural, metavar="N", help="of the noise, together with the pixels (default: 0)")
    add("--precision", choices=PRECISIONS, default="fp32", help="arithmetic of the diffusion model (default: fp32)")
    add("--fr-mean", type=channels, metavar="R,G,B", help="of x / 255 (default: as the model needs, else 0.5)")
    add("--fr-std", type=channels, metavar="R,G,B", help="as --fr-mean")
    add("--fr-size", type=positive, metavar="N", help="side of the FR model's images in pixels")
    add("--align", choices=("auto", "yes", "no"), default="auto", help="find and align faces (auto: unless 112x112)")
    add("--device", default="auto", help="auto, cpu, cuda, cuda:1, mps (default: auto)")
    add("--batch-size", type=positive, default=4, metavar="N", help="images at a time on a GPU (default: 4)")
    add("--workers", type=natural, default=1, metavar="N", help="processes that read images; 0: none (default: 1)")
    add("--resume", action="store_true", help="continue an interrupted run with the same --output")
    return parser.parse_args(arguments)


def main() -> int:
    """Exit code 0, 1 when images have no score or the run failed, 2 for a call that was wrong, 130 for Ctrl-C."""

    def run() -> int:
        keep_freed_memory()
        return score(parse_arguments())

    return exit_code(run, "stopped; the same command with --resume continues")


if __name__ == "__main__":
    sys.exit(main())
