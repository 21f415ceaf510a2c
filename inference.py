"""Score face images: how useful each one is to face recognition, and why.

    python inference.py face.jpg                                a sentence, and the score
    python inference.py photos                                  a folder, with all folders below it: a table
    python inference.py photos --output scores.csv              into a file; .jsonl and .parquet hold all probabilities
    python inference.py 'a/*.png' b.jpg @more.txt               patterns, files, and a list of paths
    find . -name '*.jpg' | python inference.py -                a list on standard input
    python inference.py face.jpg --weights CLIB-FIQA_R50.pth    the published model instead of the one in weights/
    python inference.py crops --weights 181952backbone.pth --output scores.txt      CR-FIQA, and its `path score` lines

A picture of 112x112 pixels is taken as an aligned crop; in any other the largest face is found and aligned. A picture
that cannot be scored is a row with its status (missing, not_an_image, truncated, no_face, …) and stops nothing.
Exit code: 0 when all were scored, 1 when some were not or the run failed, 2 when the call was wrong, 130 after Ctrl-C.
An interrupted run with --output continues with --resume. More: docs/inference.md
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import (
    FILE_SIZE_HELP,
    MERGE_HELP,
    SHARD_HELP,
    THREADS_HELP,
    available_cores,
    exit_code,
    keep_freed_memory,
    let_threads_sleep,
    megabytes,
    natural,
    positive,
    set_threads,
    shard,
)

if TYPE_CHECKING:
    from model.percentiles import Percentiles
    from scoring import Score, Scorer

FEW = 64  # so few images are read before worker processes would have started
MOST_WORKERS = 16
OPTIONS = ("degradation_encoder", "crops", "landmark_folder", "max_bytes")
METHOD_HELP = "clib-fiqa, cr-fiqa, ediffiqa, diffiqa-r or dsl-fiqa (default: the one that --weights are for)"
WORKERS_HELP = f"""processes that read images (default: 0 for fewer than {FEW} images, 1 for aligned crops on a CPU,
    else the number of cores, at most {MOST_WORKERS})"""


def run(args: argparse.Namespace) -> int:
    """Score the images of the command line, with the lock of --output where there is one; return the exit code."""
    from faces.listing import expand_inputs

    if not args.output:
        return score_images(args, expand_inputs(args.images, sys.stdin))
    from model.files import only_writer
    from scoring.tables import check_table_name

    check_table_name(args.output)
    paths = expand_inputs(args.images, sys.stdin)
    if args.merge:
        from scoring.shards import merge

        with only_writer(args.output):
            return report(merge(args.output, list(paths), args.merge), f"{args.merge} shards")
    if args.shard:
        from scoring.shards import shard_table

        with only_writer(shard_table(args.output, args.shard)):
            return score_images(args, list(paths))
    with only_writer(args.output):  # from before the model is loaded to the end of the table
        return score_images(args, paths)


def score_images(args: argparse.Namespace, paths: Iterable[str]) -> int:
    """Score the images at these paths; return the exit code."""
    from scoring import Scorer

    if "-" not in args.images:
        paths = list(paths)
    total = len(paths) if isinstance(paths, list) else None  # what standard input lists is not waited for
    remaining = iter(paths)
    first = list(islice(remaining, 2))
    if not first:
        raise ValueError(f"there are no images in {' '.join(args.images)}")
    if args.threads:
        set_threads(args.threads)
    settings = args.device, args.precision, args.align, args.batch_size, args.swapped_channels
    options = {name: vars(args)[name] for name in OPTIONS if vars(args)[name] is not None}
    scorer = Scorer(args.method, args.weights, *settings, **options)
    if len(first) == 1 and not args.output:
        return print_sentence(scorer.score(first[0]), scorer.percentiles)
    if args.workers is None:
        few = total is not None and total < FEW
        args.workers = 0 if few else default_workers(scorer, first[0], available_cores())
    start, remaining = time.perf_counter(), iter(chain(first, remaining))
    if args.shard:
        from labels.measure import part_of
        from scoring.shards import shard_table, write_settings

        part = part_of(list(remaining), args.shard, scorer.batch_size)
        remaining, total = iter(part), len(part)
        write_settings(args.output, args.shard, scorer.settings)
        args.output = shard_table(args.output, args.shard)
    if args.output:
        statuses = write_table(scorer, remaining, total, args)
    else:
        statuses = print_table(scorer.stream(remaining, args.workers))
    return report(statuses, f"{time.perf_counter() - start:.1f} s ({scorer})")


def report(statuses: Counter[str], how: str) -> int:
    """Say on stderr how many rows have each status; return the exit code."""
    counts = ", ".join(f"{count} {status}" for status, count in statuses.most_common()) or "no rows"
    print(f"{counts} in {how}", file=sys.stderr)
    return int(not set(statuses) <= {"ok"})


def default_workers(scorer: Scorer, first: str, cores: int) -> int:
    """How many processes read images: as many as cores where a GPU waits for them, or faces must be found first.

    One reader keeps up with a network on the CPU when the pictures are aligned crops; whether they are, `first` shows.
    """
    if scorer.device.type == "cpu" and (scorer.align == "no" or (scorer.align == "auto" and is_crop(first))):
        return 1
    return min(MOST_WORKERS, cores)


def is_crop(path: str) -> bool:
    """Whether the file is an image of the size of aligned crops."""
    from faces.align import is_aligned
    from faces.reader import ImageError, read_image

    try:
        return is_aligned(read_image(path))
    except ImageError:
        return False


def print_sentence(score: Score, percentiles: Percentiles | None) -> int:
    """Print what the published script prints of one image, and the percentile; a failure goes to stderr."""
    if score.status != "ok":
        from model.files import printable

        print(f"{printable(str(score.path))}: {score.status}", file=sys.stderr)
    if score.quality is None:
        return 1
    if score.sentence:
        print(score.sentence)
    if percentiles:
        print(f"higher than {score.percentile:.0f} % of {percentiles.set} ({percentiles.images} images)")
    print(f"quality prediction = {score.quality:.4f}")
    return int(score.status != "ok")


def print_table(scores: Iterable[Score]) -> Counter[str]:
    """Print a line for each score as soon as it is there; return the number of rows of each status."""
    from scoring.tables import readable, readable_header

    statuses: Counter[str] = Counter()
    print(readable_header())
    for score in scores:
        statuses[score.status] += 1
        print(readable(score), flush=True)
    return statuses


def write_table(scorer: Scorer, paths: Iterable[str], total: int | None, args: argparse.Namespace) -> Counter[str]:
    """Write the table, with progress on stderr; return the number of rows of each status."""
    from tqdm import tqdm

    from scoring.tables import Journal

    journal = Journal(args.output, scorer.settings, args.resume, scorer.batch_size)
    paths = journal.unfinished(paths)
    scores = scorer.stream(paths, args.workers)
    journal.keep(tqdm(scores, total=total, initial=journal.finished, unit=" images", disable=None))
    return journal.finish()


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
    add("--resume", action="store_true", help="go on with an interrupted run that had the same --output")
    add("--shard", type=shard, metavar="I/N", help=SHARD_HELP)
    add("--merge", type=positive, metavar="N", help=MERGE_HELP)
    add("--swapped-channels", action="store_true", help="the files hold BGR instead of RGB")
    add("--align", choices=("auto", "yes", "no"), default="auto", help="find and align faces (default: unless 112x112)")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:N, mps")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="auto: bf16 on CUDA, else fp32")
    add("--batch-size", type=positive, metavar="N", help="images a network sees at once (CPU: 16, CUDA: 256, mps: 64)")
    add("--workers", type=natural, metavar="N", help=WORKERS_HELP)
    add("--threads", type=positive, metavar="N", help=THREADS_HELP)
    add("--max-file-size", type=megabytes, dest="max_bytes", metavar="MB", help=FILE_SIZE_HELP)
    add("--degradation-encoder", metavar="FILE", help="dsl-fiqa: the encoder, such as the published DE.pt")
    add("--crops", type=positive, metavar="N", help="dsl-fiqa: random crops of each image (default: 20)")
    add("--landmark-folder", metavar="FOLDER", help="dsl-fiqa: published landmarks, STEM.npy of each image STEM.*")
    args = parser.parse_args(arguments)
    if args.resume and not args.output:
        parser.error("--resume continues a file: give its --output")
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
    return exit_code(lambda: run_until_closed(args), "stopped", partial(resume_hint, args.output))


if __name__ == "__main__":
    sys.exit(main())
