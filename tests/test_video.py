"""Frames of videos, and tracks of faces."""

import struct
from fractions import Fraction

import numpy as np
import pytest

from faces.reader import ImageError
from faces.video import Tracker, folder_frames, frames, is_video, overlaps

av = pytest.importorskip("av")

RATE = 25


def write_video(path, pictures):
    """A lossless video of RGB uint8 pictures, 25 a second."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("ffv1", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = pictures[0].shape[1], pictures[0].shape[0], "bgr0"
        stream.time_base = Fraction(1, RATE)
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24").reformat(format="bgr0")))
        container.mux(stream.encode())
    return path


@pytest.fixture
def pictures():
    values = np.random.default_rng(0)
    return [values.integers(0, 256, (48, 64, 3), np.uint8) for _ in range(30)]


def test_frames_come_back_in_order_with_their_times(tmp_path, pictures):
    path = write_video(tmp_path / "clip.mkv", pictures)
    found = list(frames(path))
    assert [frame.number for frame in found] == list(range(30))
    np.testing.assert_allclose([frame.seconds for frame in found], np.arange(30) / RATE, atol=2e-3)
    for frame, picture in zip(found, pictures, strict=True):
        np.testing.assert_array_equal(frame.rgb, picture)


@pytest.mark.parametrize("suffix", ["mpg", "ts"])
def test_the_times_of_a_stream_begin_at_its_first_frame(tmp_path, suffix):
    """The clock of an MPEG stream runs from the beginning of its broadcast, not of the file."""
    path = tmp_path / f"clip.{suffix}"
    with av.open(str(path), "w", options={"output_ts_offset": "40"}) as container:
        stream = container.add_stream("mpeg2video", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(30):
            picture = np.full((48, 64, 3), 8 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    for every in (1, 7):
        found = [frame.seconds for frame in frames(path, every)]
        np.testing.assert_allclose(found, np.arange(0, 30, every) / RATE, atol=2e-3)


def test_every_leaves_frames_out_and_keeps_the_numbers(tmp_path, pictures):
    path = write_video(tmp_path / "clip.mkv", pictures)
    assert [frame.number for frame in frames(path, every=7)] == [0, 7, 14, 21, 28]
    with pytest.raises(ValueError, match="at least 1"):
        next(frames(path, every=0))


def test_a_video_of_a_turned_telephone_comes_upright(tmp_path):
    """The matrix of an MP4's track header says how the picture is to be shown: here a quarter turn clockwise."""
    picture = np.zeros((48, 64, 3), np.uint8)
    picture[:24] = 255   # the upper half is white: after the turn the right one
    path = tmp_path / "clip.mp4"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    content = path.read_bytes()
    start = content.index(b"tkhd") + 4 + 40   # version and flags, times, track, length, layer, group, volume
    matrix = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 48 << 16, 0, 1 << 30)
    path.write_bytes(content[:start] + matrix + content[start + 36 :])
    turned = next(frames(path)).rgb
    assert turned.shape == (64, 48, 3)
    assert turned[:, 28:].mean() > 200
    assert turned[:, :20].mean() < 50


def test_bad_videos_have_a_status(tmp_path, pictures):
    with pytest.raises(ImageError) as error:
        next(frames(tmp_path / "none.mp4"))
    assert error.value.status == "missing"
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(ImageError) as error:
        next(frames(text))
    assert error.value.status == "not_a_video"


def test_a_video_that_is_cut_off_gives_its_first_frames(tmp_path, pictures):
    path = write_video(tmp_path / "clip.mkv", pictures)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = list(frames(path))
    assert 5 < len(found) < 30
    np.testing.assert_array_equal(found[3].rgb, pictures[3])


def encoded(path, codec, pictures, pix_fmt="yuv420p", gop=12, **options):
    with av.open(str(path), "w", options=options) as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt = pictures[0].shape[1], pictures[0].shape[0], pix_fmt
        stream.codec_context.gop_size = gop
        for picture in pictures:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.mark.parametrize(
    ("name", "codec", "options"),
    [("a.mkv", "mpeg4", {}), ("a.mp4", "mpeg4", {"movflags": "faststart"}), ("a.avi", "mjpeg", {})],
)
def test_the_end_of_a_video_that_is_cut_off_is_told(tmp_path, pictures, name, codec, options):
    path = encoded(tmp_path / name, codec, pictures, "yuvj420p" if codec == "mjpeg" else "yuv420p", **options)
    assert [frame.status for frame in frames(path, with_lost=True)] == ["ok"] * 30
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    *found, last = frames(path, with_lost=True)
    assert 5 < len(found) < 30
    assert (last.number, last.status, last.rgb.size) == (found[-1].number + 1, "truncated", 0)
    assert last.seconds == pytest.approx(last.number / RATE, abs=2e-3)
    assert {frame.status for frame in found} == {"ok"}
    assert len(list(frames(path))) == len(found)
    last = list(frames(path, every=4, with_lost=True))[-1]
    assert last.status == "truncated", "also where no frame would be looked at"
    path.write_bytes(path.read_bytes()[:700])
    with pytest.raises(ImageError) as error:
        list(frames(path))
    assert error.value.status in ("truncated", "not_a_video")


