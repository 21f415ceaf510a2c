"""What the sub-commands of evaluate.py do with their flags. Each returns the exit code: 0, or 1 when some images could
not be used."""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from evaluation.bench import Bootstrap, Outcome, cr_fiqa_procedure, image_quality, iso, similarities
from evaluation.compare import EdcRun, comparison_tables, differences, read_runs, write_comparison, write_replicates
from evaluation.edc import Floats, allowed_false_matches
from evaluation.embeddings import read_embeddings
from evaluation.pairs import Pairs, read_pairs, write_pairs
from evaluation.scores import by_name, file_and_column, read_rows, write_scores
from evaluation.tables import DEFAULT_LIMIT, LIMITS, as_text, limits_of, tables, write_tables
from model.bands import Bands
from model.files import printable, write_text

if TYPE_CHECKING:  # imported where they are used: importing torch takes longer than a small evaluation
    from evaluation.extract import Extraction, Row
    from labels.recognition import Recognizer

ANY_FR = "an FR model (.onnx, a checkpoint, or dlib)"
IRESNET = "a checkpoint of an IResNet, which has a dropout (no .onnx, not dlib)"
FR_CHECKPOINT = "a checkpoint of an IResNet or a MobileFaceNet, which has gradients (no .onnx, not dlib)"
BASELINES = {  # name -> what it is, the FR model that it needs
    "random": ("a random number, from the checksum of the pixels: the floor", ""),
    "sobel": ("sharpness: mean gradient magnitude of the lightness", ""),
    "brightness": ("mean lightness", ""),
    "norm": ("length of the embedding (MagFace, CVPR 2021)", ANY_FR),
    "flip": ("cosine between the embeddings of the face and of its mirror image", ANY_FR),
    "noise": ("mean cosine to five copies with Gaussian noise", ANY_FR),
    "faceqan": ("similarity under adversarial noise, times symmetry (FaceQAN, ICPR 2022)", FR_CHECKPOINT),
    "serfiq": ("agreement of 100 embeddings under dropout (SER-FIQ, CVPR 2020)", IRESNET),
    "grafiqs": ("minus the gradient magnitude of the batch norms' statistics (GraFIQs, CVPRW 2024)", FR_CHECKPOINT),
    "prefiqs": ("minus the distance of the embeddings by the network and by a pruned copy (PreFIQs)", FR_CHECKPOINT),
    "oracle": ("cosine to the centre of the other images of the identity (folder): the ceiling", ANY_FR),
}
EXAMPLES = 3


def embed(args: argparse.Namespace) -> int:
    """FR embeddings of images as one .npz."""
    from evaluation.extract import embed_images, embed_shard
    from faces.cluster import cluster_of
    from faces.finished import Checkpoint
    from labels.label_table import write_skipped
    from model.device import pick_device

    names = _image_names(args)
    recognizer = _embedder(args)
    run = _extraction(args, {**_identity(recognizer), "flip": args.flip})
    kept = Checkpoint(args.checkpoint, {}, args.resume) if args.checkpoint else None
    cluster = cluster_of(args.engine, args.address, args.actors, pick_device(args.device).type, kept)
    run = replace(run, cluster=cluster)
    if args.shard:
        run = replace(run, shard=args.shard)
        print(f"shard is measured: {embed_shard(names, recognizer, run)}; when all are, --merge {args.shard[1]}")
        return 0
    skipped, aligned = embed_images(names, recognizer, replace(run, merge=args.merge), partial(_embedder, args))
    side = write_skipped(args.output, skipped)
    print(f"{len(names) - len(skipped)} embeddings -> {args.output}{_aligned_note(aligned)}")
    return _exit_code(len(skipped), side)


