"""JSON Lines files: one JSON object a line, errors with the line's number."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn


def read_records(path: Path | str, error: type[Exception]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``("<path>:<line>", object)`` for each line of ``path`` that is not blank.

    Raises:
        error: the file cannot be read, or a line is not a JSON object in UTF-8 (NaN and Infinity
            are not JSON).
    """
    try:
        lines = Path(path).read_bytes().removeprefix(b"\xef\xbb\xbf").split(b"\n")
    except OSError as cause:
        raise error(f"cannot read {path}: {cause.strerror}") from cause
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            record = json.loads(line.decode(), parse_constant=_refuse)
        except (ValueError, RecursionError) as cause:
            raise error(f"{where}: not JSON: {cause}") from cause
        if not isinstance(record, dict):
            raise error(f"{where}: must be a JSON object; got {type(record).__name__}")
        yield where, record


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a JSON number")
