"""The curves of a training run: its TensorBoard events, read as they are written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tensorboard.backend.event_processing.event_file_loader import RawEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event

Points = tuple[int, dict[str, float]]
"""A step and its scalars by tag."""


class EventFiles:
    """The scalars of a run's folder, each handed on once; files may grow, and others come.

    Args:
        folder: of the run; it may not exist yet.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._loaders: dict[Path, Any] = {}
        self._waiting: list[Points] = []

    def pass_on(self, take: Callable[[Sequence[Points]], None]) -> None:
        """Hand what is new to ``take``; what it did not take, for an error, comes again."""
        for path in sorted(self._folder.glob("events.out.tfevents.*")):
            if path not in self._loaders:
                self._loaders[path] = RawEventFileLoader(str(path))
            for record in self._loaders[path].Load():
                event = Event.FromString(record)
                found = {
                    one.tag: float(one.simple_value)
                    for one in event.summary.value
                    if one.HasField("simple_value")
                }
                if found:
                    self._waiting.append((event.step, found))
        if self._waiting:
            take(self._waiting)
            self._waiting = []
