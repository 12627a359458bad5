"""Services as processes of their own, on free ports of this machine, until they are ended."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "serve.yaml"
START_WITHIN = 120.0  # seconds

SERVE = ("serve.py",)
BARE = ("-m", "benchmarks.endpoint", "bare")
UNLOGGED = ("-m", "benchmarks.endpoint", "unlogged")

Json = dict[str, object]


@dataclass(frozen=True, slots=True)
class Server:
    """A service: its process and its address."""

    process: subprocess.Popen[bytes]
    url: str

    @property
    def resident(self) -> float:
        """Memory of the process in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        (line,) = (one for one in status.splitlines() if one.startswith("VmRSS:"))
        return int(line.split()[1]) / 1024

    def post(self, path: str, body: Json, timeout: float = 60.0) -> tuple[int, Json]:
        """Status and answer; (0, {}) where the service was gone."""
        request = urllib.request.Request(
            self.url + path, json.dumps(body).encode(), {"Content-Type": "application/json"}
        )
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)
        except (OSError, HTTPException, ValueError):  # gone before, or within, its answer
            return 0, {}


def settings_of(folder: Path, store: str | None = None) -> dict[str, object]:
    """Changes of the configuration that keep a service within ``folder``, quiet, without pages."""
    return {
        "service.data": folder,
        "service.store": store or folder / "store.sqlite",
        "service.policy": "null",
        "service.ui": "false",
        "service.log_level": "error",
        "limits.rate": 1e9,
    }


@contextmanager
def started(
    settings: Mapping[str, object], program: Sequence[str] = SERVE, config: Path = CONFIG
) -> Iterator[Server]:
    """A server that answers; it is ended afterwards, the hard way.

    Args:
        settings: changes of the configuration, by key.
        program: what Python is started with.
        config: the configuration that is changed.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [f"--set={name}={value}" for name, value in settings.items()]
    command = [sys.executable, *program, "--config", str(config), f"--set=service.port={port}"]
    process = subprocess.Popen([*command, *options], cwd=ROOT)
    try:
        url = f"http://127.0.0.1:{port}"
        _wait_for(process, url)
        yield Server(process, url)
    finally:
        process.kill()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], url: str) -> None:
    deadline = time.monotonic() + START_WITHIN
    while True:
        if process.poll() is not None:
            raise RuntimeError(f"the service ended with {process.returncode}; its output says why")
        try:
            with urllib.request.urlopen(f"{url}/health/ready", timeout=5):
                return
        except OSError:
            if time.monotonic() > deadline:
                raise RuntimeError(f"no service within {START_WITHIN:g} s at {url}") from None
            time.sleep(0.1)
