"""The known weight files: which they are, where they come from, and how to get them."""

from __future__ import annotations

import argparse
import os
import sys
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from .checkpoint import sha256_of
from .files import only_run

HELP = """The known weight files: which they are, where they come from, and how to get them.

    python -m model.weights           list them: name, file, state, licence, origin
    python -m model.weights RN50      download one that has a direct link; a broken download continues

A state is one of
    checked        the file is in weights/ and its sha256 is the known one
    OTHER SHA256   the file is in weights/, but it is another one, or damaged
    here           the file is in weights/; its sha256 is not known
    to download    `python -m model.weights NAME` fetches it
    by hand        get it from its origin and put it into weights/ under this file name

The names are also what --weights and Scorer(...) take.
"""
FOLDER = Path(__file__).parents[1] / "weights"
TIMEOUT = 30  # seconds without an answer
CHUNK = 1 << 20


class WeightsError(OSError):
    """Weights that are not present, or could not be downloaded. The message says how to get them."""


@dataclass(frozen=True)
class KnownWeights:
    """A file of weights. `url` is a direct link, `origin` the place where a person finds it.

    `system` is a key of `model.loading.SYSTEMS`, `image_size` the side in pixels of the images that the network takes.
    """

    name: str
    file: str
    origin: str
    licence: str
    sha256: str | None = None
    url: str | None = None
    system: str = ""
    image_size: int | None = None


DRIVE = "https://drive.google.com"
CR_FIQA_L = f"{DRIVE}/drive/folders/1siy_3eQSBuIV6U6_9wgGtbZG2GMgVLMy (linked by github fdbtrs/CR-FIQA)"
CR_FIQA_S = f"{DRIVE}/drive/folders/13bE4LP303XA_IzL1YOgG5eN0c8efHU9h (linked by github fdbtrs/CR-FIQA)"
DSL_FIQA = "the link in the README of github DSL-FIQA/DSL-FIQA"
HEADER = "a training of CR-FIQA, which writes it beside the backbone (no published header is known)"
EDIFFIQA = "the weights linked by github LSIbabnikz/eDifFIQA"
SHIPPED = "this repository, with which it is shipped"
SHIPPED_LICENCE = "non-commercial"  # after its training images

