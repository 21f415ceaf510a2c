"""What inference.py does: score the images of a command line, and write or print what was asked for."""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from itertools import chain, groupby, islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from faces.align import is_aligned
from faces.cluster import Cluster, cluster_of
from faces.containers import read_picture, with_members
from faces.finished import Checkpoint, names_hash
from faces.listing import expand_inputs
from faces.reader import ImageError
from faces.video import is_video
from model.files import filling_folder, only_run, only_writer, printable
from model.percentiles import Percentiles

from .methods import METHODS
from .report import check_report_name, write_report
from .score import Score
from .scorer import Scorer
from .select import (
    GROUPS,
    Selection,
    check_new,
    check_outside,
    check_writable,
    copy_files,
    marker,
    read_keep,
    selected_faces,
    selected_paths,
    write_maps,
)
from .shards import merge, shard_of, shard_table, write_settings
from .tables import Journal, Row, check_table_name, is_parts, readable_header, readable_row, row_of, write_manifest
from .video import video_scores, write_shots

FEW = 64  # so few images are read before worker processes would have started
MOST_WORKERS = 16
OPTIONS = (
    *("faces", "min_face_size", "rotate", "detector"),
    *("degradation_encoder", "crops", "landmark_folder", "bands", "max_bytes"),
)


def run(args: argparse.Namespace) -> int:
    """Score the images of the command line, with the locks of the files that are written; return the exit code.

    `args` are those of inference.py's parser, and `cores`, how many this process may use.
    """
    if args.output:
        check_table_name(args.output)
    if args.part_rows and not (args.output and args.output.suffix.lower() == ".parquet"):
        raise ValueError("--part-rows divides a Parquet table: give --output FOLDER.parquet")
    if args.report:
        check_report_name(args.report)
    args.selection = selection_of(args)
    check_options(args)
    check_folders(args)
    if (args.shard or args.merge) and (args.report or args.copy_to or args.map or args.selection):
        raise ValueError("--shard and --merge write the table alone: select, copy, map and report when it is whole")
    paths = with_members(inputs_of(args))
    if args.merge:
        with writing(args.output, args.part_rows):
            footage = partial(is_footage, rate=args.frames)
            statuses = merge(args.output, list(paths), args.merge, args.part_rows, footage)
            return report(statuses, f"{args.merge} shards")
    if args.shard:
        with only_writer(shard_table(args.output, args.shard)):
            return score_images(args, list(paths))
    with ExitStack() as locks:  # from before the model is loaded to the end of the files
        for file in filter(None, (args.output, args.report)):
            locks.enter_context(writing(file, args.part_rows))
        return score_images(args, paths)


def writing(output: Path, part_rows: int | None) -> AbstractContextManager[None]:
    """The lock of an output. The folder of an earlier run with --part-rows may be written anew.

    Raises ValueError where --part-rows meets a file.
    """
    if part_rows and output.suffix.lower() == ".parquet" and output.is_file():
        raise ValueError(f"{output} is a file, and --part-rows makes a folder: remove it, or choose another --output")
    return only_run(output) if part_rows and is_parts(output) else only_writer(output)


def inputs_of(args: argparse.Namespace) -> Iterator[str]:
    """The paths of images and videos; with --frames a folder stays one path, a video."""
    if not args.frames:
        return expand_inputs(args.images, sys.stdin, partial(tell_of_folder, alone=len(args.images) == 1))
    groups = groupby(args.images, lambda argument: Path(argument).is_dir())
    return chain.from_iterable(group if folders else expand_inputs(list(group), sys.stdin) for folders, group in groups)


def tell_of_folder(folder: str, images: list[str], others: list[str], alone: bool) -> None:
    """Say on stderr that videos below a folder are left out, and that there is no picture; of the only one (`alone`)
    that is an error anyway."""
    if videos := list(filter(is_video, others)):
        count = f"{len(videos)} video{'s are' if len(videos) > 1 else ' is'}"
        some = f"such as {min(videos)}: give paths of videos or a pattern"
        print(printable(f"note: {count} left out below {folder}, {some}"), file=sys.stderr)
    if not images and not alone:
        print(printable(f"note: there is no picture below {folder}"), file=sys.stderr)


