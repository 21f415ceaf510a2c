"""Damaged files of every kind, through every reader: an error of ours that names the file, and never another one.

`python tests/fuzz.py` does the same with the coverage of the code as a guide, for as long as it is asked to.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

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
