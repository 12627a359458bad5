"""What the service acknowledged is there after kill -9, and it starts again on the same store."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from letta_gym.store.store import Store
from tests.services import TASK

ROOT = Path(__file__).parent.parent
WRITES = 500
KILLED_AFTER = 120  # writes that were acknowledged


def start(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """``serve.py`` on a free port, and its address once it is ready."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    settings = {
        "service.port": port,
        "service.data": folder,
        "service.store": folder / "store.sqlite",
        "service.policy": "null",
        "service.ui": "false",
        "service.log_level": "error",
    }
    options = [f"--set={name}={value}" for name, value in settings.items()]
    process = subprocess.Popen(
        [sys.executable, "serve.py", "--config", "configs/serve.yaml", *options], cwd=ROOT
    )
    address = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 120
    while True:
        assert process.poll() is None, "the service ended"
        assert time.monotonic() < deadline, "the service did not start within 120 s"
        try:
            with urllib.request.urlopen(f"{address}/health/ready", timeout=5):
                return process, address
        except OSError:
            time.sleep(0.1)


def post(url: str, body: dict[str, object]) -> dict[str, object] | None:
    """The answer to a request; None where the service was gone."""
    data = json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            read: dict[str, object] = json.load(answer)
            return read
    except urllib.error.HTTPError:
        raise
    except (OSError, ValueError):
        return None


def test_every_acknowledged_write_is_there_after_a_kill(tmp_path: Path) -> None:
    process, address = start(tmp_path)
    decisions: list[str] = []
    outcomes: list[str] = []

    def write(number: int) -> None:
        chosen = post(f"{address}/tasks/select", {"task": TASK})
        if chosen is None:
            return
        decision = str(chosen["decision_id"])
        decisions.append(decision)
        if len(decisions) == KILLED_AFTER:
            os.kill(process.pid, signal.SIGKILL)
        if number % 2 and post(f"{address}/tasks/{decision}/feedback", {"success": 1.0}):
            outcomes.append(decision)

    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(write, range(WRITES)))
    finally:
        process.kill()
        process.wait()
    assert KILLED_AFTER <= len(decisions) < WRITES, "it was killed in the middle"
    assert outcomes

    with Store(tmp_path / "store.sqlite") as store:
        kept = {one.decision.id: one.outcome for one in store.history().decisions()}
    assert [one for one in decisions if one not in kept] == []
    assert [one for one in outcomes if kept[one] is None] == []

    again, address = start(tmp_path)
    try:
        open_ones = [one for one in decisions if kept[one] is None]
        assert post(f"{address}/tasks/select", {"task": TASK}) is not None
        assert post(f"{address}/tasks/{open_ones[0]}/feedback", {"success": 0.0}) is not None
    finally:
        again.kill()
        again.wait()
