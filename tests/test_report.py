"""The report of inference.py as a file: nothing in it can become markup, and nothing is asked of the network."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import re
import tracemalloc
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import recipe
from PIL import Image

import inference
from model.files import only_run, open_text
from model.prompts import AXES, FACTORS
from scoring import report
from scoring.report import write_report

HOSTILE = [
    "</script><script>document.title='hurt'</script>.png",
    "<img src=x onerror=alert(1)>.png",
    "a\u2028b\u2029c.png",
    "quote\"'&amp;.png",
    "caf\udce9.png",  # a byte that is no UTF-8
    "two\nlines.png",
]
ABOUT = {"model": "clib-fiqa", "created": "1 March 2026", "range": (0.1, 0.9), "percentile_set": "a set"}


def row(path: str, quality: float | None, **columns: Any) -> dict[str, Any]:
    """A row as `scoring.tables.row_of` makes it, of a face whose every factor is at its best with probability 0.9."""
    factors = {f: dict.fromkeys(AXES[f], 0.1 / (len(AXES[f]) - 1)) | {AXES[f][-1]: 0.9} for f in FACTORS}
    scored = quality is not None
    return {
        "path": path,
        "status": "ok" if scored else "no_face",
        "quality": quality,
        **{f: AXES[f][-1] if scored else None for f in FACTORS},
        "factors": factors if scored else None,
        "quality_distribution": [0, 0, 0.1, 0.7, 0.2] if scored else None,
        "percentile": 50.0 if scored else None,
        **columns,
    }


def scripts(page: str, name: str) -> list[str]:
    return re.findall(rf'<script type="[a-z/]+" (?:class|id)="{name}">(.*?)</script>', page, flags=re.DOTALL)


def faces_of(page: str) -> list[Any]:
    return [face for chunk in scripts(page, "rows") for face in json.loads(chunk)]


def pictures_of(page: str) -> list[bytes]:
    return [base64.b64decode(text) for chunk in scripts(page, "pictures") for text in chunk.split(" ")]


def test_hostile_names_stay_data(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", [row(name, 0.5) for name in HOSTILE], len(HOSTILE), ABOUT)
    page = open_text(tmp_path / "r.html").read()
    assert [face[0] for face in faces_of(page)] == HOSTILE
    plain = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert "hurt" not in plain
    assert "onerror" not in plain
    assert not re.search("[\u2028\u2029]", page)
    script = page[page.rindex("<script>") + 8 : page.rindex("</script>")]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in page, "the only script that may run"


def test_nothing_is_asked_of_the_network(tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", [row("a.png", 0.5)], 1, ABOUT)
    page = (tmp_path / "r.html").read_text()
    assert "default-src 'none'" in page
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(?:src|href)=["']?(?!data:)[\w/.:]""", markup)
    assert not re.search(r"@import|url\((?!#)|fetch\(|XMLHttpRequest|https?://(?!www\.w3\.org/2000/svg)", page)


def test_further_columns_and_reasons_are_shown_when_they_are_there(tmp_path: Path) -> None:
    reasons = [{"code": "low_sharpness", "value": 0.83, "advice": "Hold the camera still."}]
    rows = [row("a.png", 0.5, reasons=reasons, band="low", face=1, detection=0.9), row("b.png", 0.6, reasons=[])]
    rows.append(row("c.png", 0.7))
    write_report(tmp_path / "r.html", rows, 3, ABOUT)
    page = (tmp_path / "r.html").read_text()
    a, b, c = faces_of(page)
    assert a[5] == [["low_sharpness", 0.83]]
    assert a[6] == {"percentile": 50.0, "band": "low", "face": 1, "detection": 0.9}
    assert b[5] == []
    assert c[5] is None
    assert json.loads(scripts(page, "advice-data")[0]) == {"low_sharpness": "Hold the camera still."}


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_are_small_and_in_the_order_of_the_rows(
    tmp_path: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "CHUNK", 3)
    colours = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (250, 250, 0)]
    for i, colour in enumerate(colours):
        Image.new("RGB", (600, 400), colour).save(tmp_path / f"{i}.png")
    names = ["0.png", "1.png", "missing.png", "2.png", "3.png"]
    rows = [row(str(tmp_path / name), 0.5) for name in names]
    write_report(tmp_path / "r.html", rows, len(rows), ABOUT, workers)
    pictures = pictures_of((tmp_path / "r.html").read_text())
    assert pictures[2] == b""
    found = [Image.open(io.BytesIO(data)) for data in pictures if data]
    assert [image.size for image in found] == [(192, 128)] * 4
    assert np.allclose([np.asarray(image).mean(axis=(0, 1)) for image in found], colours, atol=6)


