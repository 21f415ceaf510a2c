"""Read a pickle of plain values, from a source that is not trusted: no code in it can run.

Verification sets of InsightFace (`.bin`) and the scores and embeddings of eDifFIQA are pickles of lists, tuples, dicts,
text, bytes, numbers and NumPy arrays. Python's own unpickler calls what the file names with arguments of the file's
choice, and a call of `numpy.ndarray` is enough to read foreign memory. This reader has its own stack machine instead:

- the few functions that a file may name (`FUNCTIONS`) are functions of this module, which check their arguments;
- no other object can be made, and only the state of arrays and of their number types can be set, after a check;
- no value is larger than the bytes of the file that it is made of, and the same bytes are not copied again and again,
  so that a short file cannot fill the memory;
- keys of dicts are text or bytes, whose hashes a file cannot choose, or small whole numbers.

Protocols 0 to 5, of Python 2 and 3, NumPy 1 and 2. Strings of Python 2 become bytes: JPEG files are such strings.
"""

from __future__ import annotations

import codecs
import math
import mmap
import re
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COPIES = 4  # of the file; bytes of an array in protocols 0 to 2 go through three functions
MOST_EMPTY = 2**16  # rows or columns of an array without numbers
LARGEST_KEY = 2**31  # larger numbers could be chosen so that their hashes collide
SHOWN = 80  # characters of the file that a message repeats


class PlainPickleError(ValueError):
    """The file is no pickle, or it holds more than plain values."""


def read_plain_pickle(path: str | Path) -> Any:
    """The value in the file.

    Raises PlainPickleError for anything but lists, tuples, dicts with keys of text, bytes or small whole numbers, text,
    bytes, numbers, and arrays of numbers or text; OSError for a file that cannot be opened.
    """
    try:
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            return _Machine(content).run()
    except PlainPickleError as error:
        raise PlainPickleError(f"{path}: {error}") from None
    except (ValueError, TypeError, LookupError, struct.error) as error:  # an empty file, or a damaged one
        raise PlainPickleError(f"{path} is not a readable pickle ({type(error).__name__})") from None


class _Machine:
    """The stack machine of pickle. `marks` holds the stacks below the current one, one for each open MARK."""

    def __init__(self, content: mmap.mmap) -> None:
        self.content, self.size, self.position = content, len(content), 0
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.copied = 0  # bytes and list items that were handed to functions

    def run(self) -> Any:
        while (opcode := self.take(1)) != b".":
            if opcode in VALUES:
                value = VALUES[opcode](self)  # takes its operands off the stack, or gives back the stack below a mark
                self.stack.append(value)
            elif opcode in ACTIONS:
                ACTIONS[opcode](self)
            else:
                raise PlainPickleError(f"its opcode {opcode!r} makes no plain value")
        return self.stack.pop()

    def take(self, count: int) -> bytes:
        """The next bytes of the file; nothing is allocated for bytes that it does not have."""
        end = self.position + count
        if end > self.size:
            raise PlainPickleError("it is no pickle, or it is cut off")
        taken = self.content[self.position : end]
        self.position = end
        return taken

    def number(self, width: int) -> int:
        """An unsigned number of so many bytes."""
        return int.from_bytes(self.take(width), "little")

    def counted(self, width: int) -> bytes:
        """As many bytes as the number before them says."""
        return self.take(self.number(width))

    def line(self) -> bytes:
        """The rest of the line, without its end."""
        end = self.content.find(b"\n", self.position)
        return self.take(end + 1 - self.position)[:-1] if end >= 0 else self.take(self.size)

    def since_mark(self) -> list[Any]:
        """The values that were pushed since the last MARK."""
        values, self.stack = self.stack, self.marks.pop()
        return values

    def copy(self, arguments: tuple[Any, ...]) -> None:
        """Count what a function copies. Raises PlainPickleError when the same bytes of the file are copied again and
        again."""
        self.copied += sum(len(value) for value in arguments if isinstance(value, bytes | str | list))
        if self.copied > COPIES * self.size:
            raise PlainPickleError("it copies the same values again and again")

    def last(self, count: int) -> tuple[Any, ...]:
        """The last values, taken off the stack."""
        if len(self.stack) < count:
            raise IndexError
        values = tuple(self.stack[-count:])
        del self.stack[-count:]
        return values


