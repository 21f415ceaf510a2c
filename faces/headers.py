"""What the beginnings of image files say, looked at before a decoder sees them.

Decoders trust their files: hundreds of metadata segments, thousands of scans, or a TIFF whose tags all name the same
bytes cost them minutes or gigabytes. And some repair what is damaged without a word.
"""

from __future__ import annotations

import ctypes
import importlib
import re
import struct
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from itertools import chain
from typing import Any

from PIL import Image

MAX_SCANS = 100   # of a JPEG; the usual progressive ones have about 10
MAX_PARTS = 100_000   # segments of a JPEG, chunks of a PNG
_KNOWN = re.compile(rb"\xff\xd8\xff|\x89PNG\r\n|RIFF.{4}WEBP|BM|II[*+]\0|MM\0[*+]|GIF8[79]a", re.DOTALL)

_MARKER = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")   # of a JPEG segment; any number of ff may fill up before it
_SOI, _EOI, _SOS, _APP0, _APP1, _APP15, _COM = 0xD8, 0xD9, 0xDA, 0xE0, 0xE1, 0xEF, 0xFE
_ADOBE = 0xEE   # says which colours the channels are
_REPAIRED = ("Corrupt JPEG data", "Premature end of JPEG")   # warnings of libjpeg that mean lost pixels
_PNG_START = b"\x89PNG\r\n\x1a\n"
_ORIENTATION, _COMPRESSION, _JPEG_TABLES = 0x0112, 0x0103, 0x015B
_PARTS_OF_TIFF = ((0x0111, 0x0117), (0x0144, 0x0145))   # where strips, or tiles, begin, and how many bytes they have
_JPEG_IN_TIFF, _DEFLATE = 7, (8, 32946)
_BLOCK_BYTES = 1 << 20
_LIBTIFF_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_char_p, ctypes.c_char_p, ctypes.c_void_p)
_heard = threading.local()   # what libtiff said of the picture that this thread decodes
_TIFF_SIZES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}


class HeaderError(ValueError):
    """The file is damaged."""


class TooMuchError(ValueError):
    """The file asks for more than a picture needs."""


def is_known_format(content: bytes) -> bool:
    """Whether the first bytes are those of a JPEG, PNG, WebP, BMP, TIFF or GIF."""
    return _KNOWN.match(content) is not None


def checked(content: bytes) -> bytes:
    """The file as a decoder may see it: a JPEG without metadata but its first EXIF, others as they are.

    Raises TooMuchError for a JPEG of more than MAX_SCANS scans, a file of more than MAX_PARTS parts and a TIFF whose
    tags take more bytes than it has; HeaderError for a wrong checksum in a PNG and for damaged segments of a JPEG.
    """
    if content.startswith(b"\xff\xd8"):
        return _without_metadata(content)
    if content.startswith(_PNG_START):
        _check_png(content)
    elif content[:2] in (b"II", b"MM"):
        _check_tiff(content)
    return content


def require_undamaged(content: bytes, max_pixels: int) -> None:
    """Raise HeaderError for a JPEG or a TIFF in which a decoder would fill up or guess pixels without a word.

    Raises TooMuchError for strips of a TIFF that overlap, or that unpack to more than such a picture needs.
    """
    if content.startswith(b"\xff\xd8"):
        _check_jpeg(content, max_pixels)
    elif content[:2] in (b"II", b"MM"):
        total = 0
        for compression, tables, strip in _strips(content):
            total += len(strip)
            if total > len(content):
                raise TooMuchError("its strips take more bytes than the file has")
            if compression == _JPEG_IN_TIFF:
                _count_scans(strip, 2)
                _check_jpeg(tables[:-2] + strip[2:] if tables else strip, max_pixels)   # one beginning, one end
            elif compression in _DEFLATE:
                _check_deflate(strip, 16 * max_pixels)   # bytes: four channels of floats


def _check_jpeg(jpeg: bytes, max_pixels: int) -> None:
    """libjpeg repairs what it can. It says so in warnings, which Pillow drops. An eighth of the picture in grey takes
    its Huffman decoder through all of the data. A larger JPEG, which libtiff refuses, is not looked at."""
    libjpeg = _libjpeg()
    if libjpeg is None:
        return
    try:
        height, width, space, *_ = libjpeg.decode_jpeg_header(jpeg, strict=False)
        colours = "CMYK" if space == "CMYK" else "GRAY"
        if height * width <= max_pixels:
            libjpeg.decode_jpeg(jpeg, colorspace=colours, min_height=1, min_width=1, min_factor=8)
    except ValueError as error:   # what it cannot decode at all, Pillow decides
        if str(error).startswith(_REPAIRED):
            raise HeaderError(str(error)) from error


