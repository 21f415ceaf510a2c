"""Read a pickle of plain values: no code in it can run.

Verification sets of InsightFace (`.bin`) and scores of eDifFIQA are pickles of lists, dicts, bytes, text and numbers.
"""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import IO, Any

# What Python 2 and 3 and NumPy write for bytes, numbers and arrays. None of these calls anything else.
ALLOWED = {
    ("_codecs", "encode"),
    ("builtins", "bytes"),
    ("builtins", "bytearray"),
    ("collections", "OrderedDict"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy._core.multiarray", "scalar"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy._core.numeric", "_frombuffer"),
}


class PlainPickleError(ValueError):
    """The file is no pickle, or it holds more than plain values."""


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        module = module.replace("numpy.core.", "numpy._core.")  # NumPy 1 wrote the older name
        if (module, name) not in ALLOWED:
            raise PlainPickleError(f"it holds {module}.{name}, and only plain values are read; make it a CSV or TSV")
        return super().find_class(module, name)


def read_plain_pickle(path: str | Path) -> Any:
    """The value in the file. Raises PlainPickleError for anything but lists, dicts, strings, bytes, numbers, arrays."""
    with open(path, "rb") as file:
        return _load(file, str(path))


def _load(file: IO[bytes], source: str) -> Any:
    try:
        # Python 2 strings become bytes where they are not ASCII: JPEG files in .bin sets of Python 2 are such strings
        return _PlainUnpickler(file, encoding="bytes").load()
    except PlainPickleError as error:
        raise PlainPickleError(f"{source}: {error}") from None
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise PlainPickleError(f"{source} is not a readable pickle ({type(error).__name__})") from None
