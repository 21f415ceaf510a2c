"""Every kind of pair list, and what damaged ones say."""

from __future__ import annotations

import os
import pickle
import pickletools
from pathlib import Path

import numpy as np
import pytest

from evaluation import pairs as pairs_module
from evaluation.pairs import PairListError, identities, read_bin, read_pairs
from evaluation.plain_pickle import PlainPickleError, read_plain_pickle

KINDS = {
    "tsv": "path_a\tpath_b\tsame\na b/1.jpg\ta b/2.jpg\t1\na b/1.jpg\tc/1.jpg\t0\n",
    "tsv without header": "a b/1.jpg\ta b/2.jpg\t1\na b/1.jpg\tc/1.jpg\t0",
    "windows": "\ufeffpath_a\tpath_b\tsame\r\na b/1.jpg\ta b/2.jpg\t1\r\na b/1.jpg\tc/1.jpg\t0\r\n",
}


@pytest.mark.parametrize("kind", KINDS)
def test_tsv(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "pairs.tsv"
    file.write_bytes(KINDS[kind].encode())
    pairs = read_pairs(file)
    assert pairs.names == ["a b/1.jpg", "a b/2.jpg", "c/1.jpg"]
    assert pairs.first.tolist() == [0, 0]
    assert pairs.second.tolist() == [1, 2]
    assert pairs.mated.tolist() == [True, False]


def test_cr_fiqa_list(golden: Path) -> None:
    pairs = read_pairs(golden / "evaluation/quality_data/SYN/pair_list.txt")
    expected = np.load(golden / "evaluation/expected.npz")["pair_index"]
    assert [pairs.names[i] for i in pairs.first] == [f"{i:05d}" for i in expected[:, 0]]
    assert [pairs.names[i] for i in pairs.second] == [f"{i:05d}" for i in expected[:, 1]]
    np.testing.assert_array_equal(pairs.mated, expected[:, 2] == 1)


def test_blocks_do_not_show(golden: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The list is read in blocks of many lines; the size of a block changes nothing."""
    file = golden / "evaluation/quality_data/SYN/pair_list.txt"
    whole = read_pairs(file)
    monkeypatch.setattr(pairs_module, "BLOCK", 100)
    parts = read_pairs(file)
    assert parts.names == whole.names
    np.testing.assert_array_equal(parts.second, whole.second)
    np.testing.assert_array_equal(parts.mated, whole.mated)


@pytest.mark.parametrize("head", ["10\t300", "500"])
def test_lfw_and_xqlfw_lists(tmp_path: Path, head: str) -> None:
    file = tmp_path / "pairs.txt"
    file.write_text(f"{head}\nAbel_Pacheco\t1\t4\nAbel_Pacheco\t1\tBen_Betts\t12\n")
    pairs = read_pairs(file)
    names = ["Abel_Pacheco/Abel_Pacheco_0001.jpg", "Abel_Pacheco/Abel_Pacheco_0004.jpg", "Ben_Betts/Ben_Betts_0012.jpg"]
    assert pairs.names == names
    assert pairs.first.tolist() == [0, 0]
    assert pairs.second.tolist() == [1, 2]
    assert pairs.mated.tolist() == [True, False]


def test_cplfw_list(tmp_path: Path) -> None:
    file = tmp_path / "pairs_CPLFW.txt"
    file.write_text("A_1.jpg 1\nA_2.jpg 1\nA_1.jpg 0\nB_3.jpg 0\n")
    pairs = read_pairs(file)
    assert pairs.names == ["A_1.jpg", "A_2.jpg", "B_3.jpg"]
    assert pairs.mated.tolist() == [True, False]


DAMAGED = {
    "a\tb\t1\nc\td\n": "line 2",
    "a\tb\t1\nc\td\t2\n": "line 2",
    "path_a\tpath_b\tsame\na\tb\t1\nc\td\tyes\n": "line 3",
    "a b 1\nc d\ne f 1\ng 1\n": "line 2",
    "10 300\nname 1 two\n": "line 2",
    "a.jpg 1\nb.jpg 0\n": "equal labels",
    "a.jpg 1\nb.jpg 1\nc.jpg 1\n": "odd number",
    "path_a\tpath_b\tsame\n": "no pairs",
    "one\n": "first line",
    "": "first line",
}


@pytest.mark.parametrize("content", DAMAGED)
def test_damaged_lists_name_the_line(tmp_path: Path, content: str) -> None:
    file = tmp_path / "pairs.txt"
    file.write_text(content)
    with pytest.raises(PairListError, match=DAMAGED[content]):
        read_pairs(file)


@pytest.mark.parametrize("protocol", range(6))
def test_insightface_bin(tmp_path: Path, protocol: int) -> None:
    images, labels = [bytes([i, 255]) * 3 for i in range(4)], [True, False]
    file = tmp_path / "set.bin"
    file.write_bytes(pickle.dumps((images, labels), protocol))
    assert read_bin(file) == (images, labels)
    pairs = read_pairs(file)
    assert pairs.names == ["00000", "00001", "00002", "00003"]
    assert pairs.second.tolist() == [1, 3]
    assert pairs.mated.tolist() == labels


def test_insightface_bin_of_numpy_arrays_and_of_python_2(tmp_path: Path) -> None:
    file = tmp_path / "set.bin"
    file.write_bytes(pickle.dumps(([np.frombuffer(b"\xff\xd8", np.uint8)] * 2, [np.bool_(True)])))
    assert read_bin(file) == ([b"\xff\xd8"] * 2, [True])
    # what Python 2 wrote: str (opcode T or U) with bytes that are no ASCII, in a tuple with a list of bools
    file.write_bytes(b"\x80\x02]q\x00(U\x02\xff\xd8q\x01U\x02\xff\xd9q\x02e]q\x03\x88a\x86q\x04.")
    assert read_bin(file) == ([b"\xff\xd8", b"\xff\xd9"], [True])


class Hostile:
    def __reduce__(self) -> tuple:
        return Path.touch, (Path("hacked"),)


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("where", [lambda x: x, lambda x: ([x, x], [True]), lambda x: {"a.jpg": x}])
def test_pickles_run_no_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, where, protocol: int) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / "set.bin"
    file.write_bytes(pickle.dumps(where(Hostile()), protocol))
    with pytest.raises(PlainPickleError, match="only plain values"):
        read_plain_pickle(file)
    assert not Path("hacked").exists()


def test_damaged_pickles_are_said_to_be(tmp_path: Path) -> None:
    file = tmp_path / "set.bin"
    good = pickle.dumps(([b"a" * 50] * 2, [True]))
    for content in (b"", b"no pickle", good[:20], good[:-1], pickletools.optimize(good)[5:]):
        file.write_bytes(content)
        with pytest.raises(PlainPickleError):
            read_plain_pickle(file)
    file.write_bytes(pickle.dumps({"a": 1}))
    with pytest.raises(PairListError, match="2P images"):
        read_bin(file)


def pairs_of(tmp_path: Path, *rows: str):
    file = tmp_path / "pairs.tsv"
    file.write_text("\n".join(row.replace(" ", "\t") for row in rows))
    return read_pairs(file)


def groups(pairs) -> set[frozenset[str]]:
    label = identities(pairs)
    return {frozenset(n for n, same in zip(pairs.names, label == one, strict=True) if same) for one in label}


def test_identities_are_folders_when_the_pairs_agree(tmp_path: Path) -> None:
    """x/3 is in no mated pair, and still belongs to x."""
    pairs = pairs_of(tmp_path, "x/1 x/2 1", "x/3 y/1 0")
    assert groups(pairs) == {frozenset({"x/1", "x/2", "x/3"}), frozenset({"y/1"})}


def test_identities_are_file_names_when_the_pairs_agree(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, "i/x_1.jpg i/x_2.jpg 1", "i/x_3.jpg i/y_1.jpg 0")
    assert groups(pairs) == {frozenset({"i/x_1.jpg", "i/x_2.jpg", "i/x_3.jpg"}), frozenset({"i/y_1.jpg"})}


def test_identities_are_connected_pairs_otherwise(tmp_path: Path) -> None:
    pairs = pairs_of(tmp_path, "5 4 1", "3 2 1", "2 5 1", "1 0 1", "0 3 0", "7 1 0")
    assert groups(pairs) == {frozenset("2345"), frozenset("01"), frozenset("7")}


def test_connected_identities_are_those_of_scipy() -> None:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    rng = np.random.default_rng(0)
    for edges in (10, 300, 700):
        a, b = rng.integers(0, 1000, (2, edges)).astype(np.int32)
        ours = pairs_module._connected(1000, a, b)
        theirs = connected_components(coo_array((np.ones(edges), (a, b)), (1000, 1000)), directed=False)[1]
        assert len(set(zip(ours.tolist(), theirs.tolist(), strict=True))) == len(set(ours)) == len(set(theirs))


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_names_that_are_no_utf8(tmp_path: Path, end: str) -> None:
    names = [os.fsdecode(b"x/caf\xe9.jpg"), "x/\u2028\x85.jpg"]
    for content in (f"{names[0]}\t{names[1]}\t1\n", f"{names[0]} 1\n{names[1]} 1\n"):
        (tmp_path / "p.tsv").write_bytes(os.fsencode(content.replace("\n", end)))
        assert read_pairs(tmp_path / "p.tsv").names[0] == names[0]
    pairs_module.write_pairs(tmp_path / "p.tsv", [(names[0], names[1], 1)])
    assert read_pairs(tmp_path / "p.tsv").names == names
