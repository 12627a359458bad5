"""The linear bandits and the priced oracle: each does what its name says."""

from __future__ import annotations

from typing import Any, get_args

import numpy as np
import pytest

from agents.bandits import BANDITS, LinearBandit, bandit, sampled, study, upper_bound
from agents.baselines import NoSkills, Oracle
from agents.config import Extra, RunConfig
from agents.evaluation import SURCHARGES, begin, compare, earn, priced, taught
from agents.opponents import Ridge
from letta_gym.envs.glue import Driver
from letta_gym.selection import subset

SMALL: dict[str, Any] = {
    "env": {"world": "fixed", "history": (100, 400)},
    "evaluate": {"seeds": 2, "sessions": 8, "tune_sessions": 32, "bandit_steps": 6000},
}


def config(**env: Any) -> RunConfig:
    return RunConfig.model_validate({**SMALL, "env": {**SMALL["env"], **env}})


def played(agent: LinearBandit, driver: Driver) -> Any:
    """One decision: its observation, and what came of it."""
    obs = driver.observe()
    step = driver.step(subset.to_mask(agent.act(obs, driver).picks, driver.config.candidates))
    agent.observe(obs, step, driver)
    return obs, step


def test_every_extra_agent_of_the_configuration_exists() -> None:
    assert set(get_args(Extra)) == {*BANDITS, "priced"}


@pytest.mark.parametrize("name", BANDITS)
def test_a_bandit_that_was_taught_earns_more_than_nothing(name: str) -> None:
    c = config()
    agent, env = taught(name, c), c.environment(split="train")

    assert earn(agent, env, 3, 64) > earn(NoSkills(), env, 3, 64) + 0.008


@pytest.mark.parametrize("name", BANDITS)
def test_a_bandit_loads_at_most_one_skill_and_none_that_is_masked(name: str) -> None:
    c = config(token_budget=3000.0)
    env = c.environment(split="train")
    agent = bandit(name, len(env.pool().ids), np.random.default_rng(0))
    driver = begin(agent, env, 1, 16)
    agent.exploring = True
    tried = 0
    for _ in range(env.horizon):
        obs, step = played(agent, driver)
        row, column = np.nonzero(step.picks >= 0)
        tried += len(row)
        assert (column == 0).all()
        assert obs["action_mask"][row, step.picks[row, column]].all()
        assert not step.dropped.any()
    assert tried > 16


def test_models_of_their_own_learn_from_their_skill_alone() -> None:
    env = config().environment(split="train")
    agent = bandit("linucb_per_skill", len(env.pool().ids), np.random.default_rng(0))
    driver = begin(agent, env, 1, 4)
    agent.exploring = True
    obs = driver.observe()
    choice = agent.act(obs, driver)
    skills = driver.slot_skills()
    step = driver.step(subset.to_mask(choice.picks, env.candidates))
    agent.observe(obs, step, driver)
    loaded = {
        int(skills[row, step.picks[row, 0]]) for row in np.flatnonzero(step.outcomes.loaded[:, 0])
    }
    moved = {i for i, model in enumerate(agent._models) if model.weights.any()}

    assert loaded
    assert moved <= loaded


def test_a_bandit_explores_only_while_it_is_taught() -> None:
    env = config().environment(split="train")
    agent = bandit("thompson", len(env.pool().ids), np.random.default_rng(0))
    study(agent, begin(agent, env, 5, 16))
    driver = begin(agent, env, 6, 16)
    obs = driver.observe()
    first, again = (agent.act(obs, driver).picks for _ in range(2))
    agent.exploring = True
    draws = [agent.act(obs, driver).picks for _ in range(8)]

    np.testing.assert_array_equal(first, again)
    assert any((draw != first).any() for draw in draws)


def test_thompson_draws_have_the_mean_and_the_spread_of_the_posterior() -> None:
    rng = np.random.default_rng(0)
    model = Ridge(3)
    rows = rng.standard_normal((40, 3))
    model.add(rows, rows @ np.array([1.0, -2.0, 0.5]))
    one = np.array([0.3, 1.0, -0.7])
    scores = sampled(0.5, rng)(model, np.broadcast_to(one, (40_000, 2, 3)))
    spread = 0.5 * np.sqrt(one @ model.inverse @ one)

    assert scores.mean() == pytest.approx(one @ model.weights, abs=4 * spread / 200)
    assert scores.std() == pytest.approx(spread, rel=0.03)
    np.testing.assert_array_equal(scores[:, 0], scores[:, 1])  # one draw for a whole decision
    assert upper_bound(0.5)(model, one[None]) == pytest.approx(one @ model.weights + spread)


def test_the_priced_oracle_beats_the_myopic_one_under_a_tight_budget() -> None:
    c = config(token_budget=4000.0, token_price=0.0, horizon=64)
    env = c.environment(split="test")
    best = priced(c)

    assert best.surcharge > 0
    assert earn(best, env, 3, 64) > earn(Oracle(), env, 3, 64) + 0.01


def test_a_surcharge_saves_tokens_and_none_changes_nothing() -> None:
    env = config().environment(split="test")
    spent = []
    for surcharge in (0.0, 1.0, 50.0):
        oracle = Oracle("priced", surcharge)
        driver, total = begin(oracle, env, 3, 32), 0.0
        for _ in range(8):
            picks = oracle.act(driver.observe(), driver).picks
            total += float(driver.step(subset.to_mask(picks, env.candidates)).outcomes.tokens.sum())
        spent.append(total)

    assert spent[0] > spent[1] > spent[2] == 0
    assert SURCHARGES[0] == 0
    assert earn(Oracle("priced", 0.0), env, 4, 16) == earn(Oracle(), env, 4, 16)


def test_an_evaluation_has_the_extra_agents_that_it_is_asked_for() -> None:
    few = {"seeds": 2, "sessions": 2, "tune_sessions": 2, "bandit_steps": 100}
    also = {"also": ["priced", "linucb_per_skill"]}
    c = RunConfig.model_validate({"env": {"horizon": 8}, "evaluate": few | also})
    result = compare(c, None)

    assert [*result.runs][-4:] == ["priced", "linucb_per_skill", "informed", "oracle"]
    assert "\nlinucb_per_skill " in result.table()
