"""The image reader against real files of every kind: what it reads it reads right, and the rest has a status."""

from __future__ import annotations

import io
import os
import pickle
import struct
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from faces.reader import ImageError, read_image, to_rgb

LOSSLESS = {"PNG": {}, "BMP": {}, "TIFF": {}, "WEBP": {"lossless": True}}
LOSSY = {"JPEG": {"quality": 95, "subsampling": 0}, "GIF": {}}
ALL = {**LOSSLESS, **LOSSY, "TIFF LZW": {"compression": "tiff_lzw"}, "JPEG progressive": {"progressive": True}}


def picture(height: int = 24, width: int = 40) -> np.ndarray:
    """A smooth colour picture without any symmetry, uint8 (height, width, 3)."""
    coarse = np.random.default_rng(0).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def encode(image: Image.Image | np.ndarray, kind: str, **options: object) -> bytes:
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    buffer = io.BytesIO()
    image.save(buffer, kind.split()[0], **{**ALL.get(kind, {}), **options})
    return buffer.getvalue()


def status_of(source: str | Path | bytes, **options: int) -> str:
    with pytest.raises(ImageError) as caught:
        read_image(source, **options)
    assert str(caught.value), "an error says what is wrong"
    return caught.value.status


def png(width: int, height: int, depth: int, colour: int, data: bytes) -> bytes:
    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.mark.parametrize("kind", LOSSLESS)
