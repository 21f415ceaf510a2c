"""Pickles of people we do not know: plain values are read, everything else is one clear line and no harm."""

from __future__ import annotations

import contextlib
import io
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluation.plain_pickle import PlainPickleError, read_plain_pickle

ROOT = Path(__file__).parents[1]
MEMORY = 4 << 30  # of addresses: numpy, OpenBLAS and OpenCV take more than one before anything is read


def plain(value: Any) -> Any:
    """Arrays as something that can be compared."""
    if isinstance(value, np.ndarray):
        return value.dtype.str, value.shape, value.flags.f_contiguous, value.tolist()
    if isinstance(value, dict):
        return [(key, plain(item)) for key, item in value.items()]
    if isinstance(value, list | tuple):
        return type(value), [plain(item) for item in value]
    return type(value), bytes(value) if isinstance(value, bytes | bytearray) else value


REAL: dict[str, Any] = {
    "scores": {"a/b/1.jpg": np.float32(0.5), "a/b/2.jpg": np.float64(1e300), "é\udce9": np.bool_(True)},
    "items": [("a/b/1.jpg", 0.25, 3), ("a/b/2.jpg", -1e-9, -(2**70)), ("c", 300, 70_000)],
    "embeddings": {"a": np.arange(512, dtype=np.float32), "b": np.zeros((0, 3)), "c": np.arange(10)[::2]},
    "orders": [np.asfortranarray(np.arange(6).reshape(2, 3)), np.arange(24).reshape(2, 3, 4).transpose(1, 0, 2)],
    "types": [np.array(["ab", "c"]), np.str_("xy"), np.array(5.0), np.array([1, 2], ">i4"), np.array([True, False])],
    "bin": ([b"\xff\xd8", b"", b"x" * 300], [True, False, None]),
    "ordered": OrderedDict(a=1, b=[None, (), (1,), (1, 2, 3, 4)]),
    "shared": [np.arange(3, dtype=np.uint8)] * 3,
}


@pytest.mark.parametrize("protocol", range(6))
@pytest.mark.parametrize("name", REAL)
def test_real_files_are_read_as_by_python(tmp_path: Path, name: str, protocol: int) -> None:
    content, file = pickle.dumps(REAL[name], protocol), tmp_path / "a.pkl"
    file.write_bytes(content)
    assert plain(read_plain_pickle(file)) == plain(pickle.loads(content))
    if protocol < 4:  # the names of NumPy 1; from protocol 4 on their length stands before them
        file.write_bytes(content.replace(b"numpy._core.", b"numpy.core."))
        assert plain(read_plain_pickle(file)) == plain(pickle.loads(content))


