"""Finding and downloading weights, against a real HTTP server on this machine."""

from __future__ import annotations

import hashlib
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from model import weights
from model.files import only_run
from model.loading import SYSTEMS
from model.weights import WEIGHTS, KnownWeights, WeightsError, download, find_weights

CONTENT = np.random.default_rng(0).bytes(3_000_000)


@dataclass
class Server:
    """A file server whose habits a test can change, and which remembers what it was asked."""

    url: str = ""
    honours_ranges: bool = True
    breaks_after: int | None = None  # bytes of an answer after which the connection is closed
    status: int = 200
    ranges: list[str | None] = field(default_factory=list)


@pytest.fixture
def server() -> Iterator[Server]:
    habits = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = self.headers["Range"]
            habits.ranges.append(asked)
            start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and habits.honours_ranges else 0
            if habits.status != 200 or start >= len(CONTENT):
                self.send_error(habits.status if habits.status != 200 else 416)
                return
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(CONTENT) - start))
            self.end_headers()
            end = len(CONTENT) if habits.breaks_after is None else start + habits.breaks_after
            self.wfile.write(CONTENT[start:end])

        def log_message(self, *_: object) -> None:
            pass

    http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    habits.url = f"http://127.0.0.1:{http.server_port}/weights.pt"
    threading.Thread(target=http.serve_forever, daemon=True).start()
    yield habits
    http.shutdown()
    http.server_close()


def known(url: str, sha256: str = hashlib.sha256(CONTENT).hexdigest()) -> KnownWeights:
    return KnownWeights("test", "weights.pt", "the test", "none", sha256, url)


def test_download(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = download(known(server.url), tmp_path / "new folder")
    assert path == tmp_path / "new folder" / "weights.pt"
    assert path.read_bytes() == CONTENT
    assert list(path.parent.iterdir()) == [path]
    assert server.ranges == [None]
    assert capsys.readouterr().out == ""


def test_broken_download_continues(server: Server, tmp_path: Path) -> None:
    server.breaks_after = 1_234_567
    with pytest.raises(WeightsError, match="could not be downloaded"):
        download(known(server.url), tmp_path)
    assert not (tmp_path / "weights.pt").exists()
    assert (tmp_path / "weights.pt.partial").stat().st_size == 1_234_567
    server.breaks_after = None
    assert download(known(server.url), tmp_path).read_bytes() == CONTENT
    assert server.ranges == [None, "bytes=1234567-"]
    assert [path.name for path in tmp_path.iterdir()] == ["weights.pt"]


def test_server_without_ranges_starts_again(server: Server, tmp_path: Path) -> None:
    server.honours_ranges = False
    (tmp_path / "weights.pt.partial").write_bytes(CONTENT[:1000])
    assert download(known(server.url), tmp_path).read_bytes() == CONTENT
    assert server.ranges == ["bytes=1000-"]


def test_complete_partial_file_is_taken(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pt.partial").write_bytes(CONTENT)
    assert download(known(server.url), tmp_path).read_bytes() == CONTENT


def test_one_process_downloads_a_file(server: Server, tmp_path: Path) -> None:
    with only_run(tmp_path / "weights.pt"), pytest.raises(BlockingIOError, match="another run is writing"):
        download(known(server.url), tmp_path)
    assert server.ranges == []


def test_wrong_hash_is_deleted(server: Server, tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=hashlib.sha256(CONTENT).hexdigest()):
        download(known(server.url, sha256="0" * 64), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_partial_file_of_something_else_is_deleted(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pt.partial").write_bytes(b"something else")
    with pytest.raises(WeightsError, match="it was deleted"):
        download(known(server.url), tmp_path)
    assert download(known(server.url), tmp_path).read_bytes() == CONTENT


def test_old_file_stays_until_the_new_one_is_whole(server: Server, tmp_path: Path) -> None:
    (tmp_path / "weights.pt").write_bytes(b"old")
    server.breaks_after = 1000
    with pytest.raises(WeightsError):
        download(known(server.url), tmp_path)
    assert (tmp_path / "weights.pt").read_bytes() == b"old"


def test_server_error_says_what_to_do(server: Server, tmp_path: Path) -> None:
    server.status = 403
    with pytest.raises(WeightsError, match="Forbidden") as caught:
        download(known(server.url), tmp_path)
    assert str(tmp_path / "weights.pt") in str(caught.value)


def test_offline_says_what_to_do(tmp_path: Path) -> None:
    url = "http://127.0.0.1:1/weights.pt"  # nobody listens there
    with pytest.raises(WeightsError) as caught:
        download(known(url), tmp_path)
    for part in (url, "weights.pt is needed", str(tmp_path / "weights.pt"), "python -m model.weights test"):
        assert part in str(caught.value)


def test_without_a_link_says_what_to_do(tmp_path: Path) -> None:
    published = next(known for known in WEIGHTS if known.name == "clib-fiqa-r50")
    with pytest.raises(WeightsError) as caught:
        download(published, tmp_path)
    for part in ("CLIB-FIQA_R50.pth", "https://drive.google.com/", str(tmp_path / "CLIB-FIQA_R50.pth")):
        assert part in str(caught.value)


def test_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "FOLDER", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "weights").mkdir()
    for name in ("RN50", "RN50.pt"):
        with pytest.raises(WeightsError, match=r"RN50\.pt is needed: get it from https"):
            find_weights(name)
    (tmp_path / "weights" / "RN50.pt").touch()
    for name in ("RN50", "RN50.pt", "weights/RN50.pt"):
        assert find_weights(name).samefile(tmp_path / "weights" / "RN50.pt")
    with pytest.raises(WeightsError, match=r"nonsense\.pth: no such file, and not the name of known weights \(clib"):
        find_weights("nonsense.pth")


def test_table_is_well_formed() -> None:
    assert all(known.system in SYSTEMS for known in WEIGHTS)
    assert len({known.name for known in WEIGHTS}) == len({known.file for known in WEIGHTS}) == len(WEIGHTS)
    for known in WEIGHTS:
        assert known.sha256 is None or re.fullmatch("[0-9a-f]{64}", known.sha256)
        assert known.sha256 or not known.url, "a download is always verified"


def test_listing_checks_what_is_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(weights, "FOLDER", tmp_path)
    monkeypatch.setattr(weights, "WEIGHTS", (known("http://127.0.0.1:1/"),))
    for content, state in ((None, "to download"), (b"cut", "OTHER SHA256"), (CONTENT, "checked")):
        if content is not None:
            (tmp_path / "weights.pt").write_bytes(content)
        assert weights.main([]) == 0
        assert state in capsys.readouterr().out


def test_unknown_name_is_one_line_and_exit_code_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert weights.main(["nonsense"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: nonsense: no such file")
    assert error.count("\n") == 1


def test_command_line() -> None:
    command = [sys.executable, "-W", "error", "-m", "model.weights"]
    listing = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True)
    assert listing.returncode == 0, listing.stderr
    assert all(known.file in listing.stdout for known in WEIGHTS)


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        weights.main(["--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "python -m model.weights RN50" in shown
    for state in ("checked", "OTHER SHA256", "here", "to download", "by hand"):
        assert f"\n    {state} " in shown