def test_lossless_formats_are_read_exactly(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "picture with a wrong suffix.jpg"
    path.write_bytes(encode(picture(), kind))
    for source in (path, str(path), path.read_bytes()):
        rgb = read_image(source)
        assert rgb.dtype == np.uint8
        assert rgb.flags.c_contiguous
        np.testing.assert_array_equal(rgb, picture())


@pytest.mark.parametrize("kind", LOSSY)
def test_lossy_formats_keep_the_channel_order(kind: str) -> None:
    assert np.abs(read_image(encode(picture(), kind)).astype(int) - picture()).mean() < 9


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize(
    ("orientation", "upright"),
    [
        (1, lambda a: a),
        (2, lambda a: a[:, ::-1]),
        (3, lambda a: a[::-1, ::-1]),
        (4, lambda a: a[::-1]),
        (5, lambda a: a.transpose(1, 0, 2)),
        (6, lambda a: np.rot90(a, -1)),
        (7, lambda a: a[::-1, ::-1].transpose(1, 0, 2)),
        (8, lambda a: np.rot90(a)),
    ],
)
def test_exif_orientation(kind: str, orientation: int, upright: Callable[[np.ndarray], np.ndarray]) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    wrong = np.abs(read_image(encode(picture(), kind, exif=exif)).astype(int) - upright(picture()))
    assert wrong.max() <= (0 if kind in LOSSLESS else 12)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(read_image(encode(picture(), "PNG", exif=exif)), picture())


@pytest.mark.parametrize("exif", [b"garbage", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff\xff"])
def test_damaged_metadata_does_not_hurt(exif: bytes) -> None:
    assert read_image(encode(picture(), "JPEG", exif=b"Exif\0\0" + exif)).shape == picture().shape


def test_16_bit_grey_png_as_opencv_reads_it(tmp_path: Path) -> None:
    deep = np.linspace(0, 65535, 24 * 40).astype(np.uint16).reshape(24, 40)
    cv2.imwrite(str(tmp_path / "deep.png"), deep)
    rgb = read_image(tmp_path / "deep.png")
    np.testing.assert_array_equal(rgb, cv2.imread(str(tmp_path / "deep.png"))[..., ::-1])
    assert len(np.unique(rgb)) == 256, "black and white only would be Pillow's clipping"


def test_16_bit_rgb_png(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "deep.png"), picture()[..., ::-1].astype(np.uint16) * 257)
    np.testing.assert_array_equal(read_image(tmp_path / "deep.png"), picture())


@pytest.mark.parametrize("order", ["<u2", ">u2"])
@pytest.mark.parametrize("factor", [256, 257])
def test_16_bit_grey_tiff_in_both_byte_orders(order: str, factor: int, tmp_path: Path) -> None:
    grey = picture()[..., 0]
    samples = (grey * np.uint16(factor)).astype(order).tobytes()
    deep = Image.frombytes("I;16" if order == "<u2" else "I;16B", (40, 24), samples)
    deep.save(tmp_path / "deep.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.tif"), to_rgb(grey))


@pytest.mark.parametrize(
    "samples",
    [
        lambda grey: grey.astype(np.int32),
        lambda grey: grey.astype(np.int32) * 257,
        lambda grey: grey.astype(np.int32) * 256,
        lambda grey: grey.astype(np.float32) / 255,
        lambda grey: grey.astype(np.float32),
        lambda grey: grey.astype(np.float32) * 257,
    ],
    ids=["int32 of 8 bits", "int32 of 16 bits", "int32 x 256", "float to 1", "float to 255", "float to 65535"],
)
def test_integer_and_float_samples_are_scaled_by_their_range(samples: Callable, tmp_path: Path) -> None:
    grey = picture()[..., 0].copy()
    grey[0, :2] = 0, 255
    Image.fromarray(samples(grey)).save(tmp_path / "deep.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "deep.tif"), to_rgb(grey))


def test_float_samples_that_are_no_numbers_are_black(tmp_path: Path) -> None:
    Image.fromarray(np.array([[np.nan, 0.5], [1, -3]], np.float32)).save(tmp_path / "nan.tif")
    assert read_image(tmp_path / "nan.tif")[..., 0].tolist() == [[0, 128], [255, 0]]


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_transparency_shows_mid_grey(kind: str) -> None:
    alpha = np.zeros((24, 40, 1), np.uint8)
    alpha[:8], alpha[8:16] = 255, 128
    rgba = np.concatenate([picture(), alpha], axis=2)
    rgb = read_image(encode(rgba, kind, exact=True))   # WebP would drop the hidden colour otherwise
    np.testing.assert_array_equal(rgb[:8], picture()[:8])
    assert np.abs(rgb[8:16] - (picture()[8:16] * (128 / 255) + 128 * (127 / 255))).max() <= 1
    assert (rgb[16:] == 128).all(), "the hidden colour of transparent pixels must not show"


def test_transparency_of_other_modes() -> None:
    grey = Image.fromarray(picture()[..., 0])
    with_alpha = Image.merge("LA", (grey, Image.new("L", grey.size, 0)))
    assert (read_image(encode(with_alpha, "PNG")) == 128).all()
    palette = Image.fromarray(picture()).quantize(8)
    palette.putalpha(0)
    assert palette.mode == "PA"
    assert (to_rgb(palette) == 128).all()
    single = Image.new("RGB", (4, 4), (10, 20, 30))
    assert (read_image(encode(single, "PNG", transparency=(10, 20, 30))) == 128).all()
    assert (read_image(encode(Image.new("P", (4, 4), 3), "GIF", transparency=3)) == 128).all()


def test_grey_bilevel_palette_and_cmyk() -> None:
    image = Image.fromarray(picture())
    np.testing.assert_array_equal(read_image(encode(image.convert("L"), "PNG")), to_rgb(np.asarray(image.convert("L"))))
    assert set(np.unique(read_image(encode(image.convert("1"), "PNG")))) == {0, 255}
    palette = image.quantize(16)
    np.testing.assert_array_equal(read_image(encode(palette, "PNG")), np.asarray(palette.convert("RGB")))
    assert np.abs(read_image(encode(image.convert("CMYK"), "JPEG", quality=95)).astype(int) - picture()).mean() < 4


def test_the_first_of_several_frames_is_read(tmp_path: Path) -> None:
    red, blue = Image.new("RGB", (16, 16), (255, 0, 0)), Image.new("RGB", (16, 16), (0, 0, 255))
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        first = read_image(encode(red, kind, save_all=True, append_images=[blue], **LOSSLESS.get(kind, {})))
        np.testing.assert_array_equal(first, np.asarray(red), err_msg=kind)
    red.save(tmp_path / "phone.jpg", "MPO", save_all=True, append_images=[blue])   # a JPEG with a second view in it
    assert np.abs(read_image(tmp_path / "phone.jpg").astype(int) - np.asarray(red)).max() <= 2


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("share", [0.05, 0.5, 0.95])
def test_truncated_files(kind: str, share: float) -> None:
    data = encode(picture(200, 300), kind)
    assert read_image(data).shape == (200, 300, 3)
    assert status_of(data[: max(20, int(share * len(data)))]) == "truncated"


@pytest.mark.parametrize("data", [b"\0" * 100, b"just text", b"<svg xmlns='x'/>", b"%PDF-1.7\n", b"RIFF\0\0\0\0WAVE"])
def test_what_is_no_image(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.jpg").write_bytes(data)
    assert status_of(tmp_path / "x.jpg") == "not_an_image"


def test_formats_that_are_not_read() -> None:
    for kind in ("PPM", "ICO", "TGA", "PCX", "JPEG2000"):
        assert status_of(encode(picture(), kind)) == "not_an_image"


def test_places_without_a_readable_file(tmp_path: Path) -> None:
    assert status_of(tmp_path / "nothing.jpg") == "missing"
    assert status_of("nul\0character.jpg") == "missing"
    assert status_of(tmp_path) == "not_a_file"
    os.mkfifo(tmp_path / "pipe.jpg")
    assert status_of(tmp_path / "pipe.jpg") == "not_a_file"
    (tmp_path / "empty.jpg").touch()
    assert status_of(tmp_path / "empty.jpg") == "empty"
    assert status_of(b"") == "empty"
    (tmp_path / "file").touch()
    assert status_of(tmp_path / "file" / "x.jpg") == "missing"


def test_symbolic_links(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(encode(picture(), "PNG"))
    (tmp_path / "link.png").symlink_to(tmp_path / "a.png")
    (tmp_path / "broken.png").symlink_to(tmp_path / "gone.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    np.testing.assert_array_equal(read_image(tmp_path / "link.png"), picture())
    assert status_of(tmp_path / "broken.png") == "missing"
    assert status_of(tmp_path / "loop.png") == "unreadable"


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    tmp_path.chmod(0o755)
    path = Path("secret.png")
    path.write_bytes(encode(picture(), "PNG"))
    path.chmod(0)
    user = os.geteuid()
    try:
        os.seteuid(user or 65534)   # root may read everything, so root becomes nobody for a moment
        assert status_of(path) == "unreadable"
    finally:
        os.seteuid(user)


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    width = height = 20_000   # 400 megapixels of one bit, in a file of 50 KB
    bomb = png(width, height, 1, 0, zlib.compress(b"\0" * (height * (width // 8 + 1)), 9))
    assert len(bomb) < 60_000
    start = time.process_time()
    assert status_of(bomb) == "too_large"
    assert time.process_time() - start < 0.5, "reading the header takes no time"


def test_the_limit_on_pixels(recwarn: pytest.WarningsRecorder) -> None:
    assert status_of(encode(picture(), "PNG"), max_pixels=24 * 40 - 1) == "too_large"
    assert read_image(encode(picture(), "PNG"), max_pixels=24 * 40).shape == (24, 40, 3)
    for side in (7_100, 9_600, 14_000):   # above our limit; above Pillow's warning; above Pillow's error
        assert status_of(png(side, side, 1, 0, b"")) == "too_large"
    assert not recwarn.list


def test_a_hidden_size_of_a_gif_frame_is_no_way_around_the_limit() -> None:
    data = bytearray(encode(Image.new("P", (4, 4)), "GIF"))
    frame = data.index(b"\x2c", 13)
    data[frame + 5 : frame + 9] = struct.pack("<HH", 60_000, 60_000)
    assert status_of(bytes(data)) in {"too_large", "truncated"}


MODES = [("RGBA", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("1", "TIFF"), ("CMYK", "JPEG"), ("RGBA", "WEBP"), ("P", "BMP")]
FILES = [encode(picture(), kind) for kind in ALL]
FILES += [encode(Image.fromarray(picture()).convert(mode), kind) for mode, kind in MODES]


def outcome(data: bytes) -> str:
    """What reading gives; any other error than ImageError would fail the test."""
    try:
        rgb = read_image(data, max_pixels=1_000_000)
    except ImageError as error:
        return error.status
    return "ok" if rgb.dtype == np.uint8 and rgb.ndim == 3 and rgb.shape[2] == 3 and rgb.size else "not an RGB image"


@settings(max_examples=400, deadline=None)
@given(
    data=st.sampled_from(FILES),
    changes=st.lists(st.tuples(st.floats(0, 0.999), st.integers(0, 255)), max_size=8),
    header_only=st.booleans(),
    keep=st.one_of(st.just(1.0), st.floats(0, 1)),
)
def test_damaged_bytes_give_an_image_or_an_image_error(
    data: bytes, changes: list[tuple[float, int]], header_only: bool, keep: float
) -> None:
    damaged = bytearray(data)
    for where, value in changes:
        damaged[int(where * (64 if header_only else len(data)))] = value
    damaged = damaged[: int(keep * len(damaged))]
    assert outcome(bytes(damaged)) in {"ok", "empty", "not_an_image", "truncated", "too_large"}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([b"", *{data[:12] for data in FILES}]), st.binary(max_size=300))
def test_random_bytes_are_never_more_than_an_image_error(start: bytes, noise: bytes) -> None:
    assert outcome(start + noise) in {"ok", "empty", "not_an_image", "truncated", "too_large"}


def test_arrays_and_pil_images() -> None:
    grey = picture()[..., 0]
    assert to_rgb(picture()).shape == picture().shape
    np.testing.assert_array_equal(to_rgb(grey), np.stack([grey] * 3, axis=2))
    np.testing.assert_array_equal(to_rgb(Image.fromarray(picture())), picture())
    assert to_rgb(picture()[:, ::-1]).flags.c_contiguous
    exif = Image.Exif()
    exif[0x0112] = 6
    photograph = Image.open(io.BytesIO(encode(picture(), "PNG", exif=exif)))
    np.testing.assert_array_equal(to_rgb(photograph), np.rot90(picture(), -1), err_msg="as the same file would be read")


@pytest.mark.parametrize(
    "image",
    [picture() / 255, *(np.zeros(shape, np.uint8) for shape in ((4, 4, 4), (3, 4, 4), (0, 4, 3), (4,))), "face.jpg"],
    ids=["float", "four channels", "channels first", "no pixels", "one axis", "text"],
)
def test_arrays_of_another_kind_are_refused_with_what_was_given(image: object) -> None:
    with pytest.raises(ValueError, match=r"uint8 with the shape \(H, W, 3\).*not (float64|uint8|str)"):
        to_rgb(image)   # type: ignore[arg-type]


def test_a_damaged_pil_image_is_an_image_error() -> None:
    with pytest.raises(ImageError) as caught:
        to_rgb(Image.open(io.BytesIO(encode(picture(), "PNG")[:500])))
    assert caught.value.status == "truncated"


def test_the_error_survives_pickling() -> None:
    error = pickle.loads(pickle.dumps(ImageError("no_face", "nobody there")))
    assert (error.status, str(error)) == ("no_face", "nobody there")
