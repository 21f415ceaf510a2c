"""Running an FR model, or a baseline, over many images: batched, resumable, one bad file is one row."""

from __future__ import annotations

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
from faces.align import aligned
from faces.cluster import Cluster
from faces.reader import MAX_BYTES
from faces.workers import Loaded
from labels.anchors import EmbeddedFaces, centre_similarities, count_photos, identity_of
from labels.factors import embed_faces
from labels.measure import Columns, gather, images_hash, measure, part_of, remove_shards, start_parts
from labels.recognition import Recognizer
from model.files import replacing, shard_path
from model.preprocessing import Preprocessing

Score = Callable[[NDArray[np.uint8]], NDArray[np.float64]]  # faces (N, S, S, 3) -> quality (N,)
Compute = Callable[[Sequence[Loaded[np.ndarray]]], Columns]  # of a batch of faces
Row = tuple[str, str, float]  # path, status, quality
ONE_IMAGE = "one_image"  # the oracle's status of the only image of an identity; such an image is not faulty


@dataclass(frozen=True)
class Extraction:
    """Where the result of a run over images goes, and how it is made."""

    output: Path
    settings: Mapping[str, Any]  # what the result depends on, besides the images; resuming needs the same
    align: str  # which images are aligned first: auto, yes or no, as `faces.align.aligned` has it
    batch_size: int
    workers: int
    resume: bool
    cluster: Cluster | None = None  # where the work is done; None: here. Its checkpoint gets the settings
    max_bytes: int = MAX_BYTES  # of an image file
    shard: tuple[int, int] | None = None  # measure this part only, number from 1 and count
    merge: int = 0  # make the output of so many finished shards


def with_flip(recognizer: Recognizer) -> Recognizer:
    """Embeddings (N, 2D) as CR-FIQA's evaluation has them: of the face and of its mirror image, each of unit length."""

    def embed(faces: np.ndarray) -> np.ndarray:
        both = unit(recognizer.embed(faces)), unit(recognizer.embed(mirrored(faces)))
        return np.concatenate(both, axis=1).astype(np.float32)

    return replace(recognizer, embed=embed)


def embed_images(
    names: Sequence[str],
    recognizer: Recognizer,
    run: Extraction,
    make_recognizer: Callable[[], Recognizer] | None = None,
) -> tuple[list[tuple[str, str]], int]:
    """Write the `.npz` of names, embeddings and model_sha256. Returns (name, status) of the images without a row, and
    how many images were aligned. `make_recognizer` loads the recognizer in the processes of `run.cluster`.

    Raises ValueError when no image can be read.
    """
    make = partial(_make_embed, make_recognizer) if make_recognizer else None
    columns = _columns(names, recognizer.preprocessing, partial(embed_faces, recognizer), run, make)
    ok = columns["status"] == "ok"
    if not ok.any():
        raise ValueError(f"none of {len(names)} images could be read; {names[0]} is {columns['status'][0]}")
    with replacing(run.output) as temporary, temporary.open("wb") as file:
        np.savez(  # not compressed, so that the matrix can be memory-mapped
            file,
            names=np.array(names)[ok],
            embeddings=columns["embeddings"][ok],
            model_sha256=np.array(recognizer.sha256),
        )
    remove_parts(run)
    skipped = [(name, status) for name, status in zip(names, columns["status"].tolist(), strict=True) if status != "ok"]
    return skipped, int(columns["aligned"].sum())


def embed_shard(names: Sequence[str], recognizer: Recognizer, run: Extraction) -> Path:
    """Measure the part of the images that `run.shard` says, for a later `embed_images` with `run.merge`. Returns the
    folder of what was measured."""
    _columns(names, recognizer.preprocessing, partial(embed_faces, recognizer), run)
    return _parts(run)


def score_images(
    names: Sequence[str], preprocessing: Preprocessing, score: Score, run: Extraction
) -> tuple[list[Row], int]:
    """The rows of a baseline, and how many images were aligned; faces are resized as `preprocessing` says before they
    are scored."""

    def compute(loaded: Sequence[Loaded[np.ndarray]]) -> Columns:
        faces = [item.value for item in loaded if item.value is not None]
        quality = np.full(len(loaded), np.nan)
        if faces:
            quality[[item.value is not None for item in loaded]] = score(np.stack(faces))
        return {"status": np.array([item.status for item in loaded]), "quality": quality}

    columns = _columns(names, preprocessing, compute, run)
    rows = zip(names, columns["status"].tolist(), columns["quality"].tolist(), strict=True)
    return list(rows), int(columns["aligned"].sum())


