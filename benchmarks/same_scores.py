"""One folder of photographs scored three ways: by inference.py, by the service, and by an exported bundle.

    python benchmarks/same_scores.py PHOTOGRAPHS

The service is asked over HTTP, several files at a time. The bundle takes aligned crops, so `python -m faces.align
--format png` makes them first; what has no crop has its status in the table of the crops. Compared with the rows of
inference.py: the statuses, the qualities and the probabilities of all levels. Exit code 1 when they are not the same.
"""

from __future__ import annotations

import argparse
import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import numpy as np

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from serving import serving  # noqa: E402

from recipes.default_model.reports.results import Cell, Column, Output, add_results_option  # noqa: E402
from scoring import Scorer  # noqa: E402
from service.app import create_app  # noqa: E402

AT_ONCE = 8  # files of a request
CLOSE = 1e-4
Rows = Mapping[str, Mapping[str, Any]]  # by path


def run_script(*command: object) -> None:
    """Run a script of the repository. Exit code 1 means that some images have no score."""
    done = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr


def json_rows(path: Path) -> Rows:
    return {row["path"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


def by_inference(folder: Path, scratch: Path, weights: str) -> Rows:
    run_script("inference.py", folder, "--weights", weights, "--device", "cpu", "--output", scratch / "rows.jsonl")
    return json_rows(scratch / "rows.jsonl")


def by_service(paths: Sequence[str], weights: str) -> Rows:
    rows = {}
    app = create_app(Scorer(weights=weights, device="cpu", align="auto"))
    with serving(app) as port, httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=120) as client:
        for names in (paths[i : i + AT_ONCE] for i in range(0, len(paths), AT_ONCE)):
            answer = client.post("/score", files=[("images", (Path(n).name, Path(n).read_bytes())) for n in names])
            answer.raise_for_status()
            rows |= {names[row["index"]]: row for row in answer.json()["results"]}
    return rows


def by_bundle(folder: Path, scratch: Path, weights: str) -> Rows:
    crops = scratch / "crops"
    run_script("-m", "faces.align", folder, "--output", crops, "--format", "png")
    run_script("export.py", "--weights", weights, "--output", scratch / "bundle")
    run_script(scratch / "bundle" / "scorer.py", crops, "--output", scratch / "bundle.jsonl")
    scored = json_rows(scratch / "bundle.jsonl")
    with open(f"{crops}.faces.csv", encoding="utf-8", errors="surrogateescape", newline="") as file:
        found = list(csv.DictReader(file))
    return {
        str(folder / row["path"]): scored[str(crops / row["crop"])] if row["crop"] else {"status": row["status"]}
        for row in found
    }


def differences(expected: Rows, found: Rows) -> Iterator[tuple[bool, float, float]]:
    """For each path: whether the statuses differ, and by how much the quality and a probability differ at most."""
    for path, row in expected.items():
        other = found.get(path, {"status": "no row"})
        if row["quality"] is None or other.get("quality") is None:
            yield row["status"] != other["status"], 0.0, 0.0
            continue
        levels = [abs(value - other["factors"][axis][level]) for axis, of_axis in (row["factors"] or {}).items()
                  for level, value in of_axis.items()]
        yield row["status"] != other["status"], abs(row["quality"] - other["quality"]), max(levels, default=0.0)


def compare(folder: Path, weights: str) -> list[list[Cell]]:
    """The rows of the table."""
    with tempfile.TemporaryDirectory() as name:
        expected = by_inference(folder, Path(name), weights)
        others = {
            "the service": by_service(list(expected), weights),
            "the bundle, on crops of faces.align": by_bundle(folder, Path(name), weights),
        }
    scored = sum(row["quality"] is not None for row in expected.values())
    table: list[list[Cell]] = []
    for way, rows in others.items():
        status, quality, level = np.array(list(differences(expected, rows))).T
        extra = len(rows.keys() - expected.keys())
        table.append([way, len(expected), scored, int(status.sum()) + extra, float(quality.max()), float(level.max())])
    return table


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0 when all ways agree, else 1."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs", type=Path, help="folder of photographs")
    parser.add_argument("--weights", default="clib-fiqa", help="name or file (clib-fiqa)")
    add_results_option(parser)
    args = parser.parse_args(arguments)
    rows = compare(args.photographs, args.weights)
    columns = [Column("against inference.py"), Column("images"), Column("with a score"), Column("other statuses")]
    columns += [Column("largest difference of a quality", "{:.1g}")]
    columns += [Column("largest difference of a probability", "{:.1g}")]
    output = Output(args.results, "python benchmarks/same_scores.py PHOTOGRAPHS", [args.weights])
    output.add("same_scores", "One folder scored three ways", columns, rows)
    return int(any(row[3] or max(row[4], row[5]) > CLOSE for row in rows))  # type: ignore[operator,type-var]


if __name__ == "__main__":
    sys.exit(main())