def baseline(args: argparse.Namespace) -> int:
    """Quality scores of simple methods that need no training."""
    from evaluation.extract import from_embeddings, remove_parts

    if bool(args.images) == bool(args.embeddings):
        raise ValueError("the faces are given as paths or as --embeddings, one of the two")
    if args.embeddings:
        return _write_rows(args.output, from_embeddings(args.name, read_embeddings(args.embeddings)), 0)
    _refuse_unused(args)
    needed = BASELINES[args.name][1]
    if needed and args.fr is None:
        raise ValueError(f"{args.name} needs {needed}: give it with --fr")
    if needed not in ("", ANY_FR) and (args.fr == "dlib" or args.fr.lower().endswith(".onnx")):
        raise ValueError(f"{args.name} cannot use --fr {args.fr}: it needs {needed}")
    names = _image_names(args)
    settings, score = _baseline(args)
    run = _extraction(args, {"name": args.name, **settings})
    rows, aligned = score(names, run=run)
    code = _write_rows(args.output, rows, aligned)
    remove_parts(run)
    return code


def _refuse_unused(args: argparse.Namespace) -> None:
    """Raise ValueError for a flag that another baseline than this one uses."""
    flags = {"--fr-mean": args.fr_mean, "--fr-std": args.fr_std, "--fr-size": args.fr_size}
    flags = {} if BASELINES[args.name][1] == ANY_FR else flags
    if args.name != "grafiqs":
        flags["--block"] = args.block or None
    if unused := [flag for flag, value in flags.items() if value is not None]:
        raise ValueError(f"{args.name} does not use {', '.join(unused)}: leave them out")


def _baseline(args: argparse.Namespace) -> tuple[dict[str, Any], Callable[..., tuple[list[Row], int]]]:
    """What the scores depend on besides the images, and the function of names and run that makes them."""
    from evaluation.baselines import FR_BASELINES, PIXEL_BASELINES
    from evaluation.extract import oracle, score_images
    from evaluation.gradient_baselines import network_score
    from model import load
    from model.checkpoint import sha256_of
    from model.device import pick_device
    from model.preprocessing import FACE_PREPROCESSING
    from model.weights import find_weights

    if args.name in PIXEL_BASELINES:
        score = PIXEL_BASELINES[args.name]
        return {}, partial(score_images, preprocessing=FACE_PREPROCESSING, score=score)
    if args.name in FR_BASELINES or args.name == "oracle":
        recognizer = _recognizer(args)
        if args.name == "oracle":
            return _identity(recognizer), partial(oracle, recognizer=recognizer)
        through = partial(FR_BASELINES[args.name], embed=recognizer.embed)
        return _identity(recognizer), partial(score_images, preprocessing=recognizer.preprocessing, score=through)
    network = load(args.fr, pick_device(args.device))
    settings = {"fr": sha256_of(find_weights(args.fr)), "block": args.block}
    score_network = network_score(args.name, network, args.block)
    return settings, partial(score_images, preprocessing=network.preprocessing, score=score_network)


def _write_rows(output: Path, rows: list[Row], aligned: int) -> int:
    from evaluation.extract import ONE_IMAGE

    write_scores(output, rows)
    print(f"{len(rows)} rows -> {output}{_aligned_note(aligned)}")
    return _exit_code(sum(status not in ("ok", ONE_IMAGE) for _, status, _ in rows), output)


def edc(args: argparse.Namespace) -> int:
    """Curves, tables and pictures of any number of score tables under any number of FR models."""
    if args.against and (args.against not in args.scores or args.protocol != "iso" or not args.bootstrap):
        raise ValueError(
            f"--against {args.against}: one of --scores ({', '.join(args.scores)}) was expected, with the protocol iso"
            " and a --bootstrap above 0"
        )
    leading = args.limits[0] if args.limits else DEFAULT_LIMIT
    args.limits = args.limits or list(LIMITS)
    pairs = read_pairs(args.pairs)
    qualities = {name: image_quality(pairs, _scores_of(file), file) for name, file in args.scores.items()}
    embeddings = {name: read_embeddings(file) for name, file in args.embeddings.items()}
    similarity = {name: similarities(pairs, rows, args.embeddings[name]) for name, rows in embeddings.items()}
    _note_unresolvable(args.fmr, int((~pairs.mated).sum()))
    if args.protocol == "iso":
        outcome = iso(pairs, qualities, similarity, args.fmr, args.limits, Bootstrap(args.bootstrap, args.seed))
    else:
        outcome = cr_fiqa_procedure(pairs, qualities, similarity, args.fmr)
    models = {name: rows.model_sha256 for name, rows in embeddings.items()}
    record = {**_record(args, pairs, qualities, models), "results": outcome.results}
    args.output.mkdir(parents=True, exist_ok=True)
    write_text(args.output / "results.json", json.dumps(record, indent=1, allow_nan=False) + "\n")
    limits = limits_of(outcome.results, leading)
    write_tables(outcome.results, limits, args.output)
    write_replicates(args.output, outcome.replicates)
    print("\n\n".join(map(as_text, tables(outcome.results, limits))))
    if args.against:
        _compare([EdcRun(args.output.name, outcome.results, np.array(outcome.replicates))], args, limits[0])
    _draw(args, pairs, qualities, similarity, outcome, record, limits)
    return 0