@pytest.mark.parametrize("suffix", ["mkv", "mp4"])
def test_a_video_with_pauses_is_whole(tmp_path, suffix):
    """As a recording of a screen is, on which nothing moves for seconds."""
    path, times = tmp_path / f"clip.{suffix}", [0, 40, 80, 3080, 3120, 9120, 9160]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=1000)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for time in times:
            frame = av.VideoFrame.from_ndarray(np.full((48, 64, 3), time % 256, np.uint8), format="rgb24")
            frame.pts, frame.time_base = time, Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    found = list(frames(path, with_lost=True))
    assert [frame.status for frame in found] == ["ok"] * len(times)
    np.testing.assert_allclose([frame.seconds for frame in found], np.array(times) / 1000, atol=2e-3)


def test_frames_that_are_lost_within_a_video_are_told(tmp_path, pictures):
    """FFmpeg guesses what is missing of a damaged frame, and goes on with the next ones."""
    path = encoded(tmp_path / "a.avi", "mpeg4", pictures, gop=1)
    content = bytearray(path.read_bytes())
    starts = [i for i in range(len(content)) if content.startswith(b"00dc", i)][1:]   # the first is of an empty index
    for number in (10, 11, 20):
        content[starts[number] + 100 : starts[number] + 300] = bytes(200)
    path.write_bytes(content)
    found = list(frames(path, with_lost=True))
    assert [frame.number for frame in found if frame.status == "truncated"] == [10, 20], "once for each stretch"
    assert [frame.number for frame in found if frame.status == "ok"] == [n for n in range(30) if n not in (10, 11, 20)]
    assert found[10].seconds == pytest.approx(10 / RATE)
    assert found[-1].seconds == pytest.approx(29 / RATE)


def test_a_part_of_a_matroska_file_that_is_skipped_is_told(tmp_path):
    """Behind damage FFmpeg goes on with the next cluster, which begins every five seconds, without an error."""
    path = encoded(tmp_path / "a.mkv", "mpeg4", [np.full((48, 64, 3), n, np.uint8) for n in range(160)])
    content = bytearray(path.read_bytes())
    at = len(content) // 4
    content[at : at + 60] = b"\xff" * 60
    path.write_bytes(content)
    for _ in range(2):   # FFmpeg's messages are not repeated by default
        found = list(frames(path, with_lost=True))
        assert len(found) < 150
        assert found[-1].status == "truncated"


def test_a_folder_of_frames_is_read_by_the_numbers_in_the_names(tmp_path, pictures):
    from PIL import Image

    empty = tmp_path / "empty"
    empty.mkdir()
    for number in (1, 2, 10):
        Image.fromarray(pictures[number]).save(tmp_path / f"frame_{number}.png")
    (tmp_path / "frame_3.png").write_text("damaged")
    found = list(folder_frames(tmp_path, rate=10))
    assert [frame.number for frame in found] == [0, 1, 3]   # the third of four cannot be read
    np.testing.assert_array_equal(found[2].rgb, pictures[10])
    assert found[2].seconds == pytest.approx(0.3)
    found = list(folder_frames(tmp_path, rate=10, with_lost=True))
    assert [frame.status for frame in found] == ["ok", "ok", "not_an_image", "ok"]
    assert (found[2].number, found[2].seconds) == (2, pytest.approx(0.2))
    with pytest.raises(ImageError, match="no picture"):
        next(folder_frames(empty))


def test_suffixes_tell_videos():
    assert is_video("a/b.MP4")
    assert is_video("x.webm")
    assert not is_video("x.jpg")
    assert not is_video("mp4")


def test_overlaps_by_hand():
    found = overlaps(np.array([[0, 0, 2, 2]]), np.array([[0, 0, 2, 2], [1, 1, 3, 3], [5, 5, 6, 6]]))
    np.testing.assert_allclose(found, [[1, 1 / 7, 0]])


def test_two_faces_keep_their_numbers_while_they_move():
    tracker = Tracker()
    for step in range(20):
        left, right = [step, 0, step + 40, 40], [300 - step, 5, 340 - step, 45]
        boxes = [left, right] if step % 2 else [right, left]
        numbers = tracker.link(np.array(boxes), step / RATE)
        assert numbers == ([1, 0] if step % 2 else [0, 1])


def test_a_face_that_was_away_too_long_gets_a_new_number():
    tracker, box = Tracker(patience=1.0), np.array([[0, 0, 40, 40]])
    none = np.zeros((0, 4))
    assert tracker.link(box, 0.0) == [0]
    assert tracker.link(none, 0.5) == []
    assert tracker.link(box, 1.0) == [0]
    assert tracker.link(none, 1.5) == []
    assert tracker.link(box, 2.5) == [1]


def test_a_track_goes_on_where_few_frames_are_looked_at():
    tracker, box = Tracker(patience=1.0), np.array([[0, 0, 40, 40]])
    assert [tracker.link(box, seconds) for seconds in (0.0, 2.0, 4.0)] == [[0]] * 3
    tracker.link(np.zeros((0, 4)), 6.0)
    assert tracker.link(box, 8.0) == [1]


def test_a_track_takes_one_face_of_a_frame():
    tracker = Tracker()
    tracker.link(np.array([[0, 0, 40, 40]]), 0.0)
    assert tracker.link(np.array([[4, 0, 44, 40], [1, 0, 41, 40]]), 0.04) == [1, 0]
