"""Score face images: how useful each one is to face recognition, and why.

    python inference.py face.jpg                                a sentence, and the score
    python inference.py photos                                  a folder, with all folders below it: a table
    python inference.py photos --output scores.csv              into a file; .jsonl and .parquet hold all probabilities
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
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from command_line import (
    FILE_SIZE_HELP,
    THREADS_HELP,
    available_cores,
    exit_code,
    keep_freed_memory,
    let_threads_sleep,
    megabytes,
    natural,
    positive,
    set_threads,
)

if TYPE_CHECKING:
    from model.percentiles import Percentiles
    from scoring import Score, Scorer
    from scoring.select import Selection
    from scoring.tables import Journal, Row

FEW = 64  # so few images are read before worker processes would have started
MOST_WORKERS = 16
FACE_OPTIONS = ("faces", "min_face_size", "rotate", "detector")
METHOD_OPTIONS = ("degradation_encoder", "crops", "landmark_folder")
OPTIONS = ("faces", "min_face_size", "rotate", "detector", "bands", "max_bytes", *METHOD_OPTIONS)
METHOD_HELP = "clib-fiqa, cr-fiqa, ediffiqa, diffiqa-r or dsl-fiqa (default: the one that --weights are for)"
SELECTING = """Every row stays in the table; the column `selected` tells which pass all flags. Without flags all rows
    that have a score are copied and mapped."""
WORKERS_HELP = f"""processes that read images (default: 0 for fewer than {FEW} images, 1 for aligned crops on a CPU,
    else the number of cores, at most {MOST_WORKERS})"""


def run(args: argparse.Namespace) -> int:
    """Score the images of the command line, with the locks of the files that are written; return the exit code."""
    from faces.listing import expand_inputs
    from model.files import only_writer
    from scoring.report import check_report_name
    from scoring.tables import check_table_name

    if args.output:
        check_table_name(args.output)
    if args.report:
        check_report_name(args.report)
    args.selection = selection_of(args)
    check_folders(args)
    paths = expand_inputs(args.images, sys.stdin)
    with ExitStack() as locks:  # from before the model is loaded to the end of the files
        for file in filter(None, (args.output, args.report)):
            locks.enter_context(only_writer(file))
        return score_images(args, paths)


def selection_of(args: argparse.Namespace) -> Selection:
    """What the flags ask of a row. Raises ValueError for names that do not exist."""
    from scoring.select import GROUPS, Selection, read_keep

    keep: dict[str, tuple[str, ...]] = {}
    for factor, levels in map(read_keep, args.keep):
        keep[factor] = keep.get(factor, ()) + levels
    best_per = None
    if args.best_per:
        group, count = args.best_per
        if group not in GROUPS or not count.isdecimal() or int(count) < 1:
            raise ValueError(f"--best-per {group} {count}: {' or '.join(GROUPS)} and a number from 1 were expected")
        best_per = group, int(count)
    return Selection(args.min_score, args.min_band, args.min_percentile, keep, args.discard, best_per)


def check_folders(args: argparse.Namespace) -> None:
    """Raises ValueError when a folder that is to be filled lies among the images, or the one for copies is not new."""
    from scoring.select import check_new, check_outside

    for folder in (args.copy_to, args.map):
        if folder is not None:
            check_outside(folder, args.images)
    if args.copy_to is not None:
        check_new(args.copy_to)


def check_method(scorer: Scorer, selection: Selection, mapped: str | None) -> None:
    """Raises ValueError, before anything is scored, when a flag asks for what the weights do not give."""
    from scoring.methods import METHODS

    method = METHODS[scorer.method]
    if selection.min_band and scorer.bands is None:
        raise ValueError(f"--min-band: {scorer.weights} has no measured bands; give --bands FILE (docs/reasons.md)")
    if selection.min_percentile is not None and scorer.percentiles is None:
        raise ValueError(f"--min-percentile: {scorer.weights} holds no percentiles; use --discard or --min-score")
    if missing := [factor for factor in selection.keep if factor not in method.axes]:
        raise ValueError(f"--keep {missing[0]}: {scorer.method} gives no factors")
    if mapped and not method.aligned:
        raise ValueError(f"--map needs an aligned face, and {scorer.method} scores whole pictures")
    if mapped not in (None, "quality", *method.axes):
        raise ValueError(f"--map-of {mapped}: {scorer.method} gives a quality alone")


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
    check_method(scorer, args.selection, args.map_of if args.map else None)
    if len(first) == 1 and not journal_of(args) and args.faces != "all":
        return score_one(scorer, first[0], args)
    if args.workers is None:
        few = total is not None and total < FEW
        args.workers = 0 if few else default_workers(scorer, first[0], available_cores())
    start, remaining, doubtful = time.perf_counter(), chain(first, remaining), Counter[str]()
    if journal_of(args):
        statuses = write_files(scorer, remaining, total, args, doubtful)
    elif args.selection.needs_all or args.copy_to or args.map:
        statuses = print_finished_table(scorer, remaining, total, args, doubtful)
    else:
        statuses = print_table(watched(scorer.stream(remaining, args.workers), doubtful), args.selection)
    warn_of_doubtful(doubtful.total())
    counts = ", ".join(f"{count} {status}" for status, count in statuses.most_common())
    print(f"{counts} in {time.perf_counter() - start:.1f} s ({scorer})", file=sys.stderr)
    return int(set(statuses) != {"ok"})


def watched(scores: Iterable[Score], doubtful: Counter[str]) -> Iterator[Score]:
    """The scores as they are; those of crops in which no face is where the template has one are counted."""
    for score in scores:
        doubtful[score.aligned_by or ""] += score.aligned_by == "doubtful"
        yield score


def warn_of_doubtful(count: int) -> None:
    """Say on stderr that some pictures of 112x112 pixels seem to be no aligned crops."""
    if count:
        print(
            f"warning: {count} picture{'s' * (count > 1)} of 112x112 pixels, taken as aligned crops, show no face "
            "where the template has one (aligned_by: doubtful); --align yes looks for faces in them",
            file=sys.stderr,
        )


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


def score_one(scorer: Scorer, path: str, args: argparse.Namespace) -> int:
    """Score one image, print its sentence, copy it and write its map; return the exit code."""
    from scoring.select import marker
    from scoring.tables import row_of

    score = scorer.score(path)
    warn_of_doubtful(int(score.aligned_by == "doubtful"))
    row = row_of(score)
    (row,) = marker(args.selection, lambda: iter([row]))([row])
    code = print_sentence(score, scorer.percentiles, row["selected"] if args.selection else None)
    if args.copy_to or args.map:
        use_selected(scorer, lambda: iter([row]), args)
    return code


def print_sentence(score: Score, percentiles: Percentiles | None, selected: bool | None = None) -> int:
    """Print what the published script prints of one image, and before its last line what else is known; a failure goes
    to stderr. `selected` is None where nothing was asked for."""
    if score.status != "ok":
        from model.files import printable

        print(f"{printable(str(score.path))}: {score.status}", file=sys.stderr)
    if score.quality is None:
        return 1
    if score.sentence:
        print(score.sentence)
    if percentiles:
        print(f"higher than {score.percentile:.0f} % of {percentiles.set} ({percentiles.images} images)")
    if score.band:
        print(f"band: {score.band}")
    for reason in score.reasons or ():
        print(f"{reason.code} {reason.value:.3g}: {reason.advice}")
    if selected is not None:
        print(f"selected: {'yes' if selected else 'no'}")
    print(f"quality prediction = {score.quality:.4f}")
    return int(score.status != "ok")


def print_table(scores: Iterable[Score], selection: Selection) -> Counter[str]:
    """Print a line for each score as soon as it is there; return the number of rows of each status."""
    from scoring.tables import readable_header, readable_row, row_of

    statuses: Counter[str] = Counter()
    print(readable_header(selected=bool(selection)))
    for score in scores:
        statuses[score.status] += 1
        row = row_of(score)
        print(readable_row(row | {"selected": selection.passes(row)} if selection else row), flush=True)
    return statuses


def journal_of(args: argparse.Namespace) -> Any:
    """The file beside which finished rows are kept, a Path: the table, else the report, else None."""
    return args.output or args.report


def print_finished_table(
    scorer: Scorer, paths: Iterable[str], total: int | None, args: argparse.Namespace, doubtful: Counter[str]
) -> Counter[str]:
    """Print the table at the end, for what needs all rows; until then they are in a temporary file."""
    import json
    import tempfile

    from scoring.tables import readable_header, readable_row

    with tempfile.TemporaryDirectory() as folder:
        args.output = Path(folder) / "scores.jsonl"
        statuses = write_files(scorer, paths, total, args, doubtful)
        print(readable_header(selected=bool(args.selection)))
        with open(args.output, encoding="utf-8") as lines:
            for line in lines:
                print(readable_row(json.loads(line)))
    args.output = None
    return statuses


def write_files(
    scorer: Scorer, paths: Iterable[str], total: int | None, args: argparse.Namespace, doubtful: Counter[str]
) -> Counter[str]:
    """Write the table and the report, with progress on stderr; return the number of rows of each status."""
    from tqdm import tqdm

    from scoring.tables import Journal

    journal = Journal(journal_of(args), scorer.settings, args.resume, scorer.batch_size)
    paths = journal.unfinished(paths)
    scores = watched(scorer.stream(paths, args.workers), doubtful)
    total = None if args.faces == "all" else total  # an image may then have several rows
    journal.keep(tqdm(scores, total=total, initial=journal.finished, unit=" faces", disable=None))
    if args.report:
        write_page(scorer, journal, args)
    if not (args.selection or args.copy_to or args.map):
        return journal.finish()
    from scoring.select import marker

    mark = marker(args.selection, journal.rows)
    use_selected(scorer, lambda: mark(journal.rows()), args)
    return journal.finish(mark) if args.selection else journal.finish()


def use_selected(scorer: Scorer, rows: Callable[[], Iterator[Row]], args: argparse.Namespace) -> None:
    """Copy the files of the selected rows, and write their maps; `rows` gives all rows, each time anew."""
    from scoring.select import copy_files, selected_paths, write_maps

    if args.selection:
        print(f"{sum(row['selected'] for row in rows())} selected", file=sys.stderr)
    if args.copy_to:
        count = copy_files(lambda: selected_paths(rows()), args.copy_to)
        print(f"{count} files -> {args.copy_to}", file=sys.stderr)
    if args.map:
        count = write_maps(lambda: selected_paths(rows()), args.map, partial(scorer.region_map, axis=args.map_of))
        print(f"{count} maps -> {args.map}", file=sys.stderr)


def share(text: str) -> float:
    """A number from 0, and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"a share from 0 and below 1 was expected, not {text}")
    return value


