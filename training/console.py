"""What a training tells the person at the terminal: on stderr and from the first process only."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

from model.files import printable
from training import processes

T = TypeVar("T")


def say(text: str) -> None:
    """A line of progress. stdout holds the path of the result only."""
    if processes.rank() == 0:
        print(text, file=sys.stderr, flush=True)


def say_left_out(files: Iterable[tuple[str, str]]) -> None:
    """A line for each (path, status) of what does not train."""
    for path, status in files:
        say(printable(f"left out: {path} ({status})"))


def progress(items: Iterable[T], title: str, total: int, unit: str, done: int = 0) -> tqdm[T]:
    """The items, with a bar where stderr is a terminal, which begins at `done`."""
    return tqdm(items, title, total, initial=done, unit=unit, leave=False, disable=_hidden(), file=sys.stderr)


def counter(title: str, total: int, unit: str, done: int = 0) -> tqdm[Any]:
    """A bar to `update` by hand, which begins at `done`."""
    return tqdm(desc=title, total=total, initial=done, unit=unit, leave=False, disable=_hidden(), file=sys.stderr)


def _hidden() -> bool | None:
    return processes.rank() > 0 or None  # None: where stderr is no terminal
