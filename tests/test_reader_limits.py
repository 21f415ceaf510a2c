"""Files that cost a decoder minutes or gigabytes: the reader refuses them before, by what their headers say."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import faces.reader
from faces.reader import ImageError, read_image

ROOT = Path(__file__).parents[1]


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(width: int = 64, height: int = 48) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def status_of(source: Path | bytes, **limits: float) -> str:
    try:
        read_image(source, **limits)
    except ImageError as error:
        return error.status
    return "ok"


def segment(marker: int, content: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(content) + 2) + content


def split_at_scan(jpeg: bytes) -> tuple[bytes, bytes]:
    place = jpeg.index(b"\xff\xda")
    return jpeg[:place], jpeg[place:]


@pytest.mark.parametrize("start", [b"\xff\xd8\xff", b"RIFF\0\0\0\0WEBPVP8 ", b"II*\0\x08\0\0\0"])
def test_a_sparse_file_is_not_read(start: bytes, tmp_path: Path) -> None:
    path = tmp_path / "sparse.jpg"
    path.write_bytes(start)
    os.truncate(path, 10_000_000_000)
    assert status_of(path) == "too_large"


def test_the_limit_on_bytes(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(data := encode(noise(), "PNG"))
    for source in (tmp_path / "a.png", data):
        assert status_of(source, max_bytes=len(data)) == "ok"
        assert status_of(source, max_bytes=len(data) - 1) == "too_large"


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="Linux only")
@pytest.mark.parametrize("path", ["/proc/self/mem", "/proc/kmsg", "/proc/self/status"])
def test_files_of_the_kernel_have_no_size(path: str) -> None:
    assert status_of(Path(path)) in {"empty", "unreadable", "missing"}


def test_a_jpeg_of_thousands_of_scans() -> None:
    head, scans = split_at_scan(encode(noise(), "JPEG", progressive=True))
    last = scans[scans.rindex(b"\xff\xda") : -2]
    assert status_of(head + scans) == "ok"
    assert status_of(head + scans[:-2] + 2000 * last + b"\xff\xd9") == "too_large"


def test_metadata_of_a_jpeg_does_not_reach_the_decoder() -> None:
    """Pillow joins all EXIF segments, each time anew, and reads fill bytes one by one: 11 and 19 seconds."""
    jpeg = encode(noise(), "JPEG", quality=90)
    start, rest = jpeg[:2], jpeg[2:]
    exif = segment(0xE1, b"Exif\0\0" + bytes(65_000))
    expected = read_image(jpeg)
    for between in (760 * exif, 50_000_000 * b"\xff", 300 * segment(0xE2, b"ICC_PROFILE\0" + bytes(60_000))):
        np.testing.assert_array_equal(read_image(start + between + rest), expected)
    assert status_of(start + 100_001 * segment(0xFE, b"") + rest) == "too_large"


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("big", [False, True])
def test_tags_of_a_tiff_that_name_the_same_bytes(order: str, big: bool) -> None:
    """Pillow would copy 10 MB for each of 5,000 tags."""
    tags, size = 5_000, 10_000_000
    header = struct.pack(order + "2sH", b"II" if order == "<" else b"MM", 43 if big else 42)
    header += struct.pack(order + "HHQ", 8, 0, 16) if big else struct.pack(order + "I", 8)
    entry = order + ("HHQQ" if big else "HHII")
    directory = struct.pack(order + ("Q" if big else "H"), tags)
    directory += b"".join(struct.pack(entry, 40_000 + number, 7, size, 0) for number in range(tags))
    assert status_of((header + directory).ljust(size, b"\0")) == "too_large"


def test_a_png_of_many_chunks() -> None:
    png = encode(noise(), "PNG")
    empty = struct.pack(">I4sI", 0, b"teSt", zlib.crc32(b"teSt"))
    assert status_of(png[:33] + 1000 * empty + png[33:]) == "ok"
    assert status_of(png[:33] + 200_000 * empty + png[33:]) == "too_large"


def test_a_png_with_a_wrong_checksum_is_damaged() -> None:
    png = bytearray(encode(noise(), "PNG", compress_level=0))
    png[300] ^= 1   # a pixel
    assert status_of(bytes(png)) == "truncated"


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
def test_a_jpeg_that_libjpeg_repairs_is_damaged(mode: str, progressive: bool) -> None:
    """Pillow drops libjpeg's warnings, and the picture would count as whole."""
    jpeg = encode(noise(200, 160).convert(mode), "JPEG", progressive=progressive)
    assert status_of(jpeg) == "ok"
    head, scan = split_at_scan(jpeg)
    middle = len(scan) // 2
    assert status_of(head + scan[:middle] + b"\xff\xd9") == "truncated", "half of the pixels are missing"
    assert status_of(head + scan[:middle] + scan[middle + 400 :]) == "truncated", "a hole in the middle"


