"""One self-contained HTML page of a score table, for people who choose a threshold: `inference.py --report FILE.html`.

The page is `pages/report.html` with its style and script, the rows as JSON, and a small picture of each face. It asks
nothing of the network, and its Content-Security-Policy forbids it to. Rows are written as they are read, in chunks, so
memory does not grow with their number; the page puts only the visible part of its gallery into the document.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import islice, tee
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from faces.containers import read_picture
from faces.reader import MAX_BYTES
from faces.video import is_video
from faces.workers import as_it_is, load_batches
from model.files import open_text, replacing
from model.prompts import AXES, FACTORS

PAGES = Path(__file__).parent / "pages"
CHUNK = 500  # rows of one element of the page
SIDES = ((1_000, 192), (20_000, 112))  # up to so many rows, pictures have this longest side in pixels
SMALLEST = 64  # the side for more rows: 100,000 pictures then take about 80 MB
WEBP_QUALITY = 60
MARGIN = 0.35  # of the longest side of a face's box, shown around it
SHOWN = {"path", "status", "quality", "factors", "quality_distribution", "reasons", *FACTORS}  # not as "other columns"
SUFFIXES = (".html", ".htm")


def check_report_name(path: Path) -> None:
    """Raises ValueError when the suffix is none of `SUFFIXES`."""
    if path.suffix.lower() not in SUFFIXES:
        raise ValueError(f"the name of a report must end in {' or '.join(SUFFIXES)}, not {path.name!r}")


def write_report(
    path: Path,
    rows: Iterable[Mapping[str, Any]],
    total: int,
    about: Mapping[str, Any],
    workers: int = 0,
    swapped_channels: bool = False,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Write the page of `total` rows, which are those of `scoring.tables.row_of`, perhaps with further columns.

    about: `model` (a line of text), `created` (a date), `range` (lowest and highest possible quality, or None) and
    `percentile_set` (name, or None). Pictures are read again from the paths of the rows, by `workers` processes; a
    file that cannot be read, or has more than `max_bytes`, has none, nor have videos. With `swapped_channels` the files
    hold BGR. The page is written atomically.
    """
    head, tail = _page().split("{{data}}")
    facts = {
        **about,
        "levels": {factor: AXES[factor] for factor in FACTORS},
        "quality_levels": AXES["quality"],
    }
    advice: dict[str, str] = {}
    side = next((side for most, side in SIDES if total <= most), SMALLEST)
    with replacing(path) as temporary, open_text(temporary, "w") as file:
        file.write(head)
        file.write(_element(facts, 'id="about-data"'))
        for chunk, pictures in _with_pictures(rows, side, workers, swapped_channels, max_bytes):
            file.write(_element([_face(row, advice) for row in chunk], 'class="rows"'))
            file.write(f'<script type="text/plain" class="pictures">{" ".join(pictures)}</script>\n')
        file.write(_element(advice, 'id="advice-data"'))
        file.write(tail)


def script_json(value: Any) -> str:
    """JSON that is safe inside a script element: ASCII only, and no `<`, so that no `</script>` can end it early."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _element(value: Any, attribute: str) -> str:
    return f'<script type="application/json" {attribute}>{script_json(value)}</script>\n'


def _page() -> str:
    """The template with its style and script; `{{data}}` is still to be filled in."""
    template, style, *scripts = (
        (PAGES / name).read_text(encoding="utf-8") for name in ("report.html", "parts.css", "parts.js", "report.js")
    )
    script = "\n".join(scripts)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    filled = template.replace("{{script hash}}", f"sha256-{digest}").replace("{{style}}", style)
    return filled.replace("{{script}}", script)


def _with_pictures(
    rows: Iterable[Mapping[str, Any]], side: int, workers: int, swapped_channels: bool, max_bytes: int
) -> Iterator[tuple[list[Mapping[str, Any]], list[str]]]:
    """Chunks of rows, each with the pictures of its rows as base64; "" for a file that cannot be read."""
    rows, again = tee(rows)
    keys = (json.dumps([row["path"], row.get("box"), _is_of_video(row)]) for row in again)
    read = partial(_picture, side=side, swapped_channels=swapped_channels, max_bytes=max_bytes)
    for loaded in load_batches(keys, as_it_is, CHUNK, workers, read):
        yield list(islice(rows, len(loaded))), [item.value or "" for item in loaded]


def _is_of_video(row: Mapping[str, Any]) -> bool:
    return row.get("frame") is not None or is_video(row["path"])


def _picture(key: str, side: int, swapped_channels: bool, max_bytes: int) -> str:
    """A small WebP, as base64, of the image at a path: of the face when its box is known; "" for a video. Raises
    ImageError."""
    path, box, of_video = json.loads(key)
    if of_video:
        return ""
    rgb = read_picture(path, max_bytes)
    image = Image.fromarray(_around(rgb, box) if box else rgb)
    image.thumbnail((side, side), Image.Resampling.BILINEAR, reducing_gap=2.0)
    if swapped_channels:
        image = Image.merge("RGB", image.split()[::-1])
    stream = io.BytesIO()
    image.save(stream, "WEBP", quality=WEBP_QUALITY)
    return base64.b64encode(stream.getvalue()).decode()


def _around(rgb: np.ndarray, box: Sequence[float]) -> np.ndarray:
    """The square around a box (left, top, right, bottom), with a margin, as far as the image reaches."""
    left, top, right, bottom = box
    half = max(right - left, bottom - top) * (0.5 + MARGIN)
    x, y = (left + right) / 2, (top + bottom) / 2
    height, width = rgb.shape[:2]
    columns = slice(round(np.clip(x - half, 0, width - 1)), round(np.clip(x + half, 1, width)))
    lines = slice(round(np.clip(y - half, 0, height - 1)), round(np.clip(y + half, 1, height)))
    cut = rgb[lines, columns]
    return cut if cut.size else rgb


def _face(row: Mapping[str, Any], advice: dict[str, str]) -> list[Any]:
    """What the page's script reads of a row; the sentences of advice are collected in `advice`, one for each code.

    [path, status, quality, factors, distribution, reasons, other columns]; probabilities are whole percents. Reasons
    are None where nothing is known.
    """
    factors, distribution, reasons = row.get("factors"), row.get("quality_distribution"), row.get("reasons")
    for reason in reasons or []:
        advice.setdefault(reason["code"], reason["advice"])
    return [
        row["path"],
        row["status"],
        row["quality"],
        factors and [_percents(factors[factor].values()) for factor in FACTORS],
        distribution and _percents(distribution),
        None if reasons is None else [[reason["code"], reason["value"]] for reason in reasons],
        {name: value for name, value in row.items() if name not in SHOWN and value is not None},
    ]


def _percents(probabilities: Iterable[float]) -> list[int]:
    return [round(100 * p) for p in probabilities]