def oracle(names: Sequence[str], recognizer: Recognizer, run: Extraction) -> tuple[list[Row], int]:
    """The ceiling, from images, and how many of them were aligned; see `oracle_of`."""
    columns = _columns(names, recognizer.preprocessing, partial(embed_faces, recognizer), run)
    return oracle_of(names, columns["embeddings"], columns["status"]), int(columns["aligned"].sum())


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
    """The rows of a baseline that needs only embeddings, as the model made them: `norm` or `oracle`.

    Raises ValueError for every other baseline.
    """
    names, ok = embeddings.names, np.full(len(embeddings.names), "ok")
    if name == "oracle":
        return oracle_of(names, embeddings.rows, ok)
    if name == "norm":
        return list(zip(names, ok.tolist(), lengths(embeddings.rows).tolist(), strict=True))
    raise ValueError(f"{name} needs images: give their paths; --embeddings is enough for norm and oracle only")


def remove_parts(run: Extraction) -> None:
    """Remove the finished parts, from which an interrupted run would be resumed."""
    if run.merge:
        remove_shards(_parts(run), run.merge)
    else:
        shutil.rmtree(_parts(run))


def _parts(run: Extraction) -> Path:
    folder = Path(f"{run.output}.parts")
    return shard_path(folder, run.shard) if run.shard else folder


@dataclass(frozen=True)
class _Face:
    """A face as the network takes it, RGB uint8 (S, S, 3), and whether it was aligned before."""

    pixels: np.ndarray
    aligned: bool


def _prepare(preprocessing: Preprocessing, align: str, rgb: np.ndarray) -> _Face:
    """A worker's share of an image (H, W, 3). Raises ImageError (no_face)."""
    face = aligned(rgb, align)
    return _Face(preprocessing.resize(face), face is not rgb)


def _columns(
    names: Sequence[str],
    preprocessing: Preprocessing,
    compute: Compute,
    run: Extraction,
    make_compute: Callable[[], Compute] | None = None,
) -> Columns:
    """The columns that `compute` makes of batches of faces, and the column `aligned`. With a cluster `make_compute`
    makes `compute` in each of its processes.

    Raises ValueError when there are no images, or when the interrupted run had other settings or images.
    """
    if not names:
        raise ValueError("no images were found in what was given; name files, folders, patterns, @list or -")

    reading = {"align": run.align, "batch_size": run.batch_size, "max_bytes": run.max_bytes}
    settings = {**run.settings, **reading, "images": images_hash(names)}
    if run.merge:
        return gather(_parts(run), "faces", settings, names, run.merge)
    parts = start_parts(_parts(run), settings, run.resume)
    if run.shard:
        names = part_of(names, run.shard, run.batch_size)
    prepare = partial(_prepare, preprocessing, run.align)
    make = partial(_make_with_aligned, make_compute) if make_compute else None
    cluster = _checkpointed(run.cluster, {**settings, "shard": run.shard})
    how = run.batch_size, run.workers, run.max_bytes, cluster, make
    return measure(Path(), names, prepare, partial(_with_aligned, compute), parts / "faces", *how)


def _checkpointed(cluster: Cluster | None, settings: Mapping[str, Any]) -> Cluster | None:
    """The cluster, whose checkpoint, if it has one, holds results of these settings."""
    if cluster is None or cluster.checkpoint is None:
        return cluster
    return replace(cluster, checkpoint=replace(cluster.checkpoint, settings=settings))


def _with_aligned(compute: Compute, loaded: Sequence[Loaded[_Face]]) -> Columns:
    """What `compute` makes of a batch of faces, and the column `aligned`."""
    faces = [Loaded(item.path, item.status, item.value.pixels if item.value else None) for item in loaded]
    turned = [item.value is not None and item.value.aligned for item in loaded]
    return {**compute(faces), "aligned": np.array(turned)}


def _make_with_aligned(make_compute: Callable[[], Compute]) -> Callable[[Sequence[Loaded[_Face]]], Columns]:
    return partial(_with_aligned, make_compute())


def _make_embed(make_recognizer: Callable[[], Recognizer]) -> Compute:
    return partial(embed_faces, make_recognizer())
