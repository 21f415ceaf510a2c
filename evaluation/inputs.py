"""What the commands of `methods/` read and write: qualities, embeddings (ours or the published pickles), TSV tables."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.embeddings import Embeddings, EmbeddingsError, read_embeddings
from evaluation.plain_pickle import read_plain_pickle
from evaluation.scores import ScoreTableError, file_and_column, read_scores
from labels.anchors import identity_of
from labels.label_table import REQUIRED, is_storable, read_labels
from model.files import open_text, replacing

PICKLES = (".pkl", ".pickle")


def read_qualities(path: str | Path, skip_unscored: bool = False) -> dict[str, float]:
    """Name -> finite quality, in the order of the file: any table of `read_scores`, a label table with or without a
    header, or a published pickle, a dict or a list of (name, quality).

    Raises ValueError for an image without a finite quality, unless `skip_unscored` leaves those out.
    """
    given, path = path, file_and_column(path)[0]
    if not path.is_file():
        raise ScoreTableError(f"{path} does not exist; a table of scores or labels was expected")
    if path.suffix.lower() in PICKLES:
        scores = _from_pickle(path)
    elif is_label_table(path):
        labels = read_labels(path)
        scores = {label.path: math.nan if label.quality is None else label.quality for label in labels}
        if len(scores) < len(labels):
            raise ScoreTableError(f"{path}: {len(labels) - len(scores)} rows repeat the path of another row")
    else:
        scores = read_scores(given)
    unscored = [name for name, quality in scores.items() if not math.isfinite(quality)]
    if unscored and not skip_unscored:
        raise ScoreTableError(
            f"{path}: {len(unscored)} of {len(scores)} images have no quality (NaN, or not ok), for example "
            f"{unscored[0]}; score them, or leave them out with --skip-unscored"
        )
    for name in unscored:
        del scores[name]
    if not scores:
        raise ScoreTableError(f"{path} holds no image with a quality")
    return scores


def is_label_table(path: str | Path) -> bool:
    """Whether the first line is that of a label table: our header, or a row of the published tables without one."""
    if Path(path).suffix.lower() in (".csv", ".jsonl", ".parquet", *PICKLES):
        return False
    with open_text(path) as file:
        head = file.readline().rstrip("\r\n")
    cells = head.split("\t")
    if set(REQUIRED) <= set(cells):
        return True
    cells = cells if len(cells) > 1 else head.rsplit(maxsplit=len(REQUIRED) - 1)
    return len(cells) == len(REQUIRED) and all(cell.isdecimal() for cell in cells[2:])


def read_any_embeddings(path: str | Path) -> Embeddings:
    """What `read_embeddings` reads, or a published pickle: a dict of name and array (D,). Raises EmbeddingsError."""
    if Path(path).suffix.lower() not in PICKLES:
        return read_embeddings(path)
    table = read_plain_pickle(path)
    if not isinstance(table, dict) or not table:
        raise EmbeddingsError(f"{path}: expected a dict of path and embedding, found {type(table).__name__}")
    rows = [np.asarray(row).reshape(-1) for row in table.values()]
    if len({row.shape for row in rows}) > 1 or not np.issubdtype(rows[0].dtype, np.floating):
        raise EmbeddingsError(f"{path}: expected arrays of numbers, all of one length")
    return Embeddings([str(name) for name in table], np.stack(rows), None)


def identities_of(names: Sequence[str], source: str | Path) -> list[str]:
    """The identity of each name, the folder that holds it. Raises ValueError for names without a folder, for a single
    image, and for a single identity."""
    identities = [identity_of(name) for name in names]
    if without := list(compress(names, [not identity for identity in identities])):
        raise ValueError(
            f"{source}: {len(without)} of {len(names)} names have no identity, for example {without[0]}; "
            "names such as IDENTITY/FILE.jpg were expected, the folder being the identity"
        )
    require_identities(identities, source)
    return identities


def require_identities(identities: Sequence[str], source: str | Path) -> None:
    """Raise ValueError unless there are images of at least two identities."""
    if len(set(identities)) < 2:
        count, found = len(identities), f"one identity, {identities[0]}" if identities else "no identity"
        raise ValueError(
            f"{source} holds {count} image{'s' * (count != 1)} of {found}; images of at least two identities were "
            "expected, each identity in a folder of its own"
        )


def take_rows(embeddings: Embeddings, source: str | Path, rows: NDArray[np.integer]) -> NDArray[np.floating]:
    """The embeddings (n, D) of these rows. Raises EmbeddingsError when one of them is zero or not finite."""
    found = np.asarray(embeddings.rows[rows])
    lengths = np.linalg.norm(found, axis=1)
    bad = rows[~((lengths > 0) & np.isfinite(lengths))]
    if bad.size:
        raise EmbeddingsError(
            f"{source}: the embedding of {embeddings.names[bad[0]]} is zero or not finite; make it anew, or remove it"
        )
    return found


def read_tsv(path: str | Path, columns: Sequence[str]) -> list[list[str]]:
    """The rows of a tab-separated table with a header, reduced to these columns, none of whose cells may be empty.

    Raises ValueError with the line at fault.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} does not exist; a table with the columns {' '.join(columns)} was expected")
    with open_text(path) as file:
        rows = csv.reader(file, delimiter="\t")
        header = next(rows, [])
        if absent := [name for name in columns if name not in header]:
            expected = " ".join(columns)
            raise ValueError(f"{path}: the header lacks {', '.join(absent)}; expected the tab-separated {expected}")
        places, table = [header.index(name) for name in columns], []
        for row in rows:
            if len(row) != len(header):
                raise ValueError(f"{path}, line {rows.line_num}: {len(row)} cells, expected {len(header)}")
            cells = [row[place] for place in places]
            if "" in cells:
                raise ValueError(f"{path}, line {rows.line_num}: the {columns[cells.index('')]} is empty")
            table.append(cells)
    if not table:
        raise ValueError(f"{path} has a header and no rows")
    return table


def write_tsv(path: str | Path, header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Write a tab-separated table atomically; the first cell of a row is a path.

    Raises ValueError for a path that a table cannot hold.
    """
    with replacing(path) as temporary, open_text(temporary, "w") as file:
        table = list(rows)
        if not is_storable("".join(row[0] for row in table)):
            bad = next(row[0] for row in table if not is_storable(row[0]))
            raise ValueError(f"{bad!r} holds a tab or a line end, which a table cannot hold; rename the file")
        writer = csv.writer(file, delimiter="\t", lineterminator="\n")
        writer.writerow(header)
        writer.writerows(table)


def _from_pickle(path: Path) -> dict[str, float]:
    table = read_plain_pickle(path)
    try:
        pairs = table.items() if isinstance(table, dict) else list(table)
        return {str(name): float(quality) for name, quality in pairs}
    except (TypeError, ValueError):
        raise ScoreTableError(f"{path}: expected a dict of path and score, or a list of such pairs") from None