@dataclass(frozen=True)
class _Function:
    """What a file may name in place of a class or function of the same task."""

    call: Callable[..., Any]


class _NumberType:
    """Stands for a numpy.dtype while the file is read."""

    def __init__(self, code: str) -> None:
        if not re.fullmatch(r"[biufc]\d{1,2}|[SU]\d{1,6}|\?", code):
            raise PlainPickleError(f"it holds an array of {code[:SHOWN]!a}; numbers or text were expected")
        self.dtype: np.dtype[Any] = np.dtype(code)
        if not self.dtype.itemsize:
            raise PlainPickleError("it holds an array of empty text")

    def set_state(self, state: Any) -> None:
        """state: version, byte order, three parts of nested types, which must be absent, and sizes, which are known."""
        _, order, *parts = state
        if _text(order) not in ("<", ">", "|", "=") or len(parts) not in (5, 6) or parts[:3] != [None] * 3:
            raise PlainPickleError("it holds an array of nested types; numbers or text were expected")
        if _text(order) in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(_text(order))  # type: ignore[arg-type]


def _array(data: Any, number_type: Any, shape: Any, order: Any) -> np.ndarray:
    """The array over these bytes, which it must fill exactly."""
    if not isinstance(data, bytes) or not isinstance(number_type, _NumberType) or order not in ("C", "F"):
        raise PlainPickleError("it holds an array of something else than numbers or text")
    if not isinstance(shape, tuple) or len(shape) > 32 or not all(type(n) is int and 0 <= n < 2**31 for n in shape):
        raise PlainPickleError("it holds an array of an impossible shape")
    if math.prod(shape) * number_type.dtype.itemsize != len(data) or max(shape, default=0) > max(len(data), MOST_EMPTY):
        raise PlainPickleError(f"it holds an array of shape {shape} in {len(data)} bytes")
    return np.ndarray(shape, number_type.dtype, data, order=order)


def _new_array(kind: Any, shape: Any, code: Any) -> np.ndarray:
    """numpy._core.multiarray._reconstruct: an empty array, whose state follows."""
    if kind is not ARRAY:
        raise PlainPickleError("it holds a subclass of numpy.ndarray, and only plain values are read")
    return np.zeros(0, np.uint8)


def _set_array_state(array: np.ndarray, state: Any) -> None:
    """state: version, shape, type, whether the order is Fortran's, bytes."""
    _, shape, number_type, fortran, data = state
    checked = _array(data, number_type, shape, "F" if fortran else "C")
    array.__setstate__((1, shape, checked.dtype, bool(fortran), data))  # type: ignore[arg-type]


def _array_from_buffer(data: Any, number_type: Any, shape: Any, order: Any, axes: Any = None) -> np.ndarray:
    """numpy._core.numeric._frombuffer: arrays of protocol 5; order K has the order of the axes in memory."""
    if order != "K" or axes is None:
        return _array(data, number_type, shape, order)
    if not isinstance(axes, tuple) or not all(type(axis) is int and 0 <= axis < 32 for axis in axes):
        raise PlainPickleError("it holds an array with an impossible order of axes")
    return _array(data, number_type, shape, "C").transpose(axes)


def _scalar(number_type: Any, data: Any) -> Any:
    """numpy._core.multiarray.scalar."""
    return _array(data, number_type, (), "C")[()]


