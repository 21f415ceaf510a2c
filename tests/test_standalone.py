"""One file of several modules: `bundle/standalone.py`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bundle.standalone import standalone

ONE = """import os
from .two import SIZE, twice


# A remark.
@twice
def wanted(n=SIZE):
    return helper(n)


def helper(n):
    return os.path.join("a", str(n))


def left_out():
    return nothing
"""
TWO = '''"""Words."""
from __future__ import annotations
from functools import wraps as keep

SIZE, OTHER = 3, 4


def twice(function):
    @keep(function)
    def both(*args):
        return 2 * function(*args)
    return both
'''
SOURCE = '''"""A program."""
from __future__ import annotations
import sys
from faces.one import wanted


X = wanted(), len(sys.argv)
'''


def write_modules(folder: Path, one: str, two: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "faces").mkdir()
    (folder / "faces" / "one.py").write_text(one)
    (folder / "faces" / "two.py").write_text(two)
    monkeypatch.setattr("bundle.standalone.ROOT", folder)


def test_what_is_used_comes_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_modules(tmp_path, ONE, TWO, monkeypatch)
    text = standalone(SOURCE)
    found: dict[str, Any] = {}
    exec(text, found)
    assert found["X"][0] == "a/3a/3"
    assert "# A remark.\n@twice\ndef wanted" in text
    assert "left_out" not in text
    assert "faces" not in text
    assert text.startswith('"""A program."""\nfrom __future__ import annotations\n')


@pytest.mark.parametrize(
    ("one", "two", "message"),
    [
        (ONE, TWO.replace("return both", "return helper()") + "\n\ndef helper():\n    return 1\n", "define helper"),
        (ONE, TWO + "\ntwice.n = 2\n", "only names can be assigned to"),
        (ONE, TWO + "\nif SIZE:\n    SIZE = 5\n", r"faces\.two, line 14: only definitions and imports"),
        (ONE.replace("SIZE,", "SIZE as WIDE,").replace("=SIZE", "=WIDE"), TWO, "SIZE is imported as WIDE"),
    ],
)
def test_what_cannot_be_one_file(
    tmp_path: Path, one: str, two: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_modules(tmp_path, one, two, monkeypatch)
    with pytest.raises(ValueError, match=message):
        standalone(SOURCE)