def tiff_of_jpeg(strip: bytes, copies: int = 1) -> bytes:
    """A picture of 64x48 pixels whose strips are all the same bytes of the file."""
    shorts = [(256, 64), (257, 48), (259, 7), (262, 6), (277, 3), (278, 48 // copies)]
    entries = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in shorts)
    arrays = 8 + 2 + 9 * 12 + 4
    strips = arrays + 8 * copies + 8
    places = struct.pack(f"<{copies}I", *[strips] * copies), struct.pack(f"<{copies}I", *[len(strip)] * copies)
    fields = (strips, len(strip)) if copies == 1 else (arrays, arrays + 4 * copies)
    entries += struct.pack("<HHII", 258, 3, 3, strips - 8)
    entries += struct.pack("<HHII", 273, 4, copies, fields[0]) + struct.pack("<HHII", 279, 4, copies, fields[1])
    bits = struct.pack("<4H", 8, 8, 8, 0)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", 9) + entries + bytes(4) + b"".join(places) + bits + strip


def test_a_tiff_of_jpegs_that_libjpeg_repairs_is_damaged() -> None:
    jpeg = encode(noise(), "JPEG")
    assert status_of(tiff_of_jpeg(jpeg)) == "ok"
    assert status_of(tiff_of_jpeg(jpeg[:-400] + b"\xff\xd9")) == "truncated"
    with_tables = encode(noise(200, 160), "TIFF", compression="jpeg")
    assert status_of(with_tables) == "ok"
    place = with_tables.index(b"\xff\xda") + 500
    assert status_of(with_tables[:place] + b"\xff\xd9" + with_tables[place + 2 :]) == "truncated"


def test_strips_of_a_tiff_that_are_the_same_bytes() -> None:
    """100,000 strips that all name 10 MB would be decoded one after the other."""
    assert status_of(tiff_of_jpeg(encode(noise(), "JPEG"), copies=48)) == "too_large"


def test_a_strip_of_thousands_of_scans() -> None:
    progressive = encode(noise(), "JPEG", progressive=True)
    last = progressive[progressive.rindex(b"\xff\xda") : -2]
    assert status_of(tiff_of_jpeg(progressive[:-2] + 2000 * last + b"\xff\xd9")) == "too_large"


def test_a_tiff_of_deflate_with_a_wrong_checksum_is_damaged() -> None:
    """libtiff stops at the last pixel, and may not look at the checksum behind it."""
    whole = encode(noise(), "TIFF", compression="tiff_adobe_deflate")
    assert status_of(whole) == "ok"
    damaged = bytearray(whole)
    damaged[whole.index(zlib.compress(noise().tobytes())[-4:])] ^= 1
    assert status_of(bytes(damaged)) == "truncated"


def test_a_deflate_bomb_in_a_tiff() -> None:
    whole = encode(noise(200, 160), "TIFF", compression="tiff_adobe_deflate")
    place, bomb = whole.index(b"\x78\x9c"), zlib.compress(bytes(50_000_000))
    assert len(bomb) < 96_000, "it fits into the strip"
    assert status_of(whole[:place] + bomb + whole[place + len(bomb) :], max_pixels=1_000_000) == "too_large"


def test_what_libtiff_repairs_is_damaged(capfd: pytest.CaptureFixture[str]) -> None:
    """libtiff goes on behind a wrong code of a fax, and told it on stderr alone, in words of the file's making."""
    fax = encode(noise().convert("1"), "TIFF", compression="group4")
    assert status_of(fax) == "ok"
    damaged = bytearray(fax)
    damaged[60] ^= 8
    assert status_of(bytes(damaged)) == "truncated"
    assert status_of(fax) == "ok", "what was heard of one picture is not said of the next"
    assert capfd.readouterr().err == ""


def test_libtiff_tells_other_users_of_the_process_what_it_told_before(capfd: pytest.CaptureFixture[str]) -> None:
    fax = bytearray(encode(noise().convert("1"), "TIFF", compression="group4"))
    fax[60] ^= 8
    assert status_of(bytes(fax)) == "truncated"
    Image.open(io.BytesIO(fax)).load()
    assert "Fax4Decode" in capfd.readouterr().err


@pytest.mark.parametrize("mode", ["F", "I;16", "I"])
def test_deep_pictures_are_converted_in_blocks(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.arange(60 * 40).reshape(60, 40) * 17
    deep = Image.fromarray(values.astype({"F": np.float32, "I;16": np.uint16, "I": np.int32}[mode]))
    whole = faces.reader.to_rgb(deep)
    monkeypatch.setattr(faces.reader, "BLOCK_PIXELS", 100)
    np.testing.assert_array_equal(faces.reader.to_rgb(deep), whole)
    assert whole.max() == values.max() >> 8


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "CMYK", "1"])
def test_blocks_do_not_change_pictures(mode: str, monkeypatch: pytest.MonkeyPatch) -> None:
    picture = noise().convert("RGBA")
    picture.putalpha(noise().convert("L"))
    picture = picture.convert(mode)
    whole = faces.reader.to_rgb(picture)
    monkeypatch.setattr(faces.reader, "BLOCK_PIXELS", 100)
    np.testing.assert_array_equal(faces.reader.to_rgb(picture), whole)