def _check_deflate(strip: bytes, most_bytes: int) -> None:
    """libtiff stops at the last pixel, and may not reach the checksum behind it."""
    unpack, size = zlib.decompressobj(), 0
    try:
        while strip and not unpack.eof:
            size += len(unpack.decompress(strip, _BLOCK_BYTES))
            strip = unpack.unconsumed_tail
            if size > most_bytes:
                raise TooMuchError("a strip unpacks to more than a picture has")
    except zlib.error as error:   # what cannot be unpacked at all, libtiff decides
        if "incorrect data check" in str(error):
            raise HeaderError("the checksum of a strip is wrong") from error


def _strips(content: bytes) -> Iterator[tuple[int, bytes, bytes]]:
    """Compression, shared JPEG tables (or nothing) and bytes of each strip or tile of a TIFF in a compression that can
    be checked."""
    with suppress(struct.error, OverflowError):   # the decoder says that it is damaged
        fields = {tag: field for tag, *field in _tiff_tags(content)}
        wanted = _COMPRESSION, _JPEG_TABLES, *chain.from_iterable(_PARTS_OF_TIFF)
        tags = {tag: _values(content, *fields.get(tag, (0, 0, b""))) for tag in wanted}
        compression, tables = next(iter(tags[_COMPRESSION]), 0), bytes(tags[_JPEG_TABLES])
        for begins, sizes in _PARTS_OF_TIFF if compression in (_JPEG_IN_TIFF, *_DEFLATE) else ():
            for begin, size in zip(tags[begins], tags[sizes], strict=False):
                yield compression, tables, content[begin : begin + size]


@contextmanager
def libtiff_heard() -> Iterator[None]:
    """Raise HeaderError at the end of the block when libtiff reported an error in this thread.

    It goes on where it can, with pixels that it guesses, and writes a line to stderr, which stays empty here. Where
    Pillow's libtiff cannot be reached, nothing is heard. Of two threads that decode at a time, one may miss a report.
    """
    set_handler = _libtiff()
    if set_handler is None:
        yield
        return
    _heard.reporter = None
    before = set_handler(ctypes.cast(_hear, ctypes.c_void_p))
    try:
        yield
    finally:
        set_handler(before)
    if _heard.reporter is not None:
        raise HeaderError(f"{_heard.reporter} of libtiff found an error")


@_LIBTIFF_HANDLER
def _hear(reporter: bytes | None, form: bytes, arguments: int) -> None:
    _heard.reporter = (reporter or b"a part").decode("ascii", "backslashreplace")
    _libtiff()(None)   # the first report is enough: a hostile file has one a line


@cache
def _libtiff() -> Any:
    """The function that sets the handler of errors in the libtiff that Pillow uses; None where it cannot be reached."""
    try:
        set_handler = ctypes.CDLL(Image.core.__file__).TIFFSetErrorHandler
    except (OSError, AttributeError):
        return None
    set_handler.argtypes, set_handler.restype = [ctypes.c_void_p], ctypes.c_void_p
    return set_handler


@cache
def _libjpeg() -> Any:
    """The package simplejpeg; None where it is not installed, as beside an exported scorer, where what libjpeg repairs
    counts as whole."""
    try:
        return importlib.import_module("simplejpeg")
    except ImportError:
        return None


def exif_orientation(image: Image.Image) -> int:
    """The orientation, 1 to 8, of an opened picture; 1 where there is none, or damaged metadata."""
    tags = getattr(image, "tag_v2", None)
    if tags is not None:
        value = tags.get(_ORIENTATION, 1)
        return value if isinstance(value, int) else 1
    with suppress(struct.error, ValueError, IndexError, OverflowError):   # a picture is usable without its metadata
        return _orientation_in(_exif_of(image))
    return 1


def _exif_of(image: Image.Image) -> bytes:
    """The EXIF block, which is a TIFF without pixels."""
    exif = image.info.get("exif", b"")
    if not exif and isinstance(text := image.info.get("Raw profile type exif"), str):   # PNG of ImageMagick, in hex
        exif = bytes.fromhex("".join(text.split("\n")[3:]))
    return exif.removeprefix(b"Exif\0\0")


def _orientation_in(exif: bytes) -> int:
    for tag, kind, _, value in _tiff_tags(exif):
        if tag == _ORIENTATION and kind == 3:
            return int(struct.unpack_from(_byte_order(exif) + "H", value)[0])
    return 1


def _byte_order(content: bytes) -> str:
    return "<" if content[:2] == b"II" else ">"


