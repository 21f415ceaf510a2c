"""The service in a thread of the tests' process, on a free port of this computer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from PIL import Image

SAMPLES = Path(__file__).parents[1] / "samples"


@contextmanager
def serving(app: Any) -> Iterator[int]:
    """The port."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    deadline = time.monotonic() + 30
    while not server.started:
        assert time.monotonic() < deadline, "the service did not start"
        time.sleep(0.02)
    yield server.servers[0].sockets[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def two_faces() -> Image.Image:
    """A picture with two faces: the left one is larger, the right one is nearer to the middle."""
    picture = Image.new("RGB", (800, 400), "grey")
    for name, side, corner in (("astronaut", 280, (30, 60)), ("hopper_dark", 200, (360, 100))):
        picture.paste(Image.open(SAMPLES / f"{name}.png").resize((side, side)), corner)
    return picture
