"""Cross-fitting: every identity is scored by a model that did not see it, and once."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from evaluation.scores import read_scores
from methods.default_model import cross_fit
from methods.default_model.cross_fit import NEVER_TRAIN, split

# "trains" by noting the identities, and "scores" 1 for an identity that was trained on, 0 for others
TRAIN = """import sys; from pathlib import Path; folder = Path(sys.argv[1])
names = {Path(line).parent.name for line in (folder / 'train.txt').read_text().split()}
(folder / 'model.txt').write_text(' '.join(sorted(names)))"""
SCORE = """import sys; from pathlib import Path; folder = Path(sys.argv[1])
known = (folder / 'model.txt').read_text().split()
rows = [f'{line},{int(Path(line).parent.name in known)}' for line in (folder / 'test.txt').read_text().split()]
(folder / 'scores.csv').write_text('path,quality' + ''.join('\\n' + row for row in rows))"""


@pytest.fixture
def flags(tmp_path: Path) -> list[str]:
    """Eleven identities of two images, and scripts for the two commands; train.py notes its runs."""
    for name in (*map(str, range(7210, 7220)), "1"):
        for image in ("a.jpg", "b.jpg"):
            path = tmp_path / "data/faces/celeba" / name / image
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    (tmp_path / "train.py").write_text(TRAIN)
    (tmp_path / "score.py").write_text(SCORE)
    commands = [f"{sys.executable} {tmp_path / name}.py {{folder}}" for name in ("train", "score")]
    folders = ["--data", str(tmp_path / "data"), "--output", str(tmp_path / "out")]
    return [*folders, "--folds", "4", "--train", commands[0], "--score", commands[1]]


def test_folds_are_a_partition() -> None:
    names = [str(i) for i in range(149)]
    folds = split(names, 5, 1)
    assert sorted(name for fold in folds for name in fold) == sorted(names)
    assert {len(fold) for fold in folds} == {29, 30}
    assert folds == split(names[::-1], 5, 1) != split(names, 5, 2)
    for wrong in (1, 150):
        with pytest.raises(ValueError, match="expected from 2 to 149"):
            split(names, wrong, 1)


def test_nobody_is_scored_by_a_model_that_saw_them(flags: list[str], tmp_path: Path) -> None:
    assert cross_fit.main(flags) == 0
    scores = read_scores(tmp_path / "out/scores.csv")
    assert len(scores) == 11 * 2
    assert set(scores.values()) == {0.0}
    trained = [set((tmp_path / f"out/fold_{fold}/model.txt").read_text().split()) for fold in range(4)]
    assert set().union(*trained) == {*map(str, range(7210, 7220)), "1"} - NEVER_TRAIN
    assert any(name.rsplit("/", 2)[1] == "7218" for name in scores)


def test_finished_folds_are_not_run_again(flags: list[str], tmp_path: Path) -> None:
    assert cross_fit.main(flags) == 0
    (tmp_path / "out/fold_2/scores.csv").unlink()
    for fold in range(4):
        (tmp_path / f"out/fold_{fold}/model.txt").unlink()
    assert cross_fit.main(flags) == 0
    assert [(tmp_path / f"out/fold_{fold}/model.txt").exists() for fold in range(4)] == [False, False, True, False]


def test_what_goes_wrong_is_said(flags: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    failing = f"{sys.executable} -c exit(3)"
    assert cross_fit.main([*flags, "--train", failing]) == 2
    assert "ended with exit code 3" in capsys.readouterr().err
    assert cross_fit.main([*flags, "--score", f"{sys.executable} -c pass"]) == 2
    assert "without" in capsys.readouterr().err
    assert cross_fit.main(flags) == 0
    scores = tmp_path / "out/fold_1/scores.csv"
    scores.write_text(scores.read_text().rsplit("\n", 1)[0])
    assert cross_fit.main(flags) == 2
    assert "differ in 1 images" in capsys.readouterr().err
