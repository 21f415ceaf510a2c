"""The report of inference.py in a browser: the threshold, the gallery, the keyboard, the export, 10,000 faces."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from chromium import running_chromium
from test_report import ABOUT, HOSTILE, fake_picture, row

from scoring import report
from scoring.report import write_report

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running_chromium() as running:
        yield running


def opened(browser: Any, file: Path, **settings: Any) -> Any:
    """A page with the report, once it is ready; `page.problems` are errors of scripts and requests to anywhere."""
    page = browser.new_context(**{"viewport": {"width": 1280, "height": 800}, **settings}).new_page()
    page.problems = []
    page.on("pageerror", lambda error: page.problems.append(str(error)))
    page.on("console", lambda line: page.problems.append(line.text) if line.type == "error" else None)
    own = (file.as_uri(), "data:", "blob:")
    page.on("request", lambda request: None if request.url.startswith(own) else page.problems.append(request.url))
    page.goto(file.as_uri())
    page.wait_for_selector("body[data-ready=yes]")
    return page


def wait_until(page, condition):
    """Wait for a condition in JavaScript. Playwright's own waiting needs an `eval` that the page's policy forbids."""
    deadline = time.monotonic() + 60
    while not page.evaluate(condition):
        assert time.monotonic() < deadline, condition
        page.wait_for_timeout(20)


def names(page: Any) -> list[str]:
    return page.locator(".card .name").all_text_contents()


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """20 faces with scores 0.10 to 0.48, one without a face, and a reason for each of the lower half."""
    folder = tmp_path_factory.mktemp("report")
    sample = ROOT / "samples" / "astronaut.png"
    rows = [row(str(sample), 0.88, reasons=[])]
    for i in range(20):
        reasons = [{"code": "low_sharpness", "value": 0.9, "advice": "Hold the camera still."}] if i < 10 else []
        rows.append(row(f"people/{i:02d}.png", 0.1 + i / 50, reasons=reasons, band="low" if i < 10 else "medium"))
    rows.append(row("people/nobody.png", None, reasons=[]))
    write_report(folder / "r.html", rows, len(rows), ABOUT)
    return folder / "r.html"


def test_the_threshold_shows_at_once_who_is_refused_and_why(browser: Any, file: Path) -> None:
    page = opened(browser, file)
    assert "2 of 22 refused" in page.inner_text("#verdict"), "at first the worst 5 % of those with a score, and no_face"
    page.fill("#number", "0.3")
    wait_until(page, "document.querySelector('#verdict').textContent.startsWith('11 of 22')")
    assert "10 by their score, 1 without a score" in page.inner_text("#verdict")
    assert [line.split() for line in page.inner_text("#why").splitlines()] != []
    assert page.locator("#why button").all_inner_texts() == ["low sharpness\n10", "no face\n1"]
    page.click("text=low sharpness")
    assert names(page) == [f"{i:02d}.png" for i in range(10)]
    assert page.locator(".card").first.get_attribute("class") == "card refused active"
    page.focus("#slider")
    page.keyboard.press("End")
    wait_until(page, "document.querySelector('#verdict').textContent.startsWith('22 of 22')")
    page.keyboard.press("Home")
    wait_until(page, "document.querySelector('#verdict').textContent.startsWith('1 of 22')")
    assert page.problems == []


def test_the_number_refuses_those_whom_the_page_refuses(browser: Any, tmp_path: Path) -> None:
    """Given to --min-score it selects the same faces, wherever it comes from: a share, the slider or a key."""
    scores = [0.5245696 + i * 0.0123457 for i in range(20)]
    rows = [row(f"{i}.png", float(f"{score:.7g}")) for i, score in enumerate(scores)]
    write_report(tmp_path / "r.html", rows, len(rows), {**ABOUT, "range": None})
    page = opened(browser, tmp_path / "r.html")

    def refused() -> int:
        page.evaluate("() => new Promise(requestAnimationFrame)")
        wait_until(page, "waiting === null")
        count = int(page.inner_text("#verdict").split()[0])
        number = float(page.input_value("#number"))
        assert count == sum(one["quality"] < number for one in rows)
        return count

    assert refused() == 1
    for share, expected in zip(page.locator(".presets button").all(), (0, 1, 2, 5), strict=True):
        share.click()
        assert refused() == expected
    page.focus("#slider")
    for key, times in (("Home", 1), ("ArrowRight", 7), ("PageUp", 6), ("ArrowLeft", 9), ("End", 1)):
        for _ in range(times):
            page.keyboard.press(key)
            found = refused()
        assert found == {"Home": 0, "End": 20}.get(key, found)
    assert page.problems == []


def test_the_gallery_is_sorted_and_filtered(browser: Any, file: Path) -> None:
    page = opened(browser, file)
    assert names(page)[:3] == ["nobody.png", "00.png", "01.png"]
    page.select_option("#order", "score|best")
    assert names(page)[:2] == ["astronaut.png", "19.png"]
    page.fill("#search", "PEOPLE/1")
    wait_until(page, "document.querySelectorAll('.card').length === 10")
    page.select_option("#band", "low")
    assert names(page) == []
    assert page.is_visible("#empty")
    page.fill("#search", "")
    wait_until(page, "document.querySelectorAll('.card').length === 10")
    page.check("input[value=accepted]", force=True)
    page.fill("#number", "0.2")
    wait_until(page, "document.querySelectorAll('.card').length === 5")
    assert page.problems == []


def test_everything_is_done_by_keyboard(browser: Any, file: Path) -> None:
    page = opened(browser, file)
    page.focus("#gallery")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    page.keyboard.press("End")
    page.keyboard.press("Space")
    active = page.get_attribute("#gallery", "aria-activedescendant")
    assert page.get_attribute(f"#{active}", "aria-selected") == "true"
    assert page.inner_text("#save") == "Save 2 ticked paths"
    page.keyboard.press("Enter")
    dialog = page.locator("dialog")
    assert dialog.is_visible()
    assert "astronaut.png" in dialog.inner_text()
    assert "higher than 50 % of a set" in dialog.inner_text()
    page.keyboard.press("Home")  # not a key of the dialog
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    assert page.inner_text("#detail-title") == "nobody.png"
    page.keyboard.press("ArrowRight")
    assert "Hold the camera still." in dialog.inner_text()
    page.keyboard.press("Escape")
    assert not dialog.is_visible()
    assert page.evaluate("document.activeElement.id") == "gallery"
    assert page.problems == []


def test_hostile_names_are_shown_and_exported_as_they_are(browser: Any, tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", [row(f"d/{name}", 0.5) for name in HOSTILE], len(HOSTILE), ABOUT)
    page = opened(browser, tmp_path / "r.html")
    assert page.evaluate("document.querySelectorAll('script, img').length") == 3, "two of data, one that runs"
    assert page.title() == "Face image quality: 6 faces"
    page.evaluate("moveTo(0)")
    for _ in HOSTILE:
        page.focus("#gallery")
        page.keyboard.press("Enter")
        page.keyboard.press("Escape")
        page.keyboard.press("ArrowRight")
    with page.expect_download() as download:
        page.click("#save")
    saved = Path(download.value.path()).read_bytes()
    lines = [f"d/{name}\n".encode(errors="surrogateescape") for name in HOSTILE if "\n" not in name]
    assert saved == b"".join(lines)
    assert "1 with a line end in their name left out" in page.inner_text("#shown")
    assert page.problems == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [360, 1280])
def test_it_fits_phones_and_both_colour_schemes(browser: Any, file: Path, width: int, scheme: str) -> None:
    page = opened(browser, file, viewport={"width": width, "height": 700}, color_scheme=scheme)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.evaluate("document.querySelector('#gallery').scrollWidth") <= width
    style = "getComputedStyle(document.body)"
    text, behind = page.evaluate(f"[{style}.color, {style}.backgroundColor]")
    brightness = [sum(map(int, colour[4:-1].split(", "))) for colour in (text, behind)]
    assert (brightness[0] > brightness[1]) == (scheme == "dark")
    assert page.locator(".card").count() >= 2
    page.locator(".card .picture").first.click()
    dialog = page.locator("dialog")
    dialog.wait_for()
    box = dialog.bounding_box()
    assert 0 <= box["x"] < box["x"] + box["width"] <= width
    assert page.problems == []


def test_ten_thousand_faces_scroll_with_a_screenful_in_the_document(
    browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_picture", fake_picture)
    rows = (row(f"{i:05d}.png", 0.1 + (i * 7919 % 10_000) / 12_500) for i in range(10_000))
    write_report(tmp_path / "r.html", rows, 10_000, ABOUT)
    page = opened(browser, tmp_path / "r.html")
    assert names(page)[0] == "00000.png"
    counts = []
    for y in (0, 300_000, 10**9):
        page.evaluate(f"window.scrollTo(0, {y})")
        page.wait_for_timeout(100)
        counts.append(page.locator(".card").count())
    assert max(counts) < 80
    assert names(page)[-1] == f"{next(i for i in range(10_000) if i * 7919 % 10_000 == 9999):05d}.png"
    assert page.problems == []


def test_a_report_without_faces_or_scores_opens(browser: Any, tmp_path: Path) -> None:
    write_report(tmp_path / "r.html", [row("a.png", None)], 1, {**ABOUT, "range": None, "percentile_set": None})
    page = opened(browser, tmp_path / "r.html")
    assert "1 of 1 refused" in page.inner_text("#verdict")
    assert page.is_disabled("#slider")
    assert page.problems == []
