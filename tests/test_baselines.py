"""The opponents: each does what its name says, and the oracle cannot be beaten."""

from __future__ import annotations

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.baselines import (
    Agent,
    Informed,
    Learned,
    NoSkills,
    Oracle,
    Random,
    Threshold,
    cosine,
    cut,
    evidence,
    expected,
    hybrid,
)
from agents.evaluation import begin
from letta_gym.envs.glue import Driver, EnvConfig
from letta_gym.selection import network, subset
from letta_gym.selection.observation import CONTEXT, FEATURE, FEATURES

Observation = dict[str, NDArray[Any]]

STRONG = {"strong_share": 1.0, "mild_share": 0.0, "harmful_share": 0.0}


def env(**changes: Any) -> EnvConfig:
    """Small sessions in which skills matter."""
    mock = {"strong_share": 0.5, "mild_share": 0.2, "harmful_share": 0.2, "base_alpha": 0.8}
    small = {
        "obs": "compact",
        "installed": 8,
        "candidates": 6,
        "horizon": 4,
        "history": (5, 40),
        "mock": mock,
    }
    return EnvConfig.from_keywords(small | changes)


def situation(sessions: int = 40, **changes: Any) -> tuple[Driver, Observation]:
    driver = begin(Oracle(), env(**changes), 1, sessions)
    return driver, driver.observe()


def observed(**columns: Any) -> Observation:
    """An observation with the given feature columns, (B, M), and every slot free."""
    shape = np.shape(next(iter(columns.values())))
    features = np.zeros((*shape, len(FEATURES)), np.float32)
    for name, values in columns.items():
        features[..., FEATURE[name]] = values
    context = np.zeros((shape[0], len(CONTEXT)), np.float32)
    return {"features": features, "context": context, "action_mask": np.ones(shape, np.int8)}


@pytest.fixture(scope="module")
def driver() -> Driver:
    """Sessions of 6 slots and at most 3 skills, for agents that only look at observations."""
    return situation(2)[0]


# --- by observation -------------------------------------------------------------------------------


def test_none_loads_nothing(driver: Driver) -> None:
    choice = NoSkills().act(observed(dense=np.ones((2, 6))), driver)
    np.testing.assert_array_equal(choice.picks, np.full((2, 3), -1))
    np.testing.assert_array_equal(choice.ranking, [[0, 1, 2, 3, 4, 5]] * 2)


def test_random_loads_every_number_of_free_skills_equally_often(driver: Driver) -> None:
    obs = observed(dense=np.zeros((8000, 6)))
    obs["action_mask"][:, 1] = 0
    choice = Random(np.random.default_rng(0)).act(obs, driver)
    assert not (choice.picks == 1).any()
    sizes = (choice.picks >= 0).sum(1)
    np.testing.assert_allclose(np.bincount(sizes, minlength=4) / 8000, 0.25, atol=0.02)
    often = np.bincount(choice.picks[choice.picks >= 0], minlength=6) / (choice.picks >= 0).sum()
    np.testing.assert_allclose(often, [0.2, 0, 0.2, 0.2, 0.2, 0.2], atol=0.02)
    for row in choice.picks[:200]:
        picked = row[row >= 0].tolist()
        assert len(set(picked)) == len(picked)


def test_random_loads_no_more_than_is_free(driver: Driver) -> None:
    obs = observed(dense=np.zeros((500, 6)))
    obs["action_mask"][:] = 0
    obs["action_mask"][:, 4] = 1
    picks = Random(np.random.default_rng(0)).act(obs, driver).picks
    assert set(picks.ravel().tolist()) == {-1, 4}
    assert ((picks == 4).sum(1) <= 1).all()


@pytest.mark.parametrize(
    ("level", "k", "picks"),
    [
        (0.5, 3, [[3, 0, -1], [-1, -1, -1]]),
        (0.5, 1, [[3, -1, -1], [-1, -1, -1]]),
        (0.1, 2, [[3, 0], [5, -1]]),
        (-9, 3, [[3, 0, 2], [5, 0, 1]]),
    ],
)
def test_a_threshold_loads_the_best_that_reach_it(
    driver: Driver, level: float, k: int, picks: list[list[int]]
) -> None:
    dense = 4 * np.array([[0.5, 0.25, 0.375, 0.75, 9, 0], [0, 0, 0, 0, 9, 0.25]])
    obs = observed(dense=dense)
    obs["action_mask"][:, 4] = 0
    choice = Threshold("t", "retrieval", cosine, level, k).act(obs, driver)
    np.testing.assert_array_equal(choice.picks[:, : len(picks[0])], picks)
    assert (choice.picks[:, k:] == -1).all()
    np.testing.assert_array_equal(choice.ranking[0], [3, 0, 2, 1, 5, 4])


