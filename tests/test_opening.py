"""The opening: who decides on STOP while there are few outcomes, and that nothing else changes."""

from __future__ import annotations

import math

import numpy as np
import pytest

from letta_gym.config import resolve
from letta_gym.errors import ConfigError
from letta_gym.library.suite import bundled_suite
from letta_gym.selection import subset
from letta_gym.selection.observation import CONTEXT
from letta_gym.selection.opening import Opening, likeness
from letta_gym.selection.policy import Policy

COLUMN = {column.name: i for i, column in enumerate(CONTEXT)}


def context(outcomes: float, best: float) -> np.ndarray:
    c = np.zeros((1, len(CONTEXT)), np.float32)
    c[0, COLUMN["history"]] = math.log1p(outcomes) / 8
    c[0, COLUMN["best_retrieval"]] = 4 * best
    return c


def margin(outcomes: float, best: float, alike: float = 0.0) -> float:
    logits = np.array([[1.0, 3.0, -np.inf, 8.0]], np.float32)  # the network's margin is -5
    Opening().settle(logits, context(outcomes, best), alike)
    np.testing.assert_array_equal(logits[:, :-1], [[1.0, 3.0, -np.inf]])
    return float(logits[0, :-1].max() - logits[0, -1])


def test_without_outcomes_the_level_of_retrieval_decides() -> None:
    assert margin(0, 0.25) == pytest.approx(0, abs=1e-5)
    assert margin(0, 0.40) == pytest.approx(3, abs=1e-5)
    assert margin(0, 0.10) == pytest.approx(-3, abs=1e-5)


def test_outcomes_hand_over_to_the_network() -> None:
    assert margin(100, 0.40) == pytest.approx((-5 + 3) / 2, abs=1e-3)
    assert margin(1e6, 0.40) == pytest.approx(-5, abs=1e-2)


def test_in_a_library_of_skills_that_are_all_alike_the_level_says_nothing() -> None:
    assert margin(0, 0.05, 0.5) == margin(0, 0.9, 0.5) == pytest.approx(Opening().usual)


def test_where_nothing_may_be_chosen_stop_stays() -> None:
    logits = np.array([[-np.inf, -np.inf, 8.0], [0.0, -np.inf, 8.0]], np.float32)
    Opening().settle(logits, np.repeat(context(0, 0.5), 2, 0))
    np.testing.assert_array_equal(subset.greedy(logits, 1), [[-1], [0]])
    assert logits[0, -1] == 8


def test_likeness_is_the_mean_cosine_between_skills() -> None:
    vectors = np.random.default_rng(0).standard_normal((7, 5))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    pairs = [float(vectors[i] @ vectors[j]) for i in range(7) for j in range(i)]
    assert likeness(vectors) == pytest.approx(np.mean(pairs))
    assert likeness(vectors[:1]) == 0


def test_the_skills_of_the_bundled_library_are_not_alike() -> None:
    vectors = bundled_suite().vectors
    assert vectors is not None
    assert likeness(vectors.skills.matrix) < Opening().likeness


def test_the_policy_of_the_package_has_one_with_the_constants_of_its_fit() -> None:
    policy = Policy.load("default")
    assert policy.opening is not None
    fit = policy.evidence.fit_level, policy.evidence.fit_scale
    assert (policy.opening.level, policy.opening.scale) == fit


def test_a_number_out_of_range_is_an_error() -> None:
    with pytest.raises(ConfigError, match="outcomes"):
        resolve(Opening, {"outcomes": 0}, "the opening")
