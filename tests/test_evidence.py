"""Evidence and the score that needs no training, against plain Python in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from letta_gym.feedback.evidence import (
    Evidence,
    EvidenceConfig,
    Judgement,
    alone_rate,
    failure_penalty,
    fit,
    judge,
    kernel,
    nearest,
    uplift,
)
from letta_gym.selection.candidates import rank

Float = NDArray[np.float32]
GRID = 2**-12
OTHER = EvidenceConfig(
    bandwidth=0.3,
    fit_level=0.1,
    fit_scale=0.2,
    prior_uplift=0.3,
    prior_strength=5.0,
    prior_alone=0.6,
    novelty=0.02,
    count_correction=0.05,
    count_cap=9.0,
    failure_weight=0.9,
    failure_cap=0.25,
    local_weight=0.3,
    local_strength=0.4,
    share_weight=0.2,
    share_strength=1.5,
    uplift_weight=0.7,
    nearest_weight=0.4,
)
CONFIGS = [EvidenceConfig(), OTHER]


def random_evidence(shape: tuple[int, ...], seed: int = 0) -> Evidence:
    """Evidence in its ranges; about a third of the skills have no success yet."""
    rng = np.random.default_rng(seed)
    wins = np.maximum(rng.integers(-10, 30, shape), 0)
    success = np.where(wins > 0, rng.random(shape), 0)
    masses = rng.random((4, *shape)) * 20
    parts = [success, rng.random(shape), *masses[:2], wins, *masses[2:]]
    return Evidence.of(*(np.asarray(part, np.float32) for part in parts))


def fit_by_hand(score: float, best: float, c: EvidenceConfig) -> float:
    meant = 1 / (1 + math.exp((c.fit_level - score) / c.fit_scale))
    return meant * math.exp((score - best) / c.fit_scale)


def penalty_by_hand(e: Evidence, i: tuple[int, ...], c: EvidenceConfig) -> float:
    reference = float(e.success_similarity[i]) if e.wins[i] > 0 else 0.5
    return min(max(float(e.failure_similarity[i]) - reference, 0), c.failure_cap)


def nearest_by_hand(score: float, e: Evidence, i: tuple[int, ...], c: EvidenceConfig) -> float:
    if e.wins[i] > 0:
        value = 0.5 * score + 0.5 * float(e.success_similarity[i])
        value += c.count_correction * math.log(c.count_cap / min(float(e.wins[i]), c.count_cap))
    else:
        value = score + c.novelty
    good, bad = float(e.success_mass[i]), float(e.failure_mass[i])
    half = c.local_strength / 2
    value += c.local_weight * ((good + half) / (good + bad + c.local_strength) - 0.5)
    every = float(e.success_mass[i[:-1]].sum()) + c.share_strength
    value += c.share_weight * good / every
    return value - c.failure_weight * penalty_by_hand(e, i, c)


def uplift_by_hand(e: Evidence, i: tuple[int, ...], alone: float, c: EvidenceConfig) -> float:
    good, bad = float(e.fit_successes[i]), float(e.fit_failures[i])
    total = c.prior_strength * c.prior_uplift + good * (1 - alone) + bad * (0 - alone)
    return total / (c.prior_strength + good + bad)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_kernel_is_the_exponential_on_its_grid(config: EvidenceConfig) -> None:
    similarity = np.linspace(-1, 1, 501, dtype=np.float32)
    values = kernel(similarity, config.bandwidth)
    assert values.dtype == np.float32
    for s, value in zip(similarity.tolist(), values.tolist(), strict=True):
        assert value == pytest.approx(math.exp((s - 1) / config.bandwidth), abs=0.51 * GRID)
        assert value / GRID == round(value / GRID)


def test_sums_of_kernel_weights_do_not_depend_on_their_order() -> None:
    rng = np.random.default_rng(0)
    weights = kernel(rng.uniform(0.5, 1, 1000).astype(np.float32), 0.3)
    terms = weights * (rng.integers(0, 5, 1000) / 4).astype(np.float32)
    for _ in range(5):
        total = np.float32(0)
        for term in rng.permutation(terms):
            total += term
        assert total == np.float32(math.fsum(terms.tolist()))


@pytest.mark.parametrize("config", CONFIGS)
def test_fit_is_the_logistic_of_the_score_times_how_near_it_is_to_the_best(
    config: EvidenceConfig,
) -> None:
    score = np.random.default_rng(1).uniform(-0.3, 1.2, (40, 6)).astype(np.float32)
    best = score.max(1, keepdims=True)
    values = fit(score, best, config)
    assert values.dtype == np.float32
    assert (values >= 0).all()
    assert (values <= 1).all()
    for i in np.ndindex(*score.shape):
        expected = fit_by_hand(float(score[i]), float(best[i[0], 0]), config)
        assert values[i] == pytest.approx(expected, abs=GRID)


@pytest.mark.parametrize("config", CONFIGS)
def test_the_posterior_of_the_agent_alone(config: EvidenceConfig) -> None:
    e = random_evidence((50, 1))
    values = alone_rate(e, config)
    for i in np.ndindex(*values.shape):
        good, bad = float(e.fit_successes[i]), float(e.fit_failures[i])
        k = config.prior_strength
        expected = (k * config.prior_alone + good) / (k + good + bad)
        assert values[i] == pytest.approx(expected, abs=1e-6)
        assert 0 <= values[i] <= 1


@pytest.mark.parametrize("config", CONFIGS)
def test_every_part_of_a_judgement_is_its_formula(config: EvidenceConfig) -> None:
    rng = np.random.default_rng(2)
    e = random_evidence((30, 8))
    score = rng.uniform(-0.2, 1.2, (30, 8)).astype(np.float32)
    best = score.max(1, keepdims=True)
    alone = rng.random((30, 1)).astype(np.float32)
    judged = judge(score, best, e, alone, config)
    assert all(getattr(judged, name).dtype == np.float32 for name in Judgement.NAMES)
    for i in np.ndindex(*score.shape):
        at, rate = float(score[i]), float(alone[i[0], 0])
        meant = fit_by_hand(at, float(best[i[0], 0]), config)
        added = uplift_by_hand(e, i, rate, config)
        near = nearest_by_hand(at, e, i, config)
        assert judged.fit[i] == pytest.approx(meant, abs=GRID)
        assert judged.uplift[i] == pytest.approx(added, abs=2e-6)
        assert judged.nearest[i] == pytest.approx(near, abs=2e-6)
        expected = config.uplift_weight * meant * added + config.nearest_weight * near
        assert judged.closed_form[i] == pytest.approx(expected, abs=GRID)


def test_the_parts_of_a_judgement_are_the_functions_of_the_same_names() -> None:
    config, e = EvidenceConfig(), random_evidence((5, 4), seed=3)
    score = np.random.default_rng(3).random((5, 4)).astype(np.float32)
    best, alone = score.max(1, keepdims=True), np.full((5, 1), 0.25, np.float32)
    judged = judge(score, best, e, alone, config)
    np.testing.assert_array_equal(judged.fit, fit(score, best, config))
    np.testing.assert_array_equal(judged.uplift, uplift(e, alone, config))
    np.testing.assert_array_equal(judged.nearest, nearest(score, e, config))


@pytest.mark.parametrize("config", CONFIGS)
def test_the_penalty_is_how_much_nearer_a_failure_is(config: EvidenceConfig) -> None:
    e = random_evidence((30, 8), seed=8)
    penalty = failure_penalty(e, config)
    for i in np.ndindex(*penalty.shape):
        assert penalty[i] == pytest.approx(penalty_by_hand(e, i, config), abs=1e-6)


@pytest.mark.parametrize("config", CONFIGS)
def test_an_empty_memory_leaves_the_retrieval_ranking(config: EvidenceConfig) -> None:
    rng = np.random.default_rng(4)
    score = rng.permuted(np.tile(np.linspace(-0.4, 1.2, 48), (200, 1)), axis=1).astype(np.float32)
    empty = Evidence.none(score.shape)
    general = alone_rate(Evidence.none((200, 1)), config)
    judged = judge(score, score.max(1, keepdims=True), empty, general, config)
    every = np.ones(score.shape, bool)
    np.testing.assert_array_equal(rank(judged.closed_form, every, 48), rank(score, every, 48))
    ascending = np.take_along_axis(judged.closed_form, score.argsort(1), 1)
    assert (np.diff(ascending, axis=1) > 0).all()


def test_rank_takes_the_same_slots_from_many_columns_as_a_full_sort() -> None:
    rng = np.random.default_rng(4)
    score = rng.integers(0, 40, (3, 400)).astype(np.float32) / np.float32(40)  # many ties
    available = rng.random((3, 400)) < 0.9
    for left, found in (
        (score, rank(score, None, 5)),
        (np.where(available, score, -9), rank(score, available, 5)),
    ):
        expected = np.argsort(-left, axis=1, kind="stable")[:, :5]
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("config", CONFIGS)
def test_a_success_raises_a_skill_and_a_failure_lowers_it(config: EvidenceConfig) -> None:
    score, best = np.full((1, 1), 0.5, np.float32), np.full((1, 1), 0.5, np.float32)
    alone = np.full((1, 1), 0.4, np.float32)
    zero, one = np.zeros((1, 1), np.float32), np.ones((1, 1), np.float32)
    unknown = Evidence.of(zero, zero, zero, zero, zero, zero, zero)
    worked = Evidence.of(one, zero, one, zero, one, one, zero)
    failed = Evidence.of(zero, one, zero, one, zero, zero, one)
    low, middle, high = (
        float(judge(score, best, e, alone, config).closed_form[0, 0])
        for e in (failed, unknown, worked)
    )
    assert low < middle < high


def test_uplift_and_alone_rate_forget_their_priors() -> None:
    config = EvidenceConfig()
    zero = np.zeros((1, 1), np.float32)
    many = Evidence.of(zero, zero, zero, zero, zero, zero + 3e6, zero + 1e6)
    assert alone_rate(many, config)[0, 0] == pytest.approx(0.75, abs=1e-5)
    assert uplift(many, zero + 0.5, config)[0, 0] == pytest.approx(0.25, abs=1e-5)


def test_columns_and_take_pick_the_same_skills_in_every_array() -> None:
    e = random_evidence((3, 5))
    order = np.array([[4, 0], [1, 1], [2, 3]])
    taken, part = e.take(order), e.columns(slice(1, 3))
    for name in Evidence.NAMES:
        whole = getattr(e, name)
        np.testing.assert_array_equal(getattr(part, name), whole[:, 1:3])
        expected = [[whole[r, c] for c in row] for r, row in enumerate(order)]
        np.testing.assert_array_equal(getattr(taken, name), expected)


def test_evidence_is_judged_the_same_in_any_batch() -> None:
    config, e = EvidenceConfig(), random_evidence((9, 7), seed=5)
    score = np.random.default_rng(5).random((9, 7)).astype(np.float32)
    best = score.max(1, keepdims=True)
    alone = np.random.default_rng(6).random((9, 1)).astype(np.float32)
    every = judge(score, best, e, alone, config)
    for row in range(9):
        at = slice(row, row + 1)
        one = Evidence(e.table[:, at])
        alike = judge(score[at], best[at], one, alone[at], config)
        for name in Judgement.NAMES:
            np.testing.assert_array_equal(getattr(alike, name), getattr(every, name)[at])
