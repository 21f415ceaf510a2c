"""Tables of scores: CSV, JSONL, Parquet, CR-FIQA's `path score` lines, and a readable one for the terminal."""

from __future__ import annotations

import itertools
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeAlias

import torch

from faces.workers import in_lists
from labels.label_table import is_storable, write_skipped
from labels.measure import write_json
from model.checkpoint import sha256_of
from model.files import (
    as_utf8,
    filling_folder,
    open_text,
    parse_json,
    printable,
    read_json,
    replacing,
    write_csv_rows,
    write_text,
)
from model.prompts import AXES, FACTORS
from model.provenance import versions

from .reasons import Reason
from .score import Score

Row: TypeAlias = dict[str, Any]
COLUMNS = ("path", "status", "quality", *FACTORS)
FACE_COLUMNS = ("face", "box", "points", "detection", "aligned_by", "faces", "frame", "time", "track")  # as in `Score`
ADDED = ("percentile", "band", "reasons", "advice", *FACE_COLUMNS)  # behind COLUMNS in CSV
PARQUET_GROUP = 8192  # rows
MANIFEST = "_manifest.json"
CHECKSUM = "crc32"   # of a line of a journal
CHECKED = f', "{CHECKSUM}": '


def row_of(score: Score) -> Row:
    """The row of a score: its columns, and all probabilities. What it does not have is None."""
    return {
        "path": score.path,
        "status": score.status,
        "quality": None if score.quality is None else float(f"{score.quality:.7g}"),  # as many digits as fp32 has
        **{factor: score.label(factor) for factor in FACTORS},
        "factors": {axis: _rounded(levels) for axis, levels in score.factors.items()} or None,
        "quality_distribution": score.quality_distribution and [round(p, 6) for p in score.quality_distribution],
        "percentile": None if score.percentile is None else round(score.percentile, 2),
        "band": score.band,
        "reasons": None if score.reasons is None else [_reason(reason) for reason in score.reasons],
        **face_columns(score),
    }


def face_columns(score: Score) -> Row:
    """The values of FACE_COLUMNS."""
    return {
        "face": score.face,
        "box": score.box and [round(x, 2) for x in score.box],
        "points": score.points and [round(x, 2) for x in score.points],
        "detection": None if score.detection is None else round(score.detection, 4),
        "aligned_by": score.aligned_by,
        "faces": score.faces,
        "frame": score.frame,
        "time": None if score.time is None else round(score.time, 3),
        "track": score.track,
    }


def _reason(reason: Reason) -> Row:
    return {"code": reason.code, "value": float(f"{reason.value:.4g}"), "advice": reason.advice}


def _rounded(levels: Mapping[str, float]) -> dict[str, float]:
    return {level: round(probability, 6) for level, probability in levels.items()}


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """COLUMNS, with the names of the levels, and ADDED, with reasons as `code=value;code=value`, and a box or points as
    numbers separated by spaces; at the end `selected`, when rows say so. Cells of a failed row are empty."""
    first, rows = _peek(rows)
    columns = [*COLUMNS, *ADDED, *(["selected"] if "selected" in first else [])]
    with open_text(path, "w") as file:
        write_csv_rows(file, [columns])
        write_csv_rows(file, ([cells[column] for column in columns] for cells in map(_cells, rows)))


def _cells(row: Row) -> Row:
    reasons = row["reasons"] or ()
    texts = {"reasons": ";".join(f"{reason['code']}={reason['value']}" for reason in reasons)}
    texts["advice"] = " ".join(reason["advice"] for reason in reasons)
    texts |= {name: " ".join(map(str, row[name] or ())) for name in ("box", "points")}
    return {**row, **texts} | ({"selected": int(row["selected"])} if "selected" in row else {})


def _peek(rows: Iterable[Row]) -> tuple[Row, Iterator[Row]]:
    """The first row, empty when there is none, and all rows."""
    rows = iter(rows)
    first = list(itertools.islice(rows, 1))
    return (first[0] if first else {}), itertools.chain(first, rows)


def write_jsonl(path: Path, rows: Iterable[Row]) -> None:
    """One object a line: the columns, then what `row_of` adds; null in a failed row."""
    with open_text(path, "w") as file:
        file.writelines(_json_line(row) for row in rows)


def _json_line(content: Mapping[str, Any]) -> str:
    """ASCII, so that file names that are not UTF-8, or hold line ends, survive as escapes."""
    return json.dumps(content) + "\n"


