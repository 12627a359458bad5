"""The gate that every request passes: its id, its size, how many there are, and what is logged.

Plain ASGI: it stands in front of every choice, and Starlette's middleware classes would cost more
than the choice does.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Collection
from typing import Any

from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from letta_gym.service import problems
from letta_gym.service.config import LimitsConfig
from letta_gym.service.telemetry import REQUEST_ID, Telemetry

log = logging.getLogger(__name__)

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_SECURITY = [
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
_PAGE = [
    *_SECURITY,
    # Gradio builds its page with inline scripts and styles; nothing comes from elsewhere.
    (
        b"content-security-policy",
        b"default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; "
        b"frame-ancestors 'none'; form-action 'self'; base-uri 'self'",
    ),
]
_NOTHING_TO_SHOW = [
    *_SECURITY,
    (b"cache-control", b"no-store"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
]


class Gate:
    """Wraps the application.

    Args:
        app: what is behind the gate.
        limits: sizes and numbers that are let in.
        telemetry: where requests are counted.
        uploads: paths that may bring more than ``limits.body`` bytes.
        uncounted: beginnings of paths that are never refused for the number of requests.
        pages: beginnings of paths that answer with pages for people.
    """

    def __init__(
        self,
        app: ASGIApp,
        limits: LimitsConfig,
        telemetry: Telemetry,
        uploads: Collection[str] = (),
        uncounted: tuple[str, ...] = ("/health", "/ui"),
        pages: tuple[str, ...] = ("/ui",),
    ) -> None:
        self._app, self._limits, self._telemetry = app, limits, telemetry
        self._uploads, self._uncounted, self._pages = frozenset(uploads), uncounted, pages
        self._under_way = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        request = _Request(scope, headers, is_page=scope["path"].startswith(self._pages))
        token = REQUEST_ID.set(request.id)
        try:
            await self._pass(request, receive, send)
        finally:
            REQUEST_ID.reset(token)

    async def _pass(self, request: _Request, receive: Receive, send: Send) -> None:
        path = request.scope["path"]
        limit = self._limits.upload if path in self._uploads else self._limits.body
        counted = not path.startswith(self._uncounted)
        answered = _Answer(send, request)
        if counted and self._under_way >= self._limits.waiting:
            said = f"{self._under_way} requests are under way already; try again shortly"
            await self._refuse(request, answered, 503, said, retry_after=1.0)
        elif request.length > limit:
            said = f"the body has {request.length:,} bytes; at most {limit:,} are taken here"
            await self._refuse(request, answered, 413, said)
        else:
            self._under_way += counted
            try:
                await self._app(request.scope, _Counted(receive, limit), answered)
            except Exception:
                log.exception("%s %s failed", request.scope["method"], path)
                if answered.status is not None:
                    raise
                said = "an error of the service itself; its log has it under this request id"
                await self._refuse(request, answered, 500, said)
            finally:
                self._under_way -= counted
        self._tell(request, answered.status or 500)

    async def _refuse(
        self,
        request: _Request,
        send: _Answer,
        status: int,
        detail: str,
        retry_after: float | None = None,
    ) -> None:
        answer = problems.response(
            status,
            detail,
            instance=request.scope["path"],
            request_id=request.id,
            retry_after=retry_after,
        )
        await answer(request.scope, _nothing, send)

    def _tell(self, request: _Request, status: int) -> None:
        taken = time.perf_counter() - request.started
        route = getattr(request.scope.get("route"), "path", "-")
        self._telemetry.answered(request.scope["method"], route, status, taken)
        self._telemetry.under_way.set(self._under_way)
        if log.isEnabledFor(logging.INFO):
            who = request.scope.get("caller", "-")
            what = f"{request.scope['method']} {request.scope['path']}"
            log.info("%s %d %.1f ms key=%s", what, status, 1000 * taken, who)


class _Request:
    __slots__ = ("id", "is_page", "length", "scope", "started")

    def __init__(self, scope: Scope, headers: Headers, is_page: bool) -> None:
        given = headers.get("x-request-id", "")
        self.id = given if _ID.fullmatch(given) else secrets.token_hex(8)
        scope["request_id"] = self.id
        length = headers.get("content-length", "0")
        self.length = int(length) if length.isdecimal() else 0
        self.scope, self.is_page, self.started = scope, is_page, time.perf_counter()


class _Answer:
    """Sends, adds the headers that every response has, and remembers the status."""

    __slots__ = ("_request", "_send", "status")

    def __init__(self, send: Send, request: _Request) -> None:
        self._send, self._request = send, request
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = list(message.get("headers", ()))
            given = {name for name, _ in headers}
            headers.append((b"x-request-id", self._request.id.encode()))
            more = _PAGE if self._request.is_page else _NOTHING_TO_SHOW
            headers += [header for header in more if header[0] not in given]
            message = {**message, "headers": headers}
        await self._send(message)


class _Counted:
    """Receives a body of at most ``limit`` bytes, whatever its length was said to be."""

    __slots__ = ("_left", "_limit", "_receive")

    def __init__(self, receive: Receive, limit: int) -> None:
        self._receive, self._limit, self._left = receive, limit, limit

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                raise HTTPException(413, f"at most {self._limit:,} bytes are taken here")
        return message


async def _nothing() -> dict[str, Any]:
    return {"type": "http.disconnect"}