def selection_of(args: argparse.Namespace) -> Selection:
    """What the flags ask of a row. Raises ValueError for names that do not exist."""
    keep: dict[str, tuple[str, ...]] = {}
    for factor, levels in map(read_keep, args.keep):
        keep[factor] = keep.get(factor, ()) + levels
    best_per = None
    if args.best_per:
        group, count = args.best_per
        if group not in GROUPS or not count.isdecimal() or int(count) < 1:
            raise ValueError(f"--best-per {group} {count}: one of {', '.join(GROUPS)}, and a number from 1, expected")
        best_per = group, int(count)
    return Selection(args.min_score, args.min_band, args.min_percentile, keep, args.discard, best_per)


def check_options(args: argparse.Namespace) -> None:
    """Raises ValueError for an empty path, and for a flag that has no effect with the others."""
    if "" in args.images:
        raise ValueError("an empty path was given: a file, a folder or a pattern was expected")
    if args.align == "no" and (flags := finding(args)):
        raise ValueError(f"{flags[0]} has no effect with --align no, which takes every picture as it is")
    if args.map_of and not args.map:
        raise ValueError("--map-of says what --map shows: give --map FOLDER too")
    if args.frames and not any(Path(path).is_dir() or path.startswith(("-", "@")) for path in args.images):
        raise ValueError("--frames takes folders as videos, and no folder is given")


def finding(args: argparse.Namespace) -> list[str]:
    """The given flags that say how faces are found."""
    names = ("faces", "min_face_size", "rotate", "detector")
    return [f"--{name.replace('_', '-')}" for name in names if vars(args)[name] not in (None, "no")]


def check_folders(args: argparse.Namespace) -> None:
    """Raises ValueError when a folder that is to be filled lies among the images, or the one for copies is not new;
    OSError when nothing can be written there."""
    for folder in (args.copy_to, args.map):
        if folder is not None:
            check_outside(folder, args.images)
    if args.copy_to is not None:
        check_new(args.copy_to, filter(None, (args.output, args.report, args.map)))
        check_writable(args.copy_to.resolve().parent)
    if args.map is not None:
        check_writable(args.map)


def check_method(scorer: Scorer, args: argparse.Namespace) -> None:
    """Raises ValueError, before anything is scored, when a flag asks for what the weights do not give."""
    method, selection = METHODS[scorer.method], args.selection
    mapped = (args.map_of or "quality") if args.map else None
    if not method.aligned and (flags := finding(args)):
        raise ValueError(f"{flags[0]} has no effect: {scorer.method} scores whole pictures")
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


def check_videos(args: argparse.Namespace, paths: list[str]) -> None:
    """Raises ValueError for --map when there are only videos, and for --best-per track when there is none."""
    videos = sum(is_footage(path, args.frames) for path in paths)
    if args.best_per and args.best_per[0] == "track" and not videos:
        raise ValueError("--best-per track is of videos, and no video is given")
    if args.map and videos == len(paths):
        raise ValueError("--map is of photographs, and only videos are given")


