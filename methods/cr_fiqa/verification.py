"""How well embeddings verify: accuracy as LFW's protocol has it, and the true match rate at fixed false match rates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from evaluation.edc import allowed_false_matches, fixed_threshold
from evaluation.pairs import Pairs, read_bin, read_pairs
from faces.reader import ImageError, read_image
from faces.workers import load_batches
from model.preprocessing import Preprocessing

FOLDS = 10
BATCH = 128
FMRS = (1e-2, 1e-3, 1e-4)


@dataclass(frozen=True)
class PairSet:
    """A pair list with its images, uint8 (N, S, S, 3)."""

    name: str
    pairs: Pairs
    images: Tensor


def find_images(path: str | Path, folder: str, flag: str = "--verify-images") -> tuple[Pairs, list[str]]:
    """A pair list and the files of its images; a `.bin` holds its images itself, and the second list is empty.

    Names are relative to `folder`, else to the list's folder or the one above. `flag` is the command's flag for that
    folder. Raises ValueError when there are too few pairs of a kind, or when a file does not exist.
    """
    path = Path(path)
    pairs = read_pairs(path)
    mated = int(pairs.mated.sum())
    if min(mated, len(pairs.mated) - mated) < FOLDS:
        raise ValueError(
            f"{path} holds {mated} mated and {len(pairs.mated) - mated} non-mated pairs; at least {FOLDS} of each are"
            " needed, one for each fold"
        )
    if path.suffix.lower() == ".bin":
        return pairs, []
    roots = [Path(folder)] if folder else [path.parent, path.parent.parent]
    root = next((root for root in roots if (root / pairs.names[0]).is_file()), None)
    if root is None:
        raise ValueError(
            f"{path}: there is no {pairs.names[0]} below {roots[0]}; give {flag}, the folder that its names start from"
        )
    files = [root / name for name in pairs.names]
    if missing := [str(file) for file in files if not file.is_file()]:
        raise ValueError(f"{path}: {len(missing)} of {len(files)} images do not exist, for example {missing[0]}")
    return pairs, list(map(str, files))


def read_pair_set(
    path: str | Path, folder: str, preprocessing: Preprocessing, workers: int, flag: str = "--verify-images"
) -> PairSet:
    """A pair list and its images; see `find_images`. Raises ValueError for what it refuses, and when an image cannot be
    read."""
    path = Path(path)
    pairs, names = find_images(path, folder, flag)
    if not names:
        images = [preprocessing.resize(read_image(content)) for content in read_bin(path)[0]]
        return PairSet(path.stem, pairs, torch.from_numpy(np.stack(images)))
    loaded = [image for batch in load_batches(names, preprocessing.resize, BATCH, workers) for image in batch]
    for image in loaded:
        if image.value is None:
            raise ImageError(image.status, f"{path}: {image.path} is {image.status}")
    return PairSet(path.stem, pairs, torch.from_numpy(np.stack([i.value for i in loaded if i.value is not None])))


def verify(embed: Callable[[Tensor], Tensor], pair_set: PairSet) -> dict[str, float]:
    """`accuracy`, `accuracy_std` over the folds, and `tmr@FMR` for each FMR that the pairs can resolve.

    `embed` takes uint8 (n, S, S, 3) and gives (n, D). The template of an image is the sum of its embedding and that
    of its mirror image; templates are compared by cosine.
    """
    batches = pair_set.images.split(BATCH)
    templates = torch.cat([(embed(batch) + embed(batch.flip(2))).float().cpu() for batch in batches])
    unit = torch.nn.functional.normalize(templates, dim=1).numpy()
    pairs = pair_set.pairs
    similarity = np.einsum("nd,nd->n", unit[pairs.first], unit[pairs.second])
    accuracies = fold_accuracies(similarity, pairs.mated)
    non_mated = np.sort(similarity[~pairs.mated].astype(np.float64))[::-1]
    rates = {
        f"tmr@{fmr:g}": float((similarity[pairs.mated] >= fixed_threshold(non_mated, fmr)).mean())
        for fmr in FMRS
        if allowed_false_matches(fmr, len(non_mated))
    }
    return {"accuracy": float(accuracies.mean()), "accuracy_std": float(accuracies.std()), **rates}


def fold_accuracies(similarity: NDArray[np.floating], mated: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The accuracy on each of ten folds (10,), at the threshold that is best on the nine others.

    A fold is a tenth of the mated and a tenth of the non-mated pairs, in the order of the list, and the accuracy the
    mean of those of both kinds. On LFW's own list (300 + 300 pairs a fold) this is its protocol; here a list may hold
    more pairs of one kind.
    """
    fold = np.empty(len(mated), np.int64)
    for kind in (mated, ~mated):
        fold[kind] = np.arange(kind.sum()) * FOLDS // kind.sum()
    return np.array([_accuracy(similarity, mated, fold == test) for test in range(FOLDS)])


def _accuracy(similarity: NDArray[np.floating], mated: NDArray[np.bool_], test: NDArray[np.bool_]) -> float:
    weight = np.where(mated, 1 / (mated & ~test).sum(), -1 / (~mated & ~test).sum())[~test]
    order = np.argsort(-similarity[~test], kind="stable")
    threshold = similarity[~test][order]
    gain = np.cumsum(weight[order])  # of accepting all pairs up to here, where no equal similarity follows
    gain[:-1][threshold[:-1] == threshold[1:]] = -np.inf
    accepted = similarity[test] >= threshold[np.argmax(gain)]
    return float((accepted[mated[test]].mean() + (~accepted[~mated[test]]).mean()) / 2)