def test_the_picture_is_of_the_face_where_its_box_is_known(tmp_path: Path) -> None:
    image = Image.new("RGB", (900, 600), (0, 0, 250))
    image.paste((250, 0, 0), (500, 100, 700, 300))
    image.save(tmp_path / "a.png")
    write_report(tmp_path / "r.html", [row(str(tmp_path / "a.png"), 0.5, box=[550, 150, 650, 250])], 1, ABOUT)
    (data,) = pictures_of((tmp_path / "r.html").read_text())
    picture = np.asarray(Image.open(io.BytesIO(data)))
    assert picture.shape == (170, 170, 3)
    assert np.allclose(picture.mean(axis=(0, 1)), (250, 0, 0), atol=6)


def test_swapped_channels_are_shown_as_the_faces_they_are(tmp_path: Path) -> None:
    Image.new("RGB", (112, 112), (250, 0, 0)).save(tmp_path / "a.png")
    write_report(tmp_path / "r.html", [row(str(tmp_path / "a.png"), 0.5)], 1, ABOUT, swapped_channels=True)
    (data,) = pictures_of((tmp_path / "r.html").read_text())
    assert np.allclose(np.asarray(Image.open(io.BytesIO(data))).mean(axis=(0, 1)), (0, 0, 250), atol=6)


def test_memory_does_not_grow_with_the_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "_picture", fake_picture)
    peaks = []
    for count in (2_000, 8_000):
        rows: Iterator[dict[str, Any]] = (row(f"{i}.png", 0.5) for i in range(count))
        tracemalloc.start()
        write_report(tmp_path / "r.html", rows, count, ABOUT)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.2 * peaks[0]


def fake_picture(key: str, side: int, swapped_channels: bool, max_bytes: int) -> str:
    return "UklGRg" * 150


def test_no_video_is_read_as_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read = []

    def recorded(path: str, max_bytes: int) -> np.ndarray:
        read.append(path)
        return recipe.mirror_image(1)

    monkeypatch.setattr(report, "read_picture", recorded)
    of_videos = [row("clip.mp4", 0.5, frame=0), row("frames", 0.5, frame=3), row("faceless.mkv", None, frame=None)]
    write_report(tmp_path / "r.html", [*of_videos, row("a.png", 0.5, frame=None)], 4, ABOUT)
    assert [bool(data) for data in pictures_of((tmp_path / "r.html").read_text())] == [False, False, False, True]
    assert read == ["a.png"]


def test_the_limit_of_a_file_holds_for_pictures_too(tmp_path: Path) -> None:
    Image.fromarray(recipe.mirror_image(0)).save(tmp_path / "a.png")
    size = (tmp_path / "a.png").stat().st_size
    for limit, shown in ((size, True), (size - 1, False)):
        write_report(tmp_path / "r.html", [row(str(tmp_path / "a.png"), 0.5)], 1, ABOUT, max_bytes=limit)
        assert [bool(data) for data in pictures_of((tmp_path / "r.html").read_text())] == [shown]


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "faces"
    folder.mkdir()
    for seed in range(3):
        Image.fromarray(recipe.mirror_image(seed)).save(folder / f"{seed}.png")
    (folder / "3.png").write_text("no picture")
    return folder


def test_the_command_writes_a_report_with_or_without_a_table(
    images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, table = tmp_path / "new" / "r.html", tmp_path / "s.jsonl"
    call = [str(images), "--weights", str(weights), "--report", str(page)]
    assert inference.main(call) == 1
    alone = faces_of(page.read_text())
    assert inference.main([*call, "--output", str(table)]) == 1
    rows = [json.loads(line) for line in table.read_text().splitlines()]
    assert alone == faces_of(page.read_text())
    assert [face[:3] for face in alone] == [[r["path"], r["status"], r["quality"]] for r in rows]
    assert [bool(data) for data in pictures_of(page.read_text())] == [True, True, True, False]
    assert sorted(os.listdir(tmp_path / "new")) == ["r.html"]
    assert capsys.readouterr().out == ""


def test_one_image_has_a_report_too(images: Path, weights: Path, tmp_path: Path) -> None:
    call = [str(images / "0.png"), "--weights", str(weights), "--report", str(tmp_path / "r.html")]
    assert inference.main(call) == 0
    assert len(faces_of((tmp_path / "r.html").read_text())) == 1


def test_a_run_that_ended_while_it_wrote_the_report_goes_on(
    images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "r.html"
    call = [str(images), "--weights", str(weights), "--report", str(page)]
    with monkeypatch.context() as patch:
        patch.setattr(report, "_page", lambda: (_ for _ in ()).throw(OSError(28, "No space left on device", "r.html")))
        assert inference.main(call) == 1
    assert "--resume goes on" in capsys.readouterr().err
    assert not page.exists()
    assert inference.main([*call, "--resume"]) == 1
    assert len(faces_of(page.read_text())) == 4
    assert not Path(f"{page}.partial").exists()


def test_a_wrong_call_is_refused_before_the_work(
    images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    call = [str(images), "--weights", str(weights), "--report"]
    assert inference.main([*call, str(tmp_path / "r.pdf")]) == 2
    assert "must end in .html" in capsys.readouterr().err
    with only_run(tmp_path / "r.html"):
        assert inference.main([*call, str(tmp_path / "r.html")]) == 2
    assert "another run is writing" in capsys.readouterr().err
