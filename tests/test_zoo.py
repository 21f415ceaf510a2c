"""The zoo of odd files (zoo.py) through the scripts: a row for each, with the right status, in little memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cr_fiqa_parts import tiny_network
from zoo import write_zoo

from evaluation.embeddings import read_embeddings
from faces.reader import ImageError, read_image
from labels.label_table import read_labels

ROOT = Path(__file__).parents[1]
MEMORY = 1_000_000  # kilobytes that one file may take, beside what a script takes for one small picture
RUN = """
import json, resource, sys
import evaluate, generate_labels, inference
main = {"inference": inference.main, "generate_labels": generate_labels.main, "embed": evaluate.main}
codes = []
for name, arguments in json.loads(sys.argv[1]):
    codes.append(main[name](arguments))
    codes.append(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
print(json.dumps(codes))
"""


@pytest.fixture(scope="module")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, set[str]]]:
    folder = tmp_path_factory.mktemp("z")
    expected = write_zoo(folder)
    assert len(expected) >= 250
    torch.save(tiny_network().state_dict(), folder / "fr.pth")
    return folder, expected


def test_the_reader(zoo: tuple[Path, dict[str, set[str]]]) -> None:
    folder, expected = zoo
    wrong = {}
    for name, statuses in expected.items():
        status = "ok"
        try:
            rgb = read_image(folder / name)
            assert rgb.dtype == np.uint8
            assert rgb.ndim == 3
        except ImageError as error:
            status = error.status
        if status not in statuses:
            wrong[name] = status
    assert wrong == {}


def test_the_scripts(zoo: tuple[Path, dict[str, set[str]]]) -> None:
    """All three in one process, without worker processes: a file that hangs or fills the memory has nowhere to hide."""
    folder, expected = zoo
    one = "zoo/good.png"
    cpu = ["--device", "cpu", "--workers", "0", "--threads", "1"]
    fr = ["--fr", "fr.pth"]
    calls = [
        ("inference", [one, one, "--align", "no", "--output", "one.jsonl", *cpu]),
        ("inference", ["zoo", "--align", "no", "--output", "scores.jsonl", *cpu]),
        ("embed", ["embed", "zoo", "--align", "no", "--output", "embeddings.npz", *fr, *cpu]),
        ("generate_labels", ["--data", ".", "--output", "labels.tsv", "--min-images", "2", *fr, *cpu]),
    ]
    done = subprocess.run(
        [sys.executable, "-c", RUN, json.dumps(calls)],
        capture_output=True,
        cwd=folder,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        timeout=280,
    )
    errors = done.stderr.decode(errors="replace")
    assert done.returncode == 0, errors
    assert "Traceback" not in errors
    assert "\x1b[31m" not in errors
    codes = json.loads(done.stdout.decode(errors="replace").splitlines()[-1])
    assert codes[0::2] == [0, 1, 1, 1]
    assert max(codes[1::2]) - codes[1] < MEMORY

    rows = [(row["path"], row["status"]) for row in map(json.loads, (folder / "scores.jsonl").open())]
    scored = dict(rows)
    assert sorted(path for path, _ in rows) == sorted(expected), "one row each"
    assert {name: status for name, status in scored.items() if status not in expected[name]} == {}
    good = {name for name, status in scored.items() if status == "ok"}
    assert set(read_embeddings(folder / "embeddings.npz").names) == good
    labelled = {label.path for label in read_labels(folder / "labels.tsv")}
    assert labelled == {name for name in good if not set("\t\n\r") & set(name)} - {"zoo/folder.jpg/inside.png"}
    for table in ("embeddings.npz", "labels.tsv"):
        skipped = Path(f"{folder / table}.skipped.tsv").read_text(errors="surrogateescape").splitlines()
        linked = sorted(line for line in skipped if line.endswith("\tlinked_folder"))
        assert linked == [f"zoo/{name}\tlinked_folder" for name in ("circle", "circle.jpg", "linked-folder")]
