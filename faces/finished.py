"""Batches that the processes of a cluster have finished, in a folder that all its hosts see.

Ray Data's checkpoints write a batch in two steps: its name into `ids` as pending, its result into `results`, and then
the pending name becomes a finished one. A batch that was killed in between counts as not finished. A batch is named
after its paths, so the result of a batch is never taken for another one's, wherever a resumed run begins.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import pickle
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from model.files import only_run, read_json, remove_leftovers, write_text

IDS, RESULTS, RECORD = "ids", "results", "settings.json"


@dataclass(frozen=True)
class Checkpoint:
    """Where finished batches are kept until the driver has written their rows."""

    folder: Path
    settings: Mapping[str, Any]
    """What the results depend on, as JSON values: the settings of the run, and its images where they are known."""
    resume: bool
    """Whether to go on with what an interrupted run has left."""

    @contextlib.contextmanager
    def hold(self, name: str) -> Iterator[Path]:
        """The sub-folder for the batches of this name, which no other run has; after a block without error it is gone.

        Raises ValueError when it holds batches of other settings or images, BlockingIOError when another run has it,
        and any OSError where nothing can be written.
        """
        kept = self.folder.absolute() / f"ray-{name}"
        self.folder.mkdir(parents=True, exist_ok=True)
        with only_run(kept):
            self._start(kept)
            yield kept
            with contextlib.suppress(OSError):   # the process of a lost host may still be writing there
                _remove(kept)

    def _start(self, kept: Path) -> None:
        record, now = kept / RECORD, json.loads(json.dumps(self.settings))
        if record.is_file():
            before = read_json(record, dict, f"remove the folder {kept} to start anew")
            if changed := [name for name in before | now if before.get(name) != now.get(name)]:
                raise ValueError(
                    f"{kept} holds batches of another run ({', '.join(changed)} differ); resume that run, give another "
                    "--checkpoint, or remove the folder"
                )
        if kept.exists() and not (self.resume and record.is_file()):
            _remove(kept)
        kept.mkdir(mode=0o700, exist_ok=True)   # results are pickled: nobody else may put any there
        write_text(record, json.dumps(now, indent=2) + "\n")


def names_hash(names: Iterable[str]) -> str:
    """SHA-256 (hex) of names, such as paths, in their order."""
    digest = hashlib.sha256()
    for name in names:
        digest.update(name.encode(errors="surrogateescape") + b"\0")
    return digest.hexdigest()


def finished_in(kept: Path) -> dict[str, Path]:
    """The file with the result of each finished batch, by the batch's name. Damaged files count as not there."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    files: dict[str, Path] = {}
    for path in sorted((kept / RESULTS).glob("*.parquet")):
        if (kept / IDS / f"{path.stem.removesuffix('-0')}.parquet").is_file():
            with contextlib.suppress(pyarrow.ArrowInvalid, OSError):   # of a damaged footer, either
                for name in ParquetFile(path).read(columns=["batch"])["batch"].to_pylist():
                    files.setdefault(name, path)
    return files


def wait_for(kept: Path, names: Set[str], seconds: int = 60) -> dict[str, Path]:
    """`finished_in` when these batches, which have been finished, are there: a network file system may be late.

    Raises RuntimeError when they do not come.
    """
    for left in reversed(range(seconds + 1)):
        files = finished_in(kept)
        if not (lost := names - files.keys()):
            return files
        time.sleep(min(left, 1))
    raise RuntimeError(
        f"{kept} lacks {len(lost)} of {len(names)} batches that were finished: --checkpoint must be a folder that all "
        "hosts of the cluster share"
    )


def results_in(files: Mapping[str, Path], names: Iterable[str]) -> Iterator[Any]:
    """The results of batches, in the order of their names. Raises ValueError when a file is damaged."""
    rows_in = lru_cache(maxsize=8)(_rows_in)   # a file holds some batches that follow each other
    return (pickle.loads(rows_in(files[name])[name]) for name in names)


def _rows_in(path: Path) -> dict[str, bytes]:
    """The names and pickled results in a file."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        rows = ParquetFile(path, page_checksum_verification=True).read(columns=["batch", "result"])
    except (OSError, pyarrow.ArrowInvalid) as error:
        raise ValueError(f"{path} is damaged; remove {path.parent.parent} to compute its batches again") from error
    return dict(zip(rows["batch"].to_pylist(), rows["result"].to_pylist(), strict=True))


def forget(kept: Path) -> None:
    """Remove the finished batches of a window, after their rows have been written."""
    for folder in (IDS, RESULTS):
        shutil.rmtree(kept / folder, ignore_errors=True)


def _remove(kept: Path) -> None:
    """Remove what a run has left; the record last. Raises OSError when the folder holds anything else."""
    forget(kept)
    remove_leftovers(kept, RECORD)
    (kept / RECORD).unlink(missing_ok=True)
    kept.rmdir()