def test_scores_are_on_the_scale_of_what_they_measure() -> None:
    driver, obs = situation()
    s = driver.sessions
    task, skills, free = s.task[:, None], s.slot_skills(), obs["action_mask"] == 1
    np.testing.assert_allclose(
        cosine(obs["features"])[free], driver.pool.scores[0][task, skills][free], rtol=1e-6
    )
    np.testing.assert_allclose(
        hybrid(obs["features"])[free], driver.pool.retrieval[task, skills][free], rtol=1e-6
    )
    assert driver.situation is not None
    cost = driver.pool.tokens[skills] * driver.config.token_price / 1000
    gain = driver.situation.judgement.closed_form - cost
    np.testing.assert_allclose(evidence(obs["features"])[free], gain[free], atol=1e-6)


def test_the_learned_agent_takes_the_most_likely_picks() -> None:
    driver, obs = situation()
    weights = network.initial(np.random.default_rng(0), 8, sharpness=30.0, threshold=0.0)
    choice = Learned(weights).act(obs, driver)
    mask = obs["action_mask"] == 1
    logits, _, _ = network.forward(weights, obs["features"], obs["context"], mask)
    np.testing.assert_array_equal(choice.picks, subset.greedy(logits, 3))
    assert len(np.unique((choice.picks >= 0).sum(1))) > 1
    some = choice.picks[:, 0] >= 0
    np.testing.assert_array_equal(choice.ranking[some, 0], choice.picks[some, 0])
    ranked = np.take_along_axis(logits[:, :-1], choice.ranking, 1)
    assert (ranked[:, :-1] >= ranked[:, 1:]).all()


def test_cut_keeps_the_order_of_ties_and_stops_at_the_first_level_missed() -> None:
    choice = cut(np.array([[1.0, 3.0, 1.0, 2.0]]), np.array([2.5, 1.5, 1.5]), 3)
    np.testing.assert_array_equal(choice.ranking, [[1, 3, 0, 2]])
    np.testing.assert_array_equal(choice.picks, [[1, 3, -1]])


AGENTS: list[Agent[Driver]] = [
    NoSkills(),
    Random(np.random.default_rng(0)),
    Threshold("cosine", "retrieval", cosine, 0.2, 2),
    Threshold("evidence", "evidence", evidence, 0.0, 3),
    Learned(network.initial(np.random.default_rng(0), 4, 30.0, 0.0)),
    Informed(),
    Oracle(),
]


@pytest.mark.parametrize("agent", AGENTS, ids=lambda agent: agent.name)
def test_every_agent_gives_picks_and_a_ranking_of_the_slots(agent: Agent[Driver]) -> None:
    driver, obs = situation(token_budget=1500)
    for _ in range(3):
        choice = agent.act(obs, driver)
        picks, chosen = choice.picks, choice.picks >= 0
        assert picks.shape == (40, 3)
        assert (np.sort(choice.ranking, 1) == np.arange(6)).all()
        free = np.take_along_axis(obs["action_mask"], np.maximum(picks, 0), 1) == 1
        assert (free | ~chosen).all()
        assert (chosen[:, :-1] | ~chosen[:, 1:]).all()  # -1 only at the end
        action = subset.to_mask(picks, 6)
        assert (action.sum(1) == chosen.sum(1)).all()
        driver.step(action)
        obs = driver.observe()


# --- by knowledge ---------------------------------------------------------------------------------


def brute_force(driver: Driver, obs: Observation) -> NDArray[np.float64]:
    """Largest expected reward over all sets of at most k slots that the budget covers."""
    s, world, k = driver.sessions, driver.sessions.world, driver.config.max_skills
    best = np.full(s.count, -np.inf)
    for b in range(s.count):
        task, skills = s.task[b], s.slot_skills()[b]
        for size in range(k + 1):
            for slots in combinations(np.flatnonzero(obs["action_mask"][b]).tolist(), size):
                chance = driver.config.mock.load_probability
                chance *= driver.config.mock.load_decay ** max(size - 1, 0)
                failing, harmless, tokens = 1 - float(world.base[b, task]), 1.0, 0.0
                for skill in skills[list(slots)]:
                    if driver.pool.relevant[task, skill]:
                        gain = float(world.gain[b, skill]) * float(world.per_task[b, task])
                        failing *= 1 - gain * chance
                        harmless *= 1 - float(world.harm[b, skill]) * chance
                    else:
                        harmless *= 1 - float(world.mismatch[b, skill]) * chance
                    tokens += float(driver.pool.tokens[skill])
                cost = driver.config.token_price / 1000 * chance * tokens
                if tokens <= s.tokens_left[b]:
                    best[b] = max(best[b], (1 - failing) * harmless - cost)
    return best


