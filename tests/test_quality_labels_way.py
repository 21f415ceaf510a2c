"""What the READMEs of DifFIQA, label optimisation and eDifFIQA show is what happens: their lines, as they stand, lead
from a folder of faces to embeddings, DifFIQA labels, optimised labels, networks, scores and curves."""

from __future__ import annotations

import json
import re
import runpy
import shlex
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from diffiqa_parts import write_models
from PIL import Image

from evaluation.scores import read_scores
from faces.degradations import degrade

ROOT = Path(__file__).parents[1]
SAMPLES = ("astronaut", "cameraman_turned", "hopper_dark")
KINDS = ("gaussian_blur", "noise", "jpeg")


@pytest.fixture
def faces(tmp_path: Path) -> Path:
    """A folder with `faces`, of three people with four faces each, and `fr.safetensors`, a small FR model."""
    rng = np.random.default_rng(0)
    for name in SAMPLES:
        folder = tmp_path / "faces" / name
        folder.mkdir(parents=True)
        face = np.array(Image.open(ROOT / "samples" / f"{name}.png").convert("RGB"))
        for number, changed in enumerate((face, *(degrade(face, kind, 0.5, rng) for kind in KINDS))):
            Image.fromarray(changed).save(folder / f"{number}.png")
    write_models(tmp_path)
    return tmp_path


def commands(method: str) -> list[str]:
    """Those of the README's block `From a folder of faces to a score`."""
    text = (ROOT / "methods" / method / "README.md").read_text(encoding="utf-8")
    section = text.partition("\n## From a folder of faces to a score\n")[2]
    block = re.findall(r"^```\n(.*?)^```", section, flags=re.DOTALL | re.MULTILINE)[0]
    return [" ".join(line.split()) for line in block.replace("\\\n", " ").splitlines()]


def test_from_a_folder_of_faces_to_curves(
    faces: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every line once, in the order of the systems. Only the number of the diffusion model's steps is another one."""
    lines = dict.fromkeys(line for method in ("ediffiqa", "diffiqa", "label_optimization") for line in commands(method))
    monkeypatch.chdir(faces)
    for line in lines:
        words = shlex.split(line.replace("--steps 3000", "--steps 2"))[1:]
        module = words[0] == "-m"
        name, *flags = words[1:] if module else words
        monkeypatch.setattr(sys, "argv", [name, *flags])
        monkeypatch.setattr(sys, "path", [str(ROOT), *sys.path])
        run = partial(runpy.run_module, name, alter_sys=True) if module else partial(runpy.run_path, str(ROOT / name))
        with pytest.raises(SystemExit) as ended:
            run(run_name="__main__")
        assert ended.value.code in (0, None), (line, capsys.readouterr().err)
    labels = read_scores("runs/diffiqa.csv")
    assert len(labels) == 12
    assert sorted(read_scores("runs/optimised.tsv").values()) == sorted(labels.values())
    assert len(set(read_scores("runs/ediffiqa.csv").values())) == 12
    found = json.loads(Path("runs/edc/results.json").read_text())["results"]
    assert {row["method"] for row in found} == {"diffiqa", "regressor", "ediffiqa"}
    assert {row["fmr"] for row in found if row["resolvable"]} == {0.1}  # 48 non-mated pairs
