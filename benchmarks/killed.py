"""The service is killed in the middle of its writes: is what it acknowledged there?"""

from __future__ import annotations

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from benchmarks.servers import settings_of, started
from letta_gym.store.store import Store

TASK = "Merge these three PDF files and number the pages"
WRITES = 500
KILLED_AFTER = 120  # writes that were acknowledged
CLIENTS = 8


@dataclass(frozen=True, slots=True)
class Killed:
    """What was acknowledged before the end, and how much of it is gone.

    Attributes:
        decisions, outcomes: acknowledged.
        lost: of both, not on the database.
        heals: whether a service on the same store chooses again, and takes the outcome of a
            decision from before.
    """

    decisions: int
    outcomes: int
    lost: int
    heals: bool


def kill(folder: Path, store: str | None = None) -> Killed:
    """Send :data:`WRITES` decisions and outcomes, kill -9 the service in between, and look.

    Args:
        folder: of the service's data; where ``store`` is None, of its database too.
        store: URL of the database.
    """
    decisions: list[str] = []
    outcomes: list[str] = []
    settings = settings_of(folder, store)
    with started(settings) as server:

        def write(number: int) -> None:
            status, chosen = server.post("/tasks/select", {"task": TASK})
            if status != 200:
                return
            decision = str(chosen["decision_id"])
            decisions.append(decision)
            if len(decisions) == KILLED_AFTER:
                os.kill(server.process.pid, signal.SIGKILL)
            if number % 2:
                status, _ = server.post(f"/tasks/{decision}/feedback", {"success": 1.0})
                outcomes.extend([decision] if status == 200 else [])

        with ThreadPoolExecutor(CLIENTS) as pool:
            list(pool.map(write, range(WRITES)))
    with Store(str(settings["service.store"])) as kept:
        found = {one.decision.id: one.outcome for one in kept.history().decisions()}
    lost = [one for one in decisions if one not in found]
    lost += [one for one in outcomes if found.get(one) is None]
    waiting = next(one for one in decisions if one in found and found[one] is None)
    with started(settings) as again:
        asked = again.post("/tasks/select", {"task": TASK})
        told = again.post(f"/tasks/{waiting}/feedback", {"success": 0.0})
    heals = (asked[0], told[0]) == (200, 200)
    return Killed(len(decisions), len(outcomes), len(lost), heals)
