"""What the service acknowledged is there after kill -9, and it starts again on the same store."""

from __future__ import annotations

from pathlib import Path

from benchmarks.killed import KILLED_AFTER, WRITES, kill
from tests.stores import new_database


def test_every_acknowledged_write_is_there_after_a_kill(tmp_path: Path) -> None:
    with new_database(tmp_path) as store:
        found = kill(tmp_path, store)
    assert KILLED_AFTER <= found.decisions < WRITES, "it was killed in the middle"
    assert found.outcomes
    assert found.lost == 0
    assert found.heals