def _scores_of(file: str) -> dict[str, float]:
    """One score for each image of a table, and on standard error a note of the rows that repeat an image."""
    rows = list(read_rows(file))
    scores = by_name(rows, file)
    if repeated := len(rows) - len(scores):
        counts = "the last row" if all(row.face is None for row in rows) else "its first face, the largest,"
        print(f"note: {repeated} of {len(rows)} rows of {file} repeat an image; {counts} counts", file=sys.stderr)
    return scores


def _note_unresolvable(fmrs: Sequence[float], non_mated: int) -> None:
    """On standard error, the FMR targets that would rest on no pair of the list."""
    for fmr in fmrs:
        if allowed_false_matches(fmr, max(non_mated, 1)) < 1:
            needed = math.ceil(1 / fmr)
            print(
                f"note: FMR {fmr:g} needs {needed:,} non-mated pairs, the list has {non_mated:,}: no results for it",
                file=sys.stderr,
            )


def compare(args: argparse.Namespace) -> int:
    """How much lower one method's relative pAUC is than the others', pooled over the output folders of edc."""
    _compare(read_runs(args.folders), args, args.limit)
    return 0


def _compare(runs: Sequence[EdcRun], args: argparse.Namespace, limit: float) -> None:
    found = differences(runs, args.against, limit)
    print("\n" + "\n\n".join(map(as_text, comparison_tables(found, args.against, limit))))
    if args.output:
        write_comparison(found, args.against, limit, args.output)


def _record(
    args: argparse.Namespace, pairs: Pairs, qualities: Mapping[str, Floats], models: Mapping[str, str | None]
) -> dict[str, Any]:
    """What the results rest on, and on standard error the images that count as the worst."""
    from model.provenance import versions

    without_score = {}
    for name, quality in qualities.items():
        worst = [pairs.names[i] for i in np.flatnonzero(np.isneginf(quality)).tolist()]
        without_score[name] = {"count": len(worst), "examples": worst[:EXAMPLES]}
        if worst:
            print(
                f"note: {len(worst)} of {len(quality)} images have no ok score in {args.scores[name]} and count as the"
                f" worst: {', '.join(worst[:EXAMPLES])}",
                file=sys.stderr,
            )
    return {
        "settings": {name: vars(args)[name] for name in ("protocol", "fmr", "limits", "bootstrap", "seed")},
        "pairs": _counts(pairs),
        "inputs": _hashes(args.pairs, args.scores.values(), args.embeddings.values()),
        "methods": {name: {"file": args.scores[name], "without_ok_score": without_score[name]} for name in qualities},
        "fr": {name: {"file": args.embeddings[name], "model_sha256": model} for name, model in models.items()},
        "versions": versions(),
    }


def _counts(pairs: Pairs) -> dict[str, int]:
    mated = int(pairs.mated.sum())
    return {"images": len(pairs.names), "mated": mated, "non_mated": len(pairs.mated) - mated}


def _hashes(pairs: str | Path, scores: Iterable[str], embeddings: Iterable[str | Path]) -> dict[str, str]:
    """The SHA-256 of each input file; `scores` may name a column too, FILE:COLUMN."""
    from model.provenance import sha256_of_input

    files: list[str | Path] = [pairs, *(file_and_column(file)[0] for file in scores), *embeddings]
    return {str(file): sha256_of_input(file) for file in dict.fromkeys(files)}


