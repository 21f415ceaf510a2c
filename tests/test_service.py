"""The HTTP interface: partial success, bounds, refusals, and that it does what its OpenAPI description says."""

from __future__ import annotations

import io
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import recipe
import schemathesis
import torch
import uvicorn
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from PIL import Image
from recipe_tensors import save_tiny_clib_fiqa
from serving import serving, two_faces

from faces.reader import read_image
from scoring import Scorer
from service import __main__ as command
from service.app import create_app
from service.limits import Limits

ROOT = Path(__file__).parents[1]
LIMITS = Limits(images=4, image_bytes=60_000, body_bytes=200_000, requests=2, waiting=4, seconds=5)


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory, golden: Path) -> Scorer:
    weights = save_tiny_clib_fiqa(tmp_path_factory.mktemp("weights") / "tiny.safetensors", golden)
    return Scorer(weights=weights, device="cpu", align="auto", batch_size=4, max_bytes=LIMITS.image_bytes)


@pytest.fixture
def client(scorer: Scorer) -> Iterator[TestClient]:
    with TestClient(create_app(scorer, LIMITS, readers=2), base_url="http://127.0.0.1") as client:
        yield client


def png(seed: int, shape: tuple[int, int] = (112, 112)) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(recipe.mirror_image(seed)).resize(shape).save(stream, "PNG")
    return stream.getvalue()


def upload(*contents: bytes, name: str = "a.png") -> list[tuple[str, tuple[str, bytes]]]:
    return [("images", (name, content)) for content in contents]


def service_of(client: TestClient) -> Any:
    app: Any = client.app
    return app.state.service


def test_each_image_has_its_result_and_a_bad_one_its_reason(client: TestClient, scorer: Scorer) -> None:
    good = [png(0), png(1)]
    answer = client.post("/score", files=upload(good[0], b"no picture", good[1], good[1][:2000]))
    assert answer.status_code == 200
    content = answer.json()
    assert [r["index"] for r in content["results"]] == [0, 1, 2, 3]
    assert [r["status"] for r in content["results"]] == ["ok", "not_an_image", "ok", "truncated"]
    assert (content["scored"], content["failed"]) == (2, 2)
    expected = [scorer.score(image) for image in good]
    for result, score in zip(content["results"][::2], expected, strict=True):
        assert result["quality"] == pytest.approx(score.quality, abs=1e-6)
        assert result["blur"] == score.label("blur")
        assert result["factors"]["pose"] == pytest.approx(score.factors["pose"], abs=1e-5)
    assert content["results"][1]["quality"] is None


def client_of(flags: list[str], monkeypatch: pytest.MonkeyPatch) -> TestClient:
    """A client of the application that `python -m service FLAGS` would serve."""
    served: list[Any] = []
    monkeypatch.setattr(uvicorn, "run", lambda app, **_: served.append(app))
    assert command.main(["--device", "cpu", "--readers", "1", *flags]) == 0
    return TestClient(served[0], base_url="http://127.0.0.1")


def png_of(picture: Image.Image) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, "PNG")
    return stream.getvalue()


