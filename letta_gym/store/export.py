"""The log as JSON lines or Parquet: one record a decision, with what came of it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from letta_gym.errors import ConfigError, MissingExtraError
from letta_gym.files import replacing
from letta_gym.store.history import Logged, Version

FORMATS = ("jsonl", "parquet")

_GROUP = 2_000  # records a row group of Parquet

_ARRAYS = ("vector", "features", "context", "scores")
_DECISION = (
    *("decided_at", "policy_digest", "mode", "task_hash", "task_text", "k", "log_propensity"),
    *("explored", "hold_rate", "held_out"),
)
_PICK = ("slot", "skill", "key", "fit", "tokens", "loaded")
_OUTCOME = (
    *("success", "evidence", "reward", "reward_parts", "source", "tokens", "steps", "tool_errors"),
    *("latency", "delay", "stop_reason", "error", "response", "run_id", "step_ids", "recorded_at"),
)
_FEEDBACK = ("key", "source", "value", "comment", "given_at")

Record = dict[str, Any]
Versions = Mapping[int, Version]


def export(logged: Iterable[Logged], versions: Versions, path: Path | str, form: str) -> int:
    """Write decisions to ``path``, which appears once it is whole; returns how many.

    Masked slots have the score -inf in Parquet and null in JSON.

    Raises:
        ConfigError: an unknown form.
        MissingExtraError: Parquet without pyarrow.
        OSError: the file cannot be written.
    """
    if form not in FORMATS:
        raise ConfigError(f"the log can be exported as {' or '.join(FORMATS)}; got {form!r}")
    records = (record(one, versions) for one in logged)
    write: Callable[[Iterator[Record], Path], int]
    write = _write_jsonl if form == "jsonl" else _write_parquet
    return write(records, Path(path))


def record(logged: Logged, versions: Versions) -> Record:
    """One decision as plain values."""
    decision, outcome = logged.decision, logged.outcome
    came = None
    if outcome is not None:
        came = {name: getattr(outcome, name) for name in _OUTCOME} | {"tokens": logged.tokens}
    return {
        "decision_id": decision.id,
        "agent": logged.agent,
        **{name: getattr(decision, name) for name in _DECISION},
        **{name: getattr(decision, name).tolist() for name in _ARRAYS},
        "candidates": [versions[id].skill for id in decision.candidates],
        "candidate_keys": [versions[id].key for id in decision.candidates],
        "picks": [{name: getattr(pick, name) for name in _PICK} for pick in logged.picks],
        "outcome": came,
        "feedback": [{name: getattr(row, name) for name in _FEEDBACK} for row in logged.feedback],
    }


def _write_jsonl(records: Iterator[Record], path: Path) -> int:
    count = 0
    with replacing(path) as file:
        for one in records:
            one["scores"] = [score if math.isfinite(score) else None for score in one["scores"]]
            file.write(json.dumps(one, ensure_ascii=False, allow_nan=False).encode() + b"\n")
            count += 1
    return count


def _write_parquet(records: Iterator[Record], path: Path) -> int:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ModuleNotFoundError as error:
        raise MissingExtraError("serve", "exporting Parquet (pyarrow)") from error
    schema, count = _schema(pa), 0
    with replacing(path) as file, pq.ParquetWriter(file, schema) as writer:
        group: list[Record] = []
        for one in records:
            if one["outcome"] is not None:
                one["outcome"]["reward_parts"] = list(one["outcome"]["reward_parts"].items())
            group.append(one)
            count += 1
            if len(group) == _GROUP:
                writer.write_table(pa.Table.from_pylist(group, schema))
                group = []
        writer.write_table(pa.Table.from_pylist(group, schema))
    return count


def _schema(pa: Any) -> Any:
    """Written out, so that a column of nothing but nulls has its type too."""
    text, real, whole, truth = pa.string(), pa.float64(), pa.int64(), pa.bool_()
    floats = pa.list_(pa.float32())
    pick = {
        "slot": whole,
        "skill": text,
        "key": text,
        "fit": real,
        "tokens": whole,
        "loaded": truth,
    }
    outcome = {
        "success": real,
        "evidence": truth,
        "reward": real,
        "reward_parts": pa.map_(text, real),
        "source": text,
        "tokens": real,
        "steps": whole,
        "tool_errors": whole,
        "latency": real,
        "delay": real,
        "stop_reason": text,
        "error": text,
        "response": text,
        "run_id": text,
        "step_ids": pa.list_(text),
        "recorded_at": real,
    }
    feedback = {"key": text, "source": text, "value": real, "comment": text, "given_at": real}
    columns = {
        "decision_id": text,
        "agent": text,
        "decided_at": real,
        "policy_digest": text,
        "mode": text,
        "task_hash": text,
        "task_text": text,
        "vector": floats,
        "candidates": pa.list_(text),
        "candidate_keys": pa.list_(text),
        "features": floats,
        "context": floats,
        "scores": floats,
        "k": whole,
        "log_propensity": real,
        "explored": truth,
        "hold_rate": real,
        "held_out": whole,
        "picks": pa.list_(pa.struct(list(pick.items()))),
        "outcome": pa.struct(list(outcome.items())),
        "feedback": pa.list_(pa.struct(list(feedback.items()))),
    }
    return pa.schema(list(columns.items()))