def _encode(text: Any, encoding: Any) -> bytes:
    """_codecs.encode: how protocols 0 to 2 of Python 3 write bytes."""
    if not isinstance(text, str) or encoding not in ("latin1", "latin-1"):
        raise PlainPickleError("it encodes something else than bytes")
    return text.encode("latin-1")


def _bytes(*arguments: Any) -> bytes:
    """bytes and bytearray: of given bytes, or of text in latin-1; never of a size."""
    match arguments:
        case ():
            return b""
        case (bytes(content),):
            return content
        case (str(text), encoding):
            return _encode(text, encoding)
    raise PlainPickleError("it makes bytes from something else than bytes")


def _ordered_dict(pairs: Any = ()) -> dict[Any, Any]:
    """collections.OrderedDict; Python 2 hands it a list of its pairs."""
    return _filled({}, [part for pair in pairs for part in pair])


def _filled(target: Any, flat: list[Any]) -> dict[Any, Any]:
    """The dict with the keys and values that alternate in the list."""
    if type(target) is not dict or len(flat) % 2:
        raise PlainPickleError("it sets items of something else than a dict")
    for key in flat[::2]:
        number = isinstance(key, int | np.integer) and abs(int(key)) <= LARGEST_KEY
        if not (number or isinstance(key, str | bytes)):
            raise PlainPickleError(f"a key of its dict is a {type(key).__name__}; text or a number was expected")
    target.update(zip(flat[::2], flat[1::2], strict=True))
    return target


def _text(value: Any) -> str:
    """Text, which is bytes in pickles of Python 2."""
    return value.decode("ascii") if isinstance(value, bytes) else str(value) if isinstance(value, str) else ""


ARRAY = object()  # stands for numpy.ndarray, which cannot be called
FUNCTIONS = {
    "_codecs.encode": _Function(_encode),
    "builtins.bytes": _Function(_bytes),
    "builtins.bytearray": _Function(_bytes),
    "collections.OrderedDict": _Function(_ordered_dict),
    "numpy.ndarray": ARRAY,
    "numpy.dtype": _Function(lambda code, align=False, copy=False: _NumberType(_text(code))),
    "numpy._core.multiarray.scalar": _Function(_scalar),
    "numpy._core.multiarray._reconstruct": _Function(_new_array),
    "numpy._core.numeric._frombuffer": _Function(_array_from_buffer),
}
OLDER_MODULES = {
    "__builtin__": "builtins",
    "numpy.core.multiarray": "numpy._core.multiarray",
    "numpy.core.numeric": "numpy._core.numeric",
}


def _named(module: Any, name: Any) -> Any:
    full = f"{OLDER_MODULES.get(_text(module), _text(module))}.{_text(name)}"
    if full not in FUNCTIONS:
        raise PlainPickleError(f"it holds {full[:SHOWN]!a}, and only plain values are read; make it a CSV or TSV")
    return FUNCTIONS[full]


def _call(machine: _Machine) -> Any:
    function, arguments = machine.last(2)
    if not isinstance(function, _Function) or not isinstance(arguments, tuple):
        raise PlainPickleError("it calls something that is no function, and only plain values are read")
    machine.copy(arguments)
    return function.call(*arguments)


def _build(machine: _Machine) -> None:
    state = machine.stack.pop()
    target = machine.stack[-1]
    if isinstance(state, tuple):
        machine.copy(state)
    if isinstance(target, _NumberType):
        target.set_state(state)
    elif isinstance(target, np.ndarray) and target.flags.owndata:  # made by _new_array, its state not yet set
        _set_array_state(target, state)
    else:
        raise PlainPickleError("it sets the state of an object, and only plain values are read")


def _python_2_text(line: bytes) -> bytes:
    if len(line) < 2 or line[:1] != line[-1:] or line[:1] not in (b"'", b'"'):
        raise PlainPickleError("it holds a string without quotes")
    return codecs.escape_decode(line[1:-1])[0]


