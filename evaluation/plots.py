"""Pictures of an evaluation: EDC curves, DET curves of the FR models, histograms of similarities and qualities."""

from __future__ import annotations

import io
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from evaluation.bench import Setting
from evaluation.edc import Curve, Floats, partial_area
from model.files import replacing, write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

POINTS = 1000  # drawn of a curve: millions of steps would make the files unreadable


def draw_all(
    curves: Mapping[Setting, Curve],
    qualities: Mapping[str, Floats],
    similarity: Mapping[str, Floats],
    mated: NDArray[np.bool_],
    is_step: bool,
    end: float,
) -> dict[str, Figure]:
    """File name without suffix -> figure; EDC curves up to the discarded fraction `end`.

    Raises ImportError, with the pip command, when matplotlib is absent.
    """
    figures = {}
    for fr, fmr in dict.fromkeys((fr, fmr) for _, fr, fmr in curves):
        shown = {method: curve for (method, *setting), curve in curves.items() if setting == [fr, fmr]}
        figures[_file_name(f"edc_{fr}_{fmr:g}")] = edc_figure(shown, f"{fr}, FMR {fmr:g}", is_step, end)
    figures["det"] = det_figure(similarity, mated)
    figures["similarities"] = similarity_figure(similarity, mated)
    figures["qualities"] = quality_figure(qualities)
    return figures


def edc_figure(curves: Mapping[str, Curve], title: str, is_step: bool, end: float) -> Figure:
    """FNMR over the discarded fractions [0, end], one line a method, named from top to bottom; `is_step` tells step
    functions from interpolated points."""
    figure, axes = _figure(1)
    for index, (method, curve) in enumerate(sorted(curves.items(), key=lambda item: -partial_area(item[1], end))):
        linestyle = ("-", "--", "-.")[index // 10 % 3]
        style: dict[str, Any] = {"color": f"C{index % 10}", "linestyle": linestyle, "label": method}
        if is_step:
            x = np.linspace(0, min(end, 0.98), POINTS)
            axes[0].step(x, curve.fnmr[np.searchsorted(curve.discard, x, side="right") - 1], where="post", **style)
        else:
            shown = curve.discard <= end
            axes[0].plot(curve.discard[shown], curve.fnmr[shown], marker=".", **style)
    if is_step:
        start = next(iter(curves.values())).fnmr[0]
        axes[0].plot([0, start], [start, 0], "k:", label="theoretical best")
    axes[0].set(title=title, xlabel="fraction discarded", ylabel="FNMR", xlim=(0, end), ylim=(0, None))
    axes[0].legend(fontsize="small", loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def det_figure(similarity: Mapping[str, Floats], mated: NDArray[np.bool_]) -> Figure:
    """FNMR over FMR of each FR model on logarithmic axes: is the FR model sane?"""
    figure, axes = _figure(1)
    for fr, values in similarity.items():
        fmr, fnmr = det_curve(values, mated)
        axes[0].plot(fmr, fnmr, label=fr)
    least = 0.5 / len(mated)
    axes[0].set(xlim=(least, 1), ylim=(least, 1), xlabel="FMR", ylabel="FNMR", title="DET")
    axes[0].set(xscale="log", yscale="log")
    axes[0].legend(fontsize="small")
    return figure


def det_curve(similarity: Floats, mated: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """FMR and FNMR at thresholds at which k non-mated pairs are still accepted, k spaced logarithmically."""
    genuine, impostor = np.sort(similarity[mated]), np.sort(similarity[~mated])[::-1]
    accepted = np.unique(np.geomspace(1, len(impostor), POINTS).astype(int))
    threshold = impostor[accepted - 1]
    return accepted / len(impostor), np.searchsorted(genuine, threshold, side="left") / len(genuine)


def similarity_figure(similarity: Mapping[str, Floats], mated: NDArray[np.bool_]) -> Figure:
    """Histograms of mated and non-mated similarities, one panel an FR model."""
    figure, axes = _figure(len(similarity))
    for panel, (fr, values) in zip(axes, similarity.items(), strict=True):
        bins = np.linspace(values.min(), values.max(), 81).tolist()
        for label, kind in (("non-mated", ~mated), ("mated", mated)):
            panel.hist(values[kind], bins, density=True, alpha=0.6, label=label)
        panel.set(title=fr, xlabel="similarity (cosine)", ylabel="density")
        panel.legend(fontsize="small")
    return figure


def quality_figure(qualities: Mapping[str, Floats]) -> Figure:
    """Histograms of the qualities of the images, one panel a method; images without a score are left out."""
    figure, axes = _figure(len(qualities))
    for panel, (method, values) in zip(axes, qualities.items(), strict=True):
        panel.hist(values[np.isfinite(values)], 60)
        panel.set(title=method, xlabel="quality", ylabel="images")
    return figure


def save(figures: Mapping[str, Figure], folder: Path) -> list[str]:
    """Write each figure as PNG and SVG, and give the SVG elements for an HTML page."""
    elements = []
    for name, figure in figures.items():
        with replacing(folder / f"{name}.png") as temporary:
            figure.savefig(temporary, format="png", bbox_inches="tight")
        stream = io.StringIO()
        figure.savefig(stream, format="svg", bbox_inches="tight", metadata={"Date": None})
        write_text(folder / f"{name}.svg", stream.getvalue())
        elements.append(stream.getvalue()[stream.getvalue().index("<svg") :])
    return elements


def _figure(panels: int) -> tuple[Figure, list[Axes]]:
    try:
        from matplotlib.figure import Figure  # not pyplot, which would keep every figure
    except ImportError:
        raise ImportError("plots need matplotlib: pip install matplotlib") from None
    columns = min(panels, 3)
    rows = -(-panels // columns)
    figure = Figure(figsize=(6.4 * max(columns, 1), 4.4 * rows), dpi=120)
    figure.subplots_adjust(wspace=0.3, hspace=0.35)  # a layout engine would draw everything three times
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[panels:]:
        spare.set_visible(False)
    return figure, axes[:panels]


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.@=-]+", "-", text)
