"""Work over a Ray cluster: the results of one machine, whatever dies."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import evaluate
import generate_labels
import inference
from faces.cluster import Cluster, cluster_of
from faces.reader import read_image
from faces.workers import Loaded, read_and_prepare

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"
KILLED_DRIVER = """
import os
import signal
import sys
sys.path.insert(0, sys.argv.pop(1))
import inference
import scoring.tables as tables
row_of, rows = tables.row_of, []
def row_or_death(score):
    rows.append(1)
    if len(rows) == 20:
        os.kill(os.getpid(), signal.SIGKILL)
    return row_of(score)
tables.row_of = row_or_death
sys.exit(inference.main())
"""


def test_flags_of_the_cluster_need_the_engine() -> None:
    assert cluster_of("local", None, None, "cpu") is None
    assert cluster_of("ray", None, 3, "cuda") == Cluster("local", 3, gpus=1)
    with pytest.raises(ValueError, match="--engine ray"):
        cluster_of("local", "auto", None, "cpu")


@pytest.fixture(scope="module")
def ray() -> Iterator[Any]:
    ray = pytest.importorskip("ray", reason="Ray is an extra")
    from ray import cloudpickle

    from faces.cluster import connect

    cloudpickle.register_pickle_by_value(sys.modules[__name__])   # the cluster's processes cannot import tests
    yield connect("local")
    ray.shutdown()


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("pictures")
    for index in range(21):
        Image.fromarray(np.full((4, 4, 3), index, np.uint8)).save(folder / f"{index:02}.png")
    (folder / "05.png").write_text("not a picture")
    return [*sorted(map(str, folder.iterdir())), str(folder / "none.png")]


def mean_of(rgb: np.ndarray) -> float:
    return float(rgb.mean())


def listed(loaded: Sequence[Loaded[float]]) -> list[tuple[str, str, float | None]]:
    return [(Path(item.path).name, item.status, item.value) for item in loaded]


def make_listed() -> Callable[[Sequence[Loaded[float]]], list[tuple[str, str, float | None]]]:
    return listed


def mean_or_death(marks: Path, rgb: np.ndarray) -> float:
    """The mean of a picture; the process that sees the seventh for the first time is killed."""
    if rgb[0, 0, 0] == 7 and not (marks / "dead").exists():
        (marks / "dead").touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return float(rgb.mean())


def expected(pictures: list[str]) -> list[tuple[str, str, float | None]]:
    rows = [(Path(path).name, "ok", float(index)) for index, path in enumerate(pictures)]
    return [(n, "not_an_image", None) if n == "05.png" else (n, "missing", None) if n == "none.png" else (n, s, v)
            for n, s, v in rows]


def test_every_picture_has_one_result_in_order(ray: Any, pictures: list[str]) -> None:
    load = partial(read_and_prepare, read_image, mean_of)
    batches = list(Cluster().results(pictures, load, make_listed, 4))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 2]
    assert list(chain.from_iterable(batches)) == expected(pictures)


def test_a_killed_process_loses_and_repeats_no_row(ray: Any, pictures: list[str], tmp_path: Path) -> None:
    load = partial(read_and_prepare, read_image, partial(mean_or_death, tmp_path))
    batches = Cluster().results(pictures, load, make_listed, 4)
    assert list(chain.from_iterable(batches)) == expected(pictures)
    assert (tmp_path / "dead").exists()


def test_an_error_of_the_work_ends_the_run(ray: Any, pictures: list[str]) -> None:
    with pytest.raises(Exception, match="division by zero"):
        list(Cluster().results(pictures, partial(read_and_prepare, read_image, fails), make_listed, 4))


def fails(rgb: np.ndarray) -> float:
    return 1 / 0


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two people of three crops each, and a linked folder."""
    folder = tmp_path_factory.mktemp("faces")
    for person, name in enumerate(("astronaut", "hopper_dark")):
        (folder / str(person)).mkdir()
        crop = Image.open(SAMPLES / f"{name}.png").convert("RGB").resize((112, 112))
        for turn in range(3):
            crop.rotate(4 * turn).save(folder / str(person) / f"{turn}.png")
    (folder / "0" / "circle").symlink_to("..")
    return folder


