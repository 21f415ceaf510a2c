"""What a new user does first: a folder of 300 mixed photographs, one command, a table and the best shots.

    python benchmarks/walk_through.py ../shared/data --results results
    python benchmarks/walk_through.py ../shared/data --photographs photos    # keep the folder, to look at it

The folder has a sub-folder for each of 30 people, with portraits, and portraits that lie on a side, that a telephone
turned, that are dark, far away, or huge. Groups, pictures without a face and broken files follow. The command is

    python inference.py photos --faces all --rotate auto --output scores.csv --best-per identity 3 --copy-to best

Every row must say which face it is, how good, in which band, why, and what to do; a picture without a score must say
why. Of each kind is counted how many pictures got what they should.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from PIL import Image  # noqa: E402

from benchmarks.raw_photographs import PLACED, point_error  # noqa: E402
from faces.degradations import degrade  # noqa: E402
from faces.reader import read_image  # noqa: E402
from recipes.default_model.reports.results import Cell, Column, Output, report_exit_code  # noqa: E402
from recipes.raw_photographs.train_points import originals  # noqa: E402

PEOPLE, BEST = 30, 3
HUGE = (4700, 6400)  # height and width: 30 megapixels
WANTED = {  # kind -> what a row, or all rows, of its pictures must show
    "portrait": "a face in the right place",
    "on a side or on its head": "a face in the right place",
    "turned by its EXIF tag": "a face in the right place",
    "30 megapixels": "a face in the right place",
    "dark": "bad_lighting",
    "far away": "small_face or low_resolution",
    "group of three": "three rows that count three faces",
    "without a face": "no_face",
    "broken": "a status that says so",
}
COLUMNS = [Column("photographs"), Column("pictures"), Column("rows"), Column("wanted"), Column("got it", "{}")]
Row = dict[str, str]


class Picture(NamedTuple):
    kind: str
    path: Path
    points: np.ndarray | None = None


# ---- the folder -----------------------------------------------------------------------------------------------------


def make_folder(data: Path, folder: Path) -> list[Picture]:
    """300 pictures below a new folder."""
    rng = np.random.default_rng(0)
    people: dict[str, list[tuple[np.ndarray, np.ndarray]]] = defaultdict(list)
    for relative, points in originals(data):
        if relative.startswith("celeba"):
            people[relative.split("/")[1]].append((read_image(data / "raw" / relative), points))
    chosen = [(name, shots) for name, shots in sorted(people.items()) if len(shots) >= 4][:PEOPLE]
    made: list[Picture] = []
    for i, (name, shots) in enumerate(chosen):
        for j, (rgb, points) in enumerate(shots[:4]):
            made.append(save(folder / name / f"{j}.jpg", "portrait", rgb, points))
        rgb, points = shots[0]
        turned, turned_points = quarter_turned(rgb, points, 1 + i % 3)
        made.append(save(folder / name / "turned.jpg", "on a side or on its head", turned, turned_points))
        dark = degrade(rgb, "dark", 0.6, rng)
        made.append(save(folder / name / "dark.jpg", "dark", dark, points))
        made.append(save(folder / name / "far.jpg", "far away", *placed(rgb, points, 26.0, (480, 640))))
        if i < 10:
            made.append(save(folder / name / "telephone.jpg", "turned by its EXIF tag", rgb, points, exif=True))
        if i < 2:
            made.append(save(folder / name / "huge.jpg", "30 megapixels", *placed(rgb, points, 900.0, HUGE)))
    for i in range(25):
        three = [chosen[(3 * i + k) % PEOPLE][1][k][0] for k in range(3)]
        made.append(save(folder / "groups" / f"{i}.jpg", "group of three", beside_each_other(three)))
    for i in range(30):
        made.append(save(folder / "things" / f"{i}.jpg", "without a face", without_face(i, rng)))
    made += [broken(folder / "files", i, chosen[i % PEOPLE][1][0][0]) for i in range(300 - len(made))]
    return made


def save(path: Path, kind: str, rgb: np.ndarray, points: np.ndarray | None = None, exif: bool = False) -> Picture:
    path.parent.mkdir(parents=True, exist_ok=True)
    tags = Image.Exif()
    if exif:  # 6: to be shown turned clockwise by a quarter
        rgb, tags[0x0112] = np.rot90(rgb, 1), 6
    Image.fromarray(np.ascontiguousarray(rgb)).save(path, quality=92, exif=tags)
    return Picture(kind, path, points)


def quarter_turned(rgb: np.ndarray, points: np.ndarray, turns: int) -> tuple[np.ndarray, np.ndarray]:
    """Turned counter-clockwise."""
    for _ in range(turns):
        rgb, points = np.rot90(rgb), np.stack([points[:, 1], rgb.shape[1] - 1 - points[:, 0]], axis=1)
    return np.ascontiguousarray(rgb), points


def placed(
    rgb: np.ndarray, points: np.ndarray, mouth: float, canvas: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """The original in a larger grey picture, with a face of about 2.7 times `mouth` / 2 pixels, and its points."""
    scale = mouth / (2 * float(np.linalg.norm(points[:2].mean(axis=0) - points[3:].mean(axis=0))))
    height, width = (max(1, round(n * scale)) for n in rgb.shape[:2])
    small = cv2.resize(rgb, (width, height), interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR)
    small = small[: canvas[0], : canvas[1]]
    picture = np.full((*canvas, 3), 110, np.uint8)
    top, left = ((n - m) // 2 for n, m in zip(canvas, small.shape[:2], strict=True))
    picture[top : top + small.shape[0], left : left + small.shape[1]] = small
    return picture, (points + 0.5) * scale - 0.5 + (left, top)


def beside_each_other(pictures: Sequence[np.ndarray]) -> np.ndarray:
    height = min(picture.shape[0] for picture in pictures)
    same = [cv2.resize(p, (max(1, p.shape[1] * height // p.shape[0]), height)) for p in pictures]
    return np.concatenate(same, axis=1)


def without_face(number: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth colours, noise, stripes, and text."""
    size = (300, 400, 3)
    if number % 4 == 0:
        return rng.integers(0, 256, size, dtype=np.uint8)
    if number % 4 == 1:
        noise = cv2.GaussianBlur(rng.normal(0, 60, size), (0, 0), rng.uniform(2, 40)) * 6 + rng.integers(0, 256, 3)
        return np.clip(noise, 0, 255).astype(np.uint8)
    picture = np.full(size, rng.integers(0, 256, 3), np.uint8)
    for _ in range(40):
        start, end = (tuple(rng.integers(0, 400, 2).tolist()) for _ in range(2))
        colour = tuple(rng.integers(0, 256, 3).tolist())
        if number % 4 == 2:
            cv2.line(picture, start, end, colour, int(rng.integers(1, 12)))
        else:
            cv2.putText(picture, "page", start, cv2.FONT_HERSHEY_SIMPLEX, rng.uniform(0.5, 2), colour, 2)
    return picture


