"""The floors of docs/design.md: who imports whom, no circles, and every part where a stranger looks for it first."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHARED = {"model", "faces", "labels"}
FLOORS = {  # package -> the other packages that it may import
    "model": set[str](),
    "faces": {"model"},
    "labels": {"model", "faces"},
    "scoring": SHARED,
    "bundle": {*SHARED, "scoring"},
    "training": SHARED,
    "evaluation": SHARED,
    "methods": {*SHARED, "scoring", "training", "evaluation"},
    "service": {*SHARED, "scoring", "command_line"},
}
IMPORT_ANYTHING = ("recipes", "samples", "docs")
ROOT_MODULES = {path.stem for path in ROOT.glob("*.py")}
FOLDERS = [*FLOORS, *IMPORT_ANYTHING]
FILES = sorted(path for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")) + sorted(ROOT.glob("*.py"))
OWN = {*FOLDERS, *ROOT_MODULES}


def module_of(path: Path) -> str:
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports_of(path: Path) -> Iterator[str]:
    """Modules of this repository that a file imports when it runs, lazily or not; not those under TYPE_CHECKING."""
    for node in running_nodes(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            start = absolute(path, node.module or "", node.level)
            found = [f"{start}.{a.name}" if f"{start}.{a.name}" in MODULES else start for a in node.names]
        else:
            continue
        yield from (name for name in found if name.split(".")[0] in OWN)


def running_nodes(tree: ast.AST) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            continue
        yield node
        yield from running_nodes(node)


def absolute(path: Path, module: str, level: int) -> str:
    if level == 0:
        return module
    package = list(path.relative_to(ROOT).parent.parts)
    return ".".join([*package[: len(package) - level + 1], *([module] if module else [])])


def is_run_with_m(path: Path) -> bool:
    return 'if __name__ == "__main__":' in path.read_text(encoding="utf-8")


def wrong_imports(path: Path) -> list[str]:
    """What this file may not import."""
    package, *below = path.relative_to(ROOT).parts
    if package not in FLOORS:
        return []
    wrong = []
    for name in imports_of(path):
        top = name.split(".")[0]
        if top == "command_line" and package != "model" and is_run_with_m(path):
            continue
        own_folder = f"{package}.{below[0]}" if package == "methods" else package
        if not (f"{name}.".startswith(f"{own_folder}.") or top in FLOORS[package]):
            wrong.append(name)
    return wrong


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_a_floor_imports_only_what_lies_below(path: Path) -> None:
    assert wrong_imports(path) == []


def test_model_can_be_vendored() -> None:
    """Relative imports only; and nobody else leaves its own folder by a relative import."""
    for path in FILES:
        nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
        froms = [node for node in nodes if isinstance(node, ast.ImportFrom)]
        assert all(node.level <= 1 for node in froms), path
        if path.is_relative_to(ROOT / "model"):
            names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
            names |= {node.module or "" for node in froms if node.level == 0}
            assert not {name for name in names if name.split(".")[0] in OWN}, path


def test_there_are_no_circles() -> None:
    graph = {name: {other for other in imports_of(path) if other != name} for name, path in MODULES.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"modules import each other: {' -> '.join(error.args[1])}")


def test_a_circle_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The test above can fail: so it does here, with a circle, an import upwards and one between methods."""
    texts = {
        "model/a.py": "from .b import x",
        "model/b.py": "def f():\n    from . import a",
        "faces/c.py": "import labels.d",
        "labels/d.py": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import config_train",
        "methods/one/e.py": "from methods.two.f import x\nimport command_line",
        "methods/two/f.py": "import command_line\nif __name__ == \"__main__\":\n    pass",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    files = [tmp_path / name for name in texts]
    monkeypatch.setitem(globals(), "MODULES", {module_of(path): path for path in files})
    assert [wrong_imports(path) for path in files] == [[], [], ["labels.d"], [], ["methods.two.f", "command_line"], []]
    with pytest.raises(pytest.fail.Exception, match=r"model\.[ab] -> model\.[ab] -> model\.[ab]"):
        test_there_are_no_circles()


def test_a_stranger_finds_every_part_in_one_guess() -> None:
    """docs/design.md says where; the files are there, and hold what it says."""
    design = (ROOT / "docs" / "design.md").read_text(encoding="utf-8")
    table = dict(re.findall(r"^\| (.+?) \| \[.*?\]\(\.\./(.+?)\) \|$", design, flags=re.MULTILINE))
    holds = {
        "the focal loss of CLIB-FIQA": "def focal",
        "the header of CR-FIQA": "def arcface_loss",
        "the label table": "def read_labels",
        "dlib's landmarks": "def find_landmarks",
        "the threshold of the EDC": "def fixed_threshold",
        "the codes and the advice of reasons": "ADVICE = ",
        "the limits of the bands": "class Bands",
        "the table of scoring methods": "METHODS",
        "the worker pool": "def load_batches",
        "the known weight files": "WEIGHTS = ",
        "atomic files, and the lock of an output": "def replacing",
        "what exit codes mean": "def exit_code",
    }
    assert table.keys() == {*holds, "the recipe of the shipped weights"}
    for what, path in table.items():
        assert (ROOT / path).exists(), path
        assert what not in holds or holds[what] in (ROOT / path).read_text(encoding="utf-8"), path
