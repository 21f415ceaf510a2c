"""Counters of the service, in the text format of Prometheus."""

from __future__ import annotations

import time
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from starlette.types import ASGIApp, Message, Receive, Scope, Send

SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
PATHS = ("/", "/score", "/map", "/models", "/health", "/metrics")
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Metrics:
    """The counters of one application, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        own = self.registry
        self.requests = Counter("fiqa_requests", "Requests by path and status", ("path", "code"), registry=own)
        self.seconds = Histogram("fiqa_request_seconds", "Time to answer", ("path",), buckets=SECONDS, registry=own)
        self.images = Counter("fiqa_images", "Images by status", ("status",), registry=own)
        self.batches = Histogram("fiqa_batch_images", "Images the network saw at once", buckets=SIZES, registry=own)
        self.waiting = Gauge("fiqa_images_waiting", "Images that wait or are being scored", registry=own)

    def watch_waiting(self, count: Callable[[], int]) -> None:
        """Show what `count` says whenever the metrics are read."""
        self.waiting.set_function(count)

    def text(self) -> tuple[bytes, str]:
        """All counters, and their media type."""
        return generate_latest(self.registry), CONTENT_TYPE_LATEST


class Measured:
    """ASGI middleware: counts and times every answer, and forbids browsers to guess its type."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self.app, self.metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, code = time.perf_counter(), 500

        async def noted(message: Message) -> None:
            nonlocal code
            if message["type"] == "http.response.start":
                code = message["status"]
                message["headers"] = [*message["headers"], (b"x-content-type-options", b"nosniff")]
            await send(message)

        try:
            await self.app(scope, receive, noted)
        finally:
            path = scope["path"] if scope["path"] in PATHS else "other"  # there are endlessly many others
            self.metrics.requests.labels(path, str(code)).inc()
            self.metrics.seconds.labels(path).observe(time.perf_counter() - start)