def _extend(target: Any, values: list[Any]) -> None:
    if type(target) is not list:
        raise PlainPickleError("it appends to something else than a list")
    target.extend(values)


def _open_mark(machine: _Machine) -> None:
    machine.marks.append(machine.stack)
    machine.stack = []


def _append_all(machine: _Machine) -> None:
    values = machine.since_mark()
    _extend(machine.stack[-1], values)


def _set_all(machine: _Machine) -> None:
    flat = machine.since_mark()
    _filled(machine.stack[-1], flat)


def _set_one(machine: _Machine) -> None:
    flat = list(machine.last(2))
    _filled(machine.stack[-1], flat)


def _append_one(machine: _Machine) -> None:
    values = list(machine.last(1))
    _extend(machine.stack[-1], values)


def _remember(machine: _Machine, index: int) -> None:
    machine.memo[index] = machine.stack[-1]


def _whole_number(line: bytes) -> int | bool:
    """Opcode I, which protocols 0 and 1 also use for False and True."""
    return line == b"01" if line in (b"00", b"01") else int(line)


VALUES: dict[bytes, Callable[[_Machine], Any]] = {
    b"N": lambda m: None,
    b"\x88": lambda m: True,
    b"\x89": lambda m: False,
    b"I": lambda m: _whole_number(m.line()),
    b"J": lambda m: int.from_bytes(m.take(4), "little", signed=True),
    b"K": lambda m: m.number(1),
    b"M": lambda m: m.number(2),
    b"L": lambda m: int(m.line().rstrip(b"L")),
    b"\x8a": lambda m: int.from_bytes(m.counted(1), "little", signed=True),
    b"\x8b": lambda m: int.from_bytes(m.counted(4), "little", signed=True),
    b"F": lambda m: float(m.line()),
    b"G": lambda m: struct.unpack(">d", m.take(8))[0],
    b"S": lambda m: _python_2_text(m.line()),
    b"T": lambda m: m.counted(4),
    b"U": lambda m: m.counted(1),
    b"V": lambda m: m.line().decode("raw-unicode-escape"),
    b"X": lambda m: m.counted(4).decode("utf-8", "surrogatepass"),
    b"\x8c": lambda m: m.counted(1).decode("utf-8", "surrogatepass"),
    b"\x8d": lambda m: m.counted(8).decode("utf-8", "surrogatepass"),
    b"B": lambda m: m.counted(4),
    b"C": lambda m: m.counted(1),
    b"\x8e": lambda m: m.counted(8),
    b"\x96": lambda m: m.counted(8),
    b"]": lambda m: [],
    b"l": lambda m: m.since_mark(),
    b")": lambda m: (),
    b"t": lambda m: tuple(m.since_mark()),
    b"\x85": lambda m: m.last(1),
    b"\x86": lambda m: m.last(2),
    b"\x87": lambda m: m.last(3),
    b"}": lambda m: {},
    b"d": lambda m: _filled({}, m.since_mark()),
    b"g": lambda m: m.memo[int(m.line())],
    b"h": lambda m: m.memo[m.number(1)],
    b"j": lambda m: m.memo[m.number(4)],
    b"c": lambda m: _named(m.line(), m.line()),
    b"\x93": lambda m: _named(*m.last(2)),
    b"R": _call,
}
ACTIONS: dict[bytes, Callable[[_Machine], Any]] = {
    b"\x80": lambda m: m.take(1),  # the protocol; opcodes mean the same in all
    b"\x95": lambda m: m.take(8),  # the length of a frame
    b"(": _open_mark,
    b"a": _append_one,
    b"e": _append_all,
    b"s": _set_one,
    b"u": _set_all,
    b"b": _build,
    b"p": lambda m: _remember(m, int(m.line())),
    b"q": lambda m: _remember(m, m.number(1)),
    b"r": lambda m: _remember(m, m.number(4)),
    b"\x94": lambda m: _remember(m, len(m.memo)),
}
