"""Every reader of files from outside, with a good file of each of its kinds: what test_fuzz.py and fuzz.py damage."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import zipfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image

from evaluation.embeddings import read_embeddings
from evaluation.inputs import read_any_embeddings, read_qualities, read_tsv
from evaluation.pairs import read_bin, read_pairs
from evaluation.prepare import _members, _reading
from evaluation.scores import read_scores
from faces.containers import read_picture, with_members
from faces.listing import expand_inputs
from faces.random_crops import read_landmarks
from faces.reader import ImageError, read_image
from labels.label_table import COLUMNS, read_labels
from methods.cr_fiqa.recordio import MAGIC, RecordReader, read_samples
from methods.dsl_fiqa.data import _read_labels
from model.bands import Bands
from model.calibration import Calibration, Scaling
from model.checkpoint import read_checkpoint
from model.confidence import ConfidenceMLP
from model.dlib_resnet import read_dlib_resnet
from model.loading import load
from model.percentiles import Percentiles
from model.preprocessing import Preprocessing


class Reader(NamedTuple):
    """`read` takes a path; `files` are whole files of its formats; what it raises for others names the file, unless
    `names_file` is false (its caller adds the name)."""

    name: str
    suffix: str
    read: Callable[[Path], Any]
    files: list[bytes]
    names_file: bool = True


def picture(kind: str, mode: str = "RGB", **options: Any) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    image, buffer = Image.fromarray(pixels).convert(mode), io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def saved(content: object, zipped: bool = True) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer, _use_new_zipfile_serialization=zipped)
    return buffer.getvalue()


def npz(compressed: bool = False) -> bytes:
    buffer = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(buffer, names=np.array(["a.jpg", "b.jpg"]), embeddings=np.ones((2, 4), np.float32), model_sha256=np.array("x"))
    return buffer.getvalue()


def npy(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


def safetensors(metadata: dict[str, str]) -> bytes:
    from safetensors.torch import save

    return save(ConfidenceMLP().state_dict(), metadata)


def parquet_of_pictures() -> bytes:
    buffer = io.BytesIO()
    pictures = [{"bytes": picture("PNG"), "path": "a.png"}, {"bytes": None, "path": "b.png"}]
    pyarrow.parquet.write_table(pyarrow.table({"image": pictures}), buffer)
    return buffer.getvalue()


def tar_of_pictures() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as file:
        for name in ("ada/1.png", "notes.txt", "ada/2.png"):
            info = tarfile.TarInfo(name)
            info.size = len(picture("PNG"))
            file.addfile(info, io.BytesIO(picture("PNG")))
    return buffer.getvalue()


def torchscript() -> bytes:
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), buffer)
    return buffer.getvalue()


def records() -> bytes:
    """A RecordIO of three images without an index."""
    image, parts = picture("PNG"), []
    for number in range(3):
        content = struct.pack("<IfQQ", 0, float(number), number, 0) + image
        parts.append(struct.pack("<II", MAGIC, len(content)) + content.ljust(-(-len(content) // 4) * 4, b"\0"))
    return b"".join(parts)


def index() -> bytes:
    size = len(records()) // 3
    return "".join(f"{number}\t{number * size}\n" for number in range(3)).encode()


def archive(kind: str) -> bytes:
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as file:
            file.writestr("a/b.jpg", b"content" * 20)
    else:
        with tarfile.open(fileobj=buffer, mode=kind) as file:
            info = tarfile.TarInfo("a/b.jpg")
            info.size = 140
            file.addfile(info, io.BytesIO(b"content" * 20))
    return buffer.getvalue()


def read_all_records(path: Path) -> None:
    samples = read_samples(path)
    for offset in [samples[number] for number in range(min(4, len(samples)))]:
        try:
            RecordReader(str(path))(offset)
        except ImageError:
            continue


def read_index(path: Path) -> None:
    """A RecordIO whose index is the damaged file."""
    record = path.with_suffix(".rec")
    record.write_bytes(records())
    read_samples(record)


def read_image_file(path: Path) -> None:
    try:
        read_image(path, max_pixels=1_000_000)
    except ImageError as error:
        raise ValueError(str(error)) from error


def read_metadata(path: Path) -> None:
    text = path.read_text(encoding="utf-8", errors="surrogateescape")
    default = Preprocessing(112, (0.5,) * 3, (0.5,) * 3)
    for read in (lambda: Preprocessing.from_metadata({"preprocessing": text}, default),
                 lambda: Percentiles.from_metadata({"percentiles": text}),
                 lambda: Calibration.from_metadata({"calibration": text})):  # fmt: skip
        try:
            read()
        except ValueError:
            continue


def read_members(path: Path) -> None:
    """All pictures of a container; one that cannot be read has a status."""
    for member in islice(with_members([str(path)]), 100):
        try:
            read_picture(member)
        except ImageError:
            continue


def unpack(path: Path) -> None:
    with _reading(path):
        for _, file in _members(path):
            file.read()


LABELS = "\t".join(COLUMNS) + "\na.jpg\t0.5\t1\t2\t1\t0\t1\tme\tok\n"
ROWS = [{"path": "a.jpg", "status": "ok", "quality": 0.5}, {"path": "b.jpg", "status": "no_face", "quality": None}]
TABLE = pickle.dumps({"a.jpg": 0.5, "b.jpg": 0.7})
ARRAYS = pickle.dumps({"a.jpg": np.ones(4, np.float32), "b.jpg": np.ones(4, np.float32)})
BIN = pickle.dumps(([picture("PNG") + bytes([number]) for number in range(4)], [True, False]), 2)
STATE = dict(ConfidenceMLP().state_dict())
ROOT = Path(__file__).parents[1]
CALIBRATION = Calibration("faces", {"blur": Scaling((1.0, 1.0, 2.0), 9)}).to_json()
META = json.dumps({"size": 112, "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]})

READERS = [
    Reader("image", ".jpg", read_image_file, [
        picture("JPEG"), picture("JPEG", progressive=True), picture("JPEG", "CMYK"), picture("PNG"),
        picture("PNG", "P"), picture("PNG", "RGBA"), picture("WEBP"), picture("WEBP", lossless=True), picture("BMP"),
        picture("TIFF"), picture("TIFF", compression="tiff_lzw"), picture("TIFF", compression="jpeg"),
        picture("TIFF", "F"), picture("GIF", "P"),
    ]),
    Reader("labels", ".tsv", read_labels, [LABELS.encode(), b"a b.jpg [[0.5]] 1 2 1 0 1\n"]),
    Reader("pairs", ".txt", read_pairs, [
        b"path_a\tpath_b\tsame\na.jpg\tb.jpg\t1\nc.jpg\td.jpg\t0\n", b"a.jpg b.jpg 1\nc.jpg d.jpg 0\n",
        b"1 2\nname 1 2\nname 1 other 2\n", b"a.jpg 1\nb.jpg 1\nc.jpg 0\nd.jpg 0\n",
    ]),
    Reader("scores as CSV", ".csv", read_scores, [b'path,status,quality\n"a, b.jpg",ok,0.5\nc.jpg,no_face,\n']),
    Reader("scores as lines", ".txt", read_scores, [b"a.jpg 0.5\nb c.jpg 0.7\n", b"path\tquality\na.jpg\t0.5\n"]),
    Reader("scores as JSONL", ".jsonl", read_scores, ["".join(json.dumps(row) + "\n" for row in ROWS).encode()]),
    Reader("scores as pickle", ".pkl", read_scores, [TABLE, pickle.dumps([("a.jpg", 0.5)], 0)]),
    Reader("qualities", ".tsv", read_qualities, [LABELS.encode(), b"path\tquality\na.jpg\t0.5\n"]),
    Reader("qualities as pickle", ".pkl", read_qualities, [TABLE]),
    Reader("a table", ".tsv", lambda path: read_tsv(path, ("path", "score")), [b"path\tscore\na.jpg\t1\n"]),
    Reader("embeddings", ".npz", read_embeddings, [npz(), npz(compressed=True)]),
    Reader("embeddings as pickle", ".pkl", read_any_embeddings, [ARRAYS]),
    Reader("bin", ".bin", read_bin, [BIN]),
    Reader("RecordIO", ".rec", read_all_records, [records()]),
    Reader("index of a RecordIO", ".idx", read_index, [index()], names_file=False),
    Reader("checkpoint", ".pth", read_checkpoint, [saved(STATE), saved(STATE, False), torchscript(), safetensors({})]),
    Reader("network", ".safetensors", load, [safetensors({"system": "confidence-mlp"}), saved(STATE)]),
    Reader("metadata", ".json", read_metadata, [META.encode(), CALIBRATION.encode()]),
    Reader("bands", ".json", Bands.read, [(ROOT / "weights" / "bands_clib_fiqa_tiny.json").read_bytes()]),
    Reader("landmarks", ".npy", lambda path: read_landmarks(str(path), np.zeros((20, 20, 3), np.uint8)), [
        npy(np.ones((5, 2))), npy(np.ones((68, 2), np.int64)),
    ]),
    Reader("labels of DSL-FIQA", ".json", _read_labels, [b'{"Image": ["a.jpg", "b.jpg"], "MOS": [0.5, 1]}']),
    Reader("zip archive", ".zip", unpack, [archive("zip")]),
    Reader("tar archive", ".tgz", unpack, [archive("w:gz"), archive("w")]),
    Reader("tar of pictures", ".tar", read_members, [tar_of_pictures()], names_file=False),
    Reader("Parquet of pictures", ".parquet", read_members, [parquet_of_pictures()], names_file=False),
    Reader("list of paths", ".txt", lambda path: list(expand_inputs([f"@{path}"], [])), [b"a.jpg\nb.jpg\n"]),
    Reader("dlib's network", ".dat", read_dlib_resnet, [b"\x03\x01\x01" * 40]),
]  # fmt: skip


def attempt(reader: Reader, path: Path, content: bytes) -> None:
    """Read it; anything but an error of ours fails, and so does one that does not say which file it is."""
    path.write_bytes(content)
    message = path.name
    try:
        reader.read(path)
    except (ValueError, OSError) as error:
        message = str(error)
    if reader.names_file and path.name not in message:
        raise AssertionError(f"{message!r} does not name the file")
