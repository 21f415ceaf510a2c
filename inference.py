"""Score face images: how useful each one is to face recognition, and why.

    python inference.py face.jpg                                a sentence, and the score
    python inference.py photos                                  a folder, with all folders below it: a table
    python inference.py photos --output scores.csv              into a file; .jsonl and .parquet hold all probabilities
    python inference.py clip.mp4 --every 5 --output shots.csv --best-per track 3 --copy-to shots     a video
    python inference.py photos --report report.html             a page with the faces, to choose a threshold
    python inference.py 'a/*.png' b.jpg @more.txt               patterns, files, and a list of paths
    find . -name '*.jpg' | python inference.py -                a list on standard input
    python inference.py face.jpg --weights CLIB-FIQA_R50.pth    the published model instead of the one in weights/
    python inference.py crops --weights 181952backbone.pth --output scores.txt      CR-FIQA, and its `path score` lines
    python inference.py photos --output all.csv --best-per folder 3 --copy-to best  the three best of each folder

A picture of 112x112 pixels is taken as an aligned crop; in any other the largest face is found and aligned, or with
--faces all every face, each with a row of its own. A picture that cannot be scored is a row with its status (missing,
not_an_image, truncated, no_face, …) and stops nothing.
Exit code: 0 when all were scored, 1 when some were not or the run failed, 2 when the call was wrong, 130 after Ctrl-C.
An interrupted run with --output or --report continues with --resume. More: docs/inference.md, docs/report.md, and
docs/reasons.md for the reasons, the bands, maps and selecting.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from command_line import (
    FILE_SIZE_HELP,
    THREADS_HELP,
    add_machine_flags,
    exit_code,
    keep_freed_memory,
    let_threads_sleep,
    megabytes,
    natural,
    positive,
    set_threads,
)
from model.cores import available_cores

METHOD_HELP = "clib-fiqa, cr-fiqa, ediffiqa, diffiqa-r or dsl-fiqa (default: the one that --weights are for)"
EVERY_HELP = "look at each N-th frame of a video (default: all); no effect on pictures"
FACES_HELP = "which faces count (default: the largest of a picture, all of a video)"
SELECTING = """Every row stays in the table; the column `selected` tells which pass all flags. Without flags all rows
    that have a score are copied and mapped."""
PARTS_HELP = "make --output FILE.parquet a folder of Parquet files of N rows each, with a manifest (docs/scale.md)"
WORKERS_HELP = """processes that read images (default: 0 for fewer than 64 images, 1 for aligned crops on a CPU,
    else the number of cores, at most 16)"""


def run(args: argparse.Namespace) -> int:
    """The work itself; its modules import torch, which waits until the command line is right."""
    from scoring.run import run

    if args.threads:
        set_threads(args.threads)
    args.cores = available_cores()
    return run(args)


def rate(text: str) -> float:
    """A number above 0."""
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"frames a second, above 0, were expected, not {text}")
    return value


def finite(text: str) -> float:
    """A number, neither infinite nor nan."""
    value = float(text)
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"a finite number was expected, not {text}")
    return value


def percentile(text: str) -> float:
    """A number from 0 to 100."""
    value = float(text)
    if not 0 <= value <= 100:
        raise argparse.ArgumentTypeError(f"a percentile from 0 to 100 was expected, not {text}")
    return value


def share(text: str) -> float:
    """A number from 0, and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"a share from 0 and below 1 was expected, not {text}")
    return value


