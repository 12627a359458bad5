"""Opening histories: that they are drawn as they are described."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from letta_gym.envs import history
from letta_gym.envs.history import Past
from letta_gym.envs.sessions import Sessions
from letta_gym.envs.single import SkillSelectionEnv
from letta_gym.feedback.evidence import fit


def past_of(seed: int, monkeypatch: pytest.MonkeyPatch, **keywords: Any) -> tuple[Past, Sessions]:
    """The past that a session was begun with."""
    env = SkillSelectionEnv(obs="compact", history_empty=0, **keywords)
    found = []
    sessions = env.driver.sessions
    load = sessions.ledger.load

    def spy(past: Past, stream: Any) -> None:
        found.append(past)
        load(past, stream)

    monkeypatch.setattr(sessions.ledger, "load", spy)
    env.reset(seed=seed)
    return found[0], sessions


def test_cells_are_drawn_independently_by_their_shares() -> None:
    """Means and covariances of counts are those of a multinomial, in every row."""
    shares, n, rows = np.array([3.0, 0.0, 1.0, 4.0, 0.0]), 6, 20_000
    rng = np.random.default_rng(0)
    cell, count, uniform = history._draw(np.tile(shares, (rows, 1)), np.full(rows, n), [rng] * rows)
    assert (np.diff(cell) > 0).all()
    assert len(uniform) == count.sum() == n * rows
    drawn = np.bincount(cell, count, rows * len(shares)).reshape(rows, -1)
    assert (drawn.sum(1) == n).all()
    p = shares / shares.sum()
    np.testing.assert_allclose(drawn.mean(0), n * p, atol=4.5 * np.sqrt(n / 4 / rows))
    expected = n * (np.diag(p) - np.outer(p, p))
    np.testing.assert_allclose(np.cov(drawn.T), expected, atol=0.06)


def test_rows_have_the_length_that_is_asked_for() -> None:
    rng = np.random.default_rng(1)
    cell, count, uniform = history._draw(np.ones((3, 4)), np.array([5, 0, 2]), [rng] * 3)
    assert np.bincount(cell // 4, count, 3).tolist() == [5, 0, 2]
    assert len(uniform) == 7
    cell, count, uniform = history._draw(np.ones((2, 4)), np.array([0, 0]), [rng] * 2)
    assert len(cell) == len(count) == len(uniform) == 0


def test_what_occurs_in_each_row_stands_in_front_in_order() -> None:
    weights = np.array([[0, 0.5, 0, 2], [0, 0, 0, 0], [1, 2, 3, 0]])
    columns, values = history.occurring(weights)
    assert columns.tolist() == [[1, 3, 0], [0, 0, 0], [0, 1, 2]]
    assert values.tolist() == [[0.5, 2, 0], [0, 0, 0], [1, 2, 3]]


def test_skills_were_chosen_by_retrieval_and_loaded_or_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts of skills against a softmax computed skill by skill: a chi-square test."""
    n = 200_000
    past, s = past_of(3, monkeypatch, history=(n, n), new_share=0.3)
    temperature, none = s.config.history_temperature, s.config.history_none
    usable = np.flatnonzero(s.present[0] & ~s.new[0])
    loads = (1 - none) * s.world.config.load_probability
    assert set(past.slot) <= {*usable.tolist(), s.width}
    square, freedom = 0.0, 0
    for at in np.unique(past.at):
        mine = past.at == at
        came = np.bincount(past.slot[mine], past.count[mine], s.width + 1)
        score = s.pool.retrieval[past.tasks[0, at], s.skills[0, usable]].astype(np.float64)
        p = np.zeros(s.width + 1)
        p[usable] = np.exp(score / temperature) / np.exp(score / temperature).sum() * loads
        p[-1] = 1 - loads
        expected = came.sum() * p
        common = expected > 5
        square += float(((came - expected)[common] ** 2 / expected[common]).sum())
        freedom += int(common.sum()) - 1
    assert freedom > 100
    assert abs(square - freedom) < 5 * np.sqrt(2 * freedom)


def test_graded_outcomes_of_the_past_have_the_chances_of_the_hidden_world(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    past, s = past_of(5, monkeypatch, history=(100_000, 100_000))
    skills = np.append(s.skills[0], 0)[past.slot]
    p = s.world.success_probability(
        np.zeros(len(skills), np.int64),
        past.tasks[0, past.at],
        skills[:, None],
        (past.slot < s.width)[:, None].astype(np.float32),
    ).astype(np.float64)
    first = past.count.cumsum() - past.count
    came = np.add.reduceat(past.success.astype(np.float64), first) / past.count
    error = np.sqrt(p * (1 - p) / s.world.config.checks / past.count)
    often = (past.count > 50) & (error > 0)
    score = (came - p)[often] / error[often]
    assert often.sum() > 100
    assert abs(score.mean()) < 5 / np.sqrt(often.sum())
    assert score.std() == pytest.approx(1, abs=0.2)


def test_the_fit_of_the_past_is_that_of_the_best_skill_then_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    past, s = past_of(2, monkeypatch, new_share=0.5)
    usable = s.present[0] & ~s.new[0]
    for slot, at, meant in zip(past.slot, past.at, past.meant, strict=True):
        score = s.pool.retrieval[past.tasks[0, at], s.skills[0]]
        if slot == s.width:
            assert meant == 1
        else:
            best = score[usable].max()
            assert meant == fit(score[slot], best, s.evidence_config)
