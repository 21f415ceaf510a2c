"""The command line of inference.py: what it prints where, its exit codes, and that nothing finished is lost."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import recipe
import torch
from PIL import Image

import inference
import scoring.run
from faces.align import ALIGN
from faces.reader import MAX_BYTES
from model.checkpoint import sha256_of
from model.fast import PRECISIONS
from model.files import only_run, open_text
from model.prompts import FACTORS, joint_prompts
from scoring import Scorer
from scoring.methods import METHODS
from scoring.tables import ADDED, COLUMNS

ROOT = Path(inference.__file__).parent


@pytest.fixture(scope="module")
def faces(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two aligned crops, one more below, one damaged file and one that is no picture at all."""
    folder = tmp_path_factory.mktemp("faces")
    (folder / "more").mkdir()
    for seed, name in enumerate(["b.png", "a.PNG", "more/c d.png"]):
        Image.fromarray(recipe.mirror_image(seed)).save(folder / name)
    (folder / "e.png").write_bytes((folder / "b.png").read_bytes()[:3000])
    (folder / "f.jpg").write_text("no picture")
    (folder / "notes.txt").write_text("not listed")
    return folder


EXPECTED = {"a.PNG": "ok", "b.png": "ok", "e.png": "truncated", "f.jpg": "not_an_image", "more/c d.png": "ok"}