WORLDS: dict[str, dict[str, Any]] = {
    "usual": {},
    "pairs": {"pair_share": 1.0, "token_price": 0.0},
    "tight budget": {"pair_share": 1.0, "token_budget": 1800, "token_price": 0.001},
    "one skill": {"max_skills": 1},
    "four skills": {"max_skills": 4, "pair_share": 1.0, "token_price": 0.001},
    "dear": {"token_price": 0.4},
    "all strong": {"pair_share": 1.0, "twin_share": 0.0, "mock": STRONG},
    "few slots": {"candidates": 2},
}


@pytest.mark.parametrize("world", WORLDS)
def test_the_oracle_finds_the_best_of_all_sets(world: str) -> None:
    driver, obs = situation(60, **WORLDS[world])
    choice = Oracle().act(obs, driver)
    np.testing.assert_allclose(
        expected(driver, obs, choice.picks), brute_force(driver, obs), atol=1e-6
    )


def test_the_oracle_loads_three_skills_where_a_task_is_made_for_three() -> None:
    driver, obs = situation(60, token_price=0.0, twin_share=0.0, mock=STRONG)
    s = driver.sessions
    rows = np.arange(s.count)[:, None]
    relevant = driver.pool.relevant.copy()
    relevant[s.task[:, None], s.slot_skills()[:, :3]] = True
    s.world.relevant = relevant
    s.world.gain[rows, s.slot_skills()[:, :3]] = 0.5
    choice = Oracle().act(obs, driver)
    assert ((choice.picks >= 0).sum(1) == 3).mean() > 0.5


def test_the_oracle_takes_the_smaller_of_two_equal_sets() -> None:
    driver, obs = situation(token_price=0.0)
    world = driver.sessions.world
    world.gain[:], world.harm[:], world.mismatch[:] = 0, 0, 0
    assert (Oracle().act(obs, driver).picks == -1).all()


def test_expected_reward_is_the_mean_of_what_happens() -> None:
    driver, obs = situation(2000, horizon=1)
    picks = Random(np.random.default_rng(0)).act(obs, driver).picks
    promised = expected(driver, obs, picks)
    step = driver.step(subset.to_mask(picks, 6))
    error = step.reward - promised
    assert abs(error.mean()) < 4 * error.std() / np.sqrt(len(error))
    assert np.corrcoef(step.reward, promised)[0, 1] > 0.5


def test_a_set_that_would_not_be_carried_out_is_worth_nothing() -> None:
    driver, obs = situation(3, token_budget=1e5)
    driver.sessions.tokens_left[:] = driver.pool.tokens[driver.sessions.slot_skills()[:, 0]]
    picks = np.array([[0, -1, -1], [0, 1, -1], [-1, -1, -1]])
    assert np.isneginf(expected(driver, obs, picks)).tolist() == [False, True, False]
    obs["action_mask"][:, 0] = 0
    assert np.isneginf(expected(driver, obs, picks)).tolist() == [True, True, False]


def test_the_informed_agent_knows_the_quality_but_neither_the_match_nor_the_task() -> None:
    driver, obs = situation(200)
    world, agent = driver.sessions.world, Informed()
    before = agent.act(obs, driver)
    assert 0 < (before.picks >= 0).sum() < 200
    assert (before.picks[:, 1:] == -1).all()

    rng = np.random.default_rng(0)
    world.relevant = rng.permuted(world.relevant, axis=1)
    world.base = rng.permuted(world.base, axis=1)
    world.per_task = rng.permuted(world.per_task, axis=1)
    world.mismatch = rng.permuted(world.mismatch, axis=1)
    after = agent.act(obs, driver)
    np.testing.assert_array_equal(after.picks, before.picks)
    np.testing.assert_array_equal(after.ranking, before.ranking)

    world.gain = 0 * world.gain
    assert (agent.act(obs, driver).picks == -1).all()
