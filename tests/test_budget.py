"""The exploration budget of an agent holds over all processes of a database."""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import select

from letta_gym.errors import ConfigError
from letta_gym.selection.exploration import ExplorationConfig, Explorer
from letta_gym.store.budget import HOLDS, LeaseRow, StoreBudget
from letta_gym.store.store import Store
from tests.stores import DAY, Clock, new_database
from tests.test_runtime import TEXT, selector

EAGER = ExplorationConfig(epsilon=0.9, untried=0, hold_rate=0)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with new_database(tmp_path) as url:
        yield url


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(url: str, clock: Clock) -> Iterator[Store]:
    with Store(url, clock) as store:
        yield store


def spent(budget: StoreBudget, most: int = 10_000) -> int:
    """Spend until nothing is left; how many that were."""
    count = 0
    while count < most and budget.left:
        budget.spend()
        count += 1
    return count


def test_several_processes_share_one_budget_of_a_day(store: Store, clock: Clock) -> None:
    ada, bob = store.agents.ensure("ada"), store.agents.ensure("bob")
    one, other, of_bob = (store.budget(agent, 50) for agent in (ada, ada, bob))
    first = spent(one, 20)
    rest = spent(other)
    one.close()

    assert first == 20
    assert spent(other) == 0  # it does not ask again at once
    clock.now += 61
    assert first + rest + spent(other) == 50
    assert spent(of_bob) == 50
    clock.pass_days(1)
    assert spent(one) == 0  # what was spent late in a lease is not a day old yet
    clock.now += HOLDS
    assert spent(one) == 50


def test_no_day_has_more_than_its_budget(store: Store, clock: Clock) -> None:
    budgets = [store.budget(store.agents.ensure("ada"), 40) for _ in range(3)]
    rng, times = np.random.default_rng(0), []
    for _ in range(4_000):
        clock.now += rng.exponential(120.0)
        budget = budgets[rng.integers(3)]
        if budget.left:
            budget.spend()
            times.append(clock.now)
    at = np.array(times)
    within = np.searchsorted(at, at + DAY, side="left") - np.arange(len(at))

    assert within.max() <= 40
    assert len(at) > 0.7 * 40 * (at[-1] - at[0]) / DAY  # and most of it can be used


def test_a_lease_that_is_not_used_up_goes_back(store: Store, clock: Clock) -> None:
    agent = store.agents.ensure("ada")
    budget = store.budget(agent, 80)
    assert budget.left == 10
    budget.spend()
    budget.close()
    with store.database.read(None) as session:
        assert session.scalars(select(LeaseRow.amount)).all() == [1]
    assert spent(store.budget(agent, 80)) == 79


def test_a_budget_that_must_not_wait_asks_nothing_itself(store: Store, clock: Clock) -> None:
    budget = store.budget(store.agents.ensure("ada"), 16, waits=False)
    assert (budget.left, budget.low) == (0, True)
    budget.renew()
    assert (budget.left, budget.low) == (2, False)
    budget.spend()
    assert not budget.low
    budget.spend()
    assert (budget.left, budget.low) == (0, True)
    clock.now += HOLDS
    budget.renew()
    assert budget.left == 1


def test_threads_and_processes_spend_no_more_than_there_is(store: Store, url: str) -> None:
    store.agents.ensure("ada")
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        assert sum(pool.map(_spend_by_threads, [url, url])) <= 60
    with store.database.read(None) as session:
        assert sum(session.scalars(select(LeaseRow.amount))) <= 60


def _spend_by_threads(url: str) -> int:
    with Store(url) as store, ThreadPoolExecutor(4) as pool:
        agent = store.agents.ensure("ada")
        budgets = [store.budget(agent, 60) for _ in range(4)]
        return sum(pool.map(spent, budgets))


def test_selectors_of_two_processes_explore_within_one_budget(store: Store) -> None:
    agent = store.agents.ensure("ada")
    different = 0
    for _ in range(2):
        budget = store.budget(agent, 8)
        curious = selector(explorer=Explorer(EAGER, budget))
        best = {skill.id for skill in curious.select(TEXT, k=2).skills}
        for _ in range(60):
            chosen = curious.select(TEXT, k=2, explore=True)
            different += {skill.id for skill in chosen.skills} != best
        budget.close()

    assert different == 8


def test_a_negative_budget_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match="at least 0; got -1"):
        store.budget(store.agents.ensure("ada"), -1)
