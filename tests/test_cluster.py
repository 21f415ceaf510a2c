"""Work over a Ray cluster: the results of one machine, whatever dies."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
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
from command_line import message_of
from faces.cluster import KEPT, Cluster, cluster_of
from faces.finished import Checkpoint, finished_in, wait_for
from faces.reader import read_image
from faces.workers import Loaded, read_and_prepare
from labels.measure import PART_BATCHES

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

KILLED_WITH_CHECKPOINT = """
import os
import sys
sys.path[:0] = sys.argv[1:3]
from pathlib import Path
import test_cluster as tests
from faces.cluster import Cluster, connect
connect("local")
from ray import cloudpickle
cloudpickle.register_pickle_by_value(tests)
folder = Path(sys.argv[3])
load = tests.noting(folder, os.getpid())
list(Cluster(checkpoint=tests.checkpoint(folder)).results(tests.named(), load, tests.make_listed, 1))
"""


def checkpoint(folder: Path, resume: bool = False, **settings: str) -> Checkpoint:
    return Checkpoint(folder / "checkpoint", {"weights": "a", **settings}, resume)


def named() -> list[str]:
    return [f"{index:03}" for index in range(120)]


def noting(folder: Path, driver: int | None = None) -> Callable[[str], float]:
    """A load that appends each path to a file; at the 100th it kills the driver, once some batches are finished."""

    def load(path: str) -> float:
        with open(folder / "loaded", "a") as file:
            file.write(f"{path}\n")
        if driver and path == "100":
            while len(finished_in(folder / "checkpoint" / "ray-batches")) < 20:
                time.sleep(0.1)
            os.kill(driver, signal.SIGKILL)
            time.sleep(60)   # the cluster ends with its driver
        return float(path)

    return load


def test_flags_of_the_cluster_need_the_engine() -> None:
    assert cluster_of("local", None, None, "cpu") is None
    assert cluster_of("ray", None, 3, "cuda") == Cluster("local", 3, gpus=1)
    with pytest.raises(ValueError, match="--engine ray"):
        cluster_of("local", "auto", None, "cpu")
    with pytest.raises(ValueError, match="--engine ray"):
        cluster_of("local", None, None, "cpu", checkpoint(Path("anywhere")))


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


def test_the_results_are_the_same_with_a_checkpoint(
    ray: Any, pictures: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several windows, a folder whose name no URL may have, and a batch that comes twice."""
    monkeypatch.setattr("faces.cluster.KEPT", 1)
    load, paths = partial(read_and_prepare, read_image, mean_of), [*pictures[:4], *pictures]
    kept = checkpoint(tmp_path / "a %41#b?")
    batches = list(Cluster(actors=1, checkpoint=kept).results(paths, load, make_listed, 4))
    assert list(chain.from_iterable(batches)) == [*expected(pictures)[:4], *expected(pictures)]
    assert list(kept.folder.iterdir()) == []


@pytest.mark.parametrize("keeps", [False, True])
def test_a_killed_process_loses_and_repeats_no_row(
    ray: Any, pictures: list[str], tmp_path: Path, keeps: bool
) -> None:
    load = partial(read_and_prepare, read_image, partial(mean_or_death, tmp_path))
    cluster = Cluster(checkpoint=checkpoint(tmp_path) if keeps else None)
    batches = cluster.results(pictures, load, make_listed, 4)
    assert list(chain.from_iterable(batches)) == expected(pictures)
    assert (tmp_path / "dead").exists()


