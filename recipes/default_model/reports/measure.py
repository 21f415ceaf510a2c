"""What the default model does on people it never saw: LFW's test identities.

Prints, as Markdown: the rank correlation of its scores with quality anchors of three FR models, and the share of pairs
in which a face scores above its damaged version, for each kind and strength. Factors: reliability.py.

    python -m recipes.default_model.reports.measure --data ../shared/data --weights clib-fiqa
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from faces.degrade import KINDS, degrade
from labels.anchors import EmbeddedFaces, centre_similarities, count_photos, identity_of, quality_anchor
from labels.recognition import load_recognizer
from recipes.default_model.crops import first_of_each, lfw_test_paths, read_crops
from scoring import Scorer

STRENGTHS = (0.25, 0.5, 0.75, 1.0)
JUDGES = ("fr/mobilefacenet_foamliu.onnx", "fr/faceplugin_fr_feature.onnx", "dlib")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", default="../shared/data", help="folder with faces/, factors/, fr/ and splits/")
    parser.add_argument("--weights", default="clib-fiqa", help="model to measure")
    parser.add_argument("--damaged-faces", type=int, default=200, help="test identities in the damage table (200)")
    options = parser.parse_args()
    data, scorer = Path(options.data), Scorer(weights=options.weights)
    paths = lfw_test_paths(data)
    crops = read_crops(paths)
    quality = np.array([score.quality for score in scorer.score(list(crops))])
    firsts = [paths.index(path) for path in first_of_each(paths)]
    print(f"{len(paths)} images of {len(firsts)} test identities; scores {quality.min():.3f} to {quality.max():.3f}\n")
    rank_correlations(data, paths, crops, quality)
    firsts = firsts[: options.damaged_faces]
    damage_table(scorer, crops[firsts], quality[firsts])


def rank_correlations(data: Path, paths: list[Path], crops: np.ndarray, quality: np.ndarray) -> None:
    """Spearman's rho of the scores with the anchors of identities that have at least three images."""
    relative = [path.relative_to(data / "faces" / "lfw").as_posix() for path in paths]
    counts = count_photos(relative)
    several = np.array([counts[identity_of(path)] >= 3 for path in relative])
    print("| anchors from | images | rho, ratio | rho, shifted |\n|---|---|---|---|")
    for judge in JUDGES:
        recognizer = load_recognizer(judge if judge == "dlib" else data / judge)
        blocks = [recognizer.embed(crops[i : i + 64]) for i in range(0, len(crops), 64)]
        gallery = EmbeddedFaces(np.concatenate(blocks), relative)
        ccs, nnccs = centre_similarities(gallery.where(several), gallery)
        rho = [spearmanr(quality[several], quality_anchor(ccs, nnccs, kind)).statistic for kind in ("ratio", "shifted")]
        print(f"| {Path(judge).stem} | {several.sum()} | {rho[0]:.3f} | {rho[1]:.3f} |")


def damage_table(scorer: Scorer, crops: np.ndarray, quality: np.ndarray) -> None:
    """Share of faces that score above their damaged version."""
    print(f"\n{len(crops)} faces; share that scores above the damaged version, by strength\n")
    print("| damage | " + " | ".join(map(str, STRENGTHS)) + " | all |\n|---|" + "---|" * (len(STRENGTHS) + 1))
    for kind in KINDS:
        shares = []
        for strength in STRENGTHS:
            damaged = [degrade(c, kind, strength, np.random.default_rng(i)) for i, c in enumerate(crops)]
            scores = np.array([score.quality for score in scorer.score(damaged)])
            shares.append((quality > scores).mean())
        print(f"| {kind} | " + " | ".join(f"{share:.3f}" for share in (*shares, np.mean(shares))) + " |")


if __name__ == "__main__":
    main()
