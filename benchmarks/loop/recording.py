"""The store under load: nothing that was acknowledged is lost, doubled or misplaced, and how fast.

The drill runs on SQLite and, where ``LETTA_GYM_TEST_POSTGRES`` names a server, on PostgreSQL.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from benchmarks.figures import Figure, below, equal
from benchmarks.runtime import untrained
from letta_gym.feedback.outcome import Outcome
from letta_gym.library.suite import bundled_suite
from letta_gym.library.vectors import Float
from letta_gym.selection.runtime import SkillSelector
from letta_gym.selection.shelf import Shelf
from letta_gym.store.log import StoreLog
from letta_gym.store.store import Store

PROCESSES, THREADS, OUTCOMES = 4, 16, 20_000
CALLS = 1_000


class _Choices:
    """Selectors over the bundled suite, and choices for its tasks."""

    def __init__(self) -> None:
        suite = bundled_suite()
        assert suite.vectors is not None
        self.texts = [task.text for task in suite.tasks]
        self.vectors: Float = suite.vectors.tasks.matrix
        self._suite, self._policy = suite, untrained(suite.vectors, slots=12)

    def selector(self, log: StoreLog | None) -> SkillSelector:
        assert self._suite.vectors is not None
        shelf = Shelf(self._suite.library, self._policy, self._suite.vectors.skills)
        return SkillSelector(self._policy, shelf, rng=np.random.default_rng(0), log=log)

    def decide(self, selector: SkillSelector, i: int) -> str:
        at = i % len(self.texts)
        return selector.select(self.texts[at], embedding=self.vectors[at]).decision_id


def figures() -> dict[str, Figure]:
    """All of this part."""
    with tempfile.TemporaryDirectory() as folder:
        found = recording(str(Path(folder, "recording.sqlite")))
        found |= drill("sqlite", str(Path(folder, "drill.sqlite")))
    server = os.environ.get("LETTA_GYM_TEST_POSTGRES")
    if server is None:
        print("No PostgreSQL: run this by .ci/with-postgres, or set LETTA_GYM_TEST_POSTGRES.")
        return found
    return found | drill("postgres", server)


def recording(url: str) -> dict[str, Figure]:
    """Median time of recording one outcome, evidence included, with and without a store."""
    choices = _Choices()
    with Store(url) as store:
        logged = choices.selector(store.log(store.agents.ensure("one")))
        alone = choices.selector(None)
        taken: dict[SkillSelector, list[float]] = {logged: [], alone: []}
        for i in range(CALLS):
            for selector, times in taken.items():
                decision = choices.decide(selector, i)
                start = time.perf_counter()
                selector.record(decision, Outcome((i % 5) / 4))
                times.append(time.perf_counter() - start)
    with_store, without = (float(np.median(times)) for times in taken.values())
    return {
        "record_sqlite_ms": below(1e3 * with_store, 2),
        "record_without_store_us": below(1e6 * without, 100),
    }


def drill(name: str, url: str) -> dict[str, Figure]:
    """Decisions and outcomes of many threads of many processes, and what is there afterwards."""
    with Store(url) as store:
        store.agents.ensure("agent-0")
        start = time.perf_counter()
        context = multiprocessing.get_context("spawn")
        with context.Pool(PROCESSES) as pool:
            work = [(url, process) for process in range(PROCESSES)]
            acknowledged = Counter(id for ids in pool.starmap(_record_many, work) for id in ids)
        seconds = time.perf_counter() - start
        kept = Counter[str]()
        misplaced = 0
        for one in store.history().decisions(settled=True):
            assert one.outcome is not None
            kept[one.decision.id] += 1
            misplaced += one.outcome.run_id != f"{one.agent} {one.decision.id}"
    return {
        f"{name}_outcomes_acknowledged": equal(acknowledged.total(), OUTCOMES),
        f"{name}_outcomes_lost": equal((acknowledged - kept).total(), 0),
        f"{name}_outcomes_doubled": equal((kept - acknowledged).total(), 0),
        f"{name}_outcomes_at_another_decision": equal(misplaced, 0),
        f"{name}_decisions_and_outcomes_per_s": Figure(2 * OUTCOMES / seconds),
    }


def _record_many(url: str, process: int) -> list[str]:
    choices, agent = _Choices(), f"agent-{process}"
    with Store(url) as store:
        log = store.log(store.agents.ensure(agent))

        def work(thread: int) -> list[str]:
            selector, done = choices.selector(log), []
            for i in range(thread, OUTCOMES // PROCESSES, THREADS):
                decision = choices.decide(selector, i)
                outcome = Outcome((i % 5) / 4, run_id=f"{agent} {decision}")
                selector.record(decision, outcome)
                selector.record(decision, outcome)  # a client that repeats itself
                done.append(decision)
            return done

        with ThreadPoolExecutor(THREADS) as pool:
            return [id for ids in pool.map(work, range(THREADS)) for id in ids]
