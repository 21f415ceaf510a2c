"""Evaluate face image quality: Error-versus-Discard curves and tables from pairs, FR embeddings and quality scores.

    python evaluate.py embed FACES --fr dlib --output dlib.npz
    python evaluate.py baseline sobel FACES --output sobel.csv
    python evaluate.py edc --pairs pairs.tsv --scores sobel=sobel.csv --embeddings dlib=dlib.npz --output results
    python evaluate.py compare results/lfw results/celeba --against mine
    python evaluate.py threshold captures.csv --discard 0.05
    python evaluate.py pairs FACES --output pairs.tsv
    python evaluate.py prepare lfw.tgz --pairs pairs.txt --output lfw

docs/evaluation.md explains the protocols, the formats, and where the sets are obtained.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from command_line import channels, exit_code, keep_freed_memory, natural, positive
from evaluation.bench import Bootstrap, Outcome, cr_fiqa_procedure, image_quality, iso, similarities
from evaluation.compare import EdcRun, comparison_tables, differences, read_runs, write_comparison, write_replicates
from evaluation.edc import Floats
from evaluation.embeddings import read_embeddings
from evaluation.pairs import Pairs, read_pairs, write_pairs
from evaluation.scores import read_scores, write_scores
from evaluation.tables import DEFAULT_LIMIT, as_text, limits_of, tables, write_tables

BASELINES = ("random", "sobel", "brightness", "norm", "flip", "noise", "faceqan", "serfiq", "grafiqs", "oracle")
EXAMPLES = 3


def embed(args: argparse.Namespace) -> int:
    """FR embeddings of images as one .npz."""
    from evaluation.extract import embed_images, with_flip
    from labels.label_table import write_skipped

    recognizer = _recognizer(args)
    names = _image_names(args)
    settings = {"fr": recognizer.sha256, "preprocessing": recognizer.preprocessing.to_json(), "flip": args.flip}
    skipped = embed_images(names, with_flip(recognizer) if args.flip else recognizer, _run(args, settings))
    side = write_skipped(args.output, skipped)
    print(f"{len(names) - len(skipped)} embeddings -> {args.output}")
    return _exit_code(len(skipped), side)


def baseline(args: argparse.Namespace) -> int:
    """Quality scores that need no training."""
    from evaluation.baselines import FR_BASELINES, PIXEL_BASELINES
    from evaluation.extract import from_embeddings, oracle, remove_parts, score_images
    from evaluation.gradient_baselines import network_score
    from model import load
    from model.device import pick_device
    from model.preprocessing import FACE_PREPROCESSING

    if bool(args.images) == bool(args.embeddings):
        raise ValueError("the faces are given as paths or as --embeddings, one of the two")
    if args.embeddings:
        return _write_rows(args.output, from_embeddings(args.name, read_embeddings(args.embeddings)))
    names = _image_names(args)
    if args.name not in PIXEL_BASELINES and args.fr is None:
        raise ValueError(f"{args.name} looks at faces through an FR model: --fr FILE (or --fr dlib)")
    run = _run(args, {key: str(vars(args)[key]) for key in ("name", "fr", "fr_mean", "fr_std", "fr_size", "block")})
    if args.name in PIXEL_BASELINES:
        rows = score_images(names, FACE_PREPROCESSING, PIXEL_BASELINES[args.name], run)
    elif args.name in FR_BASELINES:
        recognizer = _recognizer(args)
        score = partial(FR_BASELINES[args.name], embed=recognizer.embed)
        rows = score_images(names, recognizer.preprocessing, score, run)
    elif args.name == "oracle":
        rows = oracle(names, _recognizer(args), run)
    else:
        network = load(args.fr, pick_device(args.device))
        rows = score_images(names, network.preprocessing, network_score(args.name, network, args.block), run)
    code = _write_rows(args.output, rows)
    remove_parts(run)
    return code


def _write_rows(output: Path, rows: list[tuple[str, str, float]]) -> int:
    from evaluation.extract import ONE_IMAGE

    write_scores(output, rows)
    print(f"{len(rows)} rows -> {output}")
    return _exit_code(sum(status not in ("ok", ONE_IMAGE) for _, status, _ in rows), output)


def edc(args: argparse.Namespace) -> int:
    """Curves, tables and pictures of any number of score tables under any number of FR models."""
    if args.against and (args.against not in args.scores or args.protocol != "iso" or not args.bootstrap):
        raise ValueError(
            f"--against {args.against}: one of --scores ({', '.join(args.scores)}) was expected, with the protocol iso"
            " and a --bootstrap above 0"
        )
    pairs = read_pairs(args.pairs)
    qualities = {name: image_quality(pairs, read_scores(file), file) for name, file in args.scores.items()}
    embeddings = {name: read_embeddings(file) for name, file in args.embeddings.items()}
    similarity = {name: similarities(pairs, rows, args.embeddings[name]) for name, rows in embeddings.items()}
    if args.protocol == "iso":
        outcome = iso(pairs, qualities, similarity, args.fmr, args.limits, Bootstrap(args.bootstrap, args.seed))
    else:
        outcome = cr_fiqa_procedure(pairs, qualities, similarity, args.fmr)
    models = {name: rows.model_sha256 for name, rows in embeddings.items()}
    record = {**_record(args, pairs, qualities, models), "results": outcome.results}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "results.json").write_text(json.dumps(record, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    write_tables(outcome.results, args.output)
    write_replicates(args.output, outcome.replicates)
    print("\n\n".join(map(as_text, tables(outcome.results))))
    if args.against:
        limit = limits_of(outcome.results)[0]
        _compare([EdcRun(args.output.name, outcome.results, np.array(outcome.replicates))], args, limit)
    _draw(args, pairs, qualities, similarity, outcome)
    return 0


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
    from evaluation.provenance import sha256_of_input, versions

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
    mated = int(pairs.mated.sum())
    inputs = [args.pairs, *args.scores.values(), *args.embeddings.values()]
    return {
        "settings": {name: vars(args)[name] for name in ("protocol", "fmr", "limits", "bootstrap", "seed")},
        "pairs": {"images": len(pairs.names), "mated": mated, "non_mated": len(pairs.mated) - mated},
        "inputs": {str(file): sha256_of_input(file) for file in dict.fromkeys(inputs)},
        "methods": {name: {"file": args.scores[name], "without_ok_score": without_score[name]} for name in qualities},
        "fr": {name: {"file": args.embeddings[name], "model_sha256": model} for name, model in models.items()},
        "versions": versions(),
    }


def _draw(
    args: argparse.Namespace,
    pairs: Pairs,
    qualities: Mapping[str, Floats],
    similarity: Mapping[str, Floats],
    outcome: Outcome,
) -> None:
    """The pictures and the page; without matplotlib a note, since the numbers are written by now."""
    from evaluation.plots import draw_all, save
    from evaluation.report import html_page

    try:
        figures = draw_all(outcome.curves, qualities, similarity, pairs.mated, args.protocol == "iso")
    except ImportError as error:
        print(f"note: no pictures and no page, {error}", file=sys.stderr)
        return
    drawings = save(figures, args.output)
    page = html_page(
        f"{args.pairs}, {args.protocol}", tables(outcome.results), drawings, pairs.names, qualities, args.images
    )
    (args.output / "report.html").write_text(page, encoding="utf-8")
    print(f"\n{args.output / 'report.html'}, results.json, tables.csv, tables.md, tables.tex, {len(figures)} pictures")


def threshold(args: argparse.Namespace) -> int:
    """The quality that discards a wanted share of your own good captures, or of the set stored in the weights."""
    if (args.scores is None) == (args.weights is None):
        raise ValueError("give a score table of your own captures, or --weights that hold percentiles: one of the two")
    if args.weights:
        return _stored_threshold(args)
    from evaluation.threshold import pick_threshold

    quality = np.fromiter(read_scores(args.scores).values(), np.float64)
    picked = pick_threshold(quality, args.discard, args.seed)
    print(f"threshold = {picked.value:.6g}")
    share = picked.discarded / picked.images
    print(f"discards {picked.discarded} of {picked.images} captures ({share:.1%}): quality < threshold")
    print(f"95 % bootstrap interval of the threshold: {picked.value_ci[0]:.6g} to {picked.value_ci[1]:.6g}")
    print(f"of new captures like these it will discard {picked.share_ci[0]:.1%} to {picked.share_ci[1]:.1%}")
    if missing := len(quality) - picked.images:
        print(f"note: {missing} rows without an ok score are left out", file=sys.stderr)
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
    print(f"threshold = {percentiles.threshold(args.discard):.6g}")
    print(f"discards {args.discard:.1%} of {percentiles.set} ({percentiles.images} images): quality < threshold")
    return 0


def pairs(args: argparse.Namespace) -> int:
    """A pair list of a folder that has a sub-folder for each identity."""
    from evaluation.make_pairs import draw_pairs
    from faces.listing import list_images

    names = [path.relative_to(args.faces).as_posix() for path in list_images(args.faces)]
    rows = draw_pairs(names, args.mated, args.non_mated, args.seed)
    write_pairs(args.output, rows)
    mated = sum(same for *_, same in rows)
    print(f"{mated} mated and {len(rows) - mated} non-mated pairs of {len(names)} images -> {args.output}")
    return 0


def prepare(args: argparse.Namespace) -> int:
    """Aligned faces and a pair list from an official archive, a folder or an InsightFace .bin."""
    from evaluation.prepare import prepare_set

    pairs, skipped = prepare_set(args.source, args.pairs, args.output, args.align, args.workers)
    print(f"{len(pairs.names) - skipped} of {len(pairs.names)} images, pairs -> {args.output / 'pairs.tsv'}")
    return _exit_code(skipped, f"{args.output / 'pairs.tsv'}.skipped.tsv")


def _image_names(args: argparse.Namespace) -> list[str]:
    from faces.listing import expand_inputs

    return list(expand_inputs(args.images, sys.stdin))


def _recognizer(args: argparse.Namespace) -> Any:
    from labels.recognition import load_recognizer
    from model.device import pick_device

    return load_recognizer(args.fr, args.fr_mean, args.fr_std, args.fr_size, pick_device(args.device))


def _run(args: argparse.Namespace, settings: Mapping[str, Any]) -> Any:
    from evaluation.extract import Extraction

    return Extraction(args.output, settings, args.batch_size, args.workers, args.resume)


def _exit_code(bad: int, where: str | Path) -> int:
    if bad:
        print(f"{bad} images could not be used: {where}", file=sys.stderr)
    return int(bad > 0)


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line: a sub-command and its flags."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("evaluate.py", description=__doc__, formatter_class=formatter)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    add = _command(commands, embed)
    add("images", nargs="+", metavar="PATH", help="aligned faces: a file, a folder, a pattern, @list or -")
    add("--fr", required=True, metavar="MODEL", help=".onnx, a checkpoint, or dlib")
    add("--output", type=Path, required=True, metavar="FILE.npz", help="names, embeddings, model_sha256")
    add("--flip", action="store_true", help="concatenate the mirror image's embedding, as CR-FIQA does")
    _add_running_flags(add, batch_size=64)

    add = _command(commands, baseline)
    add("name", choices=BASELINES)
    add("images", nargs="*", metavar="PATH", help="aligned faces: a file, a folder, a pattern, @list or -")
    add("--embeddings", metavar="FILE", help="norm, oracle: what embed made of the images, instead of PATH and --fr")
    add("--fr", metavar="MODEL", help="the FR model to look through; faceqan, serfiq and grafiqs need a checkpoint")
    add("--output", type=Path, required=True, metavar="FILE.csv", help="path,status,quality")
    add("--block", default="", metavar="MODULE", help="grafiqs: gradient at this module's output, such as layer2")
    _add_running_flags(add, batch_size=16)

    add = _command(commands, edc)
    add("--pairs", required=True, metavar="PAIRS", help="TSV, pair_list.txt, LFW's pairs.txt, CPLFW's list, .bin")
    add("--scores", required=True, nargs="+", action=_Named, metavar="NAME=FILE", help="METHOD or METHOD@FR = table")
    add("--embeddings", required=True, nargs="+", action=_Named, metavar="NAME=FILE", help="an .npz, a folder of .npy")
    add("--output", type=Path, required=True, metavar="FOLDER")
    add("--fmr", type=_share, nargs="+", default=[1e-2, 1e-3, 1e-4], help="FMR targets (default 1e-2 1e-3 1e-4)")
    add("--limits", type=_share, nargs="+", default=[0.2, 0.3, 0.4], help="of the pAUC (default 0.2 0.3 0.4)")
    add("--protocol", choices=("iso", "cr-fiqa"), default="iso", help="iso (default), or that of the ERC tables")
    add("--bootstrap", type=natural, default=1000, metavar="N", help="replicates of the intervals (default 1000)")
    add("--seed", type=natural, default=0, metavar="N", help="of the bootstrap (default 0)")
    add("--against", metavar="METHOD", help="also the paired differences of METHOD minus each other method")
    add("--images", type=Path, metavar="FOLDER", help="shows the faces at both ends on the page")

    add = _command(commands, compare)
    add("folders", nargs="+", metavar="FOLDER", help="what edc wrote with --output, one for each pair set")
    add("--against", required=True, metavar="METHOD", help="the method that each other one is compared with")
    add("--limit", type=_share, default=DEFAULT_LIMIT, help=f"of the pAUC (default {DEFAULT_LIMIT})")
    add("--output", type=Path, metavar="FOLDER", help="differences.json and differences.md")

    add = _command(commands, threshold)
    add("scores", nargs="?", metavar="SCORES", help="score table of good captures: what inference.py writes, or others")
    add("--weights", metavar="FILE_OR_NAME", help="instead: the percentiles stored in this checkpoint")
    add("--discard", type=_share, required=True, metavar="SHARE", help="of good captures to lose, such as 0.05")
    add("--seed", type=natural, default=0, metavar="N", help="of the bootstrap (default 0)")

    add = _command(commands, pairs)
    add("faces", type=Path, metavar="FACES", help="folder with a sub-folder for each identity")
    add("--output", type=Path, required=True, metavar="PAIRS.tsv", help="path_a, path_b, same; paths relative to FACES")
    add("--mated", type=positive, default=40, metavar="N", help="at most, an identity (default 40)")
    add("--non-mated", type=positive, default=60_000, metavar="N", help="in all (default 60000)")
    add("--seed", type=natural, default=0, metavar="N", help="of what is drawn (default 0)")

    add = _command(commands, prepare)
    add("source", type=Path, metavar="SOURCE", help=".zip, .tgz, a folder, or InsightFace's .bin")
    add("--pairs", type=Path, metavar="PAIRS", help="the set's pair list (a .bin holds its own)")
    add("--output", type=Path, required=True, metavar="FOLDER", help="images/ and pairs.tsv")
    add("--align", choices=("auto", "yes", "no"), default="auto", help="auto: what is 112x112 is aligned already")
    add("--workers", type=natural, default=os.cpu_count() or 1, metavar="N", help="processes (default: one a CPU)")
    return parser.parse_args(arguments)


def _command(commands: Any, function: Any) -> Any:
    command = commands.add_parser(function.__name__, description=function.__doc__, help=function.__doc__)
    command.set_defaults(function=function)
    return command.add_argument


def _add_running_flags(add: Any, batch_size: int) -> None:
    add("--fr-mean", type=channels, metavar="R,G,B", help="of x / 255 (default: as the model needs, else 0.5)")
    add("--fr-std", type=channels, metavar="R,G,B", help="as --fr-mean")
    add("--fr-size", type=positive, metavar="N", help="pixels (default: as the model needs, else 112)")
    add("--device", default="auto", help="auto (default), cpu, cuda, mps")
    add("--batch-size", type=positive, default=batch_size, metavar="N", help=f"(default {batch_size})")
    add("--workers", type=natural, default=os.cpu_count() or 1, metavar="N", help="processes (default: one a CPU)")
    add("--resume", action="store_true", help="go on with an interrupted run")


class _Named(argparse.Action):
    """NAME=FILE ... as a dict; the flag may be repeated."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        named = dict(getattr(namespace, self.dest) or {})
        for value in values:
            name, _, file = value.partition("=")
            if not name or not file or name in named:
                parser.error(f"{option_string}: {value!r}; NAME=FILE was expected, each name once")
            named[name] = file
        setattr(namespace, self.dest, named)


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"a number between 0 and 1 was expected, not {text}")
    return value


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code 0, 1 when some images could not be used, 2 when the call was wrong, 130 for Ctrl-C."""
    args = parse(arguments)
    keep_freed_memory()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="surrogateescape")  # file names need not be UTF-8
    return exit_code(lambda: args.function(args), stopped="stopped; embed and baseline go on with --resume")


if __name__ == "__main__":
    sys.exit(main())