def write_parquet(path: Path, rows: Iterable[Row]) -> None:
    """The fields of `write_jsonl`. Raises ImportError without pyarrow."""
    pyarrow, parquet = _pyarrow()
    probability, text = pyarrow.float64(), pyarrow.string()
    factors = {axis: pyarrow.struct(dict.fromkeys(AXES[axis], probability).items()) for axis in FACTORS}
    types = {
        **dict.fromkeys(COLUMNS, text),
        "quality": probability,
        "factors": pyarrow.struct(factors.items()),
        "quality_distribution": pyarrow.list_(probability),
        "percentile": probability,
        "band": text,
        "reasons": pyarrow.list_(pyarrow.struct({"code": text, "value": probability, "advice": text}.items())),
        "face": pyarrow.int32(),
        **dict.fromkeys(("box", "points"), pyarrow.list_(probability)),
        "detection": probability,
        "aligned_by": text,
        **dict.fromkeys(("faces", "frame", "track"), pyarrow.int32()),
        "time": probability,
    }
    first, rows = _peek(rows)
    types |= {"selected": pyarrow.bool_()} if "selected" in first else {}
    schema = pyarrow.schema(types.items())
    with parquet.ParquetWriter(path, schema) as writer:
        while group := list(itertools.islice(rows, PARQUET_GROUP)):
            valid = [{**row, "path": as_utf8(row["path"])} for row in group]
            writer.write_table(pyarrow.Table.from_pylist(valid, schema))


def write_parts(folder: Path, rows: Iterable[Row], part_rows: int, about: Mapping[str, Any]) -> None:
    """Parquet files of `part_rows` rows each, and MANIFEST, which readers of such folders pass over: how many rows and
    which schema, the rows and the SHA-256 of each file, the versions of what wrote them, and what `about` adds."""
    pyarrow, parquet = _pyarrow()
    parts: list[dict[str, Any]] = []
    while True:
        first, rows = _peek(rows)
        if parts and not first:
            break
        path = folder / f"part-{len(parts):05}.parquet"
        write_parquet(path, itertools.islice(rows, part_rows))
        parts.append({"file": path.name, "rows": parquet.read_metadata(path).num_rows, "sha256": sha256_of(path)})
    schema = {field.name: str(field.type) for field in parquet.read_schema(folder / parts[0]["file"])}
    manifest = {
        "version": 1,
        "rows": sum(part["rows"] for part in parts),
        "schema": schema,
        "parts": parts,
        "software": {"torch": torch.__version__, "pyarrow": pyarrow.__version__},
        **about,
    }
    write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def is_parts(path: Path) -> bool:
    """Whether a folder is what `write_parts` filled, and holds nothing else."""
    try:
        manifest = read_json(path / MANIFEST, dict, "")
        files = {MANIFEST, *(part["file"] for part in manifest["parts"])}
        return files == {file.name for file in path.iterdir()}
    except (OSError, ValueError, KeyError, TypeError):  # no folder, no manifest, or not one of ours
        return False


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise ImportError("a .parquet table needs pyarrow: pip install pyarrow") from error
    return pyarrow, pyarrow.parquet


def write_lines(path: Path, rows: Iterable[Row]) -> None:
    """`path score`, as CR-FIQA's published scripts write and read it. Rows of `left_out` have no line."""
    with open_text(path, "w") as file:
        file.writelines(f"{row['path']} {row['quality']}\n" for row in rows if left_out(row) is None)


def left_out(row: Row) -> str | None:
    """Why a row has no `path score` line: its status without a score, not selected, or a line end in its name."""
    if row["quality"] is None:
        return row["status"]
    if not row.get("selected", True):
        return "not_selected"
    return None if is_storable(row["path"]) else "bad_path"


FORMATS: dict[str, Callable[[Path, Iterable[Row]], None]] = {
    ".csv": write_csv,
    ".jsonl": write_jsonl,
    ".parquet": write_parquet,
    ".txt": write_lines,
}


def check_table_name(path: Path) -> None:
    """Raises ValueError when the suffix is none of `FORMATS`, ImportError when Parquet is wanted without pyarrow."""
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"the name of a table must end in one of {', '.join(FORMATS)}, not {path.name!r}")
    if path.suffix.lower() == ".parquet":
        _pyarrow()  # now rather than after hours of scoring


