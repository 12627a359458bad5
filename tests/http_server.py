"""Small HTTP servers for tests: started in a thread on a free port, and stopped without a trace."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self

_POLL = 0.02  # seconds until a stop is noticed


class Served:
    """Something behind HTTP; a context manager.

    Args:
        handler: answers the requests; its ``server.served`` is this object.
        port: where to listen; 0 for a free one.

    Attributes:
        url: address of the server.
        stopped: set when it stops.
    """

    def __init__(self, handler: type[Handler], port: int = 0) -> None:
        self.stopped = threading.Event()
        self._server = Server(("127.0.0.1", port), handler)
        self._server.served = self
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_POLL,), daemon=True
        )

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def join(self) -> None:
        """Serve until the process is ended."""
        self._thread.join()


class Server(ThreadingHTTPServer):
    """The server of a :class:`Served`."""

    daemon_threads = True
    request_queue_size = 128
    served: Any

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that gave up is no error here."""


class Handler(BaseHTTPRequestHandler):
    """Answers with JSON, and says nothing."""

    protocol_version = "HTTP/1.1"
    server: Server

    def log_message(self, format: str, *args: Any) -> None:
        """Keep quiet."""

    def body(self) -> bytes:
        """What was sent with the request."""
        return self.rfile.read(int(self.headers.get("content-length", 0)))

    def reply(self, status: int, data: bytes, headers: Mapping[str, str] | None = None) -> None:
        """Answer with ``data``, as JSON unless the headers say otherwise."""
        self.send_response(status)
        for name, value in {"content-type": "application/json", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def reply_json(self, status: int, value: Any) -> None:
        """Answer with a JSON value."""
        self.reply(status, json.dumps(value).encode())