def test_the_default_service_answers_as_the_default_scorer(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Scorer(device="cpu").score(png_of(two_faces()))
    with client_of([], monkeypatch) as client:
        (result,) = client.post("/score", files=upload(png_of(two_faces()))).json()["results"]
    assert result["face"] == 0
    assert result["box"][0] < 360, "the larger face"
    assert (result["quality"], result["band"]) == (pytest.approx(expected.quality, abs=1e-6), expected.band)


def test_the_faces_that_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    expected = Scorer(device="cpu", faces="all").score(png_of(two_faces()))
    with client_of(["--faces", "all"], monkeypatch) as client:
        answer = client.post("/score?pictures=true", files=upload(png_of(two_faces()), b"no picture", png(0))).json()
    assert [(r["index"], r["face"]) for r in answer["results"]] == [(0, 0), (0, 1), (1, None), (2, None)]
    assert (answer["scored"], answer["failed"]) == (3, 1)
    for result, score in zip(answer["results"][:2], expected, strict=True):
        assert result["quality"] == pytest.approx(score.quality, abs=1e-6)
        assert result["box"] == pytest.approx(score.box, abs=0.01)
    pictures = {result["picture"] for result in answer["results"][:2]}
    assert len(pictures) == 2, "each face has its own picture"
    with client_of(["--faces", "central"], monkeypatch) as client:
        (central,) = client.post("/score", files=upload(png_of(two_faces()))).json()["results"]
    assert central["quality"] == answer["results"][1]["quality"]


def test_faces_upside_down(monkeypatch: pytest.MonkeyPatch) -> None:
    upright, turned = png_of(two_faces()), png_of(two_faces().rotate(180))
    with client_of(["--faces", "all", "--rotate", "auto"], monkeypatch) as client:
        results = client.post("/score", files=upload(upright, turned)).json()["results"]
    qualities = [result["quality"] for result in results]
    assert qualities[2:] == pytest.approx(qualities[:2], abs=0.05)


def test_precision_and_bands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stored = Scorer(device="cpu").bands
    assert stored is not None
    lenient = [replace(band, lowest=None if band.lowest is None else 0.1) for band in stored.measured]
    replace(stored, measured=tuple(lenient)).write(tmp_path / "bands.json")
    exact = Scorer(device="cpu").score(png_of(two_faces()))
    with client_of(["--precision", "bf16", "--bands", str(tmp_path / "bands.json")], monkeypatch) as client:
        (result,) = client.post("/score", files=upload(png_of(two_faces()))).json()["results"]
        assert service_of(client).scorer.settings["precision"] == "bf16"
    assert result["quality"] != exact.quality
    assert result["quality"] == pytest.approx(exact.quality, abs=0.01)
    assert (exact.band, result["band"]) == ("medium", "high")


def test_a_hostile_name_comes_back_as_it_was(client: TestClient) -> None:
    name = "</script><img src=x onerror=alert(1)>.png"
    (result,) = client.post("/score", files=upload(png(0), name=name)).json()["results"]
    assert result["filename"] == name
    assert "path" not in result


def test_pictures_are_what_the_network_saw(client: TestClient) -> None:
    (result,) = client.post("/score?pictures=true", files=upload(png(0))).json()["results"]
    assert result["picture"].startswith("data:image/webp;base64,")
    assert client.post("/score", files=upload(png(0))).json()["results"][0]["picture"] is None


def test_bounds_of_a_request(client: TestClient) -> None:
    many = client.post("/score", files=upload(*[png(0)] * 5))
    assert (many.status_code, many.json()["detail"]) == (413, "5 images: at most 4 are taken at a time")
    noise = np.random.default_rng(0).integers(0, 256, (160, 160, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(noise).save(stream, "PNG")
    results = client.post("/score", files=upload(stream.getvalue(), png(0))).json()["results"]
    assert [r["status"] for r in results] == ["too_large", "ok"], "one image beyond its bound does not fail the other"
    large = client.post("/score", files=upload(b"x" * 250_000))
    assert large.status_code == 413
    assert "200,000 bytes" in large.json()["detail"]


def test_a_body_of_unknown_length_is_bounded_too(client: TestClient) -> None:
    def chunks() -> Iterator[bytes]:
        yield b'--b\r\nContent-Disposition: form-data; name="images"; filename="a"\r\n\r\n'
        for _ in range(30):
            yield b"x" * 10_000
        yield b"\r\n--b--\r\n"

    answer = client.post("/score", content=chunks(), headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code == 413
    assert service_of(client).batcher.taken == 0


def test_a_body_that_does_not_arrive_gives_its_place_back(scorer: Scorer) -> None:
    app = create_app(scorer, Limits(body_seconds=0.1), readers=1)
    head = (
        b"POST /score HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
        b"Content-Type: multipart/form-data; boundary=b\r\n\r\n--b\r\n"
    )
    with serving(app) as port, socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(head)
        answer = b""
        while chunk := connection.recv(65536):
            answer += chunk
    assert answer.startswith(b"HTTP/1.1 408")
    assert b"did not arrive within 0.1 s" in answer


def test_the_command_says_in_a_line_what_is_wrong(tmp_path: Path) -> None:
    call = [sys.executable, "-m", "service", "--weights", str(tmp_path / "no.safetensors")]
    done = subprocess.run(call, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    assert command.main([]) == 2
    assert "uvicorn is missing: pip install -r requirements-service.txt" in capsys.readouterr().err


def test_wrong_calls_are_said_to_be_wrong(client: TestClient) -> None:
    assert client.post("/score").status_code == 422
    assert client.post("/score", files=[("pictures", ("a", b"x"))]).status_code == 422
    broken = client.post("/score", content=b"no form", headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert broken.status_code in (400, 422)
    assert client.get("/score").status_code == 405
    assert client.get("/nothing").status_code == 404


def test_a_full_queue_refuses_with_a_time_to_come_back(
    client: TestClient, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go = threading.Event(), threading.Event()
    score_loaded = scorer.score_loaded

    def slow(batch: Any) -> Any:
        started.set()
        assert go.wait(10)
        return score_loaded(batch)

    monkeypatch.setattr(scorer, "score_loaded", slow)
    answers: list[Any] = []
    busy = threading.Thread(target=lambda: answers.append(client.post("/score", files=upload(*[png(0)] * 3))))
    busy.start()
    assert started.wait(10)
    refused = client.post("/score", files=upload(png(0), png(1)))
    assert refused.status_code == 429
    assert int(refused.headers["Retry-After"]) >= 1
    assert client.get("/health").json()["waiting"] == 3
    go.set()
    busy.join(10)
    assert answers[0].json()["scored"] == 3
    assert client.get("/health").json() == {"status": "ok", "waiting": 0, "capacity": 4}


def test_too_many_requests_are_refused_before_their_bodies_are_read(client: TestClient) -> None:
    app: Any = client.app
    client.get("/health")  # builds the chain of middleware
    layer = app.middleware_stack
    while type(layer).__name__ != "BoundedRequests":
        layer = layer.app
    layer.now = LIMITS.requests
    refused = client.post("/score", files=upload(png(0)))
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
    layer.now = 0
    assert client.post("/score", files=upload(png(0))).status_code == 200
    assert layer.now == 0


def test_scores_that_take_too_long_are_given_up(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    score_loaded = scorer.score_loaded
    monkeypatch.setattr(scorer, "score_loaded", lambda batch: go.wait(10) and score_loaded(batch))
    app = create_app(scorer, Limits(seconds=0.2), readers=1)
    with TestClient(app, base_url="http://localhost") as client:
        answer = client.post("/score", files=upload(png(0)))
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert client.get("/health").json()["waiting"] == 0
        go.set()


def test_a_map_that_takes_too_long_is_given_up(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    go = threading.Event()
    monkeypatch.setattr(Scorer, "region_map", lambda *_: go.wait(10) and SimpleNamespace(regions={}, overlay=None))
    with TestClient(create_app(scorer, Limits(seconds=0.2), readers=1), base_url="http://localhost") as client:
        answer = client.post("/map", files=[("image", ("a.png", png(0)))])
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert client.get("/health").json()["waiting"] == 0
        go.set()


def test_readers_leave_the_cores_to_the_thread_that_scores(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}
    load, score_loaded = scorer.load, scorer.score_loaded
    monkeypatch.setattr(scorer, "load", lambda image: [seen.update(reader=torch.get_num_threads()), load(image)][1])
    monkeypatch.setattr(
        scorer, "score_loaded", lambda batch: [seen.update(scorer=torch.get_num_threads()), score_loaded(batch)][1]
    )
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with TestClient(create_app(scorer, LIMITS, readers=2), base_url="http://127.0.0.1") as client:
            assert client.post("/score", files=upload(png(1), png(2))).status_code == 200
    finally:
        torch.set_num_threads(before)
    assert seen == {"reader": 1, "scorer": 3}


def test_the_end_of_the_service_is_said(scorer: Scorer) -> None:
    app = create_app(scorer, LIMITS, readers=1)
    with TestClient(app, base_url="http://localhost") as client:
        app.state.service.batcher.close()
        assert client.get("/health").status_code == 503
        assert client.post("/score", files=upload(png(0))).status_code == 503


def test_only_this_computer_is_answered_by_default(scorer: Scorer, client: TestClient) -> None:
    assert client.get("/health", headers={"Host": "evil.example"}).status_code == 400
    assert client.get("/health", headers={"Host": "localhost:8000"}).status_code == 200
    assert "access-control-allow-origin" not in client.get("/health", headers={"Origin": "http://evil.example"}).headers
    with TestClient(create_app(scorer, host="0.0.0.0", readers=1), base_url="http://gate.example") as anywhere:
        assert anywhere.get("/health").status_code == 200
    assert command.parse([]).host == "127.0.0.1"


def test_models_and_metrics(client: TestClient) -> None:
    models = client.get("/models").json()
    assert models["serving"] == "clib-fiqa"
    assert models["levels"]["quality"] == ["bad", "poor", "fair", "good", "perfect"]
    assert {"clib-fiqa"} <= {model["name"] for model in models["known"]}
    client.post("/score", files=upload(png(0), b"no picture"))
    client.get("/any/thing")
    text = client.get("/metrics").text
    assert 'fiqa_images_total{status="ok"} 1.0' in text
    assert 'fiqa_images_total{status="not_an_image"} 1.0' in text
    assert 'fiqa_requests_total{code="200",path="/score"} 1.0' in text
    assert 'fiqa_requests_total{code="404",path="other"} 1.0' in text
    assert re.search(r"fiqa_images_waiting 0\.0", text)


def test_the_bound_of_an_image_holds_for_maps_too(client: TestClient) -> None:
    large = np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(large).save(stream, "PNG")
    assert len(stream.getvalue()) > LIMITS.image_bytes
    answer = client.post("/map", files=[("image", ("a.png", stream.getvalue()))]).json()
    assert answer["status"] == "too_large"


def test_a_map_where_the_scorer_makes_one(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    def region_map(scorer: Scorer, image: bytes, axis: str) -> Any:
        overlay = read_image(image)  # raises ImageError
        return SimpleNamespace(regions={"mouth": 0.25}, overlay=lambda: overlay)

    monkeypatch.setattr(Scorer, "region_map", region_map, raising=False)
    with TestClient(create_app(scorer, LIMITS, readers=1), base_url="http://localhost") as client:
        assert client.get("/models").json()["maps"] is True
        answer = client.post("/map?axis=blur", files=[("image", ("a.png", png(0)))]).json()
        assert (answer["axis"], answer["regions"]) == ("blur", {"mouth": 0.25})
        assert answer["picture"].startswith("data:image/webp;base64,")
        bad = client.post("/map", files=[("image", ("a.png", b"no picture"))]).json()
        assert bad == {"axis": "quality", "status": "not_an_image", "picture": None, "regions": {}}


def test_the_page_asks_only_this_service(client: TestClient) -> None:
    page = client.get("/")
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    for address in re.findall(r'(?:src|href)="([^"]+)"', page.text):
        assert address.startswith(("/", "data:")), address
        assert address.startswith("data:") or client.get(address).status_code == 200
    assert client.get("/static/app.js").headers["X-Content-Type-Options"] == "nosniff"


def test_it_answers_as_its_description_says(scorer: Scorer) -> None:
    """Schemathesis makes calls from the description, right and wrong ones, and checks every answer against it."""
    app = create_app(scorer, readers=1, host="0.0.0.0")
    described = schemathesis.openapi.from_asgi("/openapi.json", app)
    seen = set()
    for operation in (found.ok() for found in described.get_all_operations()):
        seen.add(operation.label)

        @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
        @given(case=operation.as_strategy())
        def answers(case: Any) -> None:
            case.call_and_validate()

        answers()
    assert seen == {"POST /score", "POST /map", "GET /models", "GET /health", "GET /metrics"}
