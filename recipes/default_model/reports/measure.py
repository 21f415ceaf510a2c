"""Two measurements of the default model on people it never saw, LFW's test identities.

Prints two tables: the rank correlation of its scores with quality anchors of three FR models, and the share of faces
that score above their damaged version, for each kind and strength. reliability.py measures the factors.

    python -m recipes.default_model.reports.measure --data ../shared/data --weights clib-fiqa
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from command_line import positive
from faces.degradations import KINDS, degrade
from labels.anchors import EmbeddedFaces, centre_similarities, count_photos, identity_of, quality_anchor
from labels.recognition import load_recognizer
from recipes.default_model.crops import first_of_each, lfw_test_paths, read_crops
from recipes.default_model.reports.results import Cell, Column, Output, report_exit_code
from scoring import Scorer

ANCHORS = ("ratio", "shifted")
STRENGTHS = (0.25, 0.5, 0.75, 1.0)
JUDGES = ("fr/mobilefacenet_foamliu.onnx", "fr/faceplugin_fr_feature.onnx", "dlib")



def report(args: argparse.Namespace) -> int:
    scorer = Scorer(weights=args.weights)
    paths = lfw_test_paths(args.data)
    crops = read_crops(paths)
    quality = np.array([score.quality for score in scorer.score(list(crops))])
    firsts = [paths.index(path) for path in first_of_each(paths)]
    print(f"{len(paths)} images of {len(firsts)} test identities; scores {quality.min():.3f} to {quality.max():.3f}\n")
    output = Output(args.results, "python -m recipes.default_model.reports.measure", [args.weights])
    relative = [path.relative_to(args.data / "faces" / "lfw").as_posix() for path in paths]
    what = "Spearman's rho of scores and quality anchors of three FR models, LFW test identities of 3 images or more"
    columns = [Column("anchors from"), Column("images"), *(Column(f"rho, {kind}", "{:.3f}") for kind in ANCHORS)]
    output.add("rank_correlation", what, columns, rank_correlations(args.data, relative, crops, quality))
    firsts = firsts[: args.damaged_faces]
    what = f"Share of {len(firsts)} LFW test faces that score above their damaged version, by strength"
    columns = [Column("damage"), *(Column(str(head), "{:.3f}") for head in (*STRENGTHS, "all"))]
    output.add("damage", what, columns, damage_shares(scorer, crops[firsts], quality[firsts]))
    return 0


def rank_correlations(data: Path, names: list[str], crops: np.ndarray, quality: np.ndarray) -> Iterator[list[Cell]]:
    """A row for each FR model: Spearman's rho of the scores with the anchors of identities with 3 images or more.

    `names` (N) are IDENTITY/IMAGE, crops RGB uint8 (N, 112, 112, 3), quality (N,).
    """
    counts = count_photos(names)
    several = np.array([counts[identity_of(name)] >= 3 for name in names])
    for judge in JUDGES:
        recognizer = load_recognizer(judge if judge == "dlib" else data / judge)
        blocks = [recognizer.embed(crops[i : i + 64]) for i in range(0, len(crops), 64)]
        gallery = EmbeddedFaces(np.concatenate(blocks), names)
        ccs, nnccs = centre_similarities(gallery.where(several), gallery)
        rho = [spearmanr(quality[several], quality_anchor(ccs, nnccs, kind)).statistic for kind in ANCHORS]
        yield [Path(judge).stem, int(several.sum()), *rho]


def damage_shares(scorer: Scorer, crops: np.ndarray, quality: np.ndarray) -> Iterator[list[Cell]]:
    """A row for each kind of damage: the share of faces that score above their damaged version, by strength and in all.

    crops RGB uint8 (N, 112, 112, 3), quality (N,).
    """
    for kind in KINDS:
        shares = []
        for strength in STRENGTHS:
            damaged = [degrade(c, kind, strength, np.random.default_rng(i)) for i, c in enumerate(crops)]
            scores = np.array([score.quality for score in scorer.score(damaged)])
            shares.append(float((quality > scores).mean()))
        yield [kind, *shares, float(np.mean(shares))]


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, or 2 when the call was wrong."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with faces/, fr/ and splits/")
    parser.add_argument("--weights", default="clib-fiqa", help="model to measure")
    parser.add_argument("--damaged-faces", type=positive, default=200, help="test identities in the damage table (200)")
    return report_exit_code(parser, report, arguments, "stopped; the finished tables are above")


if __name__ == "__main__":
    sys.exit(main())
