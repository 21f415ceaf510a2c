"""The tables of the docs come from results/*.json, and these say which weights made them."""

from __future__ import annotations

import json
import re
from collections import Counter
from datetime import date
from pathlib import Path

import numpy as np
import pytest

from benchmarks import sizing
from docs import render_tables
from docs.render_tables import documents, names_in, rendered
from model.checkpoint import sha256_of
from model.weights import FOLDER, WEIGHTS
from recipes.default_model.reports.results import Column, as_markdown, read_result, write_results

ROOT = Path(__file__).parents[1]
RESULTS = sorted((ROOT / "results").glob("*.json"))


@pytest.mark.parametrize("path", documents(), ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_tables_of_the_docs_are_those_of_the_results(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert rendered(text) == text, "run `make docs-tables`"
    assert len(names_in(text)) == text.count("<!-- table: ") == text.count("<!-- end -->")


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md"))], ids=lambda path: path.name)
def test_no_table_of_numbers_stands_beside_the_results(path: Path) -> None:
    """The READMEs of methods have tables of settings, which are no measurements."""
    text = render_tables.MARKED.sub("", path.read_text(encoding="utf-8"))
    for table in re.findall(r"(?:^\|.*\n)+", text, flags=re.MULTILINE):
        cells = [cell.strip(" *") for line in table.splitlines()[2:] for cell in line.split("|")[2:-1]]
        numbers = [cell for cell in cells if re.match(r"[-+−]?\d+(\.\d+)?( |$)", cell)]
        assert 2 * len(numbers) <= len(cells), f"put it into results/*.json: {table.splitlines()[0]}"


def test_no_result_is_shown_twice() -> None:
    shown = Counter(name for path in documents() for name in names_in(path.read_text(encoding="utf-8")))
    assert shown
    assert shown.keys() <= {path.stem for path in RESULTS}
    assert set(shown.values()) == {1}


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
def test_a_result_says_where_it_comes_from(path: Path) -> None:
    result = read_result(path)
    assert result.what
    assert result.command
    assert result.machine
    assert date.fromisoformat(result.date)
    assert any(not isinstance(cell, str | None) for row in result.rows for cell in row), "no number in it"


COSTS = ("scale", "sizing", "soak", "video")  # time and memory, which other values in the same layers do not change


@pytest.mark.parametrize("path", [path for path in RESULTS if path.stem not in COSTS], ids=lambda path: path.stem)
def test_results_are_of_the_weights_that_ship(path: Path) -> None:
    """New weights need new numbers: this fails until the reports have run again."""
    known = {item.name: item for item in WEIGHTS if item.sha256}
    weights = read_result(path).weights
    assert all(re.fullmatch("[0-9a-f]{64}", sha256) for sha256 in weights.values())
    for name in weights.keys() & known.keys():
        assert weights[name] == known[name].sha256, name
        if (FOLDER / known[name].file).is_file():
            assert weights[name] == sha256_of(FOLDER / known[name].file), name


def test_the_short_table_of_the_readme_holds_numbers_of_the_long_ones() -> None:
    names = {"LightQNet dm100": "lightqnet", "SCRFD detection score": "scrfd", "sharpness (Sobel)": "sobel"}
    names |= {"**default model**": "clib-fiqa@foamliu"}
    names |= {"feature norm of foamliu's FR network": "norm@foamliu", "GraFIQs (foamliu)": "grafiqs@foamliu"}
    names |= {"our CR-FIQA, of 9,525 faces": "cr-fiqa@foamliu"}
    long = {}
    for set_name, file in (("CelebA", "edc_celeba"), ("LFW", "edc_lfw")):
        result = read_result(ROOT / "results" / f"{file}.json")
        heads = [column.name for column in result.columns]
        for row in result.rows:
            for head, cell in zip(heads, row, strict=True):
                long[str(row[0]).strip("*"), set_name, head] = cell
    short = read_result(ROOT / "results" / "comparison.json")
    for row in short.rows:
        for column, cell in zip(short.columns[1:], row[1:], strict=True):
            set_name, judge = column.name.split(", ")
            assert cell == long[names[str(row[0])], set_name, f"{judge} @ 1e-3"][0], (row[0], column.name)


def test_the_size_of_a_large_run_follows_from_what_was_measured() -> None:
    """Run `python benchmarks/sizing.py --results results` after measuring anew."""
    written = read_result(ROOT / "results" / "sizing.json").rows
    for row, expected in zip(written, sizing.rows_of(ROOT / "results"), strict=True):
        assert row[0] == expected[0]
        assert row[1:] == pytest.approx(expected[1:], abs=1e-5)


def test_what_is_written_is_read_and_rendered(tmp_path: Path) -> None:
    columns = [Column("name"), Column("a|b", {"1": "{:.2f}", "3": "{:.2f} [{:.1f}, {:.1f}]"}, best="min"), Column("n")]
    rows = [["x", (np.float32(0.5), 0.25, 0.75), np.int64(3)], ["y", 1 / 3, 1_000], ["z", None, None]]
    written = write_results(tmp_path / "new" / "a.json", "what", "command", columns, rows, ["clib-fiqa"])
    result = read_result(tmp_path / "new" / "a.json")
    assert as_markdown(result) == as_markdown(written)
    assert as_markdown(result).splitlines()[2:] == [
        "| x | 0.50 [0.2, 0.8] | 3 |",
        "| y | **0.33** | 1000 |",
        "| z | – | – |",
    ]
    assert result.weights == {"clib-fiqa": WEIGHTS[0].sha256}
    assert result.date == date.today().isoformat()


def test_the_command_renders_and_checks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(render_tables, "ROOT", tmp_path)
    monkeypatch.setattr(render_tables, "RESULTS", tmp_path)
    readme, marks = tmp_path / "README.md", "before\n<!-- table: a -->\nold\n<!-- end -->\nafter\n"
    readme.write_text(marks)
    assert render_tables.main([]) == 2
    assert "a.json" in capsys.readouterr().err
    write_results(tmp_path / "a.json", "what", "command", [Column("n", "{:.1f}")], [[0.25]])
    assert render_tables.main(["--check"]) == 1
    assert readme.read_text() == marks
    assert render_tables.main([]) == 0
    assert readme.read_text().startswith("before\n<!-- table: a -->\n\n| n |\n| --- |\n| 0.2 |\n\n<!-- end -->")
    assert render_tables.main(["--check"]) == 0
    broken = json.loads((tmp_path / "a.json").read_text())
    (tmp_path / "a.json").write_text(json.dumps(broken | {"rows": [[1, 2]]}))
    assert render_tables.main([]) == 2
    assert "does not have 1 cells" in capsys.readouterr().err
