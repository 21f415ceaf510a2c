"""One self-contained HTML page: what was evaluated, tables and what their words mean, curves, and the faces that each
method discards first and keeps longest."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from evaluation.bench import Result
from evaluation.edc import Floats
from evaluation.names import match_names
from evaluation.tables import Table, scaled_means, tables, uses_model
from faces.listing import list_images
from faces.reader import ImageError, read_image

FACES = 16  # shown at each end
PIXELS = 112
STYLE = """
:root { color-scheme: light dark; --page: #f5f6f8; --surface: #fff; --text: #15181d; --muted: #57606d; --line: #d9dde4 }
@media (prefers-color-scheme: dark) {
  :root { --page: #101318; --surface: #1a1f26; --text: #e9ecf1; --muted: #a0a9b7; --line: #313944 }
}
body { font: 15px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 72rem; padding: 0 1rem;
  color: var(--text); background: var(--page) }
h1 { margin: 0; line-height: 1.25 } h2 { margin: 2.5rem 0 .5rem } .lead, figcaption, .note { color: var(--muted) }
.scroll { overflow-x: auto } table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
caption { text-align: left; font-weight: 600; padding-bottom: .25rem }
td, th { padding: .25rem .8rem; border-bottom: 1px solid var(--line); text-align: left; white-space: nowrap }
thead + tbody tr:first-child td { color: var(--muted) }
dl, details, .drawing { background: var(--surface); border: 1px solid var(--line); border-radius: 10px }
dl, details { padding: .75rem 1.25rem }
dt { font-weight: 600; margin-top: .5rem } dd { margin: 0; overflow-wrap: anywhere }
.counts { display: grid; grid-template-columns: max-content 1fr; gap: 0 1.25rem } .counts dt { margin: 0 }
summary { cursor: pointer; font-weight: 600 } .drawing { background: #fff; padding: .5rem; margin: .75rem 0 }
svg { max-width: 100%; height: auto; display: block }
.faces { margin: 0 0 1rem; display: flex; flex-wrap: wrap; gap: .4rem }
.faces figure { margin: 0; font-size: 11px; text-align: center } .faces img { display: block }
@media (max-width: 40rem) { .counts { display: block } .counts dt { margin-top: .5rem } }
"""
TERMS = {
    "Pair": "Two images. A mated pair shows one person, a non-mated pair shows two. The quality of a pair is the "
    "lower quality of its two images.",
    "FMR": "False match rate: the share of non-mated pairs that the FR (face recognition) model takes for one "
    "person. Its threshold is set to reach the FMR that stands in the head of a column after @.",
    "FNMR(0), errors": "False non-match rate before anything is discarded: the share of mated pairs that the FR model "
    "rejects, and how many pairs these are. With fewer than about 100 errors a column says little.",
    "pAUC": "Partial area under the curve of FNMR over the discarded share, from nothing to the limit. Less area "
    "means that discarding the worst images removes more errors.",
    "Relative pAUC": "The cells of the tables: pAUC / (FNMR(0) · limit). 1 is useless, as if images were discarded by "
    "chance; lower is better. In brackets its 95 % interval, from drawing people with replacement.",
    "Scaled mean": "In each column the pAUC is scaled, so that the best method there has 0 and the worst 1. The scaled "
    "mean is the mean over the columns. It orders the methods of this table only: other methods in the "
    "table change it.",
    "METHOD@MODEL": "A method that itself uses the FR model MODEL. It looks better than it is where the same model "
    "judges it, so these cells stand in a table of their own.",
}
CR_FIQA_TERMS = TERMS | {
    "pAUC": "The cells of the tables, relative to FNMR(0) and the limit: the area under the curve by the "
    "trapezoid rule. This protocol discards non-mated pairs too and fits the threshold again at each "
    "step; do not compare it with the protocol iso.",
}


def html_page(
    record: Mapping[str, Any],
    results: Sequence[Result],
    limits: Sequence[float],
    drawings: Sequence[str],
    names: Sequence[str],
    qualities: Mapping[str, Floats],
    images: Path | None,
) -> str:
    """The whole page. record: what results.json says beside the results. limits: the leading one first. drawings: SVG
    elements. names, qualities: of the N images. images: the folder they lie in.

    Without `images` names are shown instead of faces. Raises MatchError when a name has no file in the folder.
    """
    files = None
    if images is not None:
        listed = list_images(images)
        files = [listed[i] for i in match_names(names, [path.as_posix() for path in listed], str(images))]
    pairs = next(iter(record["inputs"]))
    title = f"Error versus discard: {Path(pairs).name}"
    terms = CR_FIQA_TERMS if record["settings"]["protocol"] == "cr-fiqa" else TERMS
    further = "".join(map(_html_table, tables(results, limits[1:])))
    parts = [
        f"<h1>{escape(title)}</h1>",
        '<p class="lead">How fast the errors of face recognition fall when the worst images are discarded.</p>',
        _list(_counts(record, pairs), "counts"),
        "<h2>Results</h2>",
        f"<p>{escape(_ranking(results, limits[0]))}</p>",
        *map(_html_table, tables(results, limits[:1])),
        f"<h3>What the words mean</h3>{_list(terms)}",
        "<h2>Curves</h2>",
        "<p>Lower is better. A line that falls steeply at the left finds the errors first.</p>",
        *(f'<div class="drawing">{drawing}</div>' for drawing in drawings),
        f"<h2>Other limits</h2><details><summary>Tables</summary>{further}</details>" if further else "",
        "<h2>The images at both ends</h2>",
    ]
    for method, quality in qualities.items():
        order = np.argsort(quality, kind="stable")
        parts.append(f"<h2>{escape(method)}</h2>")
        for heading, chosen in (("Discarded first", order[:FACES]), ("Kept longest", order[::-1][:FACES])):
            shown = "".join(_face(names[i], quality[i], files[i] if files else None) for i in chosen)
            parts.append(f'<h3>{heading}</h3><div class="faces">{shown}</div>')
    head = (
        '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style>"
    )
    return f'<!doctype html><html lang="en"><head>{head}</head><body>\n' + "\n".join(parts) + "\n</body></html>\n"


def _counts(record: Mapping[str, Any], pairs: str) -> dict[str, str]:
    """What was evaluated, when and with what."""
    counted, settings = record["pairs"], record["settings"]
    without = {name: method["without_ok_score"]["count"] for name, method in record["methods"].items()}
    worst = ", ".join(f"{name} {count:,}" for name, count in without.items() if count)
    commit = record["versions"].get("commit")
    facts = {
        "date": time.strftime("%d %B %Y, %H:%M").lstrip("0"),
        "pairs": f"{counted['mated']:,} mated and {counted['non_mated']:,} non-mated, from {pairs}",
        "images": f"{counted['images']:,}",
        "methods": ", ".join(record["methods"]),
        "FR models that judge": ", ".join(record["fr"]),
        "images without a score": f"{worst}: they count as the worst" if worst else "none",
        "protocol": f"{settings['protocol']}, at FMR {', '.join(f'{fmr:g}' for fmr in settings['fmr'])}",
    }
    return facts | ({"commit of the code": commit[:12]} if commit else {})


def _ranking(results: Sequence[Result], limit: float) -> str:
    """The methods in the order of the table, in a sentence."""
    at_limit = [r for r in results if r["limit"] == limit and not uses_model(r["method"], r["fr"])]
    means = scaled_means(at_limit)
    start = f"Areas are taken up to the discarded share {limit:g}."
    if len(means) < 2:
        return start
    order = sorted(means, key=means.__getitem__)
    ranked = ", ".join(f"{name} ({means[name]:.2f})" for name in order[:3])
    return f"{start} Lowest scaled means: {ranked}. evaluate.py compare says whether two can be told apart."


def _list(items: Mapping[str, str], kind: str = "terms") -> str:
    """A list of terms and what they mean."""
    return f'<dl class="{kind}">{"".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in items.items())}</dl>'


def _html_table(table: Table) -> str:
    header = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.header)
    rows = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in table.rows)
    caption = f"<caption>{escape(table.title)}</caption>"
    return f'<div class="scroll"><table>{caption}<thead><tr>{header}</tr></thead><tbody>{rows}</tbody></table></div>'


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
