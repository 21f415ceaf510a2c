"""Damaged files of every kind, through every reader: an error of ours that names the file, and never another one.

`python tests/fuzz.py` does the same with the coverage of the code as a guide, for as long as it is asked to.
"""

from __future__ import annotations

import base64
import io
import pickle
import re
import struct
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from readers import READERS, Reader, attempt

Change = Callable[[bytes], bytes]
PIECES = [
    b"", b"\0", b"\xff" * 8, b"\n", b"\t", b"-", b"99999999999999999999", b"[" * 2000, b"nan", b"\xe9", b"'", b'"',
    b"\x80\x02", b"\x7f\xff\xff\xff", b"0" * 5000,
]  # fmt: skip


def edited(content: bytes, edits: list[tuple[float, float, bytes]]) -> bytes:
    """With some bytes replaced by others: (where, how many in a part of 64, by what)."""
    for where, share, piece in edits:
        start = int(where * len(content))
        content = content[:start] + piece + content[start + int(64 * share) :]
    return content


PLACES = st.floats(0, 1, exclude_max=True)
EDITS = st.lists(st.tuples(PLACES, PLACES, st.one_of(st.sampled_from(PIECES), st.binary(max_size=8))), max_size=4)


WHOLE = [reader for reader in READERS if reader.name != "dlib's network"]   # of which the file is large


@pytest.mark.parametrize("reader", WHOLE, ids=lambda reader: reader.name)
def test_whole_files_are_read(reader: Reader, tmp_path: Path) -> None:
    for number, content in enumerate(reader.files):
        path = tmp_path / f"{number}{reader.suffix}"
        path.write_bytes(content)
        reader.read(path)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
@settings(
    max_examples=40,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(data=st.data())
def test_damaged_files_end_in_an_error_that_names_the_file(reader: Reader, tmp_path: Path, data: st.DataObject) -> None:
    content = edited(data.draw(st.sampled_from(reader.files)), data.draw(EDITS))
    if data.draw(st.booleans()):
        content = content[: int(data.draw(PLACES) * len(content))]
    attempt(reader, tmp_path / f"damaged{reader.suffix}", content)


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.name)
def test_files_of_other_kinds(reader: Reader, tmp_path: Path) -> None:
    others = {other.files[0] for other in READERS} | {b"", b"\0" * 100, b"text\n", b"[" * 100_000, b"\x80\x04N."}
    for content in others:
        attempt(reader, tmp_path / f"other{reader.suffix}", content)


def packed(**arrays: object) -> bytes:
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def labelled(label: float) -> bytes:
    """A RecordIO of three images, the first of which has this label."""
    content = bytearray(next(reader for reader in READERS if reader.name == "RecordIO").files[0])
    struct.pack_into("<If", content, 8, 0, label)
    return bytes(content)


ZIP_OF_AN_EMPTY_NAME = base64.b64decode(
    "UEsDBBQAAAAIALNAel0RDABQSwECFAMUAACACAAIALNAel2raBESDAAAAIwAAAgHAAAAAAAAAAAAAACAAQAAAABhLmpwZ1BLBQYAAAAAAQABADUAAAAx"
    "AAAAAAA="
)


FOUND = [  # inputs that once ended in a traceback, or filled the memory
    ("pairs", b"a.jpg b.jpg 99999999999999999999\n", "line 1: expected two names and 1"),
    ("pairs", b"a.jpg b.jpg " + b"9" * 5000 + b"\n", "line 1: expected two names and 1"),
    ("pairs", "a.jpg b.jpg ²\n".encode(), "line 1: expected two names and 1"),
    ("scores as JSONL", b'{"path": ["a"], "quality": 1}\n', "line 1: expected an object with path and quality"),
    ("scores as JSONL", b"[" * 100_000, "line 1: expected an object with path and quality"),
    ("index of a RecordIO", b"0\t99999999999999999999\n", "expected lines `number<TAB>byte`"),
    ("index of a RecordIO", b"0\t-8\n", "a number or a byte is negative"),
    ("RecordIO", labelled(float("nan")), "a label is nan; whole numbers were expected"),
    ("RecordIO", labelled(float("inf")), "a label is inf; whole numbers were expected"),
    ("embeddings", packed(names=np.zeros(70_000_000, "S1"), embeddings=np.ones((1, 1))), "unpacks from"),
    ("embeddings", packed(names=np.array(["a"]), embeddings=np.ones((1, 0))), "numbers (names, D) were expected"),
    ("zip archive", ZIP_OF_AN_EMPTY_NAME, "is a damaged archive, or none"),
    ("bin", pickle.dumps(([{}, 3], [True])), "an image is of type dict"),
    ("bin", pickle.dumps(([b"a", b"b"], ["x"])), "the labels of the pairs are not True and False"),
    ("labels of DSL-FIQA", b"[" * 100_000, "is no JSON"),
    ("labels of DSL-FIQA", b"\xff\xfe", "is no JSON"),
    ("bands", b"[" * 100_000, "is no table of bands"),
    ("bands", b'{"measured": 3}', "is no table of bands"),
    ("list of paths", b"\0" * 100_000, "has more than 32,767 characters"),
    ("landmarks", packed(a=np.ones(3)), "an array (points, 2) was expected"),
]


@pytest.mark.parametrize(("name", "content", "message"), FOUND, ids=range(len(FOUND)))
def test_what_was_found(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    reader = next(reader for reader in READERS if reader.name == name)
    path = tmp_path / f"found{reader.suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        reader.read(path)
    assert path.name in str(caught.value)
