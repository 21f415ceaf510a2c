"""One flipped bit in a picture: how often the reader notices it, for each format.

    python benchmarks/flipped_bits.py --results results

A crop of 112x112 pixels is saved in each format. In each of many copies one bit, anywhere in the file, is another one.
A copy is noticed when it has a status other than `ok`. Else its pixels are those of the whole file, or other ones.
"""

from __future__ import annotations

import argparse
import io
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT)]

from faces.reader import ImageError, read_image  # noqa: E402
from recipes.default_model.reports.results import Cell, Column, Output, report_exit_code  # noqa: E402

FORMATS: list[tuple[str, str, str, dict[str, Any]]] = [  # name, Pillow's name, mode, options
    ("PNG", "PNG", "RGB", {}),
    ("TIFF, Deflate", "TIFF", "RGB", {"compression": "tiff_adobe_deflate"}),
    ("TIFF, LZMA", "TIFF", "RGB", {"compression": "lzma"}),
    ("TIFF, fax (group 4)", "TIFF", "1", {"compression": "group4"}),
    ("JPEG", "JPEG", "RGB", {"quality": 90}),
    ("JPEG, progressive", "JPEG", "RGB", {"quality": 90, "progressive": True}),
    ("TIFF, JPEG", "TIFF", "RGB", {"compression": "jpeg"}),
    ("GIF", "GIF", "P", {}),
    ("TIFF, LZW", "TIFF", "RGB", {"compression": "tiff_lzw"}),
    ("TIFF, PackBits", "TIFF", "RGB", {"compression": "packbits"}),
    ("TIFF, Zstandard", "TIFF", "RGB", {"compression": "zstd"}),
    ("TIFF, not compressed", "TIFF", "RGB", {}),
    ("WebP", "WEBP", "RGB", {}),
    ("WebP, lossless", "WEBP", "RGB", {"lossless": True}),
    ("BMP", "BMP", "RGB", {}),
]


def rows_of(picture: Image.Image, flips: int) -> Iterator[list[Cell]]:
    """Format, and percent of the flips: noticed, without effect, other pixels that count as whole."""
    rng = np.random.default_rng(0)
    for name, kind, mode, options in FORMATS:
        buffer = io.BytesIO()
        picture.convert(mode).save(buffer, kind, **options)
        whole, found = read_image(buffer.getvalue()), Counter[str]()
        for bit in rng.integers(0, 8 * len(buffer.getvalue()), flips).tolist():
            found[outcome(flipped(buffer.getvalue(), bit), whole)] += 1
        yield [name, *(100 * found[what] / flips for what in ("noticed", "same", "other"))]


def flipped(content: bytes, bit: int) -> bytes:
    """The content with another value of one bit."""
    place, mask = bit // 8, 1 << bit % 8
    return content[:place] + bytes([content[place] ^ mask]) + content[place + 1 :]


def outcome(content: bytes, whole: np.ndarray) -> str:
    """`noticed`, or whether the pixels are the `same` or `other` ones."""
    try:
        return "same" if np.array_equal(read_image(content), whole) else "other"
    except ImageError:
        return "noticed"


def run(args: argparse.Namespace) -> int:
    columns = [Column("format"), Column("noticed, %", "{:.1f}"), Column("without effect, %", "{:.1f}"),
               Column("other pixels, status `ok`, %", "{:.1f}")]  # fmt: skip
    with Image.open(ROOT / "samples" / "astronaut.png") as file:
        picture = file.convert("RGB").resize((112, 112))
    command = f"python benchmarks/flipped_bits.py --flips {args.flips} --results results"
    output = Output(args.results, command)
    output.add("flipped_bits", "One flipped bit in a picture", columns, rows_of(picture, args.flips))
    return 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--flips", type=int, default=1000, metavar="N", help="of each format (default 1000)")
    return report_exit_code(parser, run, None)


if __name__ == "__main__":
    sys.exit(main())