def write_table(
    output: Path,
    rows: Callable[[], Iterable[Row]],
    settings: Mapping[str, Any],
    part_rows: int | None = None,
) -> Counter[str]:
    """Write a table of any of `FORMATS`, atomically, and count the rows by status.

    With `part_rows` it is a folder of Parquet files (`write_parts`), which takes the place of an older one.
    """
    statuses: Counter[str] = Counter()

    def counted() -> Iterator[Row]:
        for row in rows():
            statuses[row["status"]] += 1
            yield row

    suffix = output.suffix.lower()
    if part_rows:
        with filling_folder(output, replaced=is_parts(output)) as folder:
            # `statuses` is complete when the last part is written, and the manifest comes after it.
            write_parts(folder, counted(), part_rows, {"statuses": statuses, "settings": settings})
        return statuses
    with replacing(output) as temporary:
        FORMATS[suffix](temporary, counted())
    if suffix == ".txt":
        write_skipped(output, ((row["path"], why) for row in rows() if (why := left_out(row))))
    return statuses


def write_manifest(
    output: Path, settings: Mapping[str, Any], statuses: Mapping[str, int], selection: Mapping[str, Any] | None = None
) -> None:
    """Write FILE.json beside a table: what its rows depend on, how many have each status, what was asked of the
    selected ones, and the versions of what wrote it. It is the same for one run and for merged shards."""
    software = versions(("numpy", "torch"))
    manifest = {"version": 1, "statuses": statuses, "settings": settings, "selection": selection, "software": software}
    write_json(Path(f"{output}.json"), manifest)


class Journal:
    """The rows of a run, on disk as soon as they are finished, so that nothing is lost when the run is interrupted.

    Whatever the format of `output`, `FILE.partial` is JSON lines: the run's settings, then the rows, each with a
    checksum. `finish` writes the table from it, atomically. Images that have no `path score` line go to
    `FILE.txt.skipped.tsv`. Only one process may have a journal of an output at a time: hold
    `model.files.only_run(output)`.
    """

    def __init__(
        self,
        output: Path,
        settings: Mapping[str, Any],
        resume: bool,
        batch_size: int = 1,
        part_rows: int | None = None,
    ) -> None:
        """Start anew, or with `resume` continue an earlier run. Raises ValueError when that run had other settings.

        The last digit of a score can depend on the images that are scored with it. A resumed run therefore continues
        at a whole number of batches of `batch_size` images, and scores the images of an unfinished batch again.
        """
        self.output, self.partial = output, output.with_name(output.name + ".partial")
        self.settings, self.part_rows = settings, part_rows
        self.batch_size, self.finished = batch_size, 0
        self.several_faces = settings.get("faces") == "all"
        output.parent.mkdir(parents=True, exist_ok=True)
        if not (resume and self.partial.is_file() and _drop_torn_line(self.partial)):
            with open_text(self.partial, "w") as file:
                file.write(_json_line(settings))
        before, now = next(self._lines(), {}), json.loads(json.dumps(settings))
        if changed := [name for name in before | now if before.get(name) != now.get(name)]:
            raise ValueError(
                f"cannot resume: {', '.join(changed)} changed since the rows of {self.partial} were made; "
                "run with the same settings, or without --resume to start anew"
            )

    def unfinished(
        self, paths: Iterable[str], is_video: Callable[[str], bool] = lambda path: False
    ) -> Iterator[str]:
        """The paths that are still to be scored; sets `finished`, the number of the other ones.

        A video is a batch of its own (`in_batches`). The last one may lack rows, so it is scored again.
        Raises ValueError when the rows have other paths.
        """
        paths, batch = iter(paths), list[str]()  # the paths of the batch in which the earlier run stopped
        kept, before, video = 0, Row(), False  # rows; the row before, and whether it is of a video
        for number, row in enumerate(self.rows(), 1):
            further, before = is_further(row, before), row
            if further:
                continue
            if (path := next(paths, None)) != row["path"]:
                raise ValueError(
                    f"cannot resume: row {number} of {self.partial} is of {row['path']}, that image is now "
                    f"{path}; run with the same images, or without --resume to start anew"
                )
            after_video, video = video, row["frame"] is not None or is_video(row["path"])
            if len(batch) == self.batch_size or (batch and (video or after_video)):
                batch, self.finished, kept = [], self.finished + len(batch), number - 1
            batch.append(row["path"])
        may_go_on = self.several_faces or video  # the last one may have further faces
        if len(batch) == self.batch_size and not may_go_on:
            batch, self.finished, kept = [], self.finished + len(batch), number
        _keep_lines(self.partial, 1 + kept)
        return itertools.chain(batch, paths)

    def keep(self, scores: Iterable[Score]) -> None:
        """Write each row as soon as its score is there."""
        with open(self.partial, "a", encoding="utf-8", buffering=1) as file:
            file.writelines(_checked_line(row_of(score)) for score in scores)

    def count(self) -> int:
        """How many rows are finished."""
        with open(self.partial, "rb") as file:
            return sum(1 for _ in file) - 1

    def rows(self) -> Iterator[Row]:
        """The finished rows."""
        return itertools.islice(self._lines(), 1, None)

    def finish(self, selected: Callable[[Iterator[Row]], Iterator[Row]] = lambda rows: rows) -> Counter[str]:
        """Write the table where the output is one, remove the journal, and count the rows by status. `selected` adds to
        rows whether they are selected."""
        if self.output.suffix.lower() in FORMATS:
            statuses = write_table(self.output, lambda: selected(self.rows()), self.settings, self.part_rows)
        else:
            statuses = Counter(row["status"] for row in self.rows())
        self.partial.unlink()
        return statuses

    def _lines(self) -> Iterator[Row]:
        with open_text(self.partial) as file:
            for number, line in enumerate(file, 1):
                damaged = f"{self.partial}, line {number} is damaged; run without --resume to start anew"
                row = parse_json(line, dict, damaged)
                if number > 1 and row.pop(CHECKSUM, None) != _checksum_of(line):
                    raise ValueError(damaged)
                yield row


