"""The page of the service in a browser: photographs in by choice, drop and camera, faces out; comparing two."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import running_chromium
from recipe_tensors import save_tiny_clib_fiqa
from serving import serving, two_faces

from scoring import Scorer
from service.app import create_app

SAMPLES = Path(__file__).parents[1] / "samples"


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory, golden: Path) -> Any:
    weights = save_tiny_clib_fiqa(tmp_path_factory.mktemp("weights") / "tiny.safetensors", golden)
    return create_app(Scorer(weights=weights, device="cpu", align="no"), readers=1)


@pytest.fixture(scope="module")
def address(app: Any) -> Iterator[str]:
    """The service on a free port of this computer."""
    with serving(app) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_chromium() as running:
        yield running


@pytest.fixture
def page(browser: Any, address: str) -> Iterator[Any]:
    context = browser.new_context(viewport={"width": 1200, "height": 900}, permissions=["camera"])
    page = context.new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("request", lambda r: None if r.url.startswith((address, "data:", "blob:")) else page.problems.append(r.url))
    page.goto(address)
    page.wait_for_selector("body[data-ready=yes]")
    yield page
    context.close()
    assert page.problems == []


def test_photographs_are_scored_and_bad_ones_say_why(page: Any, tmp_path: Path) -> None:
    bad = tmp_path / "<img src=x onerror=document.title=1>.png"
    bad.write_text("no picture")
    page.set_input_files("#files", [SAMPLES / "astronaut.png", bad, SAMPLES / "hopper_dark.png"])
    page.wait_for_selector("text=2 faces scored.")
    assert page.locator(".face").count() == 2
    assert page.locator(".face .score").first.inner_text().startswith("0.")
    assert page.locator(".face .factors").first.inner_text().split("\n")[0] == "blur"
    assert "is no JPEG" in page.locator(".failed").inner_text()
    assert page.title() == "Face image quality"
    assert page.locator(".image").nth(0).get_by_text("astronaut.png").count() == 1, "in the order of the files"
    page.click("#clear")
    assert page.locator(".image").count() == 0


def test_dropped_files_are_scored(page: Any) -> None:
    page.evaluate(
        """async () => {
          const canvas = Object.assign(document.createElement("canvas"), {width: 112, height: 112});
          canvas.getContext("2d").fillRect(20, 20, 60, 60);
          const blob = await new Promise((done) => canvas.toBlob(done, "image/png"));
          const data = new DataTransfer();
          data.items.add(new File([blob], "dropped.png"));
          document.querySelector("main").dispatchEvent(new DragEvent("drop", {dataTransfer: data, bubbles: true}));
        }"""
    )
    page.wait_for_selector("text=1 face scored.")
    assert page.locator(".face").get_attribute("aria-label") == "dropped.png"


def test_the_camera_gives_a_photograph(page: Any) -> None:
    page.click("#camera")
    page.click("#take")  # waits until the button is enabled: until there is a picture
    page.wait_for_selector("text=1 face scored.")
    page.click("#stop")
    assert not page.is_visible("#camera-panel")
    assert page.evaluate("document.querySelector('video').srcObject") is None


def test_two_faces_are_compared(page: Any) -> None:
    names = ("astronaut.png", "hopper_tiny.png", "hopper_dark.png")
    page.set_input_files("#files", [SAMPLES / name for name in names])
    page.wait_for_selector("text=3 faces scored.")
    boxes = page.locator(".face input")
    boxes.nth(0).check()
    assert page.is_disabled("#compare")
    boxes.nth(1).check()
    boxes.nth(2).check()
    assert [boxes.nth(i).is_checked() for i in range(3)] == [False, True, True], "the first choice makes way"
    page.click("#compare")
    dialog = page.locator("dialog")
    assert "hopper_tiny.png" in dialog.inner_text()
    assert "hopper_dark.png" in dialog.inner_text()
    page.keyboard.press("Escape")
    page.click("#tray-clear")
    assert not page.is_visible("#tray")


def test_every_face_is_shown_and_the_first_has_a_map(browser: Any, tmp_path: Path) -> None:
    two_faces().save(tmp_path / "group.png")
    with serving(create_app(Scorer(device="cpu", faces="all"), readers=1)) as port:
        page = browser.new_page()
        page.goto(f"http://127.0.0.1:{port}")
        page.wait_for_selector("body[data-ready=yes]")
        page.set_input_files("#files", [tmp_path / "group.png"])
        page.wait_for_selector("text=2 faces scored.")
        named = [page.locator(".face").nth(i).get_attribute("aria-label") for i in range(2)]
        assert named == ["group.png", "group.png, face 1"]
        assert [page.locator(".face").nth(i).get_by_text("Map").count() for i in range(2)] == [1, 0]
        page.close()


def test_a_busy_service_is_asked_again(page: Any, app: Any) -> None:
    batcher = app.state.service.batcher
    batcher.reserve(batcher.capacity)
    page.set_input_files("#files", [SAMPLES / "astronaut.png"])
    page.wait_for_selector("text=The service is busy.")
    batcher.release(batcher.capacity)
    page.wait_for_selector("text=1 face scored.")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_fits_a_phone(browser: Any, address: str, scheme: str) -> None:
    page = browser.new_context(viewport={"width": 360, "height": 700}, color_scheme=scheme).new_page()
    page.goto(address)
    page.set_input_files("#files", [SAMPLES / "astronaut.png"])
    page.wait_for_selector(".face")
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
