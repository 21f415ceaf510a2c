"""Evaluate face image quality: Error-versus-Discard curves and tables from pairs, FR embeddings and quality scores.

    python evaluate.py embed FACES --fr dlib --output dlib.npz
    python evaluate.py baseline sobel FACES --output sobel.csv
    python evaluate.py edc --pairs pairs.tsv --scores sobel=sobel.csv --embeddings dlib=dlib.npz --output results
    python evaluate.py compare results/lfw results/celeba --against mine
    python evaluate.py threshold captures.csv --discard 0.05
    python evaluate.py bands --pairs pairs.tsv --scores mine.csv --embeddings dlib=dlib.npz --output bands.json
    python evaluate.py pairs FACES --output pairs.tsv
    python evaluate.py prepare lfw.tgz --pairs pairs.txt --output lfw

docs/evaluation.md explains the protocols, the formats, and where the sets are obtained.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

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
    share,
)
from evaluation.commands import BASELINES, bands, baseline, compare, edc, embed, pairs, prepare, threshold
from evaluation.tables import DEFAULT_LIMIT
from model.cores import available_cores
from model.files import only_run, only_writer, shard_path

ALIGN = ("auto", "yes", "no")
BANDS_HELP = """A pair counts with the worse of its two images. medium begins at the lowest quality from which the pairs
have the wanted FNMR or less, high at that of the lower FNMR. The FMR fixes the thresholds over all non-mated pairs."""
ONE_SCORE = "of several faces of an image the first one counts; no videos"
SCORES_HELP = f"METHOD or METHOD@FR = a score table, OFIQ's CSV too; FILE:COLUMN for another column; {ONE_SCORE}"
CAPTURES_HELP = """score table of good captures: what inference.py writes, or others. Every row counts, each face of an
    image and each frame of a video too"""
FACES = "faces: a file, a folder, a pattern, @list or -"


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line: a sub-command and its flags."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("evaluate.py", description=__doc__, formatter_class=formatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add = _command(commands, embed)
    add("images", nargs="+", metavar="PATH", help=FACES)
    add("--fr", required=True, metavar="MODEL", help=".onnx, a checkpoint, or dlib")
    add("--output", type=Path, required=True, metavar="FILE.npz", help="names, embeddings, model_sha256")
    add("--flip", action="store_true", help="concatenate the mirror image's embedding, as CR-FIQA does")
    add_machine_flags(add)
    _add_running_flags(add, batch_size=64)

    add = _command(commands, baseline, "\n".join(f"  {name:11} {what}" for name, (what, _) in BASELINES.items()))
    add("name", choices=BASELINES, metavar="NAME", help="one of those above")
    add("images", nargs="*", metavar="PATH", help=FACES)
    add("--embeddings", metavar="FILE", help="norm, oracle: what embed made of the images, instead of PATH and --fr")
    fr_help = "norm, flip, noise, oracle: .onnx, a checkpoint, or dlib; faceqan, serfiq, grafiqs, prefiqs: a checkpoint"
    add("--fr", metavar="MODEL", help=fr_help)
    add("--output", type=Path, required=True, metavar="FILE.csv", help="path,status,quality")
    add("--block", default="", metavar="MODULE", help="grafiqs: gradient at this module's output, such as layer2")
    _add_running_flags(add, batch_size=16)

    add = _command(commands, edc)
    add("--pairs", required=True, metavar="PAIRS", help="TSV, pair_list.txt, LFW's pairs.txt, CPLFW's list, .bin")
    add("--scores", required=True, nargs="+", action=_Named, metavar="NAME=FILE", help=SCORES_HELP)
    add("--embeddings", required=True, nargs="+", action=_Named, metavar="NAME=FILE", help="an .npz, a folder of .npy")
    add("--output", type=Path, required=True, metavar="FOLDER")
    add("--fmr", type=share, nargs="+", default=[1e-2, 1e-3, 1e-4], help="FMR targets (default 1e-2 1e-3 1e-4)")
    add("--limits", type=share, nargs="+", help="of the pAUC; the first one leads (default 0.2 0.3 0.4; 0.3 leads)")
    add("--full-curves", action="store_true", help="draw the curves to the end, not to the limit that leads")
    add("--protocol", choices=("iso", "cr-fiqa"), default="iso", help="iso (default), or that of the ERC tables")
    add("--bootstrap", type=natural, default=1000, metavar="N", help="replicates of the intervals (default 1000)")
    add("--seed", type=natural, default=0, metavar="N", help="of the bootstrap (default 0)")
    add("--against", metavar="METHOD", help="also the paired differences of METHOD minus each other method")
    add("--images", type=Path, metavar="FOLDER", help="shows the faces at both ends on the page")

    add = _command(commands, compare)
    add("folders", nargs="+", metavar="FOLDER", help="what edc wrote with --output, one for each pair set")
    add("--against", required=True, metavar="METHOD", help="the method that each other one is compared with")
    add("--limit", type=share, default=DEFAULT_LIMIT, help=f"of the pAUC (default {DEFAULT_LIMIT})")
    add("--output", type=Path, metavar="FOLDER", help="differences.json and differences.md")

    add = _command(commands, threshold)
    add("scores", nargs="?", metavar="SCORES", help=CAPTURES_HELP)
    add("--weights", metavar="FILE_OR_NAME", help="instead: the percentiles stored in this checkpoint")
    add("--discard", type=share, required=True, metavar="SHARE", help="of good captures to lose, such as 0.05")
    add("--seed", type=natural, default=0, metavar="N", help="of the bootstrap (default 0)")

    add = _command(commands, bands, BANDS_HELP)
    add("--pairs", required=True, metavar="PAIRS", help="as for edc")
    add("--scores", required=True, metavar="FILE", help=f"score table of all images of the pairs; {ONE_SCORE}")
    add("--embeddings", required=True, nargs="+", action=_Named, metavar="NAME=FILE", help="FNMR: mean over these")
    add("--output", type=Path, required=True, metavar="BANDS.json")
    add("--fmr", type=share, default=1e-3, help="that the recognition models run at (default 1e-3)")
    add("--fnmr", type=share, nargs=2, default=[0.05, 0.02], metavar=("MEDIUM", "HIGH"), help="(default 0.05 0.02)")
    add("--weights", metavar="FILE_OR_NAME", help="that made the scores: the table is then refused for any others")
    add("--set", metavar="NAME", help='what to call the faces, such as "our gates, March" (default: PAIRS)')
    add("--bootstrap", type=natural, default=1000, metavar="N", help="replicates of the intervals (default 1000)")
    add("--seed", type=natural, default=0, metavar="N", help="of the bootstrap (default 0)")

    add = _command(commands, pairs)
    add("faces", type=Path, metavar="FACES", help="folder with a sub-folder for each identity")
    add("--output", type=Path, required=True, metavar="PAIRS.tsv", help="path_a, path_b, same; paths relative to FACES")
    add("--mated", type=positive, default=40, metavar="N", help="at most, an identity (default 40)")
    add("--non-mated", type=positive, default=60_000, metavar="N", help="in all, if there are so many (default 60000)")
    add("--seed", type=natural, default=0, metavar="N", help="of what is drawn (default 0)")

    add = _command(commands, prepare)
    add("source", type=Path, metavar="SOURCE", help=".zip, .tgz, a folder, or InsightFace's .bin")
    add("--pairs", type=Path, metavar="PAIRS", help="the set's pair list (a .bin holds its own)")
    add("--output", type=Path, required=True, metavar="FOLDER", help="images/ and pairs.tsv")
    add("--align", choices=ALIGN, default="auto", help="find and align faces (default auto: unless 112x112)")
    add("--workers", type=natural, default=available_cores(), metavar="N", help="processes (default: one a core)")
    return parser.parse_args(arguments)


def _command(commands: Any, function: Any, details: str = "") -> Any:
    description = f"{function.__doc__}\n\n{details}" if details else function.__doc__
    formatter = argparse.RawDescriptionHelpFormatter
    command = commands.add_parser(
        function.__name__, description=description, help=function.__doc__, formatter_class=formatter
    )
    command.set_defaults(function=function)
    return command.add_argument


def _add_running_flags(add: Any, batch_size: int) -> None:
    add("--fr-mean", type=channels, metavar="R,G,B", help="of x / 255 (default: as the model needs, else 0.5)")
    add("--fr-std", type=channels, metavar="R,G,B", help="as --fr-mean")
    add("--fr-size", type=positive, metavar="N", help="pixels (default: as the model needs, else 112)")
    add("--align", choices=ALIGN, default="auto", help="find and align faces (default auto: unless 112x112)")
    add("--device", default="auto", help="auto (default), cpu, cuda, mps")
    add("--batch-size", type=positive, default=batch_size, metavar="N", help=f"(default {batch_size})")
    add("--workers", type=natural, default=available_cores(), metavar="N", help="processes (default: one a core)")
    add("--threads", type=positive, metavar="N", help=THREADS_HELP)
    add("--max-file-size", type=megabytes, default="200", metavar="MB", help=FILE_SIZE_HELP)
    add("--resume", action="store_true", help="go on with an interrupted run")


class _Named(argparse.Action):
    """NAME=FILE ... as a dict; the flag may be repeated."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        named = dict(getattr(namespace, self.dest) or {})
        for value in values:
            name, _, file = value.partition("=")
            if not name or not file or name in named:
                parser.error(f"{option_string}: {value!r}; NAME=FILE was expected, each name once")
            named[name] = file
        setattr(namespace, self.dest, named)


def run(args: argparse.Namespace) -> int:
    """The sub-command, which holds its --output: a second run with the same one ends at once."""
    if getattr(args, "threads", None):
        set_threads(args.threads)
    if getattr(args, "output", None) is None:
        return args.function(args)
    if args.function in (embed, baseline, bands, pairs):
        part = getattr(args, "shard", None)
        if part and args.merge:
            raise ValueError("--shard measures a part, --merge joins the parts: give one")
        with only_writer(shard_path(args.output, part) if part else args.output):
            return args.function(args)
    if args.output.exists() and not args.output.is_dir():
        raise NotADirectoryError(f"the output {args.output} is a file; a folder was expected")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with only_run(args.output):
        return args.function(args)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 when some images could not be used, 2 when the call was wrong, 130 for Ctrl-C."""
    let_threads_sleep()
    args = parse(arguments)
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # file names need not be UTF-8
    return exit_code(lambda: run(args), stopped="stopped; embed and baseline go on with --resume")


if __name__ == "__main__":
    sys.exit(main())