def score_images(args: argparse.Namespace, paths: Iterable[str]) -> int:
    """Score the images at these paths; return the exit code."""
    if "-" not in args.images:
        paths = list(paths)
    total = len(paths) if isinstance(paths, list) else None  # what standard input lists is not waited for
    remaining = iter(paths)
    first = list(islice(remaining, 2))
    if not first:
        raise ValueError(f"there are no images in {' '.join(args.images)}")
    if isinstance(paths, list):
        check_videos(args, paths)
    settings = args.device, args.precision, args.align, args.batch_size, args.swapped_channels
    options = {name: vars(args)[name] for name in OPTIONS if vars(args)[name] is not None}
    footage = any(is_footage(path, args.frames) for path in (paths if isinstance(paths, list) else first))
    scorer = Scorer(args.method, args.weights, *settings, **options)
    kept = checkpoint_of(scorer, paths, args) if args.checkpoint else None
    cluster = cluster_of(args.engine, args.address, args.actors, scorer.device.type, kept)
    check_method(scorer, args)
    if len(first) == 1 and not journal_of(args) and args.faces != "all" and not footage:
        return score_one(scorer, first[0], args)
    if args.workers is None:
        few = total is not None and total < FEW
        args.workers = 0 if few else default_workers(scorer, first[0], args.cores)
    start, remaining, doubtful = time.perf_counter(), iter(chain(first, remaining)), Counter[str]()
    if args.shard:
        part = shard_of(remaining, args.shard, scorer.batch_size, partial(is_footage, rate=args.frames))
        remaining, total = iter(part), len(part)
        write_settings(args.output, args.shard, settings_of(scorer, args))
        args.output = shard_table(args.output, args.shard)
    if footage or args.faces == "all":
        total = None   # a path may then have several rows
    write = partial(write_files, scorer, cluster, remaining, total, args, doubtful)
    if journal_of(args):
        statuses = write()
        if args.output and not (args.shard or args.part_rows):   # a shard has its settings beside it, a folder in it
            selection = vars(args.selection) if args.selection else None
            write_manifest(args.output, settings_of(scorer, args), statuses, selection)
    elif args.selection.needs_all or args.copy_to or args.map:
        statuses = print_finished_table(write, args)
    else:
        statuses = print_table(watched(scores_of(scorer, cluster, remaining, args), doubtful), args.selection)
    warn_of_doubtful(doubtful.total())
    return report(statuses, f"{time.perf_counter() - start:.1f} s ({scorer})")


def settings_of(scorer: Scorer, args: argparse.Namespace) -> dict[str, Any]:
    """What the rows depend on besides the images."""
    of_videos = {"faces_of_videos": args.faces or "all", "every": args.every, "frames": args.frames}
    return {**scorer.settings, "weights_name": scorer.weights.name, **of_videos}


def checkpoint_of(scorer: Scorer, paths: Iterable[str], args: argparse.Namespace) -> Checkpoint:
    """Where the processes of a cluster keep finished batches. What standard input lists may be endless: it has no
    hash."""
    images = names_hash(paths) if isinstance(paths, list) else None
    settings = {**settings_of(scorer, args), "shard": args.shard, "images": images}
    return Checkpoint(args.checkpoint, settings, args.resume)


def report(statuses: Counter[str], how: str) -> int:
    """Say on stderr how many rows have each status; return the exit code."""
    counts = ", ".join(f"{count} {status}" for status, count in statuses.most_common()) or "no rows"
    print(f"{counts} in {how}", file=sys.stderr)
    return int(not set(statuses) <= {"ok"})


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
    crops = scorer.align == "no" or (scorer.align == "auto" and is_crop(first, scorer.max_bytes))
    if scorer.device.type == "cpu" and crops:
        return 1
    return min(MOST_WORKERS, cores)


def is_crop(path: str, max_bytes: int) -> bool:
    """Whether the file is an image of the size of aligned crops."""
    try:
        return is_aligned(read_picture(path, max_bytes))
    except ImageError:
        return False


def score_one(scorer: Scorer, path: str, args: argparse.Namespace) -> int:
    """Score one image, print its sentence, copy it and write its map; return the exit code."""
    score = scorer.score(path)
    warn_of_doubtful(int(score.aligned_by == "doubtful"))
    row = row_of(score)
    (row,) = marker(args.selection, lambda: iter([row]))([row])
    code = print_sentence(score, scorer.percentiles, row["selected"] if args.selection else None)
    if args.copy_to or args.map:
        with ExitStack() as unpublished:
            use_selected(scorer, lambda: iter([row]), args, unpublished)
    return code


def print_sentence(score: Score, percentiles: Percentiles | None, selected: bool | None = None) -> int:
    """Print what the published script prints of one image, and before its last line what else is known; a failure goes
    to stderr. `selected` is None where nothing was asked for."""
    if score.status != "ok":
        print(f"{printable(str(score.path))}: {score.status}", file=sys.stderr)
    if score.quality is None:
        return 1
    if score.sentence:
        print(score.sentence)
    if percentiles:
        print(f"higher than {score.percentile:.0f} % of {printable(percentiles.set)} ({percentiles.images} images)")
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