def test_embeddings_are_those_of_one_machine(ray: Any, faces: Path, tmp_path: Path) -> None:
    call = ["embed", str(faces), "--fr", "dlib", "--align", "no", "--workers", "0", "--batch-size", "2", "--output"]
    assert evaluate.main([*call, str(tmp_path / "here.npz")]) == 1
    assert evaluate.main([*call, str(tmp_path / "ray.npz"), "--engine", "ray"]) == 1
    for engine in ("here", "ray"):
        [_, line] = (tmp_path / f"{engine}.npz.skipped.tsv").read_text().splitlines()
        assert line == f"{faces}/0/circle\tlinked_folder"
    here, there = np.load(tmp_path / "here.npz"), np.load(tmp_path / "ray.npz")
    assert here["names"].tolist() == there["names"].tolist()
    np.testing.assert_allclose(here["embeddings"], there["embeddings"], atol=1e-6)


@pytest.mark.parametrize("output", [True, False])
def test_scores_are_those_of_one_machine(
    ray: Any, faces: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], output: bool
) -> None:
    """A table in a file, and one that is printed."""
    call = [str(faces), "--weights", str(weights), "--align", "no", "--batch-size", "4", "--threads", "1"]
    tables = []
    for engine in ("local", "ray"):
        file = tmp_path / f"{engine}.csv"
        assert inference.main([*call, "--engine", engine, *(["--output", str(file)] if output else [])]) == 1
        printed = capsys.readouterr().out
        tables.append(file.read_text() if output else printed)
    assert len(tables[0].splitlines()) == 8
    assert tables[0].count("linked_folder") == 1
    assert tables[0] == tables[1]


def test_a_killed_driver_goes_on(ray: Any, faces: Path, weights: Path, tmp_path: Path) -> None:
    """SIGKILL in the middle of the rows; --resume makes the table of one machine, byte for byte."""
    paths = [str(path) for path in sorted(faces.rglob("*.png"))] * 12
    call = [*paths, str(faces / "0"), str(tmp_path / "none.png"), "--weights", str(weights), "--align", "no"]
    call += ["--batch-size", "2", "--threads", "1", "--output"]
    (tmp_path / "killed.py").write_text(KILLED_DRIVER)
    script = [sys.executable, str(tmp_path / "killed.py"), str(ROOT)]
    script += [*call, str(tmp_path / "ray.csv"), "--engine", "ray"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(script, env=environment, stderr=subprocess.DEVNULL, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "ray.csv.partial").read_bytes().count(b"\n") == 20   # the header and 19 rows
    assert not (tmp_path / "ray.csv").exists()
    assert inference.main([*call, str(tmp_path / "ray.csv"), "--engine", "ray", "--resume"]) == 1
    assert inference.main([*call, str(tmp_path / "one.csv")]) == 1
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_the_cluster_s_flags_need_it(faces: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inference.main([str(faces), "--weights", str(weights), "--actors", "2"]) == 2
    assert "--engine ray" in capsys.readouterr().err


def test_labels_are_those_of_one_machine(ray: Any, faces: Path, tmp_path: Path) -> None:
    call = ["--data", str(faces), "--workers", "0", "--output"]
    assert generate_labels.main([*call, str(tmp_path / "here.tsv")]) == 1
    assert generate_labels.main([*call, str(tmp_path / "ray.tsv"), "--engine", "ray"]) == 1
    skipped = [(tmp_path / f"{name}.tsv.skipped.tsv").read_text() for name in ("here", "ray")]
    assert skipped[0] == skipped[1]
    assert skipped[0].endswith("/0/circle\tlinked_folder\n")
    lines = [(tmp_path / name).read_text().splitlines()[1:] for name in ("here.tsv", "ray.tsv")]
    for here, there in (map(str.split, pair, "\t\t") for pair in zip(*lines, strict=True)):
        assert float(here[1]) == pytest.approx(float(there[1]), abs=1e-5)
        assert here[:1] + here[2:] == there[:1] + there[2:]