def write_page(scorer: Scorer, journal: Journal, args: argparse.Namespace) -> None:
    """Write the report of all rows of the journal."""
    from tqdm import tqdm

    from scoring.methods import METHODS
    from scoring.report import write_report

    total = sum(1 for _ in journal.rows())
    about = {
        "model": f"{scorer.method}, {scorer.weights.name}",
        "created": time.strftime("%d %B %Y, %H:%M").lstrip("0"),
        "range": METHODS[scorer.method].range,
        "percentile_set": scorer.percentiles and scorer.percentiles.set,
    }
    rows = tqdm(journal.rows(), total=total, unit=" pictures", disable=None)
    write_report(args.report, rows, total, about, args.workers, args.swapped_channels)


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
    add("--report", type=Path, metavar="FILE.html", help="page to write: who would be refused at a threshold, and why")
    add("--resume", action="store_true", help="go on with an interrupted run that had the same --output or --report")
    add("--swapped-channels", action="store_true", help="the files hold BGR instead of RGB")
    add("--align", choices=("auto", "yes", "no"), default="auto", help="find and align faces (default: unless 112x112)")
    add("--faces", choices=("largest", "central", "all"), default="largest", help="which faces of a picture count")
    add("--min-face-size", type=positive, metavar="N", help="leave out faces of fewer pixels (default: 24)")
    add("--rotate", choices=("no", "auto"), default="no", help="auto: find faces on a side or upside down too")
    add("--detector", metavar="FILE.onnx", help="a detector of OpenCV's YuNet format (default: in weights/)")
    add("--device", default="auto", help="auto (default), cpu, cuda, cuda:N, mps")
    add("--precision", choices=("auto", "fp32", "bf16", "fp16"), default="auto", help="auto: bf16 on CUDA, else fp32")
    add("--batch-size", type=positive, metavar="N", help="images a network sees at once (CPU: 16, CUDA: 256, mps: 64)")
    add("--workers", type=natural, metavar="N", help=WORKERS_HELP)
    add("--threads", type=positive, metavar="N", help=THREADS_HELP)
    add("--max-file-size", type=megabytes, dest="max_bytes", metavar="MB", help=FILE_SIZE_HELP)
    add("--degradation-encoder", metavar="FILE", help="dsl-fiqa: the encoder, such as the published DE.pt")
    add("--crops", type=positive, metavar="N", help="dsl-fiqa: random crops of each image (default: 20)")
    add("--landmark-folder", metavar="FOLDER", help="dsl-fiqa: published landmarks, STEM.npy of each image STEM.*")
    add = parser.add_argument_group("selecting (docs/reasons.md)", SELECTING).add_argument
    add("--min-score", type=float, metavar="X", help="quality of X or more")
    add("--min-band", choices=("low", "medium", "high"), help="this band or a higher one")
    add("--min-percentile", type=float, metavar="P", help="better than P %% of the set that the weights name")
    keep_help = "the most probable level is one of these, such as pose=frontal,'slight angle'; may be repeated"
    add("--keep", action="append", default=[], metavar="FACTOR=LEVEL,…", help=keep_help)
    add("--discard", type=share, metavar="SHARE", help="all but the worst SHARE of the scored rows, such as 0.1")
    best_help = "folder or identity (the folder's name, wherever it lies) and how many of each; after all other flags"
    add("--best-per", nargs=2, metavar=("GROUP", "N"), help=best_help)
    add("--copy-to", type=Path, metavar="FOLDER", help="copy the selected files into a new folder")
    add("--bands", metavar="FILE", help="table of `evaluate.py bands` (default: the one beside the weights)")
    add("--map", type=Path, metavar="FOLDER", help="what lowers the score: a picture, JSON and NPY for each face")
    axes = ("quality", "blur", "occlusion", "pose", "expression", "illumination")
    add("--map-of", choices=axes, default="quality", help="what the map is of (default: quality)")
    args = parser.parse_args(arguments)
    if args.resume and not journal_of(args):
        parser.error("--resume continues a file: give its --output or --report")
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
    return exit_code(lambda: run_until_closed(args), "stopped", partial(resume_hint, journal_of(args)))


if __name__ == "__main__":
    sys.exit(main())
