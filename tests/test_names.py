"""How names match: exactly, by the longest unique path suffix, by unique stem, and never quietly wrong."""

from __future__ import annotations

import pytest

from evaluation.names import MatchError, match_names

MATCHES = {
    "exactly": (["b/x.jpg"], ["a/b/x.jpg", "b/x.jpg", "x.jpg"], [1]),
    "a relative name to an absolute one": (["f/7/1.jpg", "f/8/1.jpg"], ["/d/f/8/1.jpg", "/d/f/7/1.jpg"], [1, 0]),
    "an absolute name to a relative one": (["/d/f/7/1.jpg", "/d/f/8/1.jpg"], ["8/1.jpg", "7/1.jpg"], [1, 0]),
    "different roots": (["/one/7/1.jpg"], ["/two/7/1.jpg", "/two/8/1.jpg"], [0]),
    "a longer suffix before a shorter one": (["a/b/x.jpg"], ["x.jpg", "b/x.jpg"], [1]),
    "windows separators and dots": (["./a/x.jpg", "b\\x.jpg"], ["b/x.jpg", "a/x.jpg"], [1, 0]),
    "stems": (["00002", "00001"], ["q/00001.jpg", "q/00002.npy"], [1, 0]),
    "stems the other way": (["q/1.PNG"], ["1"], [0]),
    "a dot that is no suffix": (["J.K._R_0001", "J.K._R_0002"], ["a/J.K._R_0002.jpg", "a/J.K._R_0001.jpg"], [1, 0]),
    "nothing wanted": ([], ["a"], []),
}


@pytest.mark.parametrize("case", MATCHES)
def test_match(case: str) -> None:
    wanted, available, expected = MATCHES[case]
    assert match_names(wanted, available, "table").tolist() == expected


PROBLEMS = {
    "no counterpart": (["a.jpg", "b.jpg", "c.jpg"], ["a.jpg", "d.jpg"]),
    "several counterparts": (["x.jpg"], ["a/x.jpg", "b/x.jpg"]),
    "several stems": (["x"], ["x.jpg", "x.png"]),
    "the row of another name": (["A/0001.jpg", "B/0001.jpg"], ["A/0001.jpg"]),
    "one row for two names": (["B/0001.jpg", "C/0001.jpg"], ["A/0001.jpg"]),
    "an empty table": (["x"], []),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_problems_are_errors_with_examples(problem: str) -> None:
    with pytest.raises(MatchError, match="table") as caught:
        match_names(*PROBLEMS[problem], "table")
    assert any(name in str(caught.value) for name in PROBLEMS[problem][0])


def test_the_row_of_another_name_is_not_a_counterpart() -> None:
    with pytest.raises(MatchError, match=r"1 of 2 names have no counterpart in table, for example B/0001\.jpg"):
        match_names(*PROBLEMS["the row of another name"], "table")


def test_the_message_counts_and_shows() -> None:
    with pytest.raises(MatchError, match=r"2 of 3 names have no counterpart in table, for example b.jpg, c.jpg"):
        match_names(*PROBLEMS["no counterpart"], "table")
