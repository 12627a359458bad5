"""The configurations that may be trained, and what a caller may change of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from letta_gym.config import read_yaml
from letta_gym.errors import ConfigError
from letta_gym.store.models import FROM_LOG

Scalar: TypeAlias = bool | int | float | str | None
Value: TypeAlias = Scalar | list[Scalar]

# Sections of numbers. Nothing in them is the name of a file, a command or an address.
OPEN = ("env", "evaluate", "evidence", "memory", "mock", "policy", "retrieval", "train")
_NOT_OPEN = frozenset({"train.start"})  # a file
_WORD = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,40}")


@dataclass(frozen=True, slots=True)
class Recipe:
    """A configuration that may be trained.

    ``says`` is its first comment, ``values`` what it sets by dotted keys.
    """

    name: str
    path: Path
    kind: str
    says: str
    values: Mapping[str, Any]


class Recipes:
    """The allowed configurations of a folder.

    Args:
        folder: where they lie.
        allowed: their names, without ``.yaml``.
    """

    def __init__(self, folder: Path, allowed: Sequence[str]) -> None:
        self._folder, self._allowed = folder, allowed

    def all(self) -> list[Recipe]:
        """Those that are there."""
        return [self._read(name) for name in self._allowed if self._path(name).is_file()]

    def get(self, name: str) -> Recipe:
        """The configuration of a name.

        Raises:
            ConfigError: it is not allowed, or not there.
        """
        if name not in self._allowed or not self._path(name).is_file():
            known = ", ".join(one.name for one in self.all()) or "none is there"
            raise ConfigError(f"there is no configuration {name!r} to train; known are: {known}")
        return self._read(name)

    def _path(self, name: str) -> Path:
        return self._folder / f"{name}.yaml"

    def _read(self, name: str) -> Recipe:
        path = self._path(name)
        data = read_yaml(path)
        first = path.read_text(encoding="utf-8").partition("\n")[0]
        says = first.removeprefix("#").strip().partition(": python")[0]
        return Recipe(name, path, str(data.get("kind", "mock")), says, flat(data))


def assignments(changes: Mapping[str, Value], kind: str) -> list[str]:
    """``changes`` as values of ``--set``.

    Only numbers, switches and plain words go in, and only into sections that hold nothing else: no
    file, command or address can be named.

    Raises:
        ConfigError: a key that may not be set from here, or a value of another form.
    """
    sections = ("train",) if kind == FROM_LOG else OPEN
    for key, value in changes.items():
        section, dot, _ = key.partition(".")
        is_open = section in sections and dot and key not in _NOT_OPEN and "=" not in key
        if key != "seed" and not is_open:
            raise ConfigError(
                f"{key!r} cannot be set here; 'seed' can, and keys that begin with "
                + ", ".join(f"{one}." for one in sections)
            )
        for part in value if isinstance(value, list) else [value]:
            if isinstance(part, str) and not _WORD.fullmatch(part):
                raise ConfigError(f"{key!r} takes a number, true, false or one word; got {part!r}")
    return [f"{key}={json.dumps(value)}" for key, value in changes.items()]


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """A nested configuration by dotted keys."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        else:
            leaves[f"{prefix}{key}"] = value
    return leaves
