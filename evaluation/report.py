"""One self-contained HTML page: tables, curves, and the faces that each method discards first and keeps longest."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np

from evaluation.edc import Floats
from evaluation.names import match_names
from evaluation.tables import Table
from faces.listing import list_images
from faces.reader import ImageError, read_image

FACES = 16  # shown at each end
PIXELS = 112
STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: 600 }
td, th { padding: .2rem .8rem; border-bottom: 1px solid #ddd; text-align: left }
figure { display: inline-block; margin: .2rem; font-size: 11px; text-align: center } figure img { display: block }
svg { max-width: 100%; height: auto } .faces { margin: 0 0 1rem }
"""


def html_page(
    title: str,
    tables: Sequence[Table],
    drawings: Sequence[str],
    names: Sequence[str],
    qualities: Mapping[str, Floats],
    images: Path | None,
) -> str:
    """The whole page. drawings: SVG elements. names, qualities: of the N images. images: the folder they lie in.

    Without `images` names are shown instead of faces. Raises MatchError when a name has no file in the folder.
    """
    files = None
    if images is not None:
        listed = list_images(images)
        files = [listed[i] for i in match_names(names, [path.as_posix() for path in listed], str(images))]
    parts = [f"<h1>{escape(title)}</h1>", *map(_html_table, tables), "<h2>Curves</h2>", *drawings]
    for method, quality in qualities.items():
        order = np.argsort(quality, kind="stable")
        parts.append(f"<h2>{escape(method)}</h2>")
        for heading, chosen in (("Discarded first", order[:FACES]), ("Kept longest", order[::-1][:FACES])):
            shown = "".join(_face(names[i], quality[i], files[i] if files else None) for i in chosen)
            parts.append(f'<h3>{heading}</h3><div class="faces">{shown}</div>')
    head = f'<meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _html_table(table: Table) -> str:
    header = "".join(f"<th>{escape(cell)}</th>" for cell in table.header)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    return f"<table><caption>{escape(table.title)}</caption><tr>{header}</tr>{rows}</table>"


def _face(name: str, quality: float, file: Path | None) -> str:
    caption = f"{quality:.4g}" if np.isfinite(quality) else "no score"
    label = escape(name)
    picture = f'<img src="{_data_url(file)}" alt="{label}" title="{label}">' if file else label
    return f"<figure>{picture}<figcaption>{caption}</figcaption></figure>"


def _data_url(file: Path) -> str:
    from PIL import Image

    try:
        image = Image.fromarray(read_image(file))
    except ImageError:
        return "data:,"  # the name stays readable as the alternative text
    image.thumbnail((PIXELS, PIXELS))
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=90)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