def _draw(
    args: argparse.Namespace,
    pairs: Pairs,
    qualities: Mapping[str, Floats],
    similarity: Mapping[str, Floats],
    outcome: Outcome,
    record: Mapping[str, Any],
    limits: Sequence[float],
) -> None:
    """The pictures and the page; without matplotlib a note, since the numbers are written by now."""
    from evaluation.plots import draw_all, save
    from evaluation.report import html_page

    end = 1.0 if args.full_curves else limits[0]
    try:
        figures = draw_all(outcome.curves, qualities, similarity, pairs.mated, args.protocol == "iso", end)
    except ImportError as error:
        print(f"note: no pictures and no page, {error}", file=sys.stderr)
        return
    drawings = save(figures, args.output)
    page = html_page(record, outcome.results, limits, drawings, pairs.names, qualities, args.images)
    write_text(args.output / "report.html", page)
    print(f"\n{args.output / 'report.html'}, results.json, tables.csv, tables.md, tables.tex, {len(figures)} pictures")


def threshold(args: argparse.Namespace) -> int:
    """The quality that discards a wanted share of your own good captures, or of the set stored in the weights."""
    if (args.scores is None) == (args.weights is None):
        raise ValueError("give a score table of your own captures, or --weights that hold percentiles: one of the two")
    if args.weights:
        return _stored_threshold(args)
    from evaluation.threshold import pick_threshold

    rows = list(read_rows(args.scores))
    quality = np.array([row.quality for row in rows])
    picked = pick_threshold(quality, args.discard, args.seed)
    print(f"threshold = {picked.value}")  # with all digits: a rounded number may discard the capture whose score it is
    share = picked.discarded / picked.images
    print(f"discards {picked.discarded} of {picked.images} captures ({share:.1%}): quality < threshold")
    print(f"95 % bootstrap interval of the threshold: {picked.value_ci[0]:.6g} to {picked.value_ci[1]:.6g}")
    print(f"of new captures like these it will discard {picked.share_ci[0]:.1%} to {picked.share_ci[1]:.1%}")
    if missing := len(quality) - picked.images:
        print(f"note: {missing} rows without an ok score are left out", file=sys.stderr)
    if (files := len({row.path for row in rows})) < len(rows):
        alike = "; the intervals are too narrow, since the frames of a video are alike"
        alike = alike if any(row.of_video for row in rows) else ""
        print(f"note: {len(rows)} rows of {files} files; each row counts as a capture{alike}", file=sys.stderr)
    return 0


def _stored_threshold(args: argparse.Namespace) -> int:
    from model.checkpoint import read_checkpoint
    from model.percentiles import Percentiles
    from model.weights import find_weights

    weights = find_weights(args.weights)
    percentiles = Percentiles.from_metadata(read_checkpoint(weights)[1])
    if percentiles is None:
        raise ValueError(
            f"{weights} holds no percentiles: give a score table of your own captures, or store some with"
            " python -m recipes.default_model.percentiles"
        )
    print(f"threshold = {percentiles.threshold(args.discard):.7g}")
    images = f"{printable(percentiles.set)} ({percentiles.images} images)"
    print(f"discards {args.discard:.1%} of {images}: quality < threshold")
    return 0