def in_batches(paths: Iterable[str], size: int, is_video: Callable[[str], bool]) -> Iterator[list[str]]:
    """The paths that are scored together: up to `size` neighbouring pictures, and each video by itself."""
    for video, group in itertools.groupby(paths, is_video):
        yield from in_lists(group, 1 if video else size)


def is_further(row: Mapping[str, Any], before: Mapping[str, Any]) -> bool:
    """Whether a row is a further one of what the row before is of: another face of a picture, or the next of a video.

    The same path may be given twice. The faces of a picture, and the frames of a video, then begin anew.
    """
    if row.get("path") != before.get("path"):
        return False
    frame, frame_before = row.get("frame"), before.get("frame")
    if frame is None or frame_before is None:
        return frame is None and bool(row.get("face"))
    return frame > frame_before or (frame == frame_before and bool(row.get("face")))


def _checked_line(row: Row) -> str:
    """A line of the journal: the row, and behind it the CRC-32 of what stands before."""
    text = _json_line(row)[:-2]  # without its last bracket
    return f"{text}{CHECKED}{_checksum_of(text)}}}\n"


def _checksum_of(line: str) -> int:
    """Of a line of the journal, as far as CHECKED or its end."""
    return zlib.crc32(line.rpartition(CHECKED)[0].encode(errors="surrogateescape") or line.encode())


def _drop_torn_line(path: Path) -> int:
    """Cut off a last line without its end, which a killed run may leave; how many bytes remain."""
    with open(path, "rb+") as file:
        return file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))


def _keep_lines(path: Path, count: int) -> None:
    """Cut a file behind its first lines."""
    with open(path, "rb+") as file:
        file.truncate(sum(len(line) for line in itertools.islice(file, count)))


READABLE = ("status", "quality", *FACTORS)
WIDTHS = {"status": 12, "quality": 7, "selected": 8}
WIDTHS |= {axis: max(len(s.split()[0]) for s in [axis, *AXES[axis]]) for axis in FACTORS}


def readable_header(selected: bool = False) -> str:
    """The first line of the table for the terminal: single words, and the path, which may be of any length, last."""
    return "  ".join([*(column.ljust(WIDTHS[column]) for column in _readable(selected)), "path"])


def readable_row(row: Row) -> str:
    """The line of one row; of a level's name its first word, `-` for what is not there."""
    cells = {"status": row["status"], "quality": "-" if row["quality"] is None else f"{row['quality']:.4f}"}
    cells |= {factor: (row[factor] or "-").split()[0] for factor in FACTORS}
    cells |= {"selected": "yes" if row.get("selected") else "no"}
    columns = _readable("selected" in row)
    return "  ".join([*(cells[column].ljust(WIDTHS[column]) for column in columns), printable(str(row["path"]))])


def _readable(selected: bool) -> list[str]:
    return [*READABLE, *(["selected"] if selected else [])]

