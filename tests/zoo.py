"""A folder of malformed and odd picture files, with the status that each must have.

python tests/zoo.py FOLDER        writes the files into FOLDER/zoo, reads each, and says which cost most
"""

from __future__ import annotations

import io
import os
import resource
import socket
import struct
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

OK, CUT, LARGE = {"ok"}, {"truncated"}, {"too_large"}
CUT_SHORT = {"truncated", "not_an_image", "empty"}  # where the beginning is gone, there is no format left
DAMAGED = {"ok", "truncated"}  # a changed byte may be one that nothing depends on
ORIENTED = ("JPEG", "PNG", "WEBP", "TIFF")
SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WEBP": ".webp", "BMP": ".bmp", "TIFF": ".tif", "GIF": ".gif"}
BROKEN_EXIF = [
    b"",
    b"garbage",
    b"II*\0",
    b"II*\0\xff\xff\xff\xff",
    b"MM\0*\0\0\0\x08\xff\xff",
    b"II*\0\x08\0\0\0\0\0",
    b"II*\0\x08\0\0\0\x01\0\x12\x01\x02\0\xff\xff\xff\xff\0\0\0\0",
    b"II+\0\x08\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff",
    b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0\x09\0\0\0\x08\0\0\0",
    b"\0" * 60_000,
]
NAMES = [
    b"caf\xe9.jpg",
    b"caf\xe8.jpg",
    b"\xff\xfe.png",
    b"a\tb.jpg",
    b"a\nb.jpg",
    b"a\r\nb.jpg",
    b"-dash.jpg",
    b"--help.jpg",
    b"=1+1.jpg",
    b"+1.jpg",
    b"@sum.jpg",
    b"'quote.jpg",
    b'"double".jpg',
    b"a,b;c.jpg",
    b" leading.jpg",
    b"trailing .jpg",
    b"\x1b[31mred.jpg",
    b"\x9b2J.jpg",
    b"%s%n.jpg",
    b"$(touch x).jpg",
    b"`x`.jpg",
    b"<script>alert(1)<.jpg",
    b"&amp;.jpg",
    "日本語.jpg".encode(),
    "\u202egpj.exe.jpg".encode(),
    "e\u0301.jpg".encode(),
    "é.jpg".encode(),
    b"*.jpg",
    b"[a].jpg",
    b"?.jpg",
    b"back\\slash.jpg",
    b"..jpg",
    b"...jpg",
    b"a" * 240 + b".jpg",
    b"UPPER.JPG",
    b"no space\xa0.jpg",
    b"|.jpg",
    b"#.jpg",
    b"~.jpg",
    b"null.jpg",
    b"nan.jpg",
    b"1e999.jpg",
]


def picture(width: int = 40, height: int = 24) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def encode(kind: str, image: Image.Image | None = None, **options: Any) -> bytes:
    buffer = io.BytesIO()
    (image or picture()).save(buffer, kind, **options)
    return buffer.getvalue()


def exif(orientation: int) -> Image.Exif:
    block = Image.Exif()
    block[0x0112] = orientation
    return block


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def png(width: int, height: int, depth: int, colour: int, *chunks: bytes) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + b"".join(chunks) + chunk(b"IEND", b"")


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def tiff(entries: list[tuple[int, int, int, int]], following: int = 0, content: bytes = b"") -> bytes:
    """A little-endian TIFF of one directory of entries (tag, type, count, value)."""
    directory = struct.pack("<H", len(entries)) + b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return b"II*\0\x08\0\0\0" + directory + struct.pack("<I", following) + content