LARGE = """
import sys
from faces.reader import read_image
read_image(sys.argv[1])
print(next(line.split()[1] for line in open("/proc/self/status") if line.startswith("VmHWM")))
"""


def test_49_megapixels_of_float_samples_take_less_than_a_gigabyte(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((7000, 7000), np.float32)).save(tmp_path / "deep.tif")
    command = [sys.executable, "-c", LARGE, str(tmp_path / "deep.tif")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=120)
    assert int(run.stdout) < 1_000_000, "kilobytes"


def test_a_picture_that_takes_too_long() -> None:
    frames = b"".join(struct.pack("BBB", 0x21, 0xFE, 0) for _ in range(1_000_000))   # comments without text
    gif = encode(noise().convert("P"), "GIF")
    slow = gif[: gif.index(b"\x2c", 13)] + frames + gif[gif.index(b"\x2c", 13) :]
    assert status_of(slow, max_seconds=0.05) == "too_slow"
    assert status_of(gif, max_seconds=0.05) == "ok", "the limit is that of one picture"


def test_a_time_limit_in_another_thread_does_nothing() -> None:
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(status_of(encode(noise(), "PNG"))))
    thread.start()
    thread.join()
    assert found == ["ok"]


def test_the_orientation_of_damaged_exif() -> None:
    """A directory of 65,535 tags in a block of a few bytes."""
    exif = b"Exif\0\0II*\0\x08\0\0\0\xff\xff" + struct.pack("<HHII", 0x0112, 3, 1, 6)
    assert read_image(encode(noise(), "JPEG", exif=exif)).shape == (64, 48, 3)


def test_the_orientation_of_imagemagicks_png() -> None:
    from PIL.PngImagePlugin import PngInfo

    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x0112, 3, 1, 8, 0) + bytes(4)
    text = PngInfo()
    text.add_text("Raw profile type exif", f"\nexif\n{len(exif)}\n{exif.hex()}\n")
    assert read_image(encode(noise(), "PNG", pnginfo=text)).shape == (64, 48, 3)