def print_finished_table(write: Callable[[], Counter[str]], args: argparse.Namespace) -> Counter[str]:
    """Print the table at the end, for what needs all rows; until then `write` puts them into a temporary file."""
    with tempfile.TemporaryDirectory() as folder:
        args.output = Path(folder) / "scores.jsonl"
        statuses = write()
        print(readable_header(selected=bool(args.selection)))
        with open(args.output, encoding="utf-8") as lines:
            for line in lines:
                print(readable_row(json.loads(line)))
    args.output = None
    return statuses


def write_files(
    scorer: Scorer,
    cluster: Cluster | None,
    paths: Iterable[str],
    total: int | None,
    args: argparse.Namespace,
    doubtful: Counter[str],
) -> Counter[str]:
    """Write the table and the report, with progress on stderr; return the number of rows of each status."""
    parts = None if args.shard else args.part_rows
    journal = Journal(journal_of(args), settings_of(scorer, args), args.resume, scorer.batch_size, parts)
    remaining = journal.unfinished(paths, partial(is_footage, rate=args.frames))
    scores = watched(scores_of(scorer, cluster, remaining, args), doubtful)
    journal.keep(tqdm(scores, total=total, initial=journal.finished, unit=" faces", disable=None))
    if not (args.selection or args.copy_to or args.map or args.report):
        return journal.finish()
    mark = marker(args.selection, journal.rows)
    if args.report:
        rows = mark(journal.rows()) if args.selection else journal.rows()
        write_page(scorer, rows, journal.count(), args)
    with ExitStack() as unpublished:   # until the table is written: what fails before can be resumed
        use_selected(scorer, lambda: mark(journal.rows()), args, unpublished)
        return journal.finish(mark) if args.selection else journal.finish()


def scores_of(
    scorer: Scorer, cluster: Cluster | None, paths: Iterable[str], args: argparse.Namespace
) -> Iterator[Score]:
    """The scores of images and videos, in their order."""
    for videos, group in groupby(paths, partial(is_footage, rate=args.frames)):
        if videos:
            for path in group:
                yield from video_scores(scorer, path, args.every, args.frames or 25.0, args.faces or "all")
        else:
            yield from scorer.stream(group, args.workers, cluster)


def is_footage(path: str, rate: float | None) -> bool:
    """Whether a path is a video, or with a rate of --frames a folder of frames."""
    return is_video(path) or (rate is not None and Path(path).is_dir())


def use_selected(
    scorer: Scorer, rows: Callable[[], Iterator[Row]], args: argparse.Namespace, unpublished: ExitStack
) -> None:
    """Write the maps of the selected rows, and copy their files; `rows` gives all rows, each time anew.

    The folder of the copies appears when `unpublished` is closed, or not at all when that happens by an error.
    """
    if args.selection:
        print(f"{sum(row['selected'] for row in rows())} selected", file=sys.stderr)
    if args.map:
        if of_videos := sum(row["selected"] and row["frame"] is not None for row in rows()):
            print(f"no map of {of_videos} faces of videos", file=sys.stderr)
        region_maps = partial(scorer.region_maps, axis=args.map_of or "quality")
        count = write_maps(lambda: selected_faces(rows()), args.map, region_maps)
        print(f"{count} maps -> {args.map}", file=sys.stderr)
    if args.copy_to:
        folder = unpublished.enter_context(filling_folder(args.copy_to.resolve()))   # a link stays one
        count = copy_files(lambda: selected_paths(rows()), folder, scorer.max_bytes)
        selected = (row for row in rows() if row["selected"])
        count += write_shots(selected, folder, args.every, args.frames or 25.0, scorer.max_bytes)
        print(f"{count} files -> {args.copy_to}", file=sys.stderr)


def write_page(scorer: Scorer, rows: Iterator[Row], total: int, args: argparse.Namespace) -> None:
    """Write the report of `total` rows."""
    about = {
        "model": f"{scorer.method}, {scorer.weights.name}",
        "created": time.strftime("%d %B %Y, %H:%M").lstrip("0"),
        "range": METHODS[scorer.method].range,
        "percentile_set": scorer.percentiles and scorer.percentiles.set,
    }
    shown = tqdm(rows, total=total, unit=" pictures", disable=None)
    write_report(args.report, shown, total, about, args.workers, args.swapped_channels, scorer.max_bytes)
