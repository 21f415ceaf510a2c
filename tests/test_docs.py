"""The pages of the docs: every command in them is taken by its program, the fast ones run, and the site builds."""

from __future__ import annotations

import argparse
import ast
import io
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image, ImageOps

from faces.degradations import degrade
from model.weights import WEIGHTS

ROOT = Path(__file__).parents[1]
PAGES = [*(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "weights/README.md", "samples/README.md")),
         *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("methods/*/README.md"))]
STARTS = ("python", "make", "torchrun", "pip", "git", "source", ".venv/bin/", "benchmarks/", "sphinx-build")
COMMAND = re.compile(rf"(?:[A-Z_]+=\S+ )*(?:{'|'.join(map(re.escape, STARTS))})\S* \S")


def blocks(text: str, *languages: str) -> Iterator[str]:
    """Fenced blocks of these languages."""
    for language, block in re.findall(r"^```(\S*)\n(.*?)^```", text, flags=re.DOTALL | re.MULTILINE):
        if language in languages:
            yield block


def commands(text: str, spans: bool = True) -> Iterator[str]:
    """The commands of a page: lines of fenced or indented blocks, and spans of code, that begin with a program."""
    prose = re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)
    indented = "\n\n".join(re.findall(r"(?:^    .*\n?)+", prose, flags=re.MULTILINE))
    for block in [*blocks(text, "", "sh"), indented]:
        for line in block.replace("\\\n", " ").splitlines():
            yield from (part.strip() for part in split(line) if COMMAND.match(part.strip()))
    for span in re.findall(r"`([^`]+)`", prose) if spans else ():
        yield from (part.strip() for part in split(" ".join(span.split())) if COMMAND.match(part.strip()))


def shown_in_part(command: str) -> bool:
    """Whether a command may lack arguments: one with an ellipsis, or one in the middle of a sentence."""
    return "…" in command or "..." in command or command not in IN_BLOCKS


def split(line: str) -> list[str]:
    """The commands of a line, without its comment."""
    return re.split(r" && |; ", re.sub(r"(^|\s+)#\s.*", "", line))


FOUND = sorted({(page.relative_to(ROOT).as_posix(), command) for page in PAGES
                for command in commands(page.read_text(encoding="utf-8"))})
IN_BLOCKS = {command for page in PAGES for command in commands(page.read_text(encoding="utf-8"), spans=False)}


class Parsed(BaseException):
    """The program has read its flags, and would now begin to work."""


