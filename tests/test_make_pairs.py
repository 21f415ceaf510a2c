"""A pair list of a folder of identities."""

from __future__ import annotations

from collections import Counter
from pathlib import Path, PurePath

import pytest

import evaluate
from evaluation.make_pairs import draw_pairs
from evaluation.pairs import read_pairs, write_pairs

PHOTOS = {"a": 2, "b": 5, "c": 1, "d": 4}
NAMES = [f"{person}/{photo}.jpg" for person, count in PHOTOS.items() for photo in range(count)]


def identity(name: str) -> str:
    return PurePath(name).parent.name


def test_pairs_of_every_identity_and_no_pair_twice() -> None:
    rows = draw_pairs(NAMES, mated=6, non_mated=40, seed=0)
    mated = [(a, b) for a, b, same in rows if same]
    assert Counter(identity(a) for a, _ in mated) == {"a": 1, "b": 6, "d": 6}  # b has ten
    assert all(identity(a) == identity(b) for a, b in mated)
    assert all(identity(a) != identity(b) for a, b, same in rows if not same)
    assert len({frozenset(row[:2]) for row in rows}) == len(rows) == 13 + 40
    assert rows == draw_pairs(NAMES[::-1], mated=6, non_mated=40, seed=0)
    assert rows != draw_pairs(NAMES, mated=6, non_mated=40, seed=1)


def test_all_non_mated_pairs_can_be_had_and_no_more() -> None:
    rows = draw_pairs(NAMES, mated=40, non_mated=49, seed=0)
    assert sum(same == 0 for *_, same in rows) == 49
    assert draw_pairs(NAMES, mated=40, non_mated=60_000, seed=0) == rows
    for names in (["a/1.jpg", "b/1.jpg"], ["a/1.jpg", "a/2.jpg"]):
        with pytest.raises(ValueError, match=r"images of [12] identities .* make [01] mated and [01] non-mated"):
            draw_pairs(names, mated=1, non_mated=1, seed=0)


def test_the_command_writes_a_list_that_edc_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in NAMES:
        (tmp_path / "faces" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "faces" / name).touch()
    output = str(tmp_path / "pairs.tsv")
    call = ["pairs", str(tmp_path / "faces"), "--output", output, "--mated", "3", "--non-mated", "20"]
    assert evaluate.main(call) == 0
    assert "7 mated and 20 non-mated pairs of 12 images" in capsys.readouterr().out
    pairs = read_pairs(output)
    assert int(pairs.mated.sum()) == 7
    assert set(pairs.names) <= set(NAMES)
    assert evaluate.main(["pairs", str(tmp_path / "faces"), "--output", output]) == 0
    printed = capsys.readouterr()
    assert "17 mated and 49 non-mated pairs of 12 images" in printed.out
    assert printed.err == "note: --non-mated 60000 is more than the folder has; the list holds all 49 of them\n"
    with pytest.raises(ValueError, match="a tab or a line end"):
        write_pairs(output, [("a\t/1.jpg", "a/2.jpg", 1)])