def test_one_object_stays_one_object(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(pickle.dumps(REAL["shared"]))
    one, two, _ = read_plain_pickle(tmp_path / "a.pkl")
    assert one is two


def test_python_2(tmp_path: Path) -> None:
    """Strings in protocols 0 and 2, a number of two kinds, and an array of NumPy 1 for Python 2."""
    file = tmp_path / "a.pkl"
    file.write_bytes(b"(dp0\nS'a.jpg'\np1\nF0.5\nsS'\\xff'\np2\nI01\nsS\"b\"\nI7\nsS'c'\nL8L\ns.")
    assert read_plain_pickle(file) == {b"a.jpg": 0.5, b"\xff": True, b"b": 7, b"c": 8}
    file.write_bytes(
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\nq\x01cnumpy\nndarray\nq\x02K\x00\x85U\x01b\x87Rq\x03"
        b"(K\x01K\x02\x85cnumpy\ndtype\nq\x04U\x02f4K\x00K\x01\x87Rq\x05(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89U\x08" + np.array([1, 2], "<f4").tobytes() + b"tb."
    )
    np.testing.assert_array_equal(read_plain_pickle(file), np.array([1, 2], np.float32))


DTYPE = b"\x80\x04cnumpy\ndtype\n"
DTYPE_O = DTYPE + b"\x8c\x01O\x89\x88\x87R\x94"
DTYPE_F4 = DTYPE + b"\x8c\x02f4\x89\x88\x87R\x94"
RECONSTRUCT = b"cnumpy._core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85C\x01b\x87R"
FROM_BUFFER = b"cnumpy._core.numeric\n_frombuffer\n"
MEGABYTE = b"B" + struct.pack("<I", 1 << 20) + b"A" * (1 << 20)
LONG = struct.pack("<Q", 8 << 30)
NUMBER_2_33 = b"\x8a\x05" + (8 << 30).to_bytes(5, "little")
HOSTILE = {
    # an object whose pointer is AAAAAAAA
    "ndarray is called": DTYPE_O + b"cnumpy\nndarray\n)h\x00C\x08AAAAAAAA\x87R.",
    "a scalar of objects": b"\x80\x04cnumpy._core.multiarray\nscalar\n" + DTYPE_O[2:] + b"C\x08AAAAAAAA\x86R.",
    "objects from a buffer": b"\x80\x04cnumpy._core.numeric\n_frombuffer\n(C\x08AAAAAAAA"
    + DTYPE_O[2:] + b"K\x01\x85\x8c\x01CtR.",
    "an array with the state of objects": b"\x80\x04" + RECONSTRUCT + b"(K\x01K\x01\x85" + DTYPE_O[2:]
    + b"\x89C\x08AAAAAAAAtb.",
    "a type that becomes objects": DTYPE_F4 + b"(K\x03\x8c\x01|N\x8c\x01aN}\x8c\x01a" + DTYPE_O[2:] + b"K\x00\x86stb.",
    "an array larger than its bytes": b"\x80\x04" + RECONSTRUCT + b"(K\x01" + NUMBER_2_33 + b"\x85"
    + DTYPE_F4[2:] + b"\x89C\x04AAAAtb.",
    "an array of negative size": b"\x80\x04" + RECONSTRUCT + b"(K\x01J\xff\xff\xff\xff\x85"
    + DTYPE_F4[2:] + b"\x89C\x04AAAAtb.",
    "an array without numbers": b"\x80\x04" + RECONSTRUCT + b"}\x8c\x01xK\x01sb.",
    "bytearray of 8 GB": b"\x80\x04cbuiltins\nbytearray\n" + NUMBER_2_33 + b"\x85R.",
    "bytes of 8 GB": b"\x80\x04cbuiltins\nbytes\n" + NUMBER_2_33 + b"\x85R.",
    "bytes of 8 GB announced": b"\x80\x04\x8e" + LONG + b"A.",
    "text of 8 GB announced": b"\x80\x04\x8d" + LONG + b"A.",
    "bytearray of 8 GB announced": b"\x80\x05\x96" + LONG + b"A.",
    "a memo of 2^32 places": b"\x80\x04Nr\xff\xff\xff\xff.",
    "a number of 2 GB": b"\x80\x04\x8b\xff\xff\xff\x7fA.",
    "a number as long text": b"I" + b"9" * 100_000 + b"\n.",
    "names of an out-of-band buffer": b"\x80\x05\x97.",
    "an object without a call": b"\x80\x04cbuiltins\nobject\n)\x81.",
    "a function from a name": b"\x80\x04\x8c\x02os\x8c\x06system\x93\x8c\x02id\x85R.",
    "a name with a line end": b"\x80\x04\x8c\x03o\ns\x8c\x06system\x93\x8c\x02id\x85R.",
    "a value is called": b"\x80\x04\x8c\x02id)R.",
    "state of a dict": b"\x80\x04}}b.",
    "keys that a file can make collide": b"\x80\x04}K\x01K\x02s.",
    "keys of nested tuples, whose hash takes for ever": b"\x80\x04)"
    + b"".join(b"\x94h" + bytes([i, ord("h"), i]) + b"\x86" for i in range(60)) + b"\x94}h\x3cK\x01s.",
    "an endless text": b"\x80\x04]" + b"".join(b"\x94]h" + bytes([i]) + b"ah" + bytes([i]) + b"a" for i in range(60))
    + b"\x94}\x8c\x01xh\x3cs.",
    "a number too large": b"\x80\x04}\x8c\x01x\x8b" + struct.pack("<I", 1000) + b"\x7f" * 1000 + b"s.",
    "a list in itself": b"\x80\x04]\x94h\x00a\x94}\x8c\x01xh\x00s.",
    "deep lists": b"\x80\x04}\x8c\x01x" + b"]" * 200_000 + b"a" * 199_999 + b"s.",
    "nothing on the stack": b"\x80\x04.",
    "no mark": b"\x80\x04u.",
    "an empty file": b"",
    "texts of no width": b"\x80\x04]" + DTYPE[2:] + b"\x8c\x02S0\x89\x88\x87R\x94a" + FROM_BUFFER
    + b"(C\x00h\x00J\x00\x00\x00\x40\x85\x8c\x01CtRa.",
    "no numbers in many rows": b"\x80\x04]" + DTYPE_F4[2:] + b"a" + FROM_BUFFER
    + b"(C\x00h\x00J\x00\x00\x00\x40K\x00\x86\x8c\x01CtRa.",
    "many arrays of the same bytes": b"\x80\x04]" + DTYPE_F4[2:] + b"a" + MEGABYTE + b"\x94a"
    + (RECONSTRUCT + b"(K\x01J\x00\x00\x04\x00\x85h\x00\x89h\x01tba") * 6000 + b".",
    "the same text encoded often": b"\x80\x04]X" + MEGABYTE[1:] + b"\x94a"
    + b"c_codecs\nencode\nh\x00\x8c\x06latin1\x86Ra" * 6000 + b".",
    "the same list as many dicts": b"\x80\x04]](" + b"".join(b"(\x8c\x03" + b"%03d" % i + b"Nt" for i in range(900))
    + b"e\x94a" + b"ccollections\nOrderedDict\nh\x00\x85Ra" * 200_000 + b".",
}
SAME_IMAGE = b"B" + struct.pack("<I", 4 << 20) + b"A" * (4 << 20) + b"\x94" + b"h\x01" * 3999
HOSTILE_BINS = {
    "images of a size": b"\x80\x04(](" + NUMBER_2_33 + NUMBER_2_33 + b"e]\x88at.",
    "images larger than the file": b"\x80\x04(]\x94(" + SAME_IMAGE + b"e](" + b"\x88" * 2000 + b"et.",
    "no lists": b"\x80\x04K\x01K\x02\x86.",
    "labels that are lists": b"\x80\x04(](C\x01AC\x01Be](]et.",
}


def limited() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))