def run(*arguments: str | Path, weights: Path) -> int:
    return inference.main([*map(str, arguments), "--weights", str(weights)])


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, str(ROOT / "inference.py"), *map(str, arguments)]


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def test_one_image_prints_the_sentence_and_the_score(
    faces: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(faces / "b.png", weights=weights) == 0
    out, err = capsys.readouterr()
    sentence, quality = out.splitlines()
    assert sentence in joint_prompts()
    assert quality.startswith("quality prediction = 0.")
    assert len(quality) == len("quality prediction = 0.1234")
    assert err.startswith("warning: 1 picture"), "the picture is no face, and of the size of a crop"


def test_one_bad_image_says_why_on_stderr(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path / "nowhere.png", weights=weights) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err == f"{tmp_path / 'nowhere.png'}: missing\n"


def test_several_images_print_a_table(faces: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(faces, weights=weights) == 1
    out, err = capsys.readouterr()
    header, *lines = out.splitlines()
    assert header.split() == ["status", "quality", *FACTORS, "path"]
    cells = [line.split(maxsplit=7) for line in lines]
    assert {row[-1]: row[0] for row in cells} == {str(faces / name): status for name, status in EXPECTED.items()}
    assert "3 ok, 1 truncated, 1 not_an_image" in err


def test_csv_of_a_folder(faces: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "new" / "scores.csv"
    assert run(faces, "--output", output, "--workers", "2", weights=weights) == 1
    rows = read_csv(output)
    assert list(rows[0]) == [*COLUMNS, *ADDED]
    assert [(row["path"], row["status"]) for row in rows] == [(str(faces / n), s) for n, s in EXPECTED.items()]
    assert all(0.1 <= float(row["quality"]) <= 0.9 for row in rows if row["status"] == "ok")
    assert not any(row[column] for row in rows if row["status"] != "ok" for column in ("quality", *FACTORS))
    assert capsys.readouterr().out == "", "the table is in the file"
    assert sorted(output.parent.iterdir()) == [output, Path(f"{output}.json")]


def test_a_manifest_says_what_a_table_rests_on(faces: Path, weights: Path, tmp_path: Path) -> None:
    output = tmp_path / "scores.csv"
    assert run(faces, "--output", output, "--align", "no", "--min-score", "0.3", weights=weights) == 1
    manifest = json.loads(Path(f"{output}.json").read_text())
    settings = manifest["settings"]
    assert (settings["weights_name"], settings["weights"]) == (weights.name, sha256_of(weights))
    assert (settings["method"], settings["align"], settings["precision"]) == ("clib-fiqa", "no", "fp32")
    assert settings["batch_size"] == 16
    assert manifest["statuses"] == dict(Counter(EXPECTED.values()))
    assert manifest["selection"]["min_score"] == 0.3
    assert torch.__version__.startswith(manifest["software"]["torch"])
    assert "commit" in manifest["software"]
    assert run(faces, "--output", output, weights=weights) == 1
    again = json.loads(Path(f"{output}.json").read_text())
    assert (again["settings"]["align"], again["selection"]) == ("auto", None)


def test_order_and_duplicates_are_those_of_the_call(faces: Path, weights: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text(f"{faces / 'b.png'}\n\n{faces / 'more' / 'c d.png'}\n")
    output = tmp_path / "scores.jsonl"
    arguments = [faces / "more", f"@{listed}", faces / "[ab].*", faces / "b.png"]
    assert run(*arguments, "--output", output, "--batch-size", "2", weights=weights) == 0
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    names = [Path(row["path"]).name for row in rows]
    assert names == ["c d.png", "b.png", "c d.png", "a.PNG", "b.png", "b.png"]
    for name in ("b.png", "c d.png"):
        scores = [row["quality"] for row in rows if Path(row["path"]).name == name]
        assert scores == pytest.approx([scores[0]] * len(scores), abs=2e-6)
    assert len({row["quality"] for row in rows}) >= 3


def test_list_on_standard_input(
    faces: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{faces / 'a.PNG'}\n{faces / 'b.png'}\n"))
    assert run("-", "--workers", "0", weights=weights) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.png", "--output", "scores.xlsx"], "must end in one of .csv, .jsonl, .parquet, .txt"),
        (["@nowhere.txt"], "nowhere.txt"),
        (["x.png", "--weights", "nowhere.pth"], "nowhere.pth"),
        (["x.png", "--device", "abacus"], "abacus"),
        (["x.png", "--device", "gpu"], "there is no device 'gpu': expected auto, cpu, cuda, cuda:N or mps\n"),
    ],
)
def test_wrong_calls_are_one_line_and_code_2(
    arguments: list[str], message: str, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    defaults = [] if "--weights" in arguments else ["--weights", str(weights)]
    assert inference.main([*arguments, *defaults]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("error: ")
    assert message in err
    assert err.count("\n") == 1


def test_an_empty_folder_is_a_wrong_call(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tmp_path, weights=weights) == 2
    assert capsys.readouterr().err == f"error: there are no images in {tmp_path}\n"


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["x.png", "--method", "magic"],
        ["x.png", "--batch-size", "0"],
        ["x.png", "--threads", "0"],
        ["x.png", "--resume"],
    ],
)
def test_flags_are_checked(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as exit_:
        inference.main(arguments)
    assert exit_.value.code == 2


def test_choices_are_those_of_the_scorer() -> None:
    for flag, choices in (("method", METHODS), ("align", ALIGN), ("precision", ("auto", *PRECISIONS))):
        for choice in choices:
            assert getattr(inference.parse(["x.png", f"--{flag}", choice]), flag) == choice


def test_help_teaches_without_loading_anything() -> None:
    call = [sys.executable, "-X", "importtime", ROOT / "inference.py", "--help"]
    shown = subprocess.run(call, capture_output=True, text=True, check=True)
    assert "python inference.py photos --output scores.csv" in shown.stdout
    assert all(f" {method}" in shown.stdout for method in METHODS)
    assert " torch" not in shown.stderr


def test_stdout_has_the_table_and_stderr_the_rest(faces: Path, weights: Path) -> None:
    done = subprocess.run(command(faces, "--weights", weights), capture_output=True, text=True, cwd=faces)
    assert done.returncode == 1
    assert len(done.stdout.splitlines()) == 6
    assert "it/s" not in done.stderr, "no progress bar where nobody watches"
    warning, counts = done.stderr.splitlines()
    assert "show no face" in warning
    assert " ok, " in counts


def test_scoring_leaves_heavy_packages_alone(faces: Path, weights: Path) -> None:
    script = (
        "import sys, inference; "
        f"inference.main([{str(faces / 'b.png')!r}, '--weights', {str(weights)!r}]); "
        "print(*{name.partition('.')[0] for name in sys.modules})"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    loaded = set(done.stdout.splitlines()[-1].split())
    assert "torch" in loaded
    assert not loaded & {"torchvision", "dlib", "pandas", "pyarrow", "scipy", "matplotlib", "onnxruntime"}


def many_copies(folder: Path, count: int) -> Path:
    """A list that names one tiny picture many times."""
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(folder / "tiny.png")
    listed = folder / "list.txt"
    listed.write_text(f"{folder / 'tiny.png'}\n" * count)
    return listed


def test_ctrl_c_loses_nothing_and_resume_goes_on(tmp_path: Path, weights: Path) -> None:
    listed, output = many_copies(tmp_path, 3000), tmp_path / "scores.csv"
    partial = tmp_path / "scores.csv.partial"
    call = command(f"@{listed}", "--weights", weights, "--align", "no", "--output", output, "--workers", "2")
    process = subprocess.Popen(call, stderr=subprocess.PIPE, text=True, start_new_session=True)
    deadline = time.monotonic() + 200
    while process.poll() is None and not (partial.is_file() and partial.read_bytes().count(b"\n") > 40):
        assert time.monotonic() < deadline, "no rows were written"
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to the workers too
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert err == f"stopped; finished rows are in {partial}, and the same command with --resume goes on\n"
    assert not output.exists()
    kept = partial.read_text().splitlines()
    assert 40 < len(kept) < 3001

    done = subprocess.run([*call, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(read_csv(output)) == 3000
    assert not partial.exists()


def test_resume_refuses_other_settings(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    listed, output = many_copies(tmp_path, 3), tmp_path / "scores.csv"
    partial = tmp_path / "scores.csv.partial"
    partial.write_text(json.dumps({"method": "clib-fiqa", "weights": "other"}) + "\n")
    assert run(f"@{listed}", "--output", output, "--resume", weights=weights) == 2
    assert "weights" in capsys.readouterr().err
    assert partial.exists()


def test_a_second_run_with_the_same_output_ends_at_once(
    faces: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output, journal = tmp_path / "scores.csv", tmp_path / "scores.csv.partial"
    journal.write_text("rows of the first run\n")
    with only_run(output), monkeypatch.context() as patch:
        patch.setattr("scoring.Scorer", lambda *_: pytest.fail("the second run loaded a model"))
        for resume in ([], ["--resume"]):
            assert run(faces, "--output", output, *resume, weights=weights) == 2
            error = capsys.readouterr().err
            assert error.startswith(f"error: another run is writing {output}; wait for its end")
            assert error.count("\n") == 1
            assert "--resume goes on" not in error
    assert journal.read_text() == "rows of the first run\n"
    assert run(faces, "--output", output, weights=weights) == 1
    assert sorted(file.name for file in tmp_path.iterdir()) == ["scores.csv", "scores.csv.json"]


def test_a_failing_device_is_code_1_and_keeps_the_rows(
    faces: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "scores.csv"
    start, calls = Scorer._start, []

    def out_of_memory(scorer: Scorer, batch: Any) -> Any:
        calls.append(batch)
        if len(calls) == 2:
            raise RuntimeError("out of memory")
        return start(scorer, batch)

    monkeypatch.setattr(Scorer, "_start", out_of_memory)
    call = [faces, "--output", output, "--batch-size", "2", "--workers", "0"]
    assert run(*call, weights=weights) == 1
    error = capsys.readouterr().err
    assert error == (
        f"error: out of memory; finished rows are in {output}.partial, and the same command with --resume goes on\n"
    )
    assert len(Path(f"{output}.partial").read_text().splitlines()) == 3
    assert run(*call, "--resume", weights=weights) == 1
    assert len(read_csv(output)) == 5
    assert len(calls) == 4, "the first two rows were not scored again"


def test_file_names_of_any_bytes(faces: Path, weights: Path, tmp_path: Path) -> None:
    names = [b"a\rb.png", b"caf\xe9.png", b"c\nd.png"]
    for name in names:
        (tmp_path / os.fsdecode(name)).write_bytes((faces / "b.png").read_bytes())
    expected = [os.fsdecode(bytes(tmp_path) + b"/" + name) for name in sorted(names)]
    for suffix in ("csv", "jsonl"):
        output = tmp_path / f"scores.{suffix}"
        assert run(tmp_path, "--output", output, weights=weights) == 0
        with open_text(output) as file:
            rows = csv.DictReader(file) if suffix == "csv" else map(json.loads, file)
            assert [row["path"] for row in rows] == expected
    shown = subprocess.run(command(tmp_path, "--weights", weights), capture_output=True, check=True)
    assert len(shown.stdout.splitlines()) == 4
    assert b"/a\\rb.png\n" in shown.stdout
    assert b"/caf\xe9.png\n" in shown.stdout


def test_readers_by_device_and_by_what_is_read(faces: Path, tmp_path: Path) -> None:
    photograph = tmp_path / "photograph.png"
    Image.fromarray(np.zeros((300, 200, 3), np.uint8)).save(photograph)
    crop, bad = str(faces / "b.png"), str(faces / "f.jpg")
    for device, align, first, expected in [
        ("cpu", "auto", crop, 1),
        ("cpu", "auto", str(photograph), 8),
        ("cpu", "auto", bad, 8),
        ("cpu", "no", str(photograph), 1),
        ("cpu", "yes", crop, 8),
        ("cuda", "no", crop, 8),
    ]:
        scorer: Any = SimpleNamespace(device=torch.device(device), align=align, max_bytes=MAX_BYTES)
        assert scoring.run.default_workers(scorer, first, cores=8) == expected
    assert scoring.run.default_workers(scorer, crop, cores=64) == scoring.run.MOST_WORKERS


def test_threads_are_bounded_and_sleep(faces: Path, weights: Path) -> None:
    script = (
        "import os, sys, inference; inference.main(sys.argv[1:]); import cv2, torch; "
        "print(torch.get_num_threads(), cv2.getNumThreads(), os.environ['OMP_WAIT_POLICY'])"
    )
    for user, wait in (({}, "PASSIVE"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "ACTIVE")):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("OMP_")} | user
        call = [sys.executable, "-c", script, str(faces / "b.png"), "--weights", str(weights), "--threads", "3"]
        done = subprocess.run(call, env=environment, capture_output=True, text=True, cwd=ROOT, check=True)
        assert done.stdout.splitlines()[-1].split() == ["3", "3", wait]


def test_a_closed_pipe_is_no_error(tmp_path: Path, weights: Path) -> None:
    listed = many_copies(tmp_path, 300)
    call = command(f"@{listed}", "--weights", weights, "--align", "no", "--workers", "0")
    process = subprocess.Popen(call, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait(timeout=60) == 1


def test_memory_stays_flat(tmp_path: Path, weights: Path) -> None:
    """Ten times as many images need no more memory: nothing is kept of those that are done."""

    def peak(count: int) -> float:
        listed = many_copies(tmp_path, count)
        script = (
            "import resource, sys, inference; "
            "code = inference.main(sys.argv[1:]); "
            "print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        arguments = [f"@{listed}", "--weights", weights, "--align", "no", "--workers", "0", "--output"]
        done = subprocess.run(
            [sys.executable, "-c", script, *map(str, arguments), str(tmp_path / "scores.csv")],
            capture_output=True,
            text=True,
            cwd=ROOT,
            check=True,
        )
        code, kilobytes = done.stdout.split()
        assert code == "0"
        assert len(read_csv(tmp_path / "scores.csv")) == count
        return int(kilobytes) / 1024

    assert peak(2400) - peak(240) < 15, "megabytes"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--min-score", "nan"], "a finite number was expected, not nan"),
        (["--min-score", "inf"], "a finite number was expected, not inf"),
        (["--min-percentile", "400"], "a percentile from 0 to 100 was expected, not 400"),
        (["--min-percentile", "nan"], "a percentile from 0 to 100 was expected, not nan"),
    ],
)
def test_limits_that_are_none_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        inference.main(["face.jpg", *flags])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--map-of", "blur"], "--map-of says what --map shows: give --map FOLDER too"),
        (["--align", "no", "--faces", "all"], "--faces has no effect with --align no"),
        (["--align", "no", "--rotate", "auto"], "--rotate has no effect with --align no"),
        (["--align", "no", "--min-face-size", "40"], "--min-face-size has no effect with --align no"),
        (["--align", "no", "--detector", "yunet.onnx"], "--detector has no effect with --align no"),
        (["--frames", "25"], "--frames takes folders as videos, and no folder is given"),
        (["--best-per", "track", "3"], "--best-per track is of videos, and no video is given"),
        (["--faces", "all", "--method", "dsl-fiqa"], "--faces has no effect: dsl-fiqa scores whole pictures"),
        (["--rotate", "auto", "--method", "dsl-fiqa"], "--rotate has no effect: dsl-fiqa scores whole pictures"),
    ],
)
def test_flags_without_an_effect_are_refused(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    face = str(Path(inference.__file__).parent / "samples" / "astronaut.png")
    assert inference.main([face, *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"error: {message}")
    assert error.count("\n") == 1


def test_what_is_left_out_of_a_folder_is_said(
    tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "day" / "gate").mkdir(parents=True)
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").touch()
    for number in range(2):
        Image.fromarray(recipe.mirror_image(number)).save(tmp_path / "day" / f"{number}.png")
    (tmp_path / "day" / "gate" / "clip.MP4").touch()
    (tmp_path / "day" / "gate" / "later.mkv").touch()
    call = [str(tmp_path / "day"), str(tmp_path / "none"), "--weights", str(weights)]
    assert inference.main(call) == 0
    notes = [line for line in capsys.readouterr().err.splitlines() if line.startswith("note: ")]
    assert notes == [
        f"note: 2 videos are left out below {tmp_path}/day, such as {tmp_path}/day/gate/clip.MP4: "
        "give paths of videos or a pattern",
        f"note: there is no picture below {tmp_path}/none",
    ]
    assert inference.main([str(tmp_path / "day" / "0.png"), "--weights", str(weights)]) == 0
    assert "note" not in capsys.readouterr().err


def test_an_empty_path_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert inference.main(["", "face.jpg"]) == 2
    assert capsys.readouterr().err == "error: an empty path was given: a file, a folder or a pattern was expected\n"
