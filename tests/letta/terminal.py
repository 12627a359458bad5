"""A program in a terminal of its own, typed into and read from."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Self

_ANSWERS = {b"\x1b[6n": b"\x1b[1;1R", b"\x1b[c": b"\x1b[?62;c"}  # what a terminal says when asked
_CODES = re.compile(rb"\x1b\[[0-9;?<>=]*[a-zA-Z]|\x1b\][^\x07]*\x07|\x1b.")


class Terminal:
    """Runs a command in a pseudo-terminal; a context manager that ends it with all it started."""

    def __init__(
        self, command: Sequence[str], folder: Path, environment: Mapping[str, str]
    ) -> None:
        self._output = b""
        self._pid, self._file = pty.fork()
        if self._pid == 0:
            os.chdir(folder)
            os.execve(command[0], list(command), {**environment, "TERM": "xterm-256color"})
        fcntl.ioctl(self._file, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 120, 0, 0))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.killpg(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)
        os.close(self._file)

    @property
    def text(self) -> str:
        """Everything it wrote, without the codes."""
        return _CODES.sub(b"", self._output).decode(errors="replace")

    def type(self, line: str) -> None:
        """Type a line and send it."""
        os.write(self._file, line.encode())
        self._read(1.0)  # or the end of the line counts as pasted
        os.write(self._file, b"\r")

    def wait(self, until: Callable[[], bool], seconds: float) -> None:
        """Read until ``until`` holds.

        Raises:
            AssertionError: it does not within that time; the message has the end of the text.
        """
        deadline = time.monotonic() + seconds
        while not until():
            assert time.monotonic() < deadline, self.text[-2000:]
            self._read(0.1)

    def _read(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while (left := deadline - time.monotonic()) > 0:
            if select.select([self._file], [], [], left)[0]:
                part = os.read(self._file, 1 << 16)
                self._output += part
                for question, answer in _ANSWERS.items():
                    if question in part:
                        os.write(self._file, answer)
