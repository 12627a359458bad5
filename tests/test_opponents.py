"""Opponents on labelled suites: each does what its name says, with the feedback of a bandit."""

from __future__ import annotations

import numpy as np
import pytest

from agents.opponents import Labelled, LinUCB, Neighbours, Ridge, Sampled
from agents.trial import decide, stream
from letta_gym.envs.deployment import ReplayConfig
from letta_gym.envs.replay import ReplayDriver
from letta_gym.selection import network, subset
from tests.small_suite import make_suite, write_suite


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    suite = make_suite(500, none_share=0.0, noise=0.4)
    return str(write_suite(tmp_path_factory.mktemp("opponents") / "small", suite))


def driver(folder: str, count: int = 20) -> ReplayDriver:
    keywords = {"suite": folder, "obs": "compact", "max_skills": 1, "new_skills": 0.0}
    made = ReplayDriver(ReplayConfig.from_keywords(keywords), count)
    generators = [np.random.default_rng(0)] * count
    made.sessions.reset(np.arange(count), generators, True)
    return made


def test_ridge_is_the_least_squares_solution_with_its_penalty() -> None:
    rng = np.random.default_rng(0)
    rows, rewards = rng.standard_normal((200, 5)), rng.standard_normal(200)
    ridge = Ridge(5, strength=0.7)
    for part in np.split(np.arange(200), 8):
        ridge.add(rows[part], rewards[part])
    stacked = np.concatenate([rows, np.sqrt(0.7) * np.eye(5)])
    expected = np.linalg.lstsq(stacked, np.append(rewards, np.zeros(5)), rcond=None)[0]
    np.testing.assert_allclose(ridge.weights, expected, atol=1e-10)
    one = rows[3]
    spread = np.sqrt(one @ np.linalg.inv(rows.T @ rows + 0.7 * np.eye(5)) @ one)
    assert ridge.bound(one, 2.0) == pytest.approx(one @ expected + 2 * spread)


@pytest.mark.parametrize("agent", [LinUCB(0.3), Neighbours(10), Labelled(10)])
def test_an_opponent_that_learns_gets_better_on_the_stream(
    folder: str, agent: LinUCB | Neighbours
) -> None:
    played = driver(folder)
    first = [decide(agent, played, explore=True)["success"].mean() for _ in range(3)]
    stream(agent, played, 1)
    last = [decide(agent, played, explore=False)["success"].mean() for _ in range(5)]
    assert np.mean(last) > np.mean(first) + 0.03
    assert np.mean(last) > 0.75


def test_linucb_learns_from_nothing_but_what_it_chose(folder: str) -> None:
    agents = LinUCB(0.3), LinUCB(0.3)
    for agent, turn in zip(agents, (False, True), strict=True):
        played = driver(folder)
        for _ in range(4):
            tasks, labels = played.sessions.task, played.sessions.labels
            obs = played.observe()
            agent.exploring = True
            choice = agent.act(obs, played)
            chosen = played.slot_skills()[np.arange(20), np.maximum(choice.picks[:, 0], 0)]
            kept = labels.relevant[tasks, chosen].copy()
            if turn:
                labels.relevant[tasks] ^= True
                labels.relevant[tasks, chosen] = kept
            assert labels.relevant[tasks].any(1).all()
            action = np.zeros((20, played.config.candidates), np.int8)
            rows = choice.picks[:, 0] >= 0
            action[np.flatnonzero(rows), choice.picks[rows, 0]] = 1
            step = played.step(action)
            agent.observe(obs, step, played)
            if turn:
                labels.relevant[tasks] ^= True
                labels.relevant[tasks, chosen] = kept
    np.testing.assert_array_equal(agents[0]._skill.weights, agents[1]._skill.weights)


def test_neighbours_vote_by_the_nearest_outcomes(folder: str) -> None:
    played, agent = driver(folder), Neighbours(7)
    stream(agent, played, 1)
    s = played.sessions
    votes = agent.votes(played)
    entries = s.memory.entries()
    near = played.pool.task_vectors[s.task] @ entries.vectors.T
    for row in range(5):
        expected = np.zeros(len(played.pool.ids))
        for at in np.argsort(-near[row])[:7]:
            skill = played.pool.keys.index(entries.keys[entries.key[at]]) - 1
            if skill >= 0:
                expected[skill] += near[row, at] * (2 * entries.success[at] - 1) / 7
        np.testing.assert_allclose(votes[row], expected, atol=1e-6)


def test_a_trained_network_explores_by_its_own_distribution(folder: str) -> None:
    weights = network.initial(np.random.default_rng(0), 4, sharpness=10.0, threshold=-1.0)
    agent, played = Sampled(weights, np.random.default_rng(1)), driver(folder, 200)
    obs = played.observe()
    greedy = agent.act(obs, played)
    agent.exploring = True
    drawn = agent.act(obs, played)
    np.testing.assert_array_equal(greedy.ranking, drawn.ranking)
    mask = obs["action_mask"].astype(bool)
    logits = network.logits(weights, obs["features"], obs["context"], mask)
    expected = np.exp(subset.log_prob(logits, greedy.picks)).mean()
    draws = [agent.act(obs, played).picks for _ in range(20)]
    assert np.mean([draw == greedy.picks for draw in draws]) == pytest.approx(expected, abs=0.03)
    assert 0.2 < expected < 0.9