def evaluate(*arguments: str) -> tuple[int, str]:
    """Exit code and standard error of evaluate.py, in a process of little memory and time."""
    done = subprocess.run(
        [sys.executable, "evaluate.py", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False,
        preexec_fn=limited,
    )  # fmt: skip
    return done.returncode, done.stderr


def is_one_line(code: int, error: str) -> bool:
    return code == 2 and error.startswith("error: ") and error.count("\n") == 1 and len(error) < 400


def test_hostile_files_are_one_clear_line(tmp_path: Path) -> None:
    """One child reads all files, and names each before it reads it: a child for each would take a minute."""
    for name, content in HOSTILE.items():
        (tmp_path / f"{name}.pkl").write_bytes(content)
    for name, content in HOSTILE_BINS.items():
        (tmp_path / f"{name}.bin").write_bytes(content)
    code = (
        "import sys, pathlib, contextlib, io, evaluate\n"
        "for file in sorted(pathlib.Path(sys.argv[1]).iterdir()):\n"
        "    print(file.name, flush=True)\n"
        "    output = ['--output', sys.argv[1] + '/none']\n"
        "    call = ['threshold', str(file), '--discard', '0.05']\n"
        "    inputs = ['--scores', 'a=a', '--embeddings', 'a=a', *output]\n"
        "    call = ['edc', '--pairs', str(file), *inputs] if file.suffix == '.bin' else call\n"
        "    with contextlib.redirect_stderr(io.StringIO()) as error: code = evaluate.main(call)\n"
        "    text = error.getvalue()\n"
        "    fits = code == 2 and text.startswith('error: ') and text.count('\\n') == 1 and len(text) < 400\n"
        "    assert fits, (file.name, code, text)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=200, check=False,
        preexec_fn=limited,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout.splitlines()[-1:], done.stderr[-2000:])
    assert len(done.stdout.splitlines()) == len(HOSTILE) + len(HOSTILE_BINS)


def test_the_command_ends_with_2(tmp_path: Path) -> None:
    (tmp_path / "evil.pkl").write_bytes(HOSTILE["ndarray is called"])
    assert is_one_line(*evaluate("threshold", str(tmp_path / "evil.pkl"), "--discard", "0.05"))


def test_embeddings_of_objects_are_not_mapped(tmp_path: Path) -> None:
    """The pointers of a mapped array of objects would be bytes of the file."""
    names, rows = io.BytesIO(), io.BytesIO()
    np.save(names, np.array(["a/1", "a/2", "b/1", "b/2"]))
    np.lib.format.write_array_header_1_0(rows, {"descr": "|O", "fortran_order": False, "shape": (4, 2)})
    rows.write(b"A" * 64)
    with zipfile.ZipFile(tmp_path / "evil.npz", "w") as archive:
        archive.writestr("names.npy", names.getvalue())
        archive.writestr("embeddings.npy", rows.getvalue())
    (tmp_path / "pairs.tsv").write_text("a/1\ta/2\t1\na/1\tb/1\t0\n")
    (tmp_path / "s.csv").write_text("path,quality\na/1,1\na/2,2\nb/1,3\nb/2,4\n")
    inputs = ["--pairs", str(tmp_path / "pairs.tsv"), "--scores", f"m={tmp_path / 's.csv'}"]
    embeddings = ["--embeddings", f"fr={tmp_path / 'evil.npz'}", "--output", str(tmp_path / "out")]
    assert is_one_line(*evaluate("edc", *inputs, *embeddings))


def test_no_damage_ends_in_another_error(tmp_path: Path) -> None:
    rng, file = np.random.default_rng(0), tmp_path / "a.pkl"
    for _ in range(1500):
        names = list(REAL)
        content = bytearray(pickle.dumps(REAL[names[rng.integers(len(names))]], int(rng.integers(6)))[:500])
        for _ in range(int(rng.integers(1, 6))):
            content[rng.integers(len(content))] = rng.integers(256)
        file.write_bytes(content)
        with contextlib.suppress(PlainPickleError):
            read_plain_pickle(file)
