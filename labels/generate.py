"""What generate_labels.py does: a folder of faces -> a label table, its skipped files and its settings."""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import torch

from faces.cluster import cluster_of
from faces.dlib_models import LANDMARKS_FILE, dlib_file
from faces.finished import Checkpoint
from faces.listing import is_linked_folder, list_images
from faces.workers import Loaded
from labels.anchors import EmbeddedFaces, centre_similarities, count_photos, identity_of, load_header, quality_anchor
from labels.factors import (
    FactorLabels,
    PreparedFace,
    embed_faces,
    label_faces,
    load_factor_labels,
    prepare_embedding,
    prepare_face,
)
from labels.label_table import Label, is_storable, write_labels, write_skipped
from labels.measure import (
    Columns,
    gather,
    images_hash,
    measure,
    part_of,
    remove_shards,
    start_parts,
    write_json,
)
from labels.recognition import Recognizer, load_recognizer
from model.checkpoint import sha256_of
from model.device import pick_device
from model.files import only_writer, printable, shard_path
from model.prompts import AXES, FACTORS
from model.weights import find_weights

NO_FAULT = ("no_identity", "few_images", "unknown_identity")   # reasons to have no row that leave the exit code at 0
QUANTILES = (0, 0.05, 0.25, 0.5, 0.75, 0.95, 1)

Skipped = dict[Path, str]   # image -> why it has no row


def generate(args: argparse.Namespace) -> int:
    """Write the table args.output and its side files. Returns the exit code: 1 when an image could not be used."""
    with only_writer(shard_path(args.output, args.shard) if args.shard else args.output):
        return generate_alone(args)


def generate_alone(args: argparse.Namespace) -> int:
    """`generate`, in the only run that writes this table."""
    device = pick_device(args.device)
    chosen, others, skipped = choose_images(args)
    recognizer, factors = load_networks(args)
    header = load_header(args.header, recognizer.width, map(identity_of, chosen), device) if args.header else None
    if header:
        skipped |= {args.data / n: "unknown_identity" for n in chosen if identity_of(n) not in header.classes}
        chosen = [name for name in chosen if args.data / name not in skipped]
    settings = settings_of(args, recognizer, chain((args.data / n for n in chosen), (args.centres / n for n in others)))
    folder = Path(f"{args.output}.parts")
    here = shard_path(folder, args.shard) if args.shard else folder
    parts = here if args.merge else start_parts(here, settings, args.resume)

    kept = Checkpoint(args.checkpoint, {**settings, "shard": args.shard}, args.resume) if args.checkpoint else None
    cluster = cluster_of(args.engine, args.address, args.actors, device.type, kept)

    def run(images: Path, names: Sequence[str], prepare: Any, compute: Any, make_compute: Any, part: str) -> Columns:
        if args.merge:
            return gather(folder, part, settings, names, args.merge)
        names = part_of(names, args.shard, args.batch_size) if args.shard else names
        how = args.batch_size, args.workers, args.max_file_size, cluster, make_compute
        return measure(images, names, prepare, compute, parts / part, *how)

    networks = recognizer.preprocessing, factors.preprocessing
    prepare = partial(prepare_face, *networks, args.landmarks, only_crops=args.only_crops)
    label = partial(label_faces, recognizer, factors)
    measured = run(args.data, chosen, prepare, label, partial(make_label, args), "faces")
    columns: Columns = {}
    if others:
        resize = partial(prepare_embedding, recognizer.preprocessing, only_crops=args.only_crops)
        embed = partial(embed_faces, recognizer)
        columns = run(args.centres, others, resize, embed, partial(make_embed, args), "centres")
    if args.shard:
        print(f"shard {args.shard[0]}/{args.shard[1]} is measured: {parts}; when all are, --merge {args.shard[1]}")
        return 0
    warn_of_other_sizes(args, chosen, measured)
    faces = readable(args.data, chosen, measured, skipped)
    galleries = [faces]
    if others:
        same_folder = [faces] if args.centres == args.data else []
        galleries = [readable(args.centres, others, columns, skipped), *same_folder]

    photos = count_photos(path for gallery in galleries for path in gallery.paths)   # now of what could be read
    faces = faces.where([photos[identity_of(name)] >= args.min_images for name in faces.paths])
    similarities = header.similarities(faces) if header else centre_similarities(faces, *galleries, device=device)
    quality = np.full(len(chosen), np.nan)   # NaN where there is no anchor, and so no row
    quality[faces.rows] = quality_anchor(*similarities, args.anchor)
    without = [args.data / chosen[row] for row in np.flatnonzero(np.isnan(quality)).tolist()]
    skipped |= {path: "few_images" for path in without if path not in skipped}

    write_labels(args.output, rows_of(args, chosen, measured, quality))
    write_skipped(args.output, [(table_path(args, path), skipped[path]) for path in sorted(skipped)])
    counts = {"rows": len(faces), "skipped": Counter(skipped.values()), "not_aligned": not_aligned(measured)}
    write_json(Path(f"{args.output}.json"), {**settings, **counts})
    report = summary(args, chosen, measured, quality, skipped)
    if args.merge:
        remove_shards(folder, args.merge)
    else:
        shutil.rmtree(parts)
    print(report)
    return int(any(reason not in NO_FAULT for reason in skipped.values()))


