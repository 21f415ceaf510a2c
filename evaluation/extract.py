"""Running an FR model, or a baseline, over many images: batched, resumable, one bad file is one row."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from evaluation.baselines import lengths, mirrored, unit
from evaluation.embeddings import Embeddings
from faces.workers import Loaded
from labels.anchors import EmbeddedFaces, centre_similarities, count_photos, identity_of
from labels.factors import embed_faces
from labels.measure import Columns, measure, start_parts
from labels.recognition import Recognizer
from model.preprocessing import Preprocessing

Score = Callable[[NDArray[np.uint8]], NDArray[np.float64]]  # faces (N, S, S, 3) -> quality (N,)
Row = tuple[str, str, float]  # path, status, quality
ONE_IMAGE = "one_image"  # the oracle's status of an image that is the only one of its identity: no fault of the image


@dataclass(frozen=True)
class Extraction:
    """Where the result of a run over images goes, and how it is made."""

    output: Path
    settings: Mapping[str, Any]  # what the result depends on, besides the images; resuming needs the same
    batch_size: int
    workers: int
    resume: bool


def with_flip(recognizer: Recognizer) -> Recognizer:
    """Embeddings (N, 2D) as CR-FIQA's evaluation has them: of the face and of its mirror image, each of unit length."""

    def embed(faces: np.ndarray) -> np.ndarray:
        both = unit(recognizer.embed(faces)), unit(recognizer.embed(mirrored(faces)))
        return np.concatenate(both, axis=1).astype(np.float32)

    return replace(recognizer, embed=embed)


def embed_images(names: Sequence[str], recognizer: Recognizer, run: Extraction) -> list[tuple[str, str]]:
    """Write the `.npz` of names, embeddings and model_sha256, and give (name, status) of the images without a row.

    Raises ValueError when no image can be read.
    """
    columns = _columns(names, recognizer.preprocessing.resize, partial(embed_faces, recognizer), run)
    ok = columns["status"] == "ok"
    if not ok.any():
        raise ValueError(f"none of {len(names)} images could be read; {names[0]} is {columns['status'][0]}")
    unfinished = run.output.with_name(f"{run.output.name}.partial")
    with unfinished.open("wb") as file:  # np.savez does not compress, so that the matrix can be memory-mapped
        np.savez(
            file,
            names=np.array(names)[ok],
            embeddings=columns["embeddings"][ok],
            model_sha256=np.array(recognizer.sha256),
        )
    os.replace(unfinished, run.output)
    remove_parts(run)
    return [(name, status) for name, status in zip(names, columns["status"].tolist(), strict=True) if status != "ok"]


def score_images(names: Sequence[str], preprocessing: Preprocessing, score: Score, run: Extraction) -> list[Row]:
    """The rows of a baseline; faces are resized as `preprocessing` says before they are scored."""

    def compute(loaded: Sequence[Loaded[np.ndarray]]) -> Columns:
        faces = [item.value for item in loaded if item.value is not None]
        quality = np.full(len(loaded), np.nan)
        if faces:
            quality[[item.value is not None for item in loaded]] = score(np.stack(faces))
        return {"status": np.array([item.status for item in loaded]), "quality": quality}

    columns = _columns(names, preprocessing.resize, compute, run)
    return list(zip(names, columns["status"].tolist(), columns["quality"].tolist(), strict=True))


def oracle(names: Sequence[str], recognizer: Recognizer, run: Extraction) -> list[Row]:
    """The ceiling, from images; see `oracle_of`."""
    columns = _columns(names, recognizer.preprocessing.resize, partial(embed_faces, recognizer), run)
    return oracle_of(names, columns["embeddings"], columns["status"])


def oracle_of(names: Sequence[str], embeddings: NDArray[np.floating], status: NDArray[np.str_]) -> list[Row]:
    """Cosine of each image to the centre of the other images of its identity (its folder); embeddings (N, D) of any
    length. The status of an image whose identity has no other image is ONE_IMAGE; no mated pair can hold it.
    """
    photos = count_photos(np.array(names)[status == "ok"].tolist())
    alone = [photos[identity_of(name)] < 2 for name in names]
    status = np.where((status == "ok") & alone, ONE_IMAGE, status)
    ok = status == "ok"
    faces = EmbeddedFaces(embeddings[ok], np.array(names)[ok].tolist())
    quality = np.full(len(names), np.nan)
    quality[ok] = centre_similarities(faces, faces)[0]
    return list(zip(names, status.tolist(), quality.tolist(), strict=True))


def from_embeddings(name: str, embeddings: Embeddings) -> list[Row]:
    """The rows of a baseline that looks at nothing but embeddings as the model made them: `norm` or `oracle`.

    Raises ValueError for another one.
    """
    names, ok = embeddings.names, np.full(len(embeddings.names), "ok")
    if name == "oracle":
        return oracle_of(names, embeddings.rows, ok)
    if name == "norm":
        return list(zip(names, ok.tolist(), lengths(embeddings.rows).tolist(), strict=True))
    raise ValueError(f"{name} looks at images: give their paths instead of --embeddings, which suits norm and oracle")


def remove_parts(run: Extraction) -> None:
    """Remove what an interrupted run would need to go on."""
    shutil.rmtree(_parts(run))


def _parts(run: Extraction) -> Path:
    return Path(f"{run.output}.parts")


def _columns(
    names: Sequence[str],
    prepare: Callable[[np.ndarray], Any],
    compute: Callable[[Sequence[Loaded[Any]]], Columns],
    run: Extraction,
) -> Columns:
    """The columns that `compute` makes of batches of what `prepare` makes of the images.

    Raises ValueError when there are no images, or when the interrupted run had other settings.
    """
    if not names:
        raise ValueError("no images were found in what was given; name files, folders, patterns, @list or -")
    run.output.parent.mkdir(parents=True, exist_ok=True)
    images = hashlib.sha256("\n".join(names).encode(errors="surrogateescape")).hexdigest()
    settings = {**run.settings, "batch_size": run.batch_size, "images": images}
    parts = start_parts(_parts(run), settings, run.resume)
    return measure(Path(), names, prepare, compute, parts / "faces", run.batch_size, run.workers)
