"""Exploration in production: its probabilities are exact, and it stays within its budget."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from pydantic import ValidationError

from letta_gym.feedback.decision import Decision, Waiting
from letta_gym.feedback.outcome import Outcome
from letta_gym.library.embeddings import VectorSpace
from letta_gym.selection.exploration import (
    DailyBudget,
    ExplorationConfig,
    Explorer,
    set_log_prob,
)
from tests.stores import Clock
from tests.test_runtime import TEXT, selector

LOGITS = np.array([[0.5, -0.5, -np.inf, 1.0, 0.2]])  # four slots, one masked, and stopping
OUTCOMES = np.array([20, 0, 0, 3], np.float32)  # two slots were never tried
EAGER = ExplorationConfig(epsilon=0.2, untried=0.1, hold_rate=0.3, daily_budget=10**9)


def every_set(slots: int, k: int) -> list[tuple[int, ...]]:
    return [s for n in range(k + 1) for s in itertools.combinations(range(slots), n)]


def padded(members: tuple[int, ...], k: int) -> Any:
    return np.array([[*members, *[-1] * (k - len(members))]])


@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize(
    "config",
    [
        EAGER,
        ExplorationConfig(epsilon=0, untried=0, hold_rate=0.02),
        ExplorationConfig(epsilon=0.05, untried=0.3, hold_rate=0),
        ExplorationConfig(epsilon=0.1, untried=0.1, hold_rate=0.02, hold_fresh=0.4),
    ],
)
def test_the_probabilities_of_all_sets_add_up_to_one(k: int, config: ExplorationConfig) -> None:
    for outcomes in (OUTCOMES, OUTCOMES + 1):
        total = sum(
            math.exp(set_log_prob(LOGITS, padded(members, k), outcomes, config))
            for members in every_set(4, k)
        )
        assert total == pytest.approx(1, abs=1e-12)


def test_sets_come_as_often_as_is_said() -> None:
    explorer, rng, n = Explorer(EAGER), np.random.default_rng(0), 8_000
    draws = [explorer.draw(LOGITS, 2, OUTCOMES, rng) for _ in range(n)]
    counts = Counter(tuple(sorted(s for s in d.picks[0].tolist() if s >= 0)) for d in draws)
    for members in every_set(4, 2):
        p = math.exp(set_log_prob(LOGITS, padded(members, 2), OUTCOMES, EAGER))
        assert counts[members] / n == pytest.approx(p, abs=4 * math.sqrt(p / n) + 1e-9), members
    held = [d for d in draws if d.held_out]

    assert all(d.held_out[0] not in d.picks for d in held)
    assert {d.hold_rate for d in draws} == {0.0, 0.3}  # there is nothing to hold out of no skill
    some = sum((d.picks >= 0).any() or bool(d.held_out) for d in draws)
    assert len(held) / some == pytest.approx(0.3, abs=0.025)


def test_what_is_said_of_a_draw_is_the_probability_of_its_set() -> None:
    explorer, rng = Explorer(EAGER), np.random.default_rng(1)
    for _ in range(50):
        draw = explorer.draw(LOGITS, 2, OUTCOMES, rng)
        said = set_log_prob(LOGITS, draw.picks, OUTCOMES, EAGER)
        assert draw.log_propensity == pytest.approx(said)


def test_a_never_tried_skill_has_its_floor() -> None:
    hopeless = np.array([[5.0, -50.0, 0.0]])
    explorer = Explorer(ExplorationConfig(epsilon=0, untried=0.1, hold_rate=0))
    rng, outcomes = np.random.default_rng(0), np.array([1, 0], np.float32)
    share = np.mean([1 in explorer.draw(hopeless, 1, outcomes, rng).picks for _ in range(400)])

    assert 0.06 < share < 0.14
    tried = explorer.draw(hopeless, 1, np.array([1, 1], np.float32), rng)
    assert tried.picks.tolist() == [[0]]


def test_of_fresh_skills_more_are_held_out() -> None:
    config = ExplorationConfig(epsilon=0, untried=0, hold_rate=0.02, hold_fresh=0.4, fresh=15)
    explorer, rng, n = Explorer(config, DailyBudget(10**9)), np.random.default_rng(0), 6_000
    draws = [explorer.draw(LOGITS, 2, OUTCOMES, rng) for _ in range(n)]
    known: list[float] = []
    fresh: list[float] = []
    for draw in draws:
        chosen = {*draw.picks[0].tolist(), *draw.held_out} - {-1}
        if chosen:
            (known if chosen == {0} else fresh).append(draw.hold_rate)
            said = set_log_prob(LOGITS, draw.picks, OUTCOMES, config)
            assert draw.log_propensity == said
    held = sum(bool(d.held_out) for d in draws if d.hold_rate == 0.4)

    assert (set(known), set(fresh)) == ({0.02}, {0.4})
    assert held / len(fresh) == pytest.approx(0.4, abs=0.03)


def test_the_budget_of_a_day_is_kept() -> None:
    clock = Clock()
    explorer = Explorer(EAGER, DailyBudget(5, clock))
    rng = np.random.default_rng(0)

    def different(n: int) -> int:
        draws = [explorer.draw(LOGITS, 2, OUTCOMES, rng) for _ in range(n)]
        return sum(set(d.picks[0].tolist()) != {0, 3} for d in draws)

    assert different(200) == 5
    assert explorer.budget.left == 0
    calm = explorer.draw(LOGITS, 2, OUTCOMES, rng)
    assert (calm.explored, calm.log_propensity, calm.hold_rate) == (False, 0.0, 0.0)
    clock.pass_days(0.9)
    assert different(50) == 0
    clock.pass_days(0.1)
    assert different(200) == 5


class Memo:
    """A log in a list."""

    def __init__(self) -> None:
        self.kept: list[Decision] = []

    def begin(self, space: VectorSpace) -> None:
        self.space = space

    def decided(self, decision: Decision) -> None:
        self.kept.append(decision)

    def waiting(self, decision_id: str) -> Waiting:
        raise NotImplementedError

    def recorded(self, decision_id: str, outcome: Outcome) -> bool:
        return True


def test_a_selector_explores_only_when_asked_and_logs_what_it_held_out() -> None:
    log = Memo()
    runtime = selector(log=log, explorer=Explorer(EAGER))
    plain = runtime.select(TEXT, k=2)
    choices = [runtime.select(TEXT, k=2, explore=True) for _ in range(60)]

    assert (plain.explored, plain.log_propensity) == (False, 0.0)
    assert log.kept[0].hold_rate == 0
    assert all(choice.explored and choice.log_propensity < 0 for choice in choices)
    held = [(d, d.held_out) for d in log.kept if d.held_out is not None]
    assert len(held) > 5
    for decision, one in held:
        assert one is not None
        assert one.key == decision.keys[one.slot]
        assert one.slot not in [pick.slot for pick in decision.picks]
        assert len(decision.picks) < 2
    assert {d.hold_rate for d in log.kept[1:]} <= {0.0, 0.3}


def test_skills_with_outcomes_are_not_untried() -> None:
    config = ExplorationConfig(epsilon=0, untried=0.9, hold_rate=0)
    runtime = selector(explorer=Explorer(config))
    for i in range(1, 5):
        key = runtime.shelf.keys[i + 1]
        runtime.memory.add(key, runtime.shelf.vectors[i], 0.0, 1.0)
    chosen = Counter(
        s.id for _ in range(40) for s in runtime.select(TEXT, k=1, explore=True).skills
    )
    assert chosen["skill-0"] >= 30


def test_shares_that_leave_nothing_to_the_policy_are_refused() -> None:
    with pytest.raises(ValidationError, match=r"must stay below 1.*got 0.6 \+ 0.4"):
        ExplorationConfig(epsilon=0.6, untried=0.4)
