"""Settings as a frozen dataclass, each field a flag: `--batch-size 64` sets `batch_size`.

The comment above a field is its help text, and a comment `# -- Title --` begins a group of the help.
"""

from __future__ import annotations

import argparse
import inspect
import re
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any, Literal, TypeVar

Settings = TypeVar("Settings")
NOT_RECORDED = ("resume", "output", "checkpoints")
METAVARS: dict[type, str] = {int: "N", float: "X", str: "TEXT"}


def parse_settings(
    kind: type[Settings],
    program: str,
    description: str | None,
    presets: Mapping[str, Mapping[str, Any]],
    default_preset: str,
    arguments: Sequence[str] | None,
    preset_flag: str = "--preset",
    preset_help: str = "",
) -> Settings:
    """The settings that a command line gives: the flags over the preset over the defaults of the class `kind`.

    Exits with code 2 for an unknown flag or an unreadable value, raises ValueError for one out of range.
    """
    parser = argparse.ArgumentParser(
        program, description=description, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    preset_help = preset_help or "; ".join(f"{name}: {values or 'the defaults'}" for name, values in presets.items())
    parser.add_argument(preset_flag, dest="preset", choices=presets, default=default_preset, help=preset_help)
    kinds, comments = typing.get_type_hints(kind), _comments(kind)
    groups: dict[str, argparse._ArgumentGroup] = {}
    for field in fields(kind):  # type: ignore[arg-type]
        title, comment = comments[field.name]
        if title not in groups:
            groups[title] = parser.add_argument_group(title)
        help_text = f"{comment} (default: {_show(field.default)})".replace("%", "%%")
        options = _options(kinds[field.name])
        groups[title].add_argument(flag(field.name), help=help_text, default=argparse.SUPPRESS, **options)
    given = vars(parser.parse_args(arguments))
    return kind(**{**presets[given.pop("preset")], **given})


def require_choices(settings: Any) -> None:
    """Raise ValueError, naming the flag, where a field of type Literal holds something else."""
    for name, kind in typing.get_type_hints(type(settings)).items():
        if typing.get_origin(kind) is Literal:
            choices = typing.get_args(kind)
            require(settings, name, getattr(settings, name) in choices, f"one of {', '.join(choices)}")


def require(settings: Any, name: str, holds: bool, expected: str) -> None:
    """Raise ValueError, naming the flag, what was expected and what was given, unless `holds`."""
    if not holds:
        raise ValueError(f"{flag(name)} must be {expected}; it is {_show(getattr(settings, name))}")


def recorded(settings: Any) -> dict[str, Any]:
    """The settings, a dataclass, as a file of the run holds them: without what says only how it was run, so that one
    training makes one file, interrupted or not, in whatever folder."""
    return {name: value for name, value in asdict(settings).items() if name not in NOT_RECORDED}


def flag(name: str) -> str:
    """The flag of a field."""
    return "--" + name.replace("_", "-")


def _comments(kind: type) -> dict[str, tuple[str, str]]:
    """The group and the comment of each field, as they stand in the source of the class."""
    found, group, comment = {}, "", ""
    for line in map(str.strip, inspect.getsource(kind).splitlines()):
        if line.startswith("# -- "):
            group = line.strip("# -")
        elif line.startswith("# "):
            comment = f"{comment} {line[2:]}".lstrip()
        else:
            if match := re.match(r"(\w+): ", line):
                found[match[1]] = (group, comment)
            comment = ""
    return found


def _options(kind: Any) -> dict[str, Any]:
    """How argparse reads a value of this type."""
    if typing.get_origin(kind) is Literal:
        return {"choices": typing.get_args(kind)}
    if typing.get_origin(kind) is types.UnionType:  # X | None
        return {"type": typing.get_args(kind)[0], "metavar": "X"}
    if typing.get_origin(kind) is tuple:
        part = typing.get_args(kind)[0]
        metavar = f"{METAVARS[part]},{METAVARS[part]}"
        return {"type": lambda text: tuple(part(item) for item in text.split(",") if item), "metavar": metavar}
    if kind is bool:
        return {"type": _yes_or_no, "nargs": "?", "const": True, "metavar": "yes|no"}
    return {"type": kind, "metavar": METAVARS[kind]}


def _yes_or_no(text: str) -> bool:
    if text not in ("yes", "no"):
        raise argparse.ArgumentTypeError(f"yes or no, not {text!r}")
    return text == "yes"


def _show(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return ",".join(map(str, default)) or "none"
    return "none" if default in ("", None) else str(default)