@pytest.fixture
def only_parse(monkeypatch: pytest.MonkeyPatch) -> None:
    """Programs end as soon as they have read their flags."""
    original = argparse.ArgumentParser.parse_args

    def parse_and_end(self: argparse.ArgumentParser, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", parse_and_end)


@pytest.mark.parametrize(("page", "command"), FOUND)
def test_a_command_of_the_docs_is_taken(
    page: str, command: str, only_parse: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = shlex.split(command.replace("[", "").replace("]", "") if "[" in command else command)
    while "=" in words[0]:
        words.pop(0)  # OMP_NUM_THREADS=1 and its like
    program = Path(words[0]).name
    if program == "make":
        assert_make(words[1:])
    elif program == "pip":
        assert_known_packages(words[1:])
    elif program == "torchrun":
        assert words[1] == "--nproc-per-node"
        run_python(words[3:], command, monkeypatch, capsys)
    elif program.startswith("python"):
        run_python(words[1:], command, monkeypatch, capsys)
    elif program.endswith(".sh"):
        assert (ROOT / words[0]).is_file()
        subprocess.run(["bash", "-n", ROOT / words[0]], check=True)
    else:
        others = ("git clone ", "source .venv/bin/activate", "sphinx-build -W -c docs . site")
        assert command.startswith(others), command


def test_weights_that_are_named_exist() -> None:
    """`--weights NAME` in the docs: a name in small letters, without the suffix of a file."""
    named = {value for _, command in FOUND for value in re.findall(r"--weights ([a-z\d-]+)(?= |$)", command)}
    assert "clib-fiqa" in named
    assert named <= {known.name for known in WEIGHTS}


def assert_make(words: list[str]) -> None:
    """Targets and variables of the Makefile."""
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for word in words:
        name, _, value = word.partition("=")
        line = rf"^{re.escape(name)} \??:?=" if value else rf"^{re.escape(name)}:"
        assert re.search(line, makefile, re.MULTILINE), word


def assert_known_packages(words: list[str]) -> None:
    """pip install, of packages that a requirements file names."""
    known = {name for path in ROOT.glob("requirements*.txt")
             for name in re.findall(r"^([\w-]+)", path.read_text(encoding="utf-8"), re.MULTILINE)}
    assert words[0] == "install"
    assert {word for word in words[1:] if not word.startswith(("-", "http"))} <= known


def run_python(
    words: list[str], command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The program takes these flags. A command that is shown in part may lack some."""
    words = [word for word in words if word == "." or word.strip("…. ")]
    if words[:2] in (["-m"], ["-m", "venv"], ["-m", "pytest"]) or any(re.search(r"\bNAME$", word) for word in words):
        return
    ended = start(words, monkeypatch)
    error = capsys.readouterr().err
    missing = shown_in_part(command) and "the following arguments are required" in error
    assert isinstance(ended, Parsed) or ended.code in (0, None) or missing, error


def start(words: list[str], monkeypatch: pytest.MonkeyPatch) -> Parsed | SystemExit:
    """Start `python WORDS` in this process; how it ended."""
    module = words[0] == "-m"
    name, *flags = words[1:] if module else words
    path = ROOT / ("bundle/scorer.py" if name == "scorer.py" else name)  # that of a bundle
    monkeypatch.setattr(sys, "argv", [name, *flags])
    monkeypatch.setattr(sys, "path", [str(ROOT if module else path.parent), *sys.path])
    run = partial(runpy.run_module, name, alter_sys=True) if module else partial(runpy.run_path, str(path))
    with pytest.raises((Parsed, SystemExit)) as ended:
        run(run_name="__main__")
    return ended.value


def test_a_wrong_command_is_found(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """The test above can fail, and a page's commands are found in every form."""
    page = "Text `python inference.py a --x`.\n\n    python train.py --y   # why\n\n```\nmake demo\n$ ls\n```\n"
    assert sorted(commands(page)) == ["make demo", "python inference.py a --x", "python train.py --y"]
    for command in ("python inference.py a --x", "make dem"):
        with pytest.raises(AssertionError):
            test_a_command_of_the_docs_is_taken("", command, None, monkeypatch, capsys)
    with pytest.raises(AssertionError):
        assert_known_packages(["install", "tensorflow"])


RUN = [  # in this order, in a folder with a few photographs
    "python -m model.weights",
    "python inference.py samples/astronaut.png",
    "python inference.py samples --output runs/scores.csv",
    "python inference.py good_captures --output runs/good.csv",
    "python evaluate.py threshold runs/good.csv --discard 0.05",
    "python evaluate.py threshold --weights clib-fiqa --discard 0.05",
    "python inference.py photos --output runs/scores.csv",
    "python inference.py photos --output runs/scores.csv --resume",
    "python inference.py photos --output scores.csv --best-per identity 3 --copy-to best",
    "python inference.py photos --report report.html",
    "python inference.py photos --map maps",
    "python inference.py photos --map maps --map-of occlusion",
    "python inference.py photos --method ediffiqa",
    "python inference.py photo.jpg --method dsl-fiqa",
    "python inference.py scans --rotate auto --output scores.csv",
    "python inference.py groups --faces all --min-face-size 40 --output scores.csv",
    "python inference.py @list.txt --output scores.parquet --shard 1/16",
    "python -m faces.align photos --output crops --format png",
    "python generate_labels.py --data faces --output runs/labels.tsv",
    "python inference.py faces --output runs/mine.csv",
    "python evaluate.py pairs faces --output runs/pairs.tsv",
    "python evaluate.py baseline sobel faces --output runs/sobel.csv",
    "python evaluate.py embed faces --fr dlib --output runs/dlib.npz",
    "python evaluate.py edc --pairs pairs.tsv --scores mine=runs/mine.csv sobel=runs/sobel.csv "
    "--embeddings dlib=runs/dlib.npz --output runs/results --images faces",
    "python export.py --output runs/bundle",
]


def make_photographs(folder: Path) -> None:
    """The folders that the commands above name: crops, photographs, and identities with damaged versions of them."""
    crops = {name: Image.open(ROOT / "samples" / f"{name}.png").convert("RGB") for name in ("astronaut", "hopper_dark")}
    (folder / "samples").symlink_to(ROOT / "samples")
    for name, crop in crops.items():
        photograph = ImageOps.expand(crop.resize((224, 224)), 60, "grey")
        for place in ("photos", "good_captures", "scans", "groups"):
            (folder / place).mkdir(exist_ok=True)
            photograph.save(folder / place / f"{name}.png")
        (folder / "faces" / name).mkdir(parents=True)
        for kind in ("noise", "jpeg", "gaussian_blur"):
            damaged = degrade(np.array(crop), kind, 0.2, np.random.default_rng(0))
            Image.fromarray(damaged).save(folder / "faces" / name / f"{kind}.png")
    photograph.save(folder / "photo.jpg")
    (folder / "list.txt").write_text("photo.jpg\n")


def test_fast_commands_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    shown = {" ".join(command.split()) for _, command in FOUND}
    make_photographs(tmp_path)
    monkeypatch.chdir(tmp_path)
    for command in RUN:
        assert command in shown
        if "--pairs pairs.tsv" in command:
            shutil.copy("runs/pairs.tsv", "pairs.tsv")
        ended = start(shlex.split(command)[1:], monkeypatch)
        assert isinstance(ended, SystemExit)
        assert ended.code in (0, None), (command, capsys.readouterr().err)
    assert "threshold = " in capsys.readouterr().out
    assert len((tmp_path / "runs" / "mine.csv").read_text().splitlines()) == 1 + 6
    for made in ("report.html", "best", "maps", "crops", "runs/labels.tsv", "runs/results", "runs/bundle/model.onnx"):
        assert (tmp_path / made).exists(), made


def test_python_of_the_docs_is_python(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of modules, with gaps, stand in adding_a_method.md; they have a test of their own."""
    for page in PAGES:
        for block in blocks(page.read_text(encoding="utf-8"), "python") if page.stem != "adding_a_method" else ():
            ast.parse(block)
    monkeypatch.chdir(ROOT)
    (example,) = blocks((ROOT / "docs" / "start.md").read_text(encoding="utf-8"), "python")
    output = io.StringIO()
    monkeypatch.setattr(sys, "stdout", output)
    exec(example, {})
    assert re.fullmatch(r"0\.\d+ (frontal|slight angle|profile) \{'hazy': .*\}\n", output.getvalue())


class Links(HTMLParser):
    """The targets of a page's links and pictures, and the names that links may lead to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.names: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src") and value:
                self.targets.append(value)
            if name == "id" and value:
                self.names.add(value)


@pytest.mark.timeout(900)
def test_the_site_is_complete(tmp_path: Path) -> None:
    """It builds without a warning, no link leads nowhere, and nothing is fetched from elsewhere."""
    pytest.importorskip("sphinx")
    command = "sphinx -W --keep-going -q -b html -c docs ."
    assert f"-m {command} site" in (ROOT / "Makefile").read_text(encoding="utf-8")
    words = [sys.executable, "-m", *command.split(), str(tmp_path)]
    built = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert (built.returncode, built.stderr) == (0, "")
    pages = {path: Links(path.read_text(encoding="utf-8")) for path in tmp_path.rglob("*.html")}
    assert {tmp_path / page.relative_to(ROOT).with_suffix(".html") for page in PAGES} <= pages.keys()
    for path, found in pages.items():
        for target in found.targets:
            parts = urlsplit(target)
            if parts.scheme:
                assert parts.scheme in ("http", "https", "data", "mailto"), (path, target)
                continue
            there = (path.parent / unquote(parts.path)).resolve() if parts.path else path
            assert there.is_file(), (path, target)
            if parts.fragment and there in pages and path.name != "genindex.html":
                assert parts.fragment in pages[there].names, (path, target)
    text = "".join(path.read_text(encoding="utf-8") for path in pages)
    assert not re.findall(r"<(?:script|link|img)[^>]+(?:src|href)=\"https?://", text)
    api = (tmp_path / "docs" / "api.html").read_text(encoding="utf-8")
    names = ("scoring.Scorer.score", "scoring.Score", "bundle.scorer.Scorer.score")
    assert all(f'id="{name}"' in api for name in names)
