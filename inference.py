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
Exit code: 0 when all were scored, 1 when some were not, 2 when the call was wrong. More: docs/inference.md
"""

from __future__ import annotations

import argparse
import io
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from command_line import keep_freed_memory, natural, positive

if TYPE_CHECKING:
    from model.percentiles import Percentiles
    from scoring import Score, Scorer

WORKERS = min(4, os.cpu_count() or 1)
FEW = 64  # so few images are read before worker processes would have started


def run(args: argparse.Namespace) -> int:
    """Score the images of the command line: one as a sentence, several as a table, or into a file; the exit code."""
    from faces.listing import expand_inputs
    from scoring import Scorer
    from scoring.tables import check_table_name

    if args.output:
        check_table_name(args.output)
    paths: Iterable[str] = expand_inputs(args.images, sys.stdin)
    if "-" not in args.images:
        paths = list(paths)
    total = len(paths) if isinstance(paths, list) else None  # what standard input lists is not waited for
    remaining = iter(paths)
    first = list(islice(remaining, 2))
    if not first:
        raise ValueError(f"there are no images in {' '.join(args.images)}")
    settings = args.device, args.precision, args.align, args.batch_size, args.swapped_channels
    scorer = Scorer(args.method, args.weights, *settings)
    if len(first) == 1 and not args.output:
        return print_sentence(scorer.score(first[0]), scorer.percentiles)
    if args.workers is None:
        args.workers = 0 if total is not None and total < FEW else WORKERS
    start, remaining = time.perf_counter(), chain(first, remaining)
    if args.output:
        statuses = write_table(scorer, remaining, total, args)
    else:
        statuses = print_table(scorer.stream(remaining, args.workers))
    counts = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    print(f"{counts} in {time.perf_counter() - start:.1f} s ({scorer})", file=sys.stderr)
    return int(set(statuses) != {"ok"})


def print_sentence(score: Score, percentiles: Percentiles | None) -> int:
    """What the published script prints of its one image, and how it compares; a failure goes to stderr."""
    if score.quality is None:
        print(f"{score.path}: {score.status}", file=sys.stderr)
        return 1
    if score.sentence:
        print(score.sentence)
    if percentiles:
        print(f"higher than {score.percentile:.0f} % of {percentiles.set} ({percentiles.images} images)")
    print(f"quality prediction = {score.quality:.4f}")
    return 0


def print_table(scores: Iterable[Score]) -> Counter[str]:
    """A line for each score as soon as it is there; how many there are of each status."""
    from scoring.tables import readable, readable_header

    statuses: Counter[str] = Counter()
    print(readable_header())
    for score in scores:
        statuses[score.status] += 1
        print(readable(score), flush=True)
    return statuses


def write_table(scorer: Scorer, paths: Iterable[str], total: int | None, args: argparse.Namespace) -> Counter[str]:
    """The file, with progress on stderr; how many rows there are of each status."""
    from tqdm import tqdm

    from scoring.tables import Journal

    journal = Journal(args.output, scorer.settings, args.resume)
    paths = journal.unfinished(paths)
    scores = scorer.stream(paths, args.workers)
    journal.keep(tqdm(scores, total=total, initial=journal.finished, unit=" images", disable=None))
    return journal.finish()


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
    add("--method", choices=("clib-fiqa", "cr-fiqa"), help="system (default: the one that --weights are for)")
    add("--weights", metavar="FILE_OR_NAME", help="checkpoint (default: the method's own, in weights/)")
    add("--output", type=Path, metavar="FILE", help="table to write: .csv, .jsonl, .parquet, or .txt (`path score`)")
    add("--resume", action="store_true", help="go on with an interrupted run that had the same --output")
    add("--swapped-channels", action="store_true", help="the files hold BGR instead of RGB")
    add("--align", choices=("auto", "yes", "no"), default="auto", help="find and align faces (default: unless 112x112)")
    add("--device", default="auto", help="auto (default), cpu, cuda, mps")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="auto: bf16 on CUDA, else fp32")
    add("--batch-size", type=positive, default=16, metavar="N", help="images a network sees at once (default: 16)")
    add("--workers", type=natural, metavar="N", help=f"processes that read images (default: {WORKERS}; few images: 0)")
    args = parser.parse_args(arguments)
    if args.resume and not args.output:
        parser.error("--resume continues a file: give its --output")
    return args


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 or 1 as the scores are, 2 after an error, 130 after Ctrl-C; finished rows are never lost."""
    args = parse(arguments)
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # file names need not be UTF-8
    try:
        return run(args)
    except BrokenPipeError:  # whoever read the table has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        code, message = 130, "stopped"
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        code, message = 2, f"error: {error}"
    if args.output and Path(f"{args.output}.partial").is_file():
        message += f"; finished rows are in {args.output}.partial, and the same command with --resume goes on"
    print(message, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
