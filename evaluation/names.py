"""How a name in one file finds the same image in another: exactly, by path suffix, by file stem."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import repeat
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from faces.listing import IMAGE_SUFFIXES

STEM_SUFFIXES = frozenset(IMAGE_SUFFIXES) | {".npy"}  # a name such as J.K._Rowling_0001 has no suffix to cut off
AMBIGUOUS = -2
MISSING = -1


class MatchError(ValueError):
    """Names without a counterpart, or without a unique one."""


def match_names(wanted: Sequence[str], available: Sequence[str], source: str) -> NDArray[np.int64]:
    """For each wanted name the index of the same image in `available`.

    Names match exactly, else by the longest unique path suffix, else by unique file stem. Raises MatchError, with
    examples and `source` in the message, for names that match nothing or several, and for two names that match one.
    """
    exact = dict(zip(available, range(len(available)), strict=True))
    found = np.fromiter(map(exact.get, wanted, repeat(MISSING)), np.int64, len(wanted))  # a loop in C
    is_exact = found >= 0
    _match_suffixes(found, wanted, available)
    _match_stems(found, wanted, available)
    found[~is_exact & np.isin(found, found[is_exact])] = MISSING  # that row is the image of another name
    _require_all(found, wanted, available, source)
    return found


def _match_suffixes(found: NDArray[np.int64], wanted: Sequence[str], available: Sequence[str]) -> None:
    """Try the last n path components, n from long to short: the first n at which a name occurs decides."""
    wanted_parts = {i: _parts(wanted[i]) for i in np.flatnonzero(found == MISSING).tolist()}
    if not wanted_parts:
        return
    available_parts = [_parts(name) for name in available]
    longest = min(max(map(len, wanted_parts.values())), max(map(len, available_parts), default=0))
    for length in range(longest, 0, -1):
        table = _unique(("/".join(parts[-length:]) if len(parts) >= length else None) for parts in available_parts)
        for i, parts in list(wanted_parts.items()):
            index = table.get("/".join(parts[-length:]), MISSING) if len(parts) >= length else MISSING
            if index != MISSING:
                found[i] = index
                del wanted_parts[i]


def _match_stems(found: NDArray[np.int64], wanted: Sequence[str], available: Sequence[str]) -> None:
    rest = np.flatnonzero(found == MISSING).tolist()
    if rest:
        table = _unique(stem_of(name) for name in available)
        found[rest] = [table.get(stem_of(wanted[i]), MISSING) for i in rest]


def _unique(keys: Iterable[str | None]) -> dict[str, int]:
    """Key -> its index, or AMBIGUOUS where the key occurs more than once."""
    table: dict[str, int] = {}
    for index, key in enumerate(keys):
        if key is not None:
            table[key] = AMBIGUOUS if key in table else index
    return table


def _parts(name: str) -> tuple[str, ...]:
    return tuple(part for part in name.replace("\\", "/").split("/") if part not in ("", "."))


def stem_of(name: str) -> str:
    """File name without the suffix of an image or an array; other suffixes belong to the name."""
    path = PurePosixPath(name.replace("\\", "/"))
    return path.stem if path.suffix.lower() in STEM_SUFFIXES else path.name


def _require_all(found: NDArray[np.int64], wanted: Sequence[str], available: Sequence[str], source: str) -> None:
    for problem, reason in ((MISSING, "no counterpart"), (AMBIGUOUS, "several counterparts")):
        bad = np.flatnonzero(found == problem)
        if bad.size:
            raise MatchError(
                f"{bad.size} of {len(wanted)} names have {reason} in {source}, for example "
                f"{', '.join(wanted[i] for i in bad[:3])}; it holds names such as {', '.join(available[:3]) or 'none'}"
            )
    # Without this check, B/0001.jpg and C/0001.jpg would both get the row of A/0001.jpg, the only one in the table.
    times = np.bincount(found, minlength=1)
    if times.max() > 1:
        index = int(times.argmax())
        examples = ", ".join(wanted[i] for i in np.flatnonzero(found == index)[:3])
        raise MatchError(f"{examples} all match one row of {source}, {available[index]}; write longer paths")
