"""A load of HTTP: so many clients, each sending its next request when it has its answer.

It runs as a process of its own, ``python -m benchmarks.load``, and is cheap: prepared requests over
kept connections and no HTTP library, so that on two cores the server has one for itself.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

ROOT = Path(__file__).parent.parent


@dataclass(frozen=True, slots=True)
class Load:
    """What was sent and how it was answered.

    Attributes:
        requests: answered within the time.
        per_second: answers per second.
        p50, p99, longest: milliseconds until an answer.
        statuses: answers by status.
        answers: the last ones, each with the number of its body; as many as were asked for.
    """

    requests: int
    per_second: float
    p50: float
    p99: float
    longest: float
    statuses: dict[str, int]
    answers: list[tuple[int, dict[str, object]]] = field(default_factory=list)

    def failed(self, *expected: int) -> int:
        """Requests whose answer was none of ``expected`` (200 by default)."""
        good = {str(status) for status in expected or (200,)}
        return sum(n for status, n in self.statuses.items() if status not in good)


class _Client(asyncio.Protocol):
    """One client: a connection, and one request under way on it."""

    def __init__(self, run: _Run, number: int) -> None:
        self._run, self._at = run, number
        self._transport: asyncio.WriteTransport
        self._read = b""
        self._sent = 0.0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._send()

    def data_received(self, data: bytes) -> None:
        self._read += data
        head, found, body = self._read.partition(b"\r\n\r\n")
        if not found:
            return
        if len(body) >= _length(head):
            self._run.answered(self._at, int(head[9:12]), time.perf_counter() - self._sent, body)
            self._read = b""
            if b"connection: close" in head.lower():
                self._transport.close()
            else:
                self._send()

    def connection_lost(self, error: Exception | None) -> None:
        self._run.lost()

    def _send(self) -> None:
        if self._run.is_over():
            self._transport.close()
            return
        self._at = (self._at + 1) % len(self._run.requests)
        self._sent = time.perf_counter()
        self._transport.write(self._run.requests[self._at])


class _Run:
    def __init__(self, requests: Sequence[bytes], seconds: float, kept: int) -> None:
        self.requests = requests
        self.until = time.perf_counter() + seconds
        self.taken: list[float] = []
        self.statuses: Counter[int] = Counter()
        self.bodies: deque[tuple[int, bytes]] = deque(maxlen=kept)
        self.over = asyncio.Event()
        self.open = 0

    def is_over(self) -> bool:
        return time.perf_counter() > self.until

    def answered(self, number: int, status: int, seconds: float, body: bytes) -> None:
        self.taken.append(seconds)
        self.statuses[status] += 1
        self.bodies.append((number, body))

    def lost(self) -> None:
        self.open -= 1
        if self.open == 0:
            self.over.set()

    def load(self, seconds: float) -> Load:
        taken = 1000 * np.array(self.taken or [np.nan])
        p50, p99 = np.percentile(taken, [50, 99])
        return Load(
            requests=len(self.taken),
            per_second=len(self.taken) / seconds,
            p50=float(p50),
            p99=float(p99),
            longest=float(taken.max()),
            statuses={str(status): n for status, n in self.statuses.items()},
            answers=[(number, json.loads(body)) for number, body in self.bodies],
        )


def _length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    raise ValueError(f"an answer without its length: {head!r}")


async def _send(args: argparse.Namespace) -> Load:
    address = urlsplit(args.url)
    bodies = json.loads(Path(args.bodies).read_text(encoding="utf-8"))
    run = _Run([_request(args.url, body) for body in bodies], args.seconds, args.keep)
    loop = asyncio.get_running_loop()
    run.open = args.clients
    for number in range(args.clients):
        # Each begins at a task of its own, so that they do not ask in step.
        at = number * len(bodies) // args.clients
        client = partial(_Client, run, at)
        await loop.create_connection(client, address.hostname, address.port)
    await run.over.wait()
    return run.load(args.seconds)


def _request(url: str, body: dict[str, object]) -> bytes:
    parts, content = urlsplit(url), json.dumps(body).encode()
    head = (
        f"POST {parts.path} HTTP/1.1\r\nHost: {parts.netloc}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def load(url: str, bodies: Path, clients: int, seconds: float, keep: int = 0) -> Load:
    """Send a load from a process of its own, and wait until it is over.

    Args:
        url: where the requests are posted.
        bodies: JSON file, a list of the bodies that are sent in turn.
        clients: how many send at once.
        seconds: for how long.
        keep: most answers to bring back, as pairs of the body's number and the answer.
    """
    command = [sys.executable, "-m", "benchmarks.load", url, str(bodies)]
    command += [f"--clients={clients}", f"--seconds={seconds}", f"--keep={keep}"]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return Load(**json.loads(done.stdout))


def main() -> None:
    """Send, and print what came of it as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("bodies")
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--seconds", type=float, default=5.0)
    parser.add_argument("--keep", type=int, default=0)
    print(json.dumps(asdict(asyncio.run(_send(parser.parse_args())))))


if __name__ == "__main__":
    main()