def broken(folder: Path, number: int, rgb: np.ndarray) -> Picture:
    """Half a JPEG, a text, and an empty file in turn."""
    path = save(folder / f"{number}.jpg", "broken", rgb).path
    content = path.read_bytes()
    path.write_bytes((content[: len(content) // 2], b"no picture\n", b"")[number % 3])
    return Picture("broken", path)


# ---- what the table says --------------------------------------------------------------------------------------------


def check_row(row: Row) -> None:
    """Raises RuntimeError for a row that leaves a question open."""
    if row["status"] == "ok":
        wanted = ("quality", "face", "box", "points", "detection", "aligned_by", "band")
        if missing := [name for name in wanted if row[name] == ""]:
            raise RuntimeError(f"the row of {row['path']} has no {', '.join(missing)}")
        if row["band"] == "low" and not row["reasons"]:
            raise RuntimeError(f"the row of {row['path']} is in the band low without a reason")
        if bool(row["reasons"]) != bool(row["advice"]):
            raise RuntimeError(f"the row of {row['path']} has a reason without an advice")
    elif row["quality"]:
        raise RuntimeError(f"the row of {row['path']} has a score and the status {row['status']}")


def got_it(picture: Picture, rows: Sequence[Row]) -> bool:
    """Whether the rows of a picture show what `WANTED` says."""
    codes = {reason.partition("=")[0] for row in rows for reason in row["reasons"].split(";")}
    if picture.kind == "broken":
        return [row["status"] for row in rows] in (["truncated"], ["not_an_image"], ["empty"])
    if picture.kind == "without a face":
        return [row["status"] for row in rows] == ["no_face"]
    if picture.kind == "group of three":
        return [row["faces"] for row in rows] == ["3"] * 3
    if picture.points is None or not any(is_placed(row, picture.points) for row in rows):
        return False
    if picture.kind == "dark":
        return "bad_lighting" in codes
    if picture.kind == "far away":
        return bool(codes & {"small_face", "low_resolution"})
    return True


def is_placed(row: Row, points: np.ndarray) -> bool:
    found = np.array(row["points"].split(), np.float64)
    return row["status"] == "ok" and found.size == 10 and point_error(found.reshape(5, 2), points) < PLACED


def result_rows(pictures: Sequence[Picture], table: Path, best: Path) -> Iterator[list[Cell]]:
    """Raises RuntimeError when a picture has no row, a row leaves a question open, or the best shots are wrong."""
    of: dict[str, list[Row]] = defaultdict(list)
    with open(table, encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            check_row(row)
            of[row["path"]].append(row)
    if missing := [picture.path for picture in pictures if not of[str(picture.path)]]:
        raise RuntimeError(f"{missing[0]} has no row")
    check_best(of, best)
    for kind, wanted in WANTED.items():
        some = [picture for picture in pictures if picture.kind == kind]
        right = sum(got_it(picture, of[str(picture.path)]) for picture in some)
        yield [kind, len(some), sum(len(of[str(picture.path)]) for picture in some), wanted, right]


def check_best(of: dict[str, list[Row]], best: Path) -> None:
    """The copies must be the pictures of the best rows of each folder."""
    folders: dict[str, list[Row]] = defaultdict(list)
    for path, rows in of.items():
        folders[Path(path).parent.name] += [row for row in rows if row["quality"]]
    for name, rows in folders.items():
        rows.sort(key=lambda row: -float(row["quality"]))
        wanted = {Path(row["path"]).name for row in rows[:BEST]}
        copied = {path.name for path in (best / name).glob("*")}
        if copied != wanted:
            raise RuntimeError(f"the best of {name} are {sorted(wanted)}, and {sorted(copied)} were copied")


def walk(data: Path, folder: Path, work: Path, results: Path | None) -> int:
    pictures = make_folder(data, folder)
    flags = ["--faces", "all", "--rotate", "auto", "--output", str(work / "scores.csv"), "--best-per", "identity"]
    flags += [str(BEST), "--copy-to", str(work / "best")]
    code = subprocess.run([sys.executable, str(ROOT / "inference.py"), str(folder), *flags], check=False).returncode
    if code != 1:  # some pictures have no score
        raise RuntimeError(f"inference.py ended with the exit code {code}, and 1 was expected")
    output = Output(results, "python benchmarks/walk_through.py ../shared/data",
                    ("clib-fiqa", "center-face", "face-points"))
    rows = result_rows(pictures, work / "scores.csv", work / "best")
    output.add("walk_through", "A folder of 300 mixed photographs in one command", COLUMNS, rows)
    return 0


def run(args: argparse.Namespace) -> int:
    with tempfile.TemporaryDirectory() as scratch:
        return walk(args.data, args.photographs or Path(scratch) / "photos", Path(scratch), args.results)


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit codes: `command_line.exit_code`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="the data folder of docs/data.md")
    parser.add_argument("--photographs", type=Path, metavar="FOLDER", help="where the photographs are made, to keep")
    return report_exit_code(parser, run, arguments)


if __name__ == "__main__":
    sys.exit(main())
