"""What Letta Code runs at each hook: hands it to the warm server, and is never in the way.

Run by its path, with ``-I -S`` and the standard library only: an interpreter that imports the
runtime takes longer than a hook may. Whatever goes wrong (no server, no reply in time) it exits
with 0, which lets the session go on with the skills as they are. A server that is missing is
started for the next time.

Arguments: socket of the server, file with the command that starts it (words separated by NUL).
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
from typing import Any

LIMIT = 0.2
"""Seconds from its start after which it gives up, those of the interpreter included."""

_LEAST = 0.02  # seconds that it tries in any case


def main(address: str, start_file: str) -> int:
    """Ask the server; the exit code is 2 where the tool call must not run."""
    signal.signal(signal.SIGALRM, _give_up)
    signal.setitimer(signal.ITIMER_REAL, max(LIMIT - _age(), _LEAST))
    event = sys.stdin.buffer.read()
    try:
        reply = _ask(address, event)
    except OSError:
        _start(start_file)
        return 0
    if reply[:1] != b"2":
        return 0
    os.write(2, reply[1:])
    return 2


def _age() -> float:
    """Seconds since this process started; 0 where the system does not tell."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rsplit(b")", 1)[1].split()[19])
        return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    except (OSError, AttributeError):
        return 0.0


def _ask(address: str, message: bytes) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(address)
        connection.sendall(message)
        connection.shutdown(socket.SHUT_WR)
        reply = b""
        while part := connection.recv(4096):
            reply += part
    return reply


def _start(file: str) -> None:
    """Start the server and let it go; it ends by itself where one runs already."""
    with open(file, "rb") as content:
        words = [os.fsdecode(word) for word in content.read().split(b"\0")]
    if os.fork():
        return
    os.setsid()
    nothing = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nothing, descriptor)
    signal.setitimer(signal.ITIMER_REAL, 0)
    os.execv(words[0], words)


def _give_up(*_: Any) -> None:
    os._exit(0)


if __name__ == "__main__":
    try:
        code = main(sys.argv[1], sys.argv[2])
    except Exception:  # a hook must never break a session
        code = 0
    os._exit(code)