def _tiff_tags(content: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """(tag, type, number of values, the field of the value or its place) of the first directory of a TIFF."""
    order = _byte_order(content)
    is_big = struct.unpack_from(order + "H", content, 2)[0] == 43   # BigTIFF
    size, place = (struct.Struct(order + "Q"), 8) if is_big else (struct.Struct(order + "I"), 4)
    count, entry = struct.Struct(order + "QH"[not is_big]), struct.Struct(order + ("HHQ8s" if is_big else "HHI4s"))
    directory = size.unpack_from(content, place)[0]
    start = directory + count.size
    for number in range(count.unpack_from(content, directory)[0]):
        if start + (number + 1) * entry.size > len(content):
            return   # the decoder finds out that it is cut off
        yield entry.unpack_from(content, start + number * entry.size)


def _values(content: bytes, kind: int, count: int, field: bytes) -> tuple[int, ...]:
    """The values of a TIFF's tag of whole numbers or bytes; none for another type, or more than MAX_PARTS."""
    form = {1: "B", 3: "H", 4: "I", 7: "B", 16: "Q"}.get(kind)
    if form is None or count > MAX_PARTS:
        return ()
    values = struct.Struct(f"{_byte_order(content)}{count}{form}")
    if values.size <= len(field):
        return values.unpack_from(field)
    place = int.from_bytes(field, "little" if _byte_order(content) == "<" else "big")
    return values.unpack_from(content, place)


def _check_tiff(content: bytes) -> None:
    """Values of tags may overlap, and Pillow copies each of them."""
    with suppress(struct.error, OverflowError):   # the decoder says that it is damaged
        total = 0
        for number, (_, kind, count, _) in enumerate(_tiff_tags(content)):
            total += _TIFF_SIZES.get(kind, 0) * count
            if total > len(content) or number > MAX_PARTS:
                raise TooMuchError("its tags take more bytes than the file has")


def _check_png(content: bytes) -> None:
    """Pillow leaves out the checksums of the pixels."""
    place = len(_PNG_START)
    for _ in range(MAX_PARTS):
        if place + 12 > len(content):
            return   # the decoder says that it is cut off
        length, kind = struct.unpack_from(">I4s", content, place)
        end = place + 8 + length
        if kind == b"IEND":
            return
        if kind == b"IDAT" and content[end : end + 4] != struct.pack(">I", zlib.crc32(content[place + 4 : end])):
            raise HeaderError(f"the checksum of the pixels at byte {place} is wrong")
        place = end + 4
    raise TooMuchError(f"more than {MAX_PARTS:,} chunks")


def _without_metadata(content: bytes) -> bytes:
    """The segments of a JPEG that decoding needs, and the first EXIF; its scans are counted."""
    parts, place, has_exif = [content[:2]], 2, False
    for _ in range(MAX_PARTS):
        marker, place, segment = _segment(content, place)
        is_exif = marker == _APP1 and segment[4:10] == b"Exif\0\0" and not has_exif
        has_exif = has_exif or is_exif
        if marker == _SOS:
            _count_scans(content, place)
            return b"".join([*parts, segment, content[place:]])
        if is_exif or marker in (_APP0, _ADOBE) or not (_APP0 <= marker <= _APP15 or marker == _COM):
            parts.append(segment)
    raise TooMuchError(f"more than {MAX_PARTS:,} segments")


def _segment(content: bytes, place: int) -> tuple[int, int, bytes]:
    """The segment of a JPEG that begins at `place`: its marker, where the next one begins, and its bytes."""
    found = _MARKER.match(content, place)
    if found is None:
        raise HeaderError(f"no segment begins at byte {place}")
    marker = found[1][0]
    if marker == _EOI:
        raise HeaderError("it ends before its pixels")
    if marker in (0x01, _SOI):
        return marker, found.end(), b"\xff" + found[1]
    end = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")
    if end > len(content) or end < found.end() + 2:
        raise HeaderError(f"the segment at byte {place} is cut off")
    return marker, end, b"\xff" + content[found.end() - 1 : end]


def _count_scans(content: bytes, place: int) -> None:
    scans = 1
    for _ in range(MAX_PARTS):
        found = _MARKER.search(content, place)
        if found is None or found[1][0] == _EOI:
            return
        scans += found[1][0] == _SOS
        if scans > MAX_SCANS:
            raise TooMuchError(f"more than {MAX_SCANS} scans")
        place = found.end() + int.from_bytes(content[found.end() : found.end() + 2], "big")
    raise TooMuchError(f"more than {MAX_PARTS:,} segments")
