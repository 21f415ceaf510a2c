"""What the default model does on people it never saw: LFW's test identities.

Prints, as Markdown: the rank correlation of its scores with quality anchors of three FR models, the share of pairs in
which a face scores above its damaged version, for each kind and strength, and the balanced accuracy of its factors.

    python -m methods.default_model.measure --data ../shared/data --weights clib-fiqa
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from scipy.stats import spearmanr

from faces.anchors import Faces, centre_similarities, count_photos, identity_of, quality_anchor
from faces.listing import list_images
from faces.recognition import load_recognizer
from methods.default_model.crops import read_crops
from methods.default_model.degrade import KINDS, degrade
from methods.default_model.train_factors import hash_of, rows
from model.prompts import AXES
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
    names = (data / "splits" / "lfw_test_identities.txt").read_text().split()
    paths = [path for name in sorted(names) for path in list_images(data / "faces" / "lfw" / name)]
    crops = read_crops(paths)
    quality = np.array([score.quality for score in scorer.score(list(crops))])
    print(f"{len(paths)} images of {len(names)} test identities; scores {quality.min():.3f} to {quality.max():.3f}\n")
    rank_correlations(data, paths, crops, quality)
    firsts = [i for i, path in enumerate(paths) if i == 0 or path.parent != paths[i - 1].parent]
    firsts = firsts[: options.damaged_faces]
    damage_table(scorer, crops[firsts], quality[firsts])
    factor_accuracy(data, scorer, crops[firsts])


def rank_correlations(data: Path, paths: list[Path], crops: np.ndarray, quality: np.ndarray) -> None:
    """Spearman's rho of the scores with the anchors of identities that have at least three images."""
    relative = [path.relative_to(data / "faces" / "lfw").as_posix() for path in paths]
    counts = count_photos(relative)
    several = np.array([counts[identity_of(path)] >= 3 for path in relative])
    print("| anchors from | images | rho, ratio | rho, shifted |\n|---|---|---|---|")
    for judge in JUDGES:
        recognizer = load_recognizer(judge if judge == "dlib" else data / judge)
        blocks = [recognizer.embed(crops[i : i + 64]) for i in range(0, len(crops), 64)]
        gallery = Faces(np.concatenate(blocks), relative)
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


def factor_accuracy(data: Path, scorer: Scorer, crops: np.ndarray) -> None:
    """Balanced accuracy (mean recall of the good and the bad side) of the factors."""
    print("\n| factor | on | bad side seen | good side seen | balanced accuracy |\n|---|---|---|---|---|")
    for factor in ("blur", "illumination", "occlusion"):
        damaged = [
            degrade(crop, kind, 0.5 + 0.5 * (i % 2), np.random.default_rng(i))
            for kind in KINDS if KINDS[kind][1] == factor
            for i, crop in enumerate(crops)
        ]
        report(factor, "synthetic damage, strength 0.5 and 1", scorer, damaged, list(crops))
    smiles = [row for row in rows(data / "factors" / "expression_lfw.tsv") if row["split"] == "test" and row["label"]]
    sides = [read_side(data, smiles, label) for label in ("exaggerated expression", "typical expression")]
    report("expression", "human labels, LFW test identities", scorer, *sides)
    for file, factor, bad, good in (
        ("occlusion", "occlusion", "obstructed", "unobstructed"),
        ("illumination", "illumination", "extreme lighting", "normal lighting"),
    ):
        held_out = [row for row in rows(data / "factors" / f"{file}.tsv") if hash_of(row["subject"]) % 5 == 0]
        sides = [read_side(data, held_out, label) for label in (bad, good)]
        report(factor, f"{file}.tsv, held-out subjects", scorer, *sides)


def read_side(data: Path, labelled: list[dict[str, str]], label: str) -> list[np.ndarray]:
    """The crops of a factor table with this label."""
    return list(read_crops([data / "factors" / row["path"] for row in labelled if row["label"] == label]))


def report(factor: str, where: str, scorer: Scorer, bad: list[np.ndarray], good: list[np.ndarray]) -> None:
    """One row: the best level of a factor counts as its good side, every other as the bad one."""
    recalls = []
    for crops, wanted in ((bad, False), (good, True)):
        best = [score.label(factor) == AXES[factor][-1] for score in scorer.score(crops)]
        recalls.append(np.mean(np.array(best) == wanted))
    cells = (f"{recalls[0]:.3f} of {len(bad)}", f"{recalls[1]:.3f} of {len(good)}", f"{np.mean(recalls):.3f}")
    print(f"| {factor} | {where} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
