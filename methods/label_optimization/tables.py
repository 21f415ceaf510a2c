"""The tables of label optimisation: the clusters, and the optimised scores or labels."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from evaluation.inputs import PICKLES, is_label_table, read_tsv, write_tsv
from evaluation.plain_pickle import read_plain_pickle
from labels.label_table import REQUIRED
from model.files import open_text, write_text

CLUSTER_COLUMNS = ("path", "identity", "cluster")


def read_clusters(path: str | Path) -> tuple[list[str], list[str], list[str]]:
    """Names, identities and clusters (N,) of a table of `cluster.py`, or of the published pickle, a dict of identity,
    cluster and list of names.

    Raises ValueError for another file, an empty cell or cluster, and a name that occurs twice.
    """
    rows = _from_pickle(path) if Path(path).suffix.lower() in PICKLES else read_tsv(path, CLUSTER_COLUMNS)
    names, identities, clusters = (list(column) for column in zip(*rows, strict=True))
    if len(set(names)) < len(names):
        twice = Counter(names).most_common(1)[0][0]
        raise ValueError(f"{path}: {twice} occurs twice; each image belongs to one cluster")
    return names, identities, clusters


def write_optimised(output: str | Path, source: str | Path, quality: Mapping[str, float]) -> None:
    """Write the table of `path` and `quality`, atomically; for a label table all of its columns.

    Rows of a label table that have no new quality stay as they are. Its relative paths start at the folder of the
    table, so they are changed where the output lies in another folder.
    """
    if not is_label_table(source):
        write_tsv(output, ("path", "quality"), ((name, repr(value)) for name, value in quality.items()))
        return
    with open_text(source) as file:
        lines = [line for line in file.read().split("\n") if line.strip()]
    rows = [line.rstrip("\r").split("\t") for line in lines]
    header = rows.pop(0) if rows[0][0].split()[0] == "path" else list(REQUIRED)
    rows = [row if len(row) > 1 else row[0].rsplit(maxsplit=len(REQUIRED) - 1) for row in rows]  # published rows
    path_at, quality_at = header.index("path"), header.index("quality")
    for row in rows:
        value = quality.get(row[path_at])
        row[quality_at] = row[quality_at].strip("[] ") if value is None else repr(value)
        row[path_at] = _from_folder(row[path_at], Path(source).parent, Path(output).parent)
    write_text(output, "".join("\t".join(row) + "\n" for row in (header, *rows)))


def _from_folder(path: str, source: Path, output: Path) -> str:
    """A relative path of a table in `source`, as a table in `output` names the same file."""
    if os.path.isabs(path) or source.resolve() == output.resolve():
        return path
    return os.path.relpath(source.resolve() / path, output.resolve())


def _from_pickle(path: str | Path) -> list[tuple[str, str, str]]:
    table = read_plain_pickle(path)
    try:
        members = {(str(i), str(c)): list(names) for i, clusters in table.items() for c, names in clusters.items()}
    except (AttributeError, TypeError):
        raise ValueError(f"{path}: expected a dict of identity -> dict of cluster -> list of names") from None
    if empty := [key for key, names in members.items() if not names]:
        raise ValueError(f"{path}: cluster {empty[0][1]} of {empty[0][0]} is empty; remove it, or cluster anew")
    if not members:
        raise ValueError(f"{path} holds no clusters")
    return [(str(name), identity, cluster) for (identity, cluster), names in members.items() for name in names]
