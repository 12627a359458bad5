"""Starts what the tests on a real Letta need, and ends it all again: PostgreSQL, server, model.

Everything listens on a free port of this machine and writes into a scratch folder. A process ends
with whoever started it, even when that one is killed. ``make test-letta`` installs the server into
``.letta-server``. Run ``python -m tests.letta.servers`` to have one to play with.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.stub_llm import MODEL, StubLLM

ROOT = Path(__file__).parent.parent.parent
SERVER = ROOT / ".letta-server"
SCHEMA = Path(__file__).parent / "schema.py"

STARTED_WITHIN = 180  # seconds; a busy machine takes much longer than the usual 40
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class LettaServer:
    """A running Letta V1 server whose only model is the stub.

    Attributes:
        url: its address.
        model: handle of the stub model in it.
        stub: the model itself.
        log: what the server writes.
    """

    url: str
    model: str
    stub: StubLLM
    log: Path


@contextlib.contextmanager
def letta_server() -> Iterator[LettaServer]:
    """A Letta V1 server with its own database and the stub model."""
    if not (SERVER / "bin" / "letta").exists():
        raise RuntimeError(f"there is no Letta server in {SERVER}; install it with make test-letta")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(_scratch()))
        stub = stack.enter_context(StubLLM())
        database = stack.enter_context(_postgres(folder))
        port, log = free_port(), folder / "letta.log"
        environment = {
            "HOME": str(folder),
            "PATH": os.environ["PATH"],
            "LETTA_PG_URI": f"{database}?sslmode=disable",
            "VLLM_API_BASE": stub.url,
            # Without its own pool the server hangs for 60 s now and then.
            "LETTA_DISABLE_SQLALCHEMY_POOLING": "false",
            "LETTA_TRACK_PROVIDER_TRACE": "false",
        }
        python = SERVER / "bin" / "python"
        schema = database.replace("postgresql://", "postgresql+psycopg2://")
        _done([python, SCHEMA, schema], environment)
        address = ("--host", "127.0.0.1", "--port", str(port))
        command = [str(SERVER / "bin" / "letta"), "server", *address]
        process = stack.enter_context(running(command, environment, log))
        url = f"http://127.0.0.1:{port}"
        wait_until_healthy(f"{url}/v1/health/", process, log)
        yield LettaServer(url, f"vllm/{MODEL}", stub, log)


@contextlib.contextmanager
def _postgres(folder: Path) -> Iterator[str]:
    """A PostgreSQL server with an empty database; yields its address."""
    (packages,) = SERVER.glob("lib/python3*/site-packages")
    data, log, port = folder / "postgres", folder / "postgres.log", free_port()
    user = None
    if os.geteuid() == 0:  # PostgreSQL refuses to run as root: nobody runs a copy it can read
        user = "nobody"
        for name in ("pgserver", "pgserver.libs"):
            shutil.copytree(packages / name, folder / name, symlinks=True)
        packages = folder
        data.mkdir()
        shutil.chown(data, user)
    binaries = packages / "pgserver" / "pginstall" / "bin"
    environment = {"PATH": os.environ["PATH"], "LC_ALL": "C"}
    _done(
        [binaries / "initdb", "-D", data, "-U", "letta", "--auth=trust", "--encoding=UTF8"],
        environment,
        user,
    )
    options = {
        "listen_addresses": "127.0.0.1",
        "port": str(port),
        "unix_socket_directories": "",
        "fsync": "off",  # thrown away afterwards
    }
    settings = [word for name, value in options.items() for word in ("-c", f"{name}={value}")]
    command = [str(binaries / "postgres"), "-D", str(data), *settings]
    with running(command, environment, log, user, stop=signal.SIGINT) as process:
        connection = ["-h", "127.0.0.1", "-p", str(port), "-U", "letta"]
        deadline = time.monotonic() + STARTED_WITHIN
        while _code([binaries / "pg_isready", *connection], environment):
            _check(process, log, deadline)
            time.sleep(0.1)
        _done([binaries / "createdb", *connection, "letta"], environment)
        yield f"postgresql://letta@127.0.0.1:{port}/letta"


@contextlib.contextmanager
def _scratch() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="letta-gym-", ignore_cleanup_errors=True) as folder:
        os.chmod(folder, 0o755)
        yield folder


@contextlib.contextmanager
def running(
    command: Sequence[str],
    environment: Mapping[str, str],
    log: Path,
    user: str | None = None,
    stop: signal.Signals = signal.SIGTERM,
) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is ended on the way out: politely at first, and with all it started."""
    with log.open("wb") as output:
        process = subprocess.Popen(
            command,
            env=environment,
            cwd=log.parent,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            user=user,
            start_new_session=True,
            preexec_fn=_die_with_parent,
        )
        try:
            yield process
        finally:
            process.send_signal(stop)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def wait_until_healthy(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until ``url`` answers.

    Raises:
        RuntimeError: the process ended, or it takes too long; the message has the log's end.
    """
    deadline = time.monotonic() + STARTED_WITHIN
    while True:
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            _check(process, log, deadline)
            time.sleep(0.2)


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _check(process: subprocess.Popen[bytes], log: Path, deadline: float) -> None:
    late = time.monotonic() > deadline
    if late or process.poll() is not None:
        why = f"is not ready after {STARTED_WITHIN} s" if late else f"ended: {process.returncode}"
        end = log.read_text(errors="replace")[-4000:]
        raise RuntimeError(f"{process.args!r} {why}; the end of its log:\n{end}")


def _done(
    command: Sequence[Path | str], environment: Mapping[str, str], user: str | None = None
) -> None:
    done = subprocess.run(
        command, env=environment, user=user, capture_output=True, text=True, check=False, cwd="/"
    )
    if done.returncode:
        raise RuntimeError(f"{command} failed:\n{done.stdout}\n{done.stderr}")


def _code(command: Sequence[Path | str], environment: Mapping[str, str]) -> int:
    return subprocess.run(command, env=environment, capture_output=True, check=False).returncode


def _die_with_parent() -> None:
    if sys.platform == "linux":  # elsewhere a killed test run leaves its servers
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # so that all is ended and removed
    with letta_server() as server:
        print(f"server {server.url}, model {server.model}, log {server.log}", flush=True)
        signal.pause()