def load_networks(args: argparse.Namespace) -> tuple[Recognizer, FactorLabels]:
    """The FR model and the factor network of the command line, on its device."""
    device = pick_device(args.device)
    fr = args.fr, args.fr_mean, args.fr_std, args.fr_size
    return load_recognizer(*fr, device, args.precision), load_factor_labels(args.mfn, device, args.precision)


def make_label(args: argparse.Namespace) -> Callable[[Sequence[Loaded[PreparedFace]]], Columns]:
    """`label_faces` with networks of its own, for a process of the cluster."""
    return partial(label_faces, *load_networks(args))


def make_embed(args: argparse.Namespace) -> Callable[[Sequence[Loaded[np.ndarray]]], Columns]:
    """`embed_faces` with a network of its own, for a process of the cluster."""
    return partial(embed_faces, load_networks(args)[0])


def choose_images(args: argparse.Namespace) -> tuple[list[str], list[str], Skipped]:
    """The images below args.data to label, those below args.centres that are needed for class centres only, and why
    the rest is left out. Raises ValueError when there is none to label."""
    names, skipped = names_in(args.data)
    gallery = names
    if args.centres != args.data:
        gallery, linked = names_in(args.centres)
        skipped |= linked
    photos = count_photos(gallery)
    for name in names:
        if not is_storable(name):
            skipped[args.data / name] = "bad_path"
        elif not identity_of(name):
            skipped[args.data / name] = "no_identity"
        elif photos[identity_of(name)] < args.min_images:
            skipped[args.data / name] = "few_images"
    chosen = [name for name in names if args.data / name not in skipped]
    if not chosen:
        raise ValueError(f"{args.data}: no sub-folder (identity) has {args.min_images} images; nothing can be labelled")
    known = set(chosen) if args.centres == args.data else set()
    others = [] if args.header else [name for name in gallery if identity_of(name) and name not in known]
    return chosen, others, skipped


def names_in(folder: Path) -> tuple[list[str], Skipped]:
    """The images below a folder, relative to it, sorted by path; and its linked sub-folders, which are not entered."""
    found = list_images(folder)
    skipped = {path: "linked_folder" for path in found if is_linked_folder(path)}
    return [path.relative_to(folder).as_posix() for path in found if path not in skipped], skipped


def readable(folder: Path, names: Sequence[str], columns: Columns, skipped: Skipped) -> EmbeddedFaces:
    """The faces that could be read; the others are entered into `skipped`."""
    good = np.isin(columns["status"], ("ok", "no_face"))
    bad = np.flatnonzero(~good).tolist()
    skipped |= {folder / names[row]: str(columns["status"][row]) for row in bad}
    return EmbeddedFaces(columns["embeddings"], names).where(good)


def not_aligned(measured: Columns) -> int:
    """How many pictures that were labelled have another size than an aligned crop."""
    return int(np.count_nonzero(~measured["aligned"]))