WEIGHTS = (
    KnownWeights(
        "clib-fiqa",
        "clib_fiqa_tiny.safetensors",
        SHIPPED,
        SHIPPED_LICENCE,
        sha256="0452c2747f8d100597cfe7c115c1293999116c1c20a51ce9124d1f3477c62395",
        system="clib-fiqa",
        image_size=112,
    ),
    KnownWeights(
        "mfn",
        "mfn_small.safetensors",
        SHIPPED,
        SHIPPED_LICENCE,
        sha256="f05dd64d19fdeece15e1e9b286ef18cdcbaafc0400354a521fc69fae93a720f1",
        system="mfn",
        image_size=112,
    ),
    KnownWeights(
        "center-face",
        "center_face.safetensors",
        "github Star-Clouds/CenterFace, converted; shipped with this repository",
        "MIT",
        sha256="1cf830cfea1d95c8698be7e0a2508d2ec5c26cc2a6317a2dcabe67824a37a6b6",
        system="center-face",
    ),
    KnownWeights(
        "face-points",
        "face_points.safetensors",
        SHIPPED,
        SHIPPED_LICENCE,
        sha256="4ae4206b22250d924ef1fd1350d114b20051cf42484f4672c18ad6e3145d3896",
        system="face-points",
        image_size=192,
    ),
    KnownWeights(
        "crop-check",
        "crop_check.safetensors",
        SHIPPED,
        SHIPPED_LICENCE,
        sha256="1a2a79b2b04b8360460ca12d096de4964a6e7a1307291376b89a081d0d2e1367",
        system="crop-check",
        image_size=56,
    ),
    KnownWeights(
        "ediffiqa",
        "ediffiqa_t.safetensors",
        SHIPPED,
        SHIPPED_LICENCE,
        sha256="b7ed6d516a7cd66e3f3b1319232e95f765ffe184ae40aab4069b85f2f97aafe4",
        system="ediffiqa",
        image_size=112,
    ),
    KnownWeights(
        "RN50",
        "RN50.pt",
        "https://github.com/openai/CLIP",
        "MIT",
        sha256="afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
        url="https://openaipublic.azureedge.net/clip/models/"
        "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762/RN50.pt",
        system="clip",
        image_size=224,
    ),
    KnownWeights(
        "clib-fiqa-r50",
        "CLIB-FIQA_R50.pth",
        f"{DRIVE}/file/d/18-Bkno_CWDaT9EA-FbnJ1oDcg1RDkPTt (linked by github oufuzhao/CLIB-FIQA)",
        "MIT",
        system="clib-fiqa",
        image_size=224,
    ),
    KnownWeights(
        "mfn-factors",
        "MFN_Factors.pth",
        f"{DRIVE}/drive/folders/18Su86Hw2pO5LBDD2eqzHJT82qTlV2gI7 (linked by github oufuzhao/CLIB-FIQA)",
        "MIT",
        system="mfn",
        image_size=112,
    ),
    KnownWeights("cr-fiqa-l", "181952backbone.pth", CR_FIQA_L, "CC BY-NC 4.0", system="cr-fiqa", image_size=112),
    KnownWeights("cr-fiqa-l-header", "181952header.pth", HEADER, "CC BY-NC 4.0", system="arcface-header"),
    KnownWeights("cr-fiqa-s", "32572backbone.pth", CR_FIQA_S, "CC BY-NC 4.0", system="cr-fiqa", image_size=112),
    KnownWeights("cr-fiqa-s-header", "32572header.pth", HEADER, "CC BY-NC 4.0", system="arcface-header"),
    KnownWeights("ediffiqa-l", "ediffiqaL.pth", EDIFFIQA, "none stated", system="ediffiqa", image_size=112),
    KnownWeights("ediffiqa-m", "ediffiqaM.pth", EDIFFIQA, "none stated", system="ediffiqa", image_size=112),
    KnownWeights("ediffiqa-s", "ediffiqaS.pth", EDIFFIQA, "none stated", system="ediffiqa", image_size=112),
    KnownWeights("ediffiqa-t", "ediffiqaT.pth", EDIFFIQA, "none stated", system="ediffiqa", image_size=112),
    KnownWeights(
        "dsl-fiqa",
        "dsl_fiqa_small.safetensors",
        SHIPPED,
        SHIPPED_LICENCE,
        sha256="5d0a43e127f1d4f512c6c718e6b5d2921fd38f9c079f31f2208c8439b37d964d",
        system="dsl-fiqa",
        image_size=128,
    ),
    KnownWeights("dsl-fiqa-vit-b", "IQA.pt", DSL_FIQA, "none stated", system="dsl-fiqa", image_size=384),
    KnownWeights("dsl-fiqa-de", "DE.pt", DSL_FIQA, "none stated", system="dsl-fiqa-de", image_size=384),
)


def is_known(name_or_path: str | Path) -> bool:
    """Whether `find_weights` knows what is meant: an existing file, or a known name or file name."""
    names = {name for known in WEIGHTS for name in (known.name, known.file)}
    return str(name_or_path) in names or any(path.is_file() for path in (Path(name_or_path), FOLDER / name_or_path))


def find_weights(name_or_path: str | Path) -> Path:
    """The path of a file, or of a known name or file name in `weights/`. Never downloads.

    Raises WeightsError, whose message says how to get the file.
    """
    if Path(name_or_path).is_file():
        return Path(name_or_path)
    if (FOLDER / name_or_path).is_file():
        return FOLDER / name_or_path
    known = next((known for known in WEIGHTS if str(name_or_path) in (known.name, known.file)), None)
    if known is None:
        names = ", ".join(known.name for known in WEIGHTS)
        raise WeightsError(f"{name_or_path}: no such file, and not the name of known weights ({names})")
    if not (FOLDER / known.file).is_file():
        raise WeightsError(_how_to_get(known, FOLDER))
    return FOLDER / known.file


