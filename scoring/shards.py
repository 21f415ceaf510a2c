"""One scoring run on several machines: a table of each shard, and the whole table made of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from labels.measure import part_of, write_json
from model.files import open_text, parse_json, read_json, shard_path

from .tables import Row, in_batches, is_further, write_manifest, write_table

Shard = tuple[int, int]   # number, from 1, and count


def shard_table(output: Path, shard: Shard) -> Path:
    """The table of a shard: JSON lines, which hold all that any other format does."""
    return Path(f"{shard_path(output, shard)}.jsonl")


def shard_of(paths: Iterable[str], shard: Shard, size: int, is_video: Callable[[str], bool]) -> list[str]:
    """The paths of a shard: whole batches in their order, so that each picture is scored with the same others as in a
    run without shards."""
    return list(chain.from_iterable(part_of(list(in_batches(paths, size, is_video)), shard, 1)))


def write_settings(output: Path, shard: Shard, settings: Mapping[str, Any]) -> None:
    """Keep beside the table of a shard what its scores depend on."""
    write_json(_settings_path(output, shard), settings)


def merge(
    output: Path, paths: Sequence[str], count: int, part_rows: int | None, is_video: Callable[[str], bool]
) -> Counter[str]:
    """Write the table `output` of `count` finished shards of these paths, remove the shards, and count the statuses.

    Raises ValueError when a shard is missing, had other settings than the first, or holds other images.
    """
    shards = [(number, count) for number in range(1, count + 1)]
    settings = [_settings_of(output, shard) for shard in shards]
    for shard, found in zip(shards, settings, strict=True):
        if found != settings[0]:
            names = found.keys() | settings[0].keys()
            changed = sorted(name for name in names if found.get(name) != settings[0].get(name))
            raise ValueError(f"cannot merge: {', '.join(changed)} of shard {shard[0]} is another than of shard 1")
    size = settings[0].get("batch_size")
    if not isinstance(size, int) or size < 1:
        raise ValueError(f"{_settings_path(output, shards[0])} is damaged; run that shard again")

    def rows() -> Iterator[Row]:
        for shard in shards:
            yield from _rows(shard_table(output, shard), shard_of(paths, shard, size, is_video))

    statuses = write_table(output, rows, settings[0], part_rows)
    if not part_rows:   # a folder of parts has its own
        write_manifest(output, settings[0], statuses)
    for shard in shards:
        shard_table(output, shard).unlink()
        _settings_path(output, shard).unlink()
    return statuses


def _settings_path(output: Path, shard: Shard) -> Path:
    return Path(f"{shard_path(output, shard)}.json")


def _settings_of(output: Path, shard: Shard) -> dict[str, Any]:
    table = shard_table(output, shard)
    if not table.is_file() or not _settings_path(output, shard).is_file():
        raise ValueError(f"there is no finished {table}: run --shard {shard[0]}/{shard[1]}, or end it with --resume")
    return read_json(_settings_path(output, shard), dict, "run that shard again")


def _rows(table: Path, paths: Sequence[str]) -> Iterator[Row]:
    """The rows of a shard, which must be of these paths in their order; a path may have several rows."""
    expected, current, before = iter(paths), None, Row()
    with open_text(table) as file:
        for number, line in enumerate(file, 1):
            row = parse_json(line, dict, f"{table}, line {number} is damaged; run that shard again")
            if not is_further(row, before):
                current = next(expected, None)
            if row.get("path") != current or "status" not in row:
                raise ValueError(f"cannot merge: line {number} of {table} is not of {current}; other images were given")
            yield row
            before = row
    if (missing := next(expected, None)) is not None:
        raise ValueError(f"cannot merge: {table} has no row of {missing}; run that shard with the same images")
