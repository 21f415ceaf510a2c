"""Bounds on what a request may bring, kept before its body is read."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MEGABYTE = 2**20


@dataclass(frozen=True)
class Limits:
    """What the service takes. A request beyond a bound is refused at once, with a status that says so."""

    images: int = 32
    """In a request: 413."""
    image_bytes: int = 20 * MEGABYTE
    """Of a file: the image gets the status too_large, the others are scored."""
    body_bytes: int = 32 * MEGABYTE
    """Of a request: 413."""
    body_seconds: float = 60.0
    """For a request to arrive: 408. So a slow sender cannot hold its place for ever."""
    requests: int = 16
    """At a time: 429. Together with `body_bytes` this bounds memory and disk."""
    waiting: int = 128
    """Images, at a time: 429."""
    seconds: float = 60.0
    """For decoding and scoring the images of a request, after its body has arrived: 503."""


class BoundedRequests:
    """ASGI middleware: refuses a POST request when too many are there already, or when its body is too large."""

    def __init__(self, app: ASGIApp, limits: Limits) -> None:
        self.app, self.limits, self.now = app, limits, 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self.app(scope, receive, send)
        elif announced_length(scope) > self.limits.body_bytes:
            await refuse(send, 413, self._too_large)
        elif self.now >= self.limits.requests:
            await refuse(send, 429, f"{self.now} requests are being answered; try again", retry_after=1)
        else:
            self.now += 1
            try:
                await self._pass_on(scope, receive, send)
            finally:
                self.now -= 1

    @property
    def _too_large(self) -> str:
        return f"the body has more than {self.limits.body_bytes:,} bytes"

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let the application answer, as long as the body keeps to its bounds; its length may not be announced."""
        count, complete, answered = 0, False, False
        refusal: tuple[int, str] | None = None
        deadline = asyncio.get_running_loop().time() + self.limits.body_seconds

        async def bounded() -> Message:
            nonlocal count, complete, refusal
            if complete:
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
            except TimeoutError:
                refusal = 408, f"the body did not arrive within {self.limits.body_seconds:g} s"
            else:
                count += len(message.get("body", b""))
                complete = not message.get("more_body", False)
                if count > self.limits.body_bytes:
                    refusal = 413, self._too_large
            if refusal:
                raise OSError(refusal[1])  # ends the reading of the body; what the application then says is replaced
            return message

        async def replaced(message: Message) -> None:
            nonlocal answered
            if refusal is None:
                await send(message)
            elif not answered:
                answered = True
                await refuse(send, *refusal)

        await self.app(scope, bounded, replaced)


def announced_length(scope: Scope) -> int:
    """The header Content-Length; 0 without a number in it."""
    text = dict(scope["headers"]).get(b"content-length", b"")
    return int(text) if text.isdigit() else 0


async def refuse(send: Send, status: int, detail: str, retry_after: int | None = None) -> None:
    """Answer with JSON, as FastAPI's errors are. The connection ends: the body was not read to its end."""
    body = json.dumps({"detail": detail}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers += [(b"connection", b"close")]
    if retry_after is not None:
        headers += [(b"retry-after", str(retry_after).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