def download(known: KnownWeights, folder: Path = FOLDER) -> Path:
    """Download a file, with progress on stderr; an interrupted download continues. The sha256 is checked first.

    Raises WeightsError when there is no link or no connection, when the connection breaks, or when the sha256 differs;
    BlockingIOError when another process downloads the file.
    """
    target = folder / known.file
    if known.url is None or known.sha256 is None:
        raise WeightsError(_how_to_get(known, folder))
    folder.mkdir(parents=True, exist_ok=True)
    with only_run(target):
        return _download(known, target)


def _download(known: KnownWeights, target: Path) -> Path:
    """`download`, in the only process that writes this file."""
    assert known.url is not None, "checked above"
    partial = target.with_name(target.name + ".partial")
    try:
        _fetch(known.url, partial)
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
        how = _how_to_get(known, target.parent)
        raise WeightsError(f"{known.url} could not be downloaded ({error}). {how}") from error
    if (found := sha256_of(partial)) != known.sha256:
        partial.unlink()
        raise WeightsError(f"{known.url} gave a file of sha256 {found}, expected {known.sha256}: it was deleted")
    os.replace(partial, target)
    return target


def _fetch(url: str, partial: Path) -> None:
    """Download to `partial`; continue it when the server can."""
    done = partial.stat().st_size if partial.exists() else 0
    request = urllib.request.Request(url, headers={"Range": f"bytes={done}-"} if done else {})
    try:
        response = urllib.request.urlopen(request, timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416:  # nothing is left to send: the hash will tell whether the file is right
            return
        raise
    with response:
        if response.status != 206:  # the whole file comes, whatever was asked for
            done = 0
        _append(response, partial, done)


def _append(response: HTTPResponse, partial: Path, done: int) -> None:
    from tqdm import tqdm

    length = response.headers["Content-Length"]
    total = done + int(length) if length else None
    bar = tqdm(total=total, initial=done, unit="B", unit_scale=True, desc=partial.stem, disable=None)
    with open(partial, "ab" if done else "wb") as file, bar:
        while chunk := response.read(CHUNK):
            file.write(chunk)
            bar.update(len(chunk))
    if total is not None and partial.stat().st_size < total:
        raise ConnectionError("the connection broke; call again to continue")


def _how_to_get(known: KnownWeights, folder: Path) -> str:
    source = f"{known.url} (or run `python -m model.weights {known.name}`)" if known.url else known.origin
    return f"{known.file} is needed: get it from {source} and put it at {folder / known.file}"


def _state(known: KnownWeights) -> str:
    """The state of a file, as `HELP` explains it."""
    path = FOLDER / known.file
    if not path.is_file():
        return "to download" if known.url else "by hand"
    if known.sha256 is None:
        return "here"
    return "checked" if sha256_of(path) == known.sha256 else "OTHER SHA256"


def main(arguments: Sequence[str] | None = None) -> int:
    """List the known weights and check those present, or download those named. Exit code 2 after an error."""
    parser = argparse.ArgumentParser(
        "python -m model.weights", description=HELP, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="weights to download (default: list all)")
    names = parser.parse_args(arguments).names
    if not names:  # in one piece, so that a reader such as `head` may leave
        lines = (f"{w.name:17} {w.file:28} {_state(w):12} {w.licence:15} {w.origin}" for w in WEIGHTS)
        print("\n".join(lines))
    try:
        for name in names:
            match = [known for known in WEIGHTS if known.name == name]
            print(download(match[0]) if match else find_weights(name))
    except OSError as error:  # WeightsError, or another process downloads the same file
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
