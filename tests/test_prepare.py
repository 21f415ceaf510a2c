"""From archives to aligned faces and pairs."""

from __future__ import annotations

import io
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from skimage.data import astronaut

import evaluate
from evaluation.pairs import read_pairs
from faces.reader import read_image


def picture(seed: int, size: int = 112, kind: str = "JPEG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (size, size, 3), np.uint8)).save(stream, kind)
    return stream.getvalue()


LFW = {f"set/{n}/{n}_{i:04d}.jpg": picture(k) for k, (n, i) in enumerate([("A_B", 1), ("A_B", 2), ("C", 3), ("D", 9)])}
LFW_PAIRS = "1\t1\nA_B\t1\t2\nA_B\t1\tC\t3\n"


def as_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in LFW.items():
            archive.writestr(name, content)
    return path


def as_tgz(path: Path) -> Path:
    with tarfile.open(path, "w:gz") as archive:
        for name, content in {**LFW, "set/README": b"text"}.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def as_folder(path: Path) -> Path:
    for name, content in LFW.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    return path


@pytest.mark.parametrize("make", [as_zip, as_tgz, as_folder])
def test_lfw(tmp_path: Path, make) -> None:
    source = make(tmp_path / "source")
    (tmp_path / "pairs.txt").write_text(LFW_PAIRS)
    output = tmp_path / "lfw"
    flags = ["prepare", str(source), "--pairs", str(tmp_path / "pairs.txt"), "--output", str(output), "--workers", "0"]
    assert evaluate.main(flags) == 0
    pairs = read_pairs(output / "pairs.tsv")
    assert pairs.names == [f"images/{n}.jpg" for n in ("A_B/A_B_0001", "A_B/A_B_0002", "C/C_0003")]
    assert pairs.mated.tolist() == [True, False]
    for name in pairs.names:  # 112x112 is aligned already: not a bit changes
        assert (output / name).read_bytes() == LFW[name.replace("images", "set")]
    assert sorted(path.name for path in output.iterdir()) == ["images", "pairs.tsv"]


def test_insightface_bin(tmp_path: Path) -> None:
    images = [picture(0), picture(1), picture(2, kind="PNG"), b"broken"]
    (tmp_path / "cfp_fp.bin").write_bytes(pickle.dumps((images, [True, False])))
    output = tmp_path / "cfp"
    assert evaluate.main(["prepare", str(tmp_path / "cfp_fp.bin"), "--output", str(output), "--workers", "0"]) == 1
    assert (output / "pairs.tsv").read_text() == "path_a\tpath_b\tsame\nimages/00000.jpg\timages/00001.jpg\t1\n"
    assert (output / "pairs.tsv.skipped.tsv").read_text() == "path\tstatus\n00003\tnot_an_image\n"
    assert (output / "images/00002.jpg").read_bytes() == images[2]


def test_faces_are_aligned(tmp_path: Path) -> None:
    source = tmp_path / "photos"
    source.mkdir()
    Image.fromarray(astronaut()).save(source / "a_1.png")
    Image.fromarray(np.full((300, 300, 3), 128, np.uint8)).save(source / "a_2.png")  # no face
    Image.fromarray(astronaut()[:, ::-1]).save(source / "a_3.png")
    (tmp_path / "pairs.tsv").write_text("a_1.png\ta_2.png\t1\na_1.png\ta_3.png\t1\n")
    output = tmp_path / "out"
    flags = ["prepare", str(source), "--pairs", str(tmp_path / "pairs.tsv"), "--output", str(output), "--workers", "0"]
    assert evaluate.main(flags) == 1
    assert (output / "pairs.tsv").read_text() == "path_a\tpath_b\tsame\nimages/a_1.jpg\timages/a_3.jpg\t1\n"
    assert (output / "pairs.tsv.skipped.tsv").read_text() == "path\tstatus\na_2.png\tno_face\n"
    one, mirrored = read_image(output / "images/a_1.jpg"), read_image(output / "images/a_3.jpg")
    assert one.shape == (112, 112, 3)
    assert np.abs(one[:, ::-1].astype(int) - mirrored).mean() < 20  # the same face, mirrored

    assert evaluate.main([*flags, "--align", "no"]) == 0
    assert read_image(output / "images/a_2.png").shape == (300, 300, 3)


def test_what_cannot_be_prepared(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = ["--output", str(tmp_path / "out")]
    archive = as_zip(tmp_path / "lfw.zip")
    assert evaluate.main(["prepare", str(archive), *output]) == 2
    assert "needs its pair list" in capsys.readouterr().err
    for row, message in (("../../x.jpg\tA.jpg\t1", "inside the set"), ("a.jpg\tb.jpg\t1", "no counterpart")):
        (tmp_path / "pairs.tsv").write_text(row)
        assert evaluate.main(["prepare", str(archive), "--pairs", str(tmp_path / "pairs.tsv"), *output]) == 2
        assert message in capsys.readouterr().err
    (tmp_path / "x.rar").write_bytes(b"Rar!")
    (tmp_path / "pairs.tsv").write_text("a.jpg\tb.jpg\t1")
    assert evaluate.main(["prepare", str(tmp_path / "x.rar"), "--pairs", str(tmp_path / "pairs.tsv"), *output]) == 2
    assert "no zip, no tar archive" in capsys.readouterr().err
    assert not (tmp_path / "out").exists() or not any((tmp_path / "out").iterdir())
