"""What stands before the application: the key, the limits on a request's body, and the count of requests."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Collection, MutableMapping
from typing import Any

from learn2pd.serving.metrics import Metrics

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]
WITHOUT_KEY = ("/health",)  # a load balancer asks here
KINDS = {401: "authentication_error", 404: "not_found_error", 429: "rate_limit_error"}


class Refusal(Exception):
    """A request that is not answered.

    Args:
        status: The status of HTTP.
        message: One line that says why.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.body = {
            "error": {"message": " ".join(message.split()), "type": kind_of(status), "param": None, "code": None}
        }


def kind_of(status: int) -> str:
    """Return OpenAI's name for the kind of an error."""
    return KINDS.get(status, "invalid_request_error" if status < 500 else "server_error")


class Gate:
    """An ASGI application that lets through what it may, with its whole body read.

    Args:
        app: The application behind it.
        metrics: It counts the requests.
        paths: The paths that are counted by name.
        api_key: The key that a request must bring; None lets every request through.
        max_body: The most bytes of a body.
        patience_s: The seconds in which the body must have arrived.
    """

    def __init__(
        self,
        app: Application,
        *,
        metrics: Metrics,
        paths: Collection[str],
        api_key: str | None,
        max_body: int,
        patience_s: float,
    ) -> None:
        self.app = app
        self.metrics = metrics
        self.paths = paths
        self.api_key = api_key
        self.max_body = max_body
        self.patience_s = patience_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        started = time.perf_counter()

        async def counted(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                self.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        try:
            self._check_key(scope)
            body = await self._body(scope, receive)
        except Refusal as refusal:
            await _refuse(refusal, counted)
            return
        await self.app(scope, _replayed(body, receive), counted)
        self.metrics.seconds.labels(path).observe(time.perf_counter() - started)

    def _check_key(self, scope: Scope) -> None:
        if self.api_key is None or scope["path"] in WITHOUT_KEY:
            return
        given = dict(scope["headers"]).get(b"authorization", b"")
        if not secrets.compare_digest(given, b"Bearer " + self.api_key.encode()):
            raise Refusal(401, "the API key is missing or wrong: send the header 'Authorization: Bearer KEY'")

    async def _body(self, scope: Scope, receive: Receive) -> bytes:
        too_large = Refusal(413, f"the body is larger than {self.max_body} bytes, which is the most")
        announced = dict(scope["headers"]).get(b"content-length", b"0")
        if announced.isdigit() and int(announced) > self.max_body:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.patience_s):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise Refusal(400, "the body ends before its end")
                    body += message.get("body", b"")
                    if len(body) > self.max_body:
                        raise too_large
                    if not message.get("more_body", False):
                        return bytes(body)
        except TimeoutError as error:
            raise Refusal(408, f"the body did not arrive within {self.patience_s:g} seconds") from error


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Return a function that gives the body first, and then what comes after it."""
    told = False

    async def replay() -> MutableMapping[str, Any]:
        nonlocal told
        if told:
            return await receive()
        told = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replay


async def _refuse(refusal: Refusal, send: Send) -> None:
    """Answer without reading further, so that the connection cannot be used again."""
    body = json.dumps(refusal.body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
