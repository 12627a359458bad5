"""The environments' ledger against the outcome memory."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from letta_gym.envs.history import Past
from letta_gym.envs.ledger import Ledger
from letta_gym.envs.single import SkillSelectionEnv
from letta_gym.feedback.evidence import Evidence, EvidenceConfig, fit, kernel
from letta_gym.feedback.memory import ALONE, OutcomeMemory
from letta_gym.letta.backend import Outcomes
from letta_gym.library.vectors import snap

Float = NDArray[np.float32]
CONFIG = EvidenceConfig(bandwidth=0.2)
KEYS = ("a", "b", "c", ALONE)


def small_pool(count: int = 40) -> Any:
    tasks = snap(np.random.default_rng(11).standard_normal((count, 6)) + 0.5)
    similarity = tasks @ tasks.T
    return SimpleNamespace(
        tasks=tasks, similarity=similarity, weight=kernel(similarity, CONFIG.bandwidth)
    )


def random_past(each: int, sessions: int, pool: Any, grades: int | None = 4) -> Past:
    """``each`` outcomes of every session, about three skills and the agent alone.

    ``grades`` is the number of checks; None for grades of any size.
    """
    rng = np.random.default_rng(0)
    tasks = np.stack([rng.permutation(len(pool.tasks)) for _ in range(sessions)])
    cells = np.sort(rng.integers(4 * len(pool.tasks), size=(sessions, each)))
    cells += 4 * len(pool.tasks) * np.arange(sessions)[:, None]
    cell, count = np.unique(cells, return_counts=True)
    who, slot, at = np.unravel_index(cell, (sessions, 4, len(pool.tasks)))
    meant = rng.integers(4097, size=len(cell)) / 4096
    total = sessions * each
    success = rng.random(total) if grades is None else rng.integers(grades + 1, size=total) / grades
    return Past(
        np.arange(sessions),
        tasks,
        who,
        slot,
        at,
        count,
        meant.astype(np.float32),
        success.astype(np.float32),
    )


def of_session(past: Past, row: int) -> Past:
    """The past of one session alone, as session 0."""
    mine = past.who == row
    return Past(
        np.zeros(1, np.int64),
        past.tasks[[row]],
        past.who[mine] - row,
        past.slot[mine],
        past.at[mine],
        past.count[mine],
        past.meant[mine],
        past.success[mine.repeat(past.count)],
    )


def expected_evidence(past: Past, row: int, task: Float, pool: Any) -> Evidence:
    """What a memory says about the three slots and, last, the agent alone."""
    memory, mine = OutcomeMemory(6, CONFIG), of_session(past, row)
    cells = zip(mine.slot, mine.tasks[0, mine.at], mine.meant, strict=True)
    outcomes = [cell for cell, n in zip(cells, mine.count, strict=True) for _ in range(n)]
    for (slot, past_task, meant), success in zip(outcomes, mine.success, strict=True):
        memory.add(KEYS[slot], pool.tasks[past_task], float(success), float(meant))
    return memory.evidence(task[None], KEYS)


def test_a_ledger_loaded_at_once_equals_a_memory_bit_for_bit() -> None:
    pool, sessions, horizon = small_pool(), 3, 5
    past = random_past(300, sessions, pool)
    stream = np.random.default_rng(1).integers(len(pool.tasks), size=(sessions, horizon))
    ledger = Ledger(pool, sessions, 3, horizon)
    ledger.load(past, stream)
    for step in range(horizon):
        came = ledger.at(np.full(sessions, step))
        for row in range(sessions):
            expected = expected_evidence(past, row, pool.tasks[stream[row, step]], pool)
            one = Evidence(came.table[:, row : row + 1])
            for name in Evidence.NAMES:
                a, b = getattr(expected, name), getattr(one, name)
                np.testing.assert_array_equal(a, b, err_msg=name, strict=True)


def test_a_past_takes_the_place_of_what_was_known_in_its_sessions_alone() -> None:
    pool, zero = small_pool(), np.zeros(3, np.int64)
    ledger = Ledger(pool, 3, 3, 2)
    ledger.load(random_past(100, 3, pool), np.zeros((3, 2), np.int64))
    before = ledger.at(zero)
    second = of_session(random_past(0, 3, pool), 1)
    ledger.load(replace(second, rows=np.ones(1, np.int64)), np.ones((1, 2), np.int64))
    for name in Evidence.NAMES:
        array = getattr(ledger.at(zero), name)
        assert not array[1].any()
        assert array[0].any()
    came = ledger.at(zero).table
    np.testing.assert_array_equal(came[:, [0, 2]], before.table[:, [0, 2]])


def test_a_session_is_loaded_alike_in_any_batch_also_with_inexact_grades() -> None:
    pool, sessions = small_pool(), 59
    past = random_past(701, sessions, pool, grades=None)
    stream = np.zeros((sessions, 2), np.int64)
    every = Ledger(pool, sessions, 3, 2)
    every.load(past, stream)
    for session in range(sessions):
        alone = Ledger(pool, 1, 3, 2)
        alone.load(of_session(past, session), stream[[session]])
        for name in Evidence.NAMES:
            expected = getattr(alone.at(np.zeros(1, np.int64)), name)[0]
            came = getattr(every.at(np.zeros(sessions, np.int64)), name)[session]
            np.testing.assert_array_equal(expected, came, err_msg=name)


def test_outcomes_that_are_no_evidence_leave_the_ledger_alone() -> None:
    ledger = Ledger(small_pool(), 2, 3, 2)
    outcomes = Outcomes(
        success=np.array([1, 1], np.float32),
        loaded=np.array([[True], [True]]),
        tokens=np.zeros(2, np.float32),
        expected=np.zeros(2, np.float32),
        evidence=np.array([False, True]),
    )
    zero = np.zeros(2, np.int64)
    ledger.record(zero, zero, zero[:, None], outcomes, np.ones((2, 1), np.float32))
    assert not ledger.wins[0].any()
    assert ledger.wins[1, 0] == 1


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_evidence_of_a_session_is_that_of_a_memory_of_its_outcomes(seed: int) -> None:
    env = SkillSelectionEnv(obs="compact", history_empty=1, horizon=25)
    env.reset(seed=seed)
    sessions, pool, config = env.driver.sessions, env.driver.pool, env.config.evidence
    memory = OutcomeMemory(env.driver.dimension, config)
    row = {name: i for i, name in enumerate(pool.ids)}
    keys = (*(pool.ids[i] for i in sessions.skills[0]), ALONE)
    rng = np.random.default_rng(seed)
    ended, step = False, 0
    while not ended:
        task = int(sessions.stream[0, step])
        came = sessions.ledger.at(np.array([step]))
        expected = memory.evidence(pool.task_vectors[[task]], keys)
        present = np.append(sessions.present[0], True)
        for name in Evidence.NAMES:
            a, b = getattr(expected, name)[0], getattr(came, name)[0]
            np.testing.assert_array_equal(a[present], b[present], err_msg=name)
        best = pool.retrieval[task, sessions.skills[0][sessions.present[0]]].max()
        action = (rng.random(env.config.candidates) < 0.15).astype(np.int8)
        *_, terminated, truncated, info = env.step(action)
        ended, step = terminated or truncated, step + 1
        outcome = info["outcome"]
        for name in outcome["loaded"]:
            meant = fit(pool.retrieval[task, row[name]], best, config)
            memory.add(name, pool.task_vectors[task], outcome["success"], float(meant))
        if not outcome["loaded"]:
            memory.add(ALONE, pool.task_vectors[task], outcome["success"])
        assert sessions.outcomes[0] == len(memory)
