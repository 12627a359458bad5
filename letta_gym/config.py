"""Configuration files: YAML in, one typed model out, and a helpful error for whatever does not fit.

Each room owns the model of its own section (a subclass of :class:`Section`); this module only reads
files, applies ``--set a.b=value`` overrides, and words the errors.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError

from letta_gym.errors import ConfigError


class Section(BaseModel):
    """A part of a configuration file: immutable, closed to unknown keys, every number finite."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


S = TypeVar("S", bound=Section)


def read_yaml(path: Path | str) -> dict[str, Any]:
    """Read one YAML file into a mapping.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not hold a mapping.
    """
    path = Path(path)
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError) as error:  # ValueError: not UTF-8, or no date such as 31-31
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise ConfigError(f"{path} must hold a mapping of keys; got {type(data).__name__}")
    return data


def override(data: Mapping[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Return a copy of ``data`` with ``a.b=value`` assignments applied; values are read as YAML.

    Raises:
        ConfigError: an assignment has no ``=``, an empty key, or reaches below a plain value.
    """
    result = _copy(data)
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        parts = key.strip().split(".")
        if not equals or not all(parts):
            raise ConfigError(f"--set wants key=value such as train.steps=1000; got {assignment!r}")
        node = result
        for part in parts[:-1]:
            child = node.setdefault(part, {})
            if not isinstance(child, dict):
                raise ConfigError(f"--set {assignment!r}: {part!r} holds a value, not a section")
            node = child
        try:
            node[parts[-1]] = yaml.safe_load(text)
        except (yaml.YAMLError, ValueError) as error:
            raise ConfigError(f"--set {assignment!r}: the value is not YAML: {error}") from error
    return result


def resolve(schema: type[S], data: Mapping[str, Any], source: str = "the configuration") -> S:
    """Validate ``data`` against ``schema``.

    Raises:
        ConfigError: one line for each problem; unknown keys come with the nearest known one.
    """
    try:
        return schema.model_validate(data)
    except ValidationError as error:
        lines = [_describe(schema, dict(problem)) for problem in error.errors()]
        raise ConfigError(f"{source} does not fit:\n  " + "\n  ".join(lines)) from error


def load(schema: type[S], path: Path | str, assignments: Sequence[str] = ()) -> S:
    """Read ``path``, apply the ``--set`` overrides, and validate the result."""
    return resolve(schema, override(read_yaml(path), assignments), str(path))


def dump(section: Section) -> str:
    """Return the YAML of a resolved configuration; :func:`load` reads it back to an equal model."""
    return yaml.safe_dump(section.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _copy(data: Mapping[str, Any]) -> dict[str, Any]:
    return {k: _copy(v) if isinstance(v, Mapping) else v for k, v in data.items()}


def _describe(schema: type[BaseModel], problem: Mapping[str, Any]) -> str:
    where = tuple(problem["loc"])
    dotted = ".".join(str(part) for part in where)
    if problem["type"] != "extra_forbidden":
        return f"{dotted}: {problem['msg']} (got {problem['input']!r})"
    known = sorted(_keys_at(schema, where[:-1]))
    near = difflib.get_close_matches(str(where[-1]), known, n=1)
    hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(known)}"
    return f"{dotted}: unknown key; {hint}"


def _keys_at(schema: type[BaseModel], where: tuple[Any, ...]) -> set[str]:
    models = [schema]
    for part in where:
        fields = [m.model_fields[part] for m in models if part in m.model_fields]
        models = [inner for field in fields for inner in _models(field.annotation)]
    return {key for model in models for key in model.model_fields}


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for inner in get_args(annotation):
        yield from _models(inner)
