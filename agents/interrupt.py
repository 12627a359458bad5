"""Holds Ctrl-C back until the work at hand is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Self


class HeldInterrupt:
    """A context manager in which the first Ctrl-C only sets :attr:`came`; a second one interrupts.

    Signals reach the main thread alone, and a process may be told to ignore them: in both cases it
    does nothing.

    Attributes:
        came: whether Ctrl-C was pressed.
    """

    def __init__(self) -> None:
        self.came = False
        self._previous = signal.getsignal(signal.SIGINT)
        main = threading.current_thread() is threading.main_thread()
        self._holds = main and callable(self._previous)

    def __enter__(self) -> Self:
        if self._holds:
            signal.signal(signal.SIGINT, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        self._let_through()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.came = True
        self._let_through()

    def _let_through(self) -> None:
        if self._holds:
            signal.signal(signal.SIGINT, self._previous)