def markers(kind: str, content: bytes) -> Iterator[int]:
    """Where the parts of a file begin."""
    if kind == "JPEG":
        return (
            place
            for place in range(2, len(content) - 1)
            if content[place] == 0xFF and content[place + 1] not in (0, 255)
        )
    if kind == "PNG":
        return (
            place
            for name in (b"IHDR", b"IDAT", b"IEND", b"tEXt")
            for place in (content.find(name), content.find(name) + 6)
            if content.find(name) > 0
        )
    steps = {"WEBP": 12, "BMP": 14, "TIFF": 8, "GIF": 6}
    return iter(sorted({*range(steps[kind], min(80, len(content)), 8), len(content) // 2, len(content) - 2}))


def ordinary() -> Iterator[tuple[str, bytes, set[str]]]:
    """Names, contents and statuses of files that decoders disagree about."""
    images: dict[str, tuple[str, Image.Image, dict[str, Any]]] = {
        "cmyk.jpg": ("JPEG", picture().convert("CMYK"), {}),
        "grey.jpg": ("JPEG", picture().convert("L"), {}),
        "cmyk.tif": ("TIFF", picture().convert("CMYK"), {}),
        "lab.tif": ("TIFF", picture().convert("LAB"), {}),
        "alpha.png": ("PNG", picture().convert("RGBA"), {}),
        "grey-alpha.png": ("PNG", picture().convert("LA"), {}),
        "alpha.webp": ("WEBP", picture().convert("RGBA"), {}),
        "bits.png": ("PNG", picture().convert("1"), {}),
        "bits.tif": ("TIFF", picture().convert("1"), {"compression": "group4"}),
        "rle.bmp": ("BMP", picture().convert("P"), {}),
        "palette-alpha.png": ("PNG", picture().convert("P"), {"transparency": 3}),
        "palette-alphas.png": ("PNG", picture().convert("P"), {"transparency": bytes(range(256))}),
        "key.png": ("PNG", picture(), {"transparency": (1, 2, 3)}),
        "palette.gif": ("GIF", picture().convert("P"), {}),
        "float.tif": ("TIFF", Image.fromarray(np.full((9, 9), np.nan, np.float32)), {}),
        "infinite.tif": ("TIFF", Image.fromarray(np.full((9, 9), np.inf, np.float32)), {}),
        "int.tif": ("TIFF", Image.fromarray(np.full((9, 9), 70_000, np.int32)), {}),
        "deep.png": ("PNG", Image.fromarray(np.full((9, 9), 40_000, np.uint16)), {}),
        "deep.tif": ("TIFF", Image.fromarray(np.full((9, 9), 40_000, np.uint16)), {}),
        "one.png": ("PNG", picture(1, 1), {}),
        "one.jpg": ("JPEG", picture(1, 1), {}),
        "one.gif": ("GIF", picture(1, 1), {}),
        "wide.png": ("PNG", picture(30_000, 10), {}),
        "tall.jpg": ("JPEG", picture(10, 30_000), {}),
        "wide.webp": ("WEBP", picture(16_000, 3), {}),
        "thin.bmp": ("BMP", picture(1, 3000), {}),
        "progressive.jpg": ("JPEG", picture(), {"progressive": True}),
        "444.jpg": ("JPEG", picture(), {"subsampling": 0}),
        "worst.jpg": ("JPEG", picture(), {"quality": 1}),
        "restarts.jpg": ("JPEG", picture(), {"restart_marker_blocks": 1}),
        "comment.jpg": ("JPEG", picture(), {"comment": b"x" * 60_000}),
        "lossless.webp": ("WEBP", picture(), {"lossless": True}),
        **{
            f"{compression}.tif": ("TIFF", picture(), {"compression": compression})
            for compression in ("tiff_lzw", "jpeg", "packbits", "tiff_adobe_deflate", "zstd", "lzma")
        },
    }
    for name, (kind, image, options) in images.items():
        yield name, encode(kind, image, **options), OK
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        frames = [picture(40 + 0 * step, 24).rotate(90 * step) for step in range(3)]
        yield f"frames{SUFFIXES[kind]}", encode(kind, save_all=True, append_images=frames), OK
    yield "two-views.jpg", encode("MPO", save_all=True, append_images=[picture()]), OK
    for kind in SUFFIXES:
        for suffix in SUFFIXES.values():
            yield f"{kind}-as-{suffix[1:]}{suffix}", encode(kind), OK
    for kind in ORIENTED:
        for orientation in range(10):
            yield f"{kind}-turned-{orientation}{SUFFIXES[kind]}", encode(kind, exif=exif(orientation)), OK
    for number, block in enumerate(BROKEN_EXIF):
        for kind in ("JPEG", "PNG", "WEBP"):
            content = encode(kind, exif=b"Exif\0\0" + block)
            yield f"{kind}-exif-{number}{SUFFIXES[kind]}", content, OK


def damaged() -> Iterator[tuple[str, bytes, set[str]]]:
    """Cut off at every marker, and with changed bytes."""
    for kind, suffix in SUFFIXES.items():
        for options in ({}, {"progressive": True}) if kind == "JPEG" else ({},):
            content = encode(kind, **options)
            for place in sorted(set(markers(kind, content))):
                if place < len(content) - 2 or kind not in ("PNG", "BMP"):
                    name = f"{kind}-{len(options)}-cut-{place}{suffix}"
                    yield (
                        name,
                        content[:place],
                        CUT_SHORT if place < 16 else CUT | ({"ok"} if place > len(content) - 16 else set()),
                    )
    for step in range(10):
        for kind, suffix in SUFFIXES.items():
            content = bytearray(encode(kind))
            place = 20 + step * (len(content) - 21) // 10
            content[place] ^= 0xFF
            yield f"{kind}-changed-{place}{suffix}", bytes(content), DAMAGED | LARGE


def costly() -> Iterator[tuple[str, bytes, set[str]]]:
    """What once took gigabytes or minutes."""
    jpeg, progressive = encode("JPEG"), encode("JPEG", progressive=True)
    start, rest, scan = jpeg[:2], jpeg[2:], progressive[progressive.rindex(b"\xff\xda") : -2]
    yield "bits-bomb.png", png(20_000, 20_000, 1, 0, chunk(b"IDAT", zlib.compress(bytes(20_000 * 2501), 9))), LARGE
    yield "scans.jpg", progressive[:-2] + 2000 * scan + b"\xff\xd9", LARGE
    yield "exif.jpg", start + 760 * segment(0xE1, b"Exif\0\0" + bytes(65_000)) + rest, OK
    yield "profile.jpg", start + 255 * segment(0xE2, b"ICC_PROFILE\0" + bytes(65_000)) + rest, OK
    yield "filled.jpg", start + 20_000_000 * b"\xff" + rest, OK
    yield "segments.jpg", start + 100_001 * segment(0xFE, b"") + rest, LARGE
    yield "huge.jpg", jpeg.replace(b"\x00\x18\x00\x28", b"\xff\xdc\xff\xdc", 1), LARGE
    text = b"Comment\0\0" + zlib.compress(bytes(80_000_000), 9)
    data = chunk(b"IDAT", zlib.compress(bytes(4 * 13)))
    yield "text-bomb.png", png(4, 4, 8, 2, chunk(b"zTXt", text), data), DAMAGED
    yield (
        "profile-bomb.png",
        png(4, 4, 8, 2, chunk(b"iCCP", b"x\0\0" + zlib.compress(bytes(80_000_000), 9)), data),
        DAMAGED,
    )
    yield "chunks.png", png(4, 4, 8, 2, 150_000 * chunk(b"teSt", b""), data), LARGE
    yield "no-data.png", png(4, 4, 8, 2), CUT
    yield "palette-missing.png", png(4, 4, 8, 3, chunk(b"IDAT", zlib.compress(bytes(20)))), DAMAGED
    yield "depth.png", png(4, 4, 7, 9, data), CUT
    yield "zero.png", png(0, 0, 8, 2, data), CUT
    yield "negative.png", png(2**31, 2**31, 8, 2, data), CUT | LARGE
    yield "tags.tif", tiff([(40_000 + n, 7, 10_000_000, 0) for n in range(5000)], content=bytes(10_000_000)), LARGE
    yield "circle.tif", tiff([(256, 3, 1, 4), (257, 3, 1, 4)], following=8), CUT
    yield "circle-of-tags.tif", tiff([(330, 4, 1, 8), (34665, 4, 1, 8)], following=8), CUT
    size = [(256, 4, 1, 60_000), (257, 4, 1, 60_000), (258, 3, 1, 8), (262, 3, 1, 1)]
    yield "huge.tif", tiff([*size, (273, 4, 1, 8), (277, 3, 1, 1), (279, 4, 1, 1)]), LARGE
    yield "samples.tif", tiff([(256, 4, 1, 4), (257, 4, 1, 4), (258, 3, 1, 8), (277, 3, 1, 65_535)]), CUT
    yield "nowhere.tif", b"II*\0\xff\xff\xff\xff", CUT_SHORT
    yield "big.tif", b"II+\0\x08\0\0\0" + b"\xff" * 8, CUT_SHORT
    yield "huge.gif", b"GIF89a" + struct.pack("<HHBBB", 65_535, 65_535, 0, 0, 0) + encode("GIF")[13:], LARGE | CUT
    yield (
        "huge.bmp",
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, 65_535, 65_535, 1, 24, 0, 0, 0, 0, 0, 0),
        LARGE,
    )
    yield (
        "negative.bmp",
        b"BM" + struct.pack("<IIIIiiHHIIIIII", 54, 0, 54, 40, -5, -5, 1, 24, 0, 0, 0, 0, 0, 0),
        CUT | LARGE,
    )
    canvas = struct.pack("<I", 2)[:1] + bytes(3) + (16_382).to_bytes(3, "little") * 2
    body = b"WEBPVP8X" + struct.pack("<I", 10) + canvas + encode("WEBP")[12:]
    yield "canvas.webp", b"RIFF" + struct.pack("<I", len(body)) + body, LARGE | CUT


def odd() -> Iterator[tuple[str, bytes, set[str]]]:
    """No pictures at all, or other formats."""
    yield "empty.jpg", b"", {"empty"}
    for number, content in enumerate(
        [
            b"\0",
            b"\n",
            b"text",
            b"<svg xmlns='http://www.w3.org/2000/svg'/>",
            b"%PDF-1.7",
            b"%!PS-Adobe-3.0 EPSF-3.0",
            b"\0" * 4096,
            b"\xff" * 4096,
            b"PK\x03\x04",
            b"GIF",
            b"\x89PNG",
            b"\xff\xd8",
            b"RIFF\0\0\0\0WAVE",
            b"SIMPLE  =  T",
            b"8BPS\0\1",
            b"\0\0\0\x1cftypavif",
            b"\0\0\0\x18ftypheic",
            b"\x1f\x8b\x08\0",
            b"#!/bin/sh\n",
            b"qoif",
        ]
    ):
        yield f"no-picture-{number}.jpg", content, {"not_an_image"}
    for kind in ("PPM", "ICO", "TGA", "PCX", "JPEG2000", "PDF", "DDS"):
        yield f"{kind}.png", encode(kind), {"not_an_image"}
    for kind, suffix in SUFFIXES.items():
        yield f"{kind}-behind{suffix}", encode(kind) + b"<?php ?>" * 100, OK
        yield f"{kind}-before{suffix}", b"x" + encode(kind), {"not_an_image"}


def write_zoo(folder: Path) -> dict[str, set[str]]:
    """Write FOLDER/zoo; the allowed statuses of each file by its path relative to `folder`."""
    zoo = folder / "zoo"
    zoo.mkdir(parents=True)
    expected: dict[str, set[str]] = {}

    def add(name: str, make: Callable[[Path], object], statuses: set[str]) -> None:
        assert f"zoo/{name}" not in expected, name
        make(zoo / name)
        expected[f"zoo/{name}"] = statuses

    for group in (ordinary, damaged, costly, odd):
        for name, content, statuses in group():
            add(f"{group.__name__}-{name}", lambda path, content=content: path.write_bytes(content), statuses)
    good = encode("PNG")
    for name in map(os.fsdecode, NAMES):
        add(name, lambda path: path.write_bytes(good), OK)
    add("good.png", lambda path: path.write_bytes(good), OK)
    add("link.jpg", lambda path: path.symlink_to("good.png"), OK)
    add("broken-link.jpg", lambda path: path.symlink_to("nothing"), {"missing"})
    add("loop.jpg", lambda path: path.symlink_to("loop.jpg"), {"unreadable"})
    add("loop-1.jpg", lambda path: path.symlink_to("loop-2.jpg"), {"unreadable"})
    add("loop-2.jpg", lambda path: path.symlink_to("loop-1.jpg"), {"unreadable"})
    add("pipe.jpg", os.mkfifo, {"not_a_file"})
    for device in ("zero", "random", "null", "tty"):
        add(f"device-{device}.jpg", lambda path, device=device: path.symlink_to(f"/dev/{device}"), {"not_a_file"})
    add("memory.jpg", lambda path: path.symlink_to("/proc/self/mem"), {"empty", "unreadable", "missing"})
    add("socket.jpg", make_socket, {"not_a_file"})
    for suffix, start in ((".jpg", b"\xff\xd8\xff"), (".webp", b"RIFF\0\0\0\0WEBP"), (".tif", b"II*\0\x08\0\0\0")):
        add(f"sparse{suffix}", lambda path, start=start: make_sparse(path, start), LARGE)
    (zoo / "folder.jpg").mkdir()
    add("folder.jpg/inside.png", lambda path: path.write_bytes(good), OK)
    for name, target in (("linked-folder", "folder.jpg"), ("circle", "."), ("circle.jpg", "..")):
        add(name, lambda path, target=target: path.symlink_to(target), {"linked_folder"})
    return expected


def make_socket(path: Path) -> None:
    """The address of a socket may have 107 bytes only, so it is bound by its name alone."""
    before = os.getcwd()
    os.chdir(path.parent)
    try:
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(path.name)
    finally:
        os.chdir(before)


def make_sparse(path: Path, start: bytes) -> None:
    path.write_bytes(start)
    os.truncate(path, 10_000_000_000)


def main(folder: str) -> int:
    """Exit code 1 when a file has another status."""
    from faces.reader import ImageError, read_image

    expected, costs, wrong = write_zoo(Path(folder)), [], 0
    for name, statuses in expected.items():
        began, status = time.process_time(), "ok"
        try:
            read_image(Path(folder) / name)
        except ImageError as error:
            status = error.status
        costs.append((time.process_time() - began, ascii(name)))
        if status not in statuses:
            wrong += 1
            print(f"{name!a}: {status}, expected {' or '.join(sorted(statuses))}")
    print(
        f"{len(expected)} files, {wrong} wrong; peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss:,} kB"
    )
    print("\n".join(f"{seconds:.2f} s {name}" for seconds, name in sorted(costs)[:-6:-1]))
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