def test_what_was_finished_before_the_driver_was_killed_is_not_computed_again(ray: Any, tmp_path: Path) -> None:
    (tmp_path / "killed.py").write_text(KILLED_WITH_CHECKPOINT)
    script = [sys.executable, str(tmp_path / "killed.py"), str(ROOT), str(ROOT / "tests"), str(tmp_path)]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(script, env=environment, stderr=subprocess.DEVNULL, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL
    kept = len(finished_in(tmp_path / "checkpoint" / "ray-batches"))
    assert kept >= 20
    before = Counter((tmp_path / "loaded").read_text().split())

    with pytest.raises(ValueError, match="another run \\(weights differ\\)"):
        list(Cluster(checkpoint=checkpoint(tmp_path, True, weights="b")).results(named(), noting, make_listed, 1))
    cluster = Cluster(checkpoint=checkpoint(tmp_path, resume=True))
    results = chain.from_iterable(cluster.results(named(), noting(tmp_path), make_listed, 1))
    assert list(results) == [(name, "ok", float(name)) for name in named()]
    loaded = Counter((tmp_path / "loaded").read_text().split())
    assert (loaded - before).total() == len(named()) - kept
    assert list((tmp_path / "checkpoint").iterdir()) == []


def test_a_batch_counts_as_finished_when_all_of_it_was_written(ray: Any, tmp_path: Path) -> None:
    """Not with a pending name, nor when its file is torn, as after a power cut; without --resume none does."""
    from pyarrow import parquet

    def interrupted(resume: bool) -> int:
        """How many paths were loaded by a run that is stopped at its first row."""
        (tmp_path / "loaded").write_text("")
        cluster = Cluster(actors=1, checkpoint=checkpoint(tmp_path, resume))
        results = cluster.results(named()[:32], noting(tmp_path), make_listed, 1)
        assert next(results) == [("000", "ok", 0.0)]
        results.close()
        return len((tmp_path / "loaded").read_text().split())

    assert interrupted(resume=False) == 32
    kept = tmp_path / "checkpoint" / "ray-batches"
    first, second, *_ = sorted((kept / "ids").iterdir())
    first.rename(first.with_suffix(".pending.parquet"))
    os.truncate(kept / "results" / f"{second.stem}-0.parquet", 100)
    assert interrupted(resume=True) == 16
    for path in set(finished_in(kept).values()):   # a byte of each result is another one
        metadata, content = parquet.read_metadata(path), bytearray(path.read_bytes())
        for group in range(metadata.num_row_groups):
            content[metadata.row_group(group).column(1).data_page_offset - 1] ^= 1   # the end of the page before
        path.write_bytes(content)
    with pytest.raises(ValueError, match=r"is damaged; remove .*/ray-batches to compute"):
        interrupted(resume=True)
    assert interrupted(resume=False) == 32


def test_a_folder_that_cannot_be_written_ends_the_run_with_a_line(ray: Any, tmp_path: Path) -> None:
    kept = tmp_path / "checkpoint" / "ray-batches"

    def load(path: str) -> float:
        if (kept / "ids").is_dir():
            (kept / "ids").rename(tmp_path / "ids")
            (kept / "ids").touch()
        return float(path)

    with pytest.raises(NotADirectoryError) as error:
        list(Cluster(actors=1, checkpoint=checkpoint(tmp_path)).results(named()[:4], load, make_listed, 1))
    assert message_of(error.value) == f"{kept}: not a directory"


def test_a_folder_that_is_not_shared_is_noticed(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    assert wait_for(tmp_path, set()) == {}
    with pytest.raises(RuntimeError, match=r"lacks 1 of 1 batches .* all hosts of the cluster share"):
        wait_for(tmp_path, {"name"}, seconds=0)


def test_rows_are_recorded_before_their_batches_are_forgotten() -> None:
    assert KEPT % PART_BATCHES == 0


def test_a_folder_for_finished_batches_belongs_to_one_run(tmp_path: Path) -> None:
    with checkpoint(tmp_path).hold("scores") as kept:
        assert kept.stat().st_mode & 0o777 == 0o700
        with pytest.raises(BlockingIOError, match="another run is writing"), checkpoint(tmp_path).hold("scores"):
            pass
        (kept / "photograph.jpg").touch()
    with pytest.raises(OSError, match="not empty"), checkpoint(tmp_path).hold("scores"):
        pass
    assert (kept / "photograph.jpg").exists()
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match="exists"), Checkpoint(tmp_path / "file", {}, False).hold("scores"):
        pass


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
    keeping = ["--engine", "ray", "--checkpoint", str(tmp_path / "kept")]
    assert evaluate.main([*call, str(tmp_path / "kept.npz"), *keeping]) == 1
    assert list((tmp_path / "kept").iterdir()) == []
    for engine in ("here", "ray", "kept"):
        [_, line] = (tmp_path / f"{engine}.npz.skipped.tsv").read_text().splitlines()
        assert line == f"{faces}/0/circle\tlinked_folder"
    here, there, kept = (np.load(tmp_path / f"{engine}.npz") for engine in ("here", "ray", "kept"))
    assert here["names"].tolist() == there["names"].tolist() == kept["names"].tolist()
    np.testing.assert_allclose(here["embeddings"], there["embeddings"], atol=1e-6)
    np.testing.assert_array_equal(there["embeddings"], kept["embeddings"])


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


@pytest.mark.parametrize("keeps", [False, True])
def test_a_killed_driver_goes_on(
    ray: Any, faces: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], keeps: bool
) -> None:
    """SIGKILL in the middle of the rows; --resume makes the table of one machine, byte for byte. With a checkpoint the
    images are not even read again: they have changed."""
    copy = shutil.copytree(faces, tmp_path / "faces", symlinks=True)
    paths = [str(path) for path in sorted(copy.rglob("*.png"))] * 12
    call = [*paths, str(copy / "0"), str(tmp_path / "none.png"), "--weights", str(weights), "--align", "no"]
    call += ["--batch-size", "2", "--threads", "1", "--output"]
    (tmp_path / "killed.py").write_text(KILLED_DRIVER)
    script = [sys.executable, str(tmp_path / "killed.py"), str(ROOT)]
    engine = ["--engine", "ray", *(["--checkpoint", str(tmp_path / "kept")] if keeps else [])]
    script += [*call, str(tmp_path / "ray.csv"), *engine]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    done = subprocess.run(script, env=environment, stderr=subprocess.DEVNULL, check=False, timeout=300)
    assert done.returncode == -signal.SIGKILL
    assert (tmp_path / "ray.csv.partial").read_bytes().count(b"\n") == 20   # the header and 19 rows
    assert not (tmp_path / "ray.csv").exists()
    assert inference.main([*call, str(tmp_path / "one.csv")]) == 1
    if keeps:
        assert inference.main([*call, str(tmp_path / "other.csv"), *engine, "--swapped-channels"]) == 2
        assert "another run (swapped_channels differ)" in capsys.readouterr().err
        assert inference.main([*call[1:], str(tmp_path / "other.csv"), *engine]) == 2
        assert "another run (images differ)" in capsys.readouterr().err
        for path in set(paths):
            Path(path).write_text("changed")
    assert inference.main([*call, str(tmp_path / "ray.csv"), *engine, "--resume"]) == 1
    assert not keeps or list((tmp_path / "kept").iterdir()) == []
    assert (tmp_path / "ray.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()


def test_the_cluster_s_flags_need_it(faces: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for flag in (["--actors", "2"], ["--checkpoint", "nowhere"]):
        assert inference.main([str(faces), "--weights", str(weights), *flag]) == 2
        assert "--engine ray" in capsys.readouterr().err


def test_labels_are_those_of_one_machine(ray: Any, faces: Path, tmp_path: Path) -> None:
    call = ["--data", str(faces), "--workers", "0", "--output"]
    assert generate_labels.main([*call, str(tmp_path / "here.tsv")]) == 1
    assert generate_labels.main([*call, str(tmp_path / "ray.tsv"), "--engine", "ray"]) == 1
    skipped = [(tmp_path / f"{name}.tsv.skipped.tsv").read_text() for name in ("here", "ray")]
    assert skipped[0] == skipped[1]
    assert skipped[0].endswith("/0/circle\tlinked_folder\n")
    keeping = ["--engine", "ray", "--checkpoint", str(tmp_path / "kept")]
    assert generate_labels.main([*call, str(tmp_path / "kept.tsv"), *keeping]) == 1
    assert (tmp_path / "kept.tsv").read_text() == (tmp_path / "ray.tsv").read_text()
    assert list((tmp_path / "kept").iterdir()) == []
    lines = [(tmp_path / name).read_text().splitlines()[1:] for name in ("here.tsv", "ray.tsv")]
    for here, there in (map(str.split, pair, "\t\t") for pair in zip(*lines, strict=True)):
        assert float(here[1]) == pytest.approx(float(there[1]), abs=1e-5)
        assert here[:1] + here[2:] == there[:1] + there[2:]
