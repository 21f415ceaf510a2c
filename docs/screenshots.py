"""Make the pictures of the report and of the page: `python -m docs.screenshots`, with a Chromium.

All faces are those of samples/, in the public domain, and damaged versions of them.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

import inference
from faces.degradations import KINDS, degrade
from faces.reader import read_image
from model.files import replacing

ROOT = Path(__file__).parents[1]
SAMPLES = ROOT / "samples"
WHOLE = ("astronaut", "cameraman_turned")
STRENGTHS = (0.05, 0.35, 0.7)
COLOURS = 160


def make_faces(folder: Path) -> None:
    """The samples, and each kind of damage to them in three strengths."""
    for name in WHOLE:
        face = read_image(SAMPLES / f"{name}.png")
        for kind in KINDS:
            for strength in STRENGTHS:
                damaged = degrade(face, kind, strength, np.random.default_rng(len(kind)))
                Image.fromarray(damaged).save(folder / f"{name}_{kind}_{round(100 * strength):02d}.png")
    for path in SAMPLES.glob("*.png"):
        shutil.copy(path, folder)


def photograph(folder: Path) -> Path:
    """The photograph of the sample "astronaut" (NASA, in the public domain), which scikit-image carries."""
    import skimage

    return Path(shutil.copy(Path(skimage.__file__).parent / "data" / "astronaut.png", folder))


def save(page: Any, path: Path) -> None:
    """The visible part of a page as a PNG of few colours."""
    image = Image.open(io.BytesIO(page.screenshot())).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE)
    with replacing(path) as temporary:
        image.save(temporary, "PNG", optimize=True)


@contextmanager
def running_service() -> Iterator[str]:
    """The address of a service with the default model."""
    import uvicorn

    from scoring import Scorer
    from service.app import create_app

    server = uvicorn.Server(uvicorn.Config(create_app(Scorer()), port=0, log_level="warning"))
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def main() -> None:
    from playwright.sync_api import sync_playwright

    executable = os.environ.get("CHROMIUM") or shutil.which("chromium") or sys.exit("a chromium is needed")
    with tempfile.TemporaryDirectory() as scratch, running_service() as address, sync_playwright() as playwright:
        faces, report = Path(scratch) / "faces", Path(scratch) / "report.html"
        faces.mkdir()
        make_faces(faces)
        inference.main([str(faces), "--report", str(report)])
        browser = playwright.chromium.launch(executable_path=executable, args=["--no-sandbox", "--disable-gpu"])
        page = browser.new_page(viewport={"width": 1180, "height": 820})
        page.goto(report.as_uri())
        page.wait_for_selector("body[data-ready=yes]")
        page.fill("#number", "0.45")
        page.select_option("#order", "score|best")
        page.check("input[value=refused]", force=True)
        page.wait_for_timeout(500)
        save(page, ROOT / "docs" / "report.png")
        page.goto(address)
        page.set_input_files("#files", [photograph(Path(scratch)), SAMPLES / "astronaut_occluded.png"])
        page.wait_for_selector("text=2 faces scored.")
        page.wait_for_timeout(500)
        save(page, ROOT / "docs" / "service.png")
        page.locator(".face").last.get_by_text("Map").click()
        page.wait_for_selector("dialog .map")
        page.wait_for_timeout(500)
        save(page, ROOT / "docs" / "service_map.png")
        browser.close()


if __name__ == "__main__":
    main()