def method(name: str) -> str:
    """A key of `scoring.METHODS`, which is imported only here: with torch, and after --help."""
    from scoring.methods import METHODS

    if name not in METHODS:
        raise argparse.ArgumentTypeError(f"there is no method {name!r}: expected one of {', '.join(METHODS)}")
    return name


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        "inference.py",
        usage="python inference.py PATH… [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("images", nargs="+", metavar="PATH", help="file, folder, pattern, @list of paths, or - for a list on stdin")
    add("--method", type=method, metavar="METHOD", help=METHOD_HELP)
    add("--weights", metavar="FILE_OR_NAME", help="checkpoint (default: the method's own, in weights/)")
    add("--output", type=Path, metavar="FILE", help="table to write: .csv, .jsonl, .parquet, or .txt (`path score`)")
    add("--part-rows", type=positive, metavar="N", help=PARTS_HELP)
    add("--report", type=Path, metavar="FILE.html", help="page to write: who would be refused at a threshold, and why")
    add("--resume", action="store_true", help="go on with an interrupted run that had the same --output or --report")
    add("--every", type=positive, default=1, metavar="N", help=EVERY_HELP)
    add("--frames", type=rate, metavar="RATE", help="take each named folder as one video, of so many frames a second")
    add_machine_flags(add)
    add("--swapped-channels", action="store_true", help="the files hold BGR instead of RGB")
    add("--align", choices=("auto", "yes", "no"), default="auto", help="find and align faces (default: unless 112x112)")
    add("--faces", choices=("largest", "central", "all"), help=FACES_HELP)
    add("--min-face-size", type=positive, metavar="N", help="leave out faces of fewer pixels (default: 24)")
    add("--rotate", choices=("no", "auto"), default="no", help="auto: find faces on a side or upside down too")
    add("--detector", metavar="FILE.onnx", help="a detector of OpenCV's YuNet format (default: in weights/)")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:N, mps")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="auto: bf16 on CUDA, else fp32")
    add("--batch-size", type=positive, metavar="N", help="images a network sees at once (CPU: 16, CUDA: 256, mps: 64)")
    add("--workers", type=natural, metavar="N", help=WORKERS_HELP)
    add("--threads", type=positive, metavar="N", help=THREADS_HELP)
    add("--max-file-size", type=megabytes, dest="max_bytes", metavar="MB", help=f"{FILE_SIZE_HELP}; not of videos")
    add("--degradation-encoder", metavar="FILE", help="dsl-fiqa: the encoder, such as the published DE.pt")
    add("--crops", type=positive, metavar="N", help="dsl-fiqa: random crops of each image (default: 20)")
    add("--landmark-folder", metavar="FOLDER", help="dsl-fiqa: published landmarks, STEM.npy of each image STEM.*")
    add = parser.add_argument_group("selecting (docs/reasons.md)", SELECTING).add_argument
    add("--min-score", type=finite, metavar="X", help="quality of X or more")
    add("--min-band", choices=("low", "medium", "high"), help="this band or a higher one")
    add("--min-percentile", type=percentile, metavar="P", help="better than P %% of the set that the weights name")
    keep_help = "the most probable level is one of these, such as pose=frontal,'slight angle'; may be repeated"
    add("--keep", action="append", default=[], metavar="FACTOR=LEVEL,…", help=keep_help)
    add("--discard", type=share, metavar="SHARE", help="all but the worst SHARE of the scored rows, such as 0.1")
    best_help = "folder, identity (the folder's name, wherever it lies) or track (of a video), and how many of each"
    add("--best-per", nargs=2, metavar=("GROUP", "N"), help=best_help)
    add("--copy-to", type=Path, metavar="FOLDER", help="copy the selected files into a new folder")
    add("--bands", metavar="FILE", help="table of `evaluate.py bands` (default: the one beside the weights)")
    add("--map", type=Path, metavar="FOLDER", help="what lowers the score: a picture, JSON and NPY for each face")
    axes = ("quality", "blur", "occlusion", "pose", "expression", "illumination")
    add("--map-of", choices=axes, help="what the map is of (default: quality)")
    args = parser.parse_args(arguments)
    if args.resume and not (args.output or args.report):
        parser.error("--resume continues a file: give its --output or --report")
    if (args.shard or args.merge) and (not args.output or (args.shard and args.merge)):
        parser.error("give one of --shard and --merge, and the --output of the whole run")
    return args


def run_until_closed(args: argparse.Namespace) -> int:
    """`run`, but a reader of the printed table may close the pipe (`| head`): exit code 1 without a message."""
    try:
        return run(args)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def resume_hint(output: Path | None, error: BaseException) -> str:
    """Where the finished rows of an interrupted run are; empty when the call itself was wrong."""
    if output is None or isinstance(error, ValueError | ImportError | BlockingIOError):
        return ""
    journal = Path(f"{output}.partial")
    if not journal.is_file():
        return ""
    return f"; finished rows are in {journal}, and the same command with --resume goes on"


def main(arguments: Sequence[str] | None = None) -> int:
    """The exit code: 0 or 1 as the scores are, else as in `command_line.exit_code`. Finished rows are never lost."""
    let_threads_sleep()
    args = parse(arguments)
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # file names need not be UTF-8
    return exit_code(lambda: run_until_closed(args), "stopped", partial(resume_hint, args.output or args.report))


if __name__ == "__main__":
    sys.exit(main())
