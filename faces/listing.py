"""From the arguments of a command line to the paths of images."""

from __future__ import annotations

import glob
import io
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path

LONGEST_LINE = 32_767   # characters of a path: what Windows allows, and eight times what Linux does
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif")

Listed = Callable[[str, list[str], list[str]], None]


def list_images(folder: str | Path) -> list[Path]:
    """All image files below `folder`, by suffix in any case, sorted by path; each starts with `folder`.

    A sub-folder that may not be listed, or that is a link and so perhaps a circle, is not entered. It is in the list
    itself, so that it is reported like any other bad path, as `not_a_file` or `linked_folder`.
    Raises NotADirectoryError when `folder` is none.
    """
    return [Path(path) for path in _images_below(os.fspath(folder))]


def is_linked_folder(path: str | Path) -> bool:
    """Whether the path is a link to a folder."""
    return os.path.islink(path) and os.path.isdir(path)


def expand_inputs(args: Sequence[str], stdin: Iterable[str], listed: Listed | None = None) -> Iterator[str]:
    """The image paths that the arguments stand for, in their order, one by one (a list may be endless).

    A file is itself, a folder all images below it, sorted and joined to the argument as it was given; a pattern that
    the shell left alone is expanded, and gives each path once; `@FILE` is a list of paths, one a line, and `-` such a
    list on `stdin`. What does not exist is given back unchanged. A linked folder is entered when an argument names it;
    below a folder or in a pattern it is given back itself. `listed` is called with each argument that is a folder, the
    paths that it gives, and the files of other kinds below it. Raises OSError at once when the file of an `@` list does
    not exist, or is a folder or a device; ValueError later, at a line of more than LONGEST_LINE characters.
    """
    for arg in args:
        if arg.startswith("@"):
            _require_list(arg)
    if "-" in args and isinstance(stdin, io.TextIOWrapper):
        stdin.reconfigure(encoding="utf-8", errors="surrogateescape", newline="\n")  # as a file of names
    return (path for arg in args for path in _expand(arg, stdin, listed))


def _require_list(arg: str) -> None:
    if not os.path.exists(arg[1:]):
        raise FileNotFoundError(f"{arg}: there is no list file {arg[1:]!r}; a picture of that name is ./{arg}")
    mode = os.stat(arg[1:]).st_mode   # of a pipe, as the shell's <(command) makes it, no line may be lost
    if stat.S_ISDIR(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
        raise OSError(f"{arg}: {arg[1:]!r} is a folder or a device; a text file with a path a line was expected")


def _expand(arg: str, stdin: Iterable[str], listed: Listed | None) -> Iterator[str]:
    if arg == "-":
        yield from _lines(stdin, "standard input")
    elif arg.startswith("@"):
        with open(arg[1:], encoding="utf-8-sig", errors="surrogateescape", newline="\n") as lines:
            yield from _lines(lines, arg)
    elif os.path.isdir(arg):
        yield from _images_below(arg, listed)
    elif not os.path.lexists(arg) and glob.has_magic(arg):
        matches = sorted(_matches(arg)) or [arg]
        yield from dict.fromkeys(chain.from_iterable(map(_images_of, matches)))
    else:
        yield arg


def _lines(lines: Iterable[str], name: str) -> Iterator[str]:
    whole = iter(lambda: lines.readline(LONGEST_LINE + 2), "") if isinstance(lines, io.TextIOBase) else lines
    for number, line in enumerate(whole, 1):
        path = line.rstrip("\r\n")
        if len(path) > LONGEST_LINE:
            raise ValueError(f"{name}, line {number} has more than {LONGEST_LINE:,} characters; a path was expected")
        if path.strip():
            yield path


def _matches(pattern: str) -> list[str]:
    """The paths that a pattern stands for. As in `glob`, its part `**` is any number of folders; but linked ones, which
    would lead `glob` round in circles, are given and not entered."""
    parts = pattern.split("/")
    if "**" not in parts:
        return glob.glob(pattern)
    place = parts.index("**")
    head, behind = "/".join(parts[:place]), parts[place + 1 :]
    tops = filter(os.path.isdir, glob.glob(head or "/")) if place else [os.curdir]
    found: list[str] = []
    for root, folders, _ in chain.from_iterable(_walk(top, found) for top in tops):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += _matches(os.path.join(glob.escape(root), *(behind or ["*"])))
    return found if place else [path.removeprefix("./") for path in found]


def _images_of(match: str) -> list[str]:
    return _images_below(match) if os.path.isdir(match) and not is_linked_folder(match) else [match]


def _images_below(folder: str, listed: Listed | None = None) -> list[str]:
    if not os.path.isdir(folder):
        raise NotADirectoryError(f"{folder} is not a folder; a folder of images was expected")
    found: list[str] = []
    others: list[str] = []
    for root, _, names in _walk(folder, found):
        for name in names:
            (found if name.lower().endswith(IMAGE_SUFFIXES) else others).append(os.path.join(root, name))
    if listed is not None:
        listed(folder, found, others)
    return sorted(found)


def _walk(folder: str, closed: list[str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """`os.walk`; sub-folders that may not be listed, and linked ones, are appended to `closed`."""
    for root, folders, names in os.walk(folder, onerror=lambda error: closed.append(error.filename)):
        closed.extend(path for name in folders if os.path.islink(path := os.path.join(root, name)))
        yield root, folders, names