def warn_of_other_sizes(args: argparse.Namespace, names: Sequence[str], measured: Columns) -> None:
    """Say on stderr that pictures are no aligned crops: the labels are the published ones, but hardly mean anything."""
    if count := not_aligned(measured):
        first = printable(str(args.data / names[int(np.argmin(measured["aligned"]))]))
        print(
            f"warning: {count} of {len(names)} pictures are no aligned crops of 112x112 pixels, such as {first}; they "
            f"are resized and not aligned, and their labels may be meaningless. `python -m faces.align {args.data} "
            "--output CROPS` makes aligned crops, --only-crops leaves such pictures out",
            file=sys.stderr,
        )


def rows_of(args: argparse.Namespace, names: Sequence[str], measured: Columns, quality: np.ndarray) -> Iterator[Label]:
    """A row for each image that has an anchor, in the order of the names."""
    levels, status = np.asarray(measured["labels"]), np.asarray(measured["status"])
    for row in np.flatnonzero(~np.isnan(quality)).tolist():
        yield Label(
            table_path(args, args.data / names[row]),
            float(quality[row]),
            **dict(zip(FACTORS, levels[row].tolist(), strict=True)),
            identity=identity_of(names[row]),
            status=str(status[row]),
        )


def table_path(args: argparse.Namespace, image: Path) -> str:
    """The path of an image as the table holds it: relative to the table's own folder."""
    return Path(os.path.relpath(image, args.output.parent)).as_posix()


def settings_of(args: argparse.Namespace, recognizer: Recognizer, images: Iterable[Path]) -> dict[str, Any]:
    """Everything that the table depends on, as JSON values; files by their sha256, images by path, size and time."""
    landmarks, mfn = args.landmarks or dlib_file(LANDMARKS_FILE), find_weights(args.mfn)
    device = pick_device(args.device)
    return {
        "data": str(args.data),
        "centres": None if args.centres == args.data else str(args.centres),
        "images": images_hash(images),
        "fr": {"name": recognizer.name, "sha256": recognizer.sha256, **asdict(recognizer.preprocessing)},
        "header": sha256_of(find_weights(args.header)) if args.header else None,
        "mfn": {"name": mfn.name, "sha256": sha256_of(mfn)},
        "landmarks": {"name": Path(landmarks).name, "sha256": sha256_of(landmarks)},
        "anchor": args.anchor,
        "min_images": args.min_images,
        "only_crops": args.only_crops,
        "max_file_size": args.max_file_size,
        "batch_size": args.batch_size,
        "precision": args.precision,
        "device": device.type,
        "threads": torch.get_num_threads() if device.type == "cpu" else 0,   # the last digit can depend on them
        "torch": torch.__version__,
    }


def summary(
    args: argparse.Namespace, names: Sequence[str], measured: Columns, quality: np.ndarray, skipped: Skipped
) -> str:
    """How the labels are distributed, and what is missing."""
    rows = np.flatnonzero(~np.isnan(quality))
    identities = {identity_of(names[row]) for row in rows.tolist()}
    lines = [f"{len(rows)} faces of {len(identities)} identities -> {args.output}"]
    if len(rows):
        quantiles = np.quantile(quality[rows], QUANTILES)
        shown = (f"{share:.0%} {value:.4g}" for share, value in zip(QUANTILES, quantiles, strict=True))
        lines.append("quality       " + ", ".join(shown))
    for factor, levels in zip(FACTORS, measured["labels"][rows].T, strict=True):
        counts = [np.count_nonzero(levels == level) for level in range(len(AXES[factor]))]
        lines.append(f"{factor:14}" + ", ".join(f"{n} {name}" for n, name in zip(counts, AXES[factor], strict=True)))
    if undetected := np.count_nonzero(measured["status"][rows] == "no_face"):
        lines.append(f"{undetected} faces were not found by dlib: status no_face, pose {AXES['pose'][0]}")
    if count := not_aligned(measured):
        lines.append(f"{count} pictures are no aligned crops of 112x112 pixels")
    if skipped:
        reasons = ", ".join(f"{count} {reason}" for reason, count in Counter(skipped.values()).most_common())
        lines.append(f"{len(skipped)} images without a row ({reasons}) -> {args.output}.skipped.tsv")
    return "\n".join(lines)
