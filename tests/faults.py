"""A proxy that does to HTTP what networks and busy servers do to it."""

from __future__ import annotations

import contextlib
import http.client
import socket
import struct
import time
from collections.abc import Callable
from enum import StrEnum
from urllib.parse import urlsplit

from tests.http_server import Handler, Served

_HOP = {"connection", "transfer-encoding", "content-length", "host", "keep-alive"}


class Fault(StrEnum):
    """What happens to a request. After those of the first group it was carried out all the same."""

    DRIP = "slow drip"  # the reply comes a byte at a time and never ends
    RESET = "reset in mid-reply"
    MALFORMED = "malformed JSON"
    MISSING = "missing fields"
    LATE = "a reply after the deadline"
    BUSY = "429 with Retry-After"
    ERROR = "500"


Plan = Callable[[str, str], Fault | None]
"""Method and path of a request -> what happens to it; called once for each, by any thread."""


class FaultyProxy(Served):
    """Forwards to ``upstream`` what ``plan`` does not spoil.

    Attributes:
        url: its address.
        faults: those that happened, in order: fault, method, path.
    """

    def __init__(self, upstream: str, plan: Plan, *, late: float = 5.0) -> None:
        super().__init__(_Handler)
        self.upstream, self.plan, self.late = urlsplit(upstream), plan, late
        self.faults: list[tuple[Fault, str, str]] = []


class _Handler(Handler):
    def _serve(self) -> None:
        body = self.body()
        proxy, path = self.server.served, urlsplit(self.path).path
        fault = proxy.plan(self.command, path)
        if fault is not None:
            proxy.faults.append((fault, self.command, path))
        match fault:
            case Fault.BUSY:
                self.reply(429, b'{"detail": "slow down"}', {"retry-after": "0.1"})
                return
            case Fault.ERROR:
                self.reply(500, b'{"detail": "out of order"}')
                return
        status, data, kind = self._forwarded(body)
        match fault:
            case Fault.DRIP:
                self._drip(data)
            case Fault.RESET:
                self._reset(data)
            case Fault.MALFORMED:
                self.reply(status, data[: max(1, len(data) // 2)] + b"\x00", {"content-type": kind})
            case Fault.MISSING:
                self.reply(status, b"[{}]" if data.startswith(b"[") else b"{}")
            case Fault.LATE:
                proxy.stopped.wait(proxy.late)
                self.reply(status, data, {"content-type": kind})
            case _:
                self.reply(status, data, {"content-type": kind})

    do_GET = do_POST = do_PATCH = do_PUT = do_DELETE = _serve  # noqa: N815

    def _forwarded(self, body: bytes) -> tuple[int, bytes, str]:
        upstream = self.server.served.upstream
        connection = http.client.HTTPConnection(str(upstream.hostname), upstream.port, timeout=60)
        headers = {k: v for k, v in self.headers.items() if k.lower() not in _HOP}
        with contextlib.closing(connection):
            connection.request(self.command, self.path, body or None, headers)
            reply = connection.getresponse()
            return reply.status, reply.read(), reply.getheader("content-type", "")

    def _begin(self, length: int) -> None:
        self.send_response(200)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(length))
        self.end_headers()

    def _drip(self, data: bytes) -> None:
        self.close_connection = True
        self._begin(1_000_000)
        with contextlib.suppress(OSError):
            for byte in (data or b" ") + b" " * 1_000_000:
                if self.server.served.stopped.wait(0.05):
                    return
                self.wfile.write(bytes([byte]))
                self.wfile.flush()

    def _reset(self, data: bytes) -> None:
        self.close_connection = True
        self._begin(len(data) + 100)
        self.wfile.write(data[: len(data) // 2])
        self.wfile.flush()
        time.sleep(0.01)  # so that the half is sent before the reset
        linger = struct.pack("ii", 1, 0)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.connection.close()