def bands(args: argparse.Namespace) -> int:
    """The qualities from which recognition fails rarely enough: a table of bands for inference.py --bands."""
    from evaluation.bands import as_lines, measure_bands
    from model.provenance import sha256_of_input, versions
    from model.weights import find_weights

    pairs = read_pairs(args.pairs)
    quality = image_quality(pairs, _scores_of(args.scores), args.scores)
    embeddings = {name: read_embeddings(file) for name, file in args.embeddings.items()}
    similarity = {name: similarities(pairs, rows, args.embeddings[name]) for name, rows in embeddings.items()}
    bootstrap = Bootstrap(args.bootstrap, args.seed)
    measured = measure_bands(pairs, quality, similarity, args.fmr, args.fnmr, bootstrap)
    source = {
        "pairs": _counts(pairs),
        "inputs": _hashes(args.pairs, [args.scores], args.embeddings.values()),
        "bootstrap": args.bootstrap,
        "seed": args.seed,
        "date": date.today().isoformat(),
        "versions": versions(),
    }
    models = {name: rows.model_sha256 for name, rows in embeddings.items()}
    weights = sha256_of_input(find_weights(args.weights)) if args.weights else None
    table = Bands(args.set or args.pairs, weights, args.fmr, models, measured, source)
    table.write(args.output)
    print("\n".join([*as_lines(table), f"-> {args.output}"]))
    return 0


def pairs(args: argparse.Namespace) -> int:
    """A pair list of a folder that has a sub-folder for each identity."""
    from evaluation.make_pairs import draw_pairs
    from faces.listing import is_linked_folder, list_images

    found = list_images(args.faces)
    linked = {path for path in found if is_linked_folder(path)}
    if linked:
        print(printable(f"note: {len(linked)} linked folders were not entered, as {min(linked)}"), file=sys.stderr)
    names = [path.relative_to(args.faces).as_posix() for path in found if path not in linked]
    rows = draw_pairs(names, args.mated, args.non_mated, args.seed)
    write_pairs(args.output, rows)
    mated = sum(same for *_, same in rows)
    if (non_mated := len(rows) - mated) < args.non_mated:
        print(
            f"note: --non-mated {args.non_mated} is more than the folder has; the list holds all {non_mated} of them",
            file=sys.stderr,
        )
    print(f"{mated} mated and {non_mated} non-mated pairs of {len(names)} images -> {args.output}")
    return 0


def prepare(args: argparse.Namespace) -> int:
    """Aligned faces and a pair list from an official archive, a folder or an InsightFace .bin."""
    from evaluation.prepare import prepare_set

    pairs, skipped = prepare_set(args.source, args.pairs, args.output, args.align, args.workers)
    print(f"{len(pairs.names) - skipped} of {len(pairs.names)} images, pairs -> {args.output / 'pairs.tsv'}")
    return _exit_code(skipped, f"{args.output / 'pairs.tsv'}.skipped.tsv")


def _image_names(args: argparse.Namespace) -> list[str]:
    from faces.containers import with_members
    from faces.listing import expand_inputs

    return list(with_members(expand_inputs(args.images, sys.stdin)))


def _recognizer(args: argparse.Namespace) -> Recognizer:
    from labels.recognition import load_recognizer
    from model.device import pick_device

    return load_recognizer(args.fr, args.fr_mean, args.fr_std, args.fr_size, pick_device(args.device))


def _embedder(args: argparse.Namespace) -> Recognizer:
    """The FR model of `embed`, with --flip."""
    from evaluation.extract import with_flip

    recognizer = _recognizer(args)
    return with_flip(recognizer) if args.flip else recognizer


def _identity(recognizer: Recognizer) -> dict[str, Any]:
    """What tells this FR model, with its preprocessing, from every other one."""
    return {"fr": recognizer.sha256, "preprocessing": recognizer.preprocessing.to_json()}


def _extraction(args: argparse.Namespace, settings: Mapping[str, Any]) -> Extraction:
    import torch

    from evaluation.extract import Extraction
    from model.device import pick_device

    device = pick_device(args.device).type
    threads = torch.get_num_threads() if device == "cpu" else 0  # the last digit can depend on them
    settings = {**settings, "device": device, "threads": threads}
    how = args.align, args.batch_size, args.workers, args.resume
    return Extraction(args.output, settings, *how, max_bytes=args.max_file_size)


def _aligned_note(aligned: int) -> str:
    return f"; {aligned} images were no crops of 112x112, so the largest face in each was aligned" if aligned else ""


def _exit_code(bad: int, where: str | Path) -> int:
    if bad:
        print(f"{bad} images could not be used: {where}", file=sys.stderr)
    return int(bad > 0)
