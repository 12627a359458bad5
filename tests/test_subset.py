"""The subset distribution: exact probabilities, honest sampling, true gradients."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from letta_gym.errors import ConfigError
from letta_gym.selection import subset

M, K = 5, 3


def ordered_subsets(num_items: int = M, k: int = K) -> NDArray[np.int64]:
    rows = [
        [*items, *[-1] * (k - size)]
        for size in range(k + 1)
        for items in itertools.permutations(range(num_items), size)
    ]
    return np.array(rows)


def sets(num_items: int = M, k: int = K) -> Iterator[tuple[int, ...]]:
    for size in range(k + 1):
        yield from itertools.combinations(range(num_items), size)


def random_logits(batch: int, seed: int = 0, scale: float = 1.5) -> NDArray[np.float64]:
    return scale * np.random.default_rng(seed).normal(size=(batch, M + 1))


def spread(logits: NDArray[Any], picks: NDArray[np.int64]) -> NDArray[Any]:
    """Repeat one row of logits for every row of picks."""
    return np.repeat(logits, len(picks), axis=0)


def by_hand(logits: NDArray[Any], picks: NDArray[Any]) -> float:
    """The probability of one ordered subset, factor by factor."""
    weights = {item: float(np.exp(logits[item])) for item in range(M + 1)}
    probability = 1.0
    for item in picks:
        choice = M if item < 0 else int(item)
        probability *= weights[choice] / sum(weights.values())
        del weights[choice]
        if item < 0:
            break
    return probability


def test_the_probability_is_the_product_of_softmaxes_over_what_is_left() -> None:
    picks = ordered_subsets()
    logits = random_logits(1)
    expected = [by_hand(logits[0], row) for row in picks]
    np.testing.assert_allclose(
        np.exp(subset.log_prob(spread(logits, picks), picks)), expected, rtol=1e-13
    )


@pytest.mark.parametrize("scale", [0.1, 1.5, 30.0])
def test_ordered_subsets_sum_to_one(scale: float) -> None:
    picks = ordered_subsets()
    logits = spread(random_logits(1, scale=scale), picks)
    assert abs(np.exp(subset.log_prob(logits, picks)).sum() - 1) < 1e-12


@pytest.mark.parametrize("scale", [0.1, 1.5, 30.0])
def test_sets_sum_to_one(scale: float) -> None:
    picks = np.array([[*items, *[-1] * (K - len(items))] for items in sets()])
    logits = spread(random_logits(1, scale=scale), picks)
    assert abs(np.exp(subset.set_log_prob(logits, picks)).sum() - 1) < 1e-9


@pytest.mark.parametrize("k", [1, 2, 3, 4])
def test_a_sets_probability_is_the_sum_over_its_orders(k: int) -> None:
    logits = random_logits(1, seed=4)
    ordered = ordered_subsets(k=k)
    probs = np.exp(subset.log_prob(spread(logits, ordered), ordered))
    masks = subset.to_mask(ordered, M)
    for items in sets(k=k):
        same = (masks == np.isin(np.arange(M), items)).all(axis=1)
        picks = np.array([[*items, *[-1] * (k - len(items))]])
        total = np.exp(subset.set_log_prob(logits, picks)[0])
        assert total == pytest.approx(probs[same].sum(), rel=1e-12)


def test_a_sets_probability_does_not_depend_on_the_order_given() -> None:
    logits = random_logits(1)
    orders = np.array(list(itertools.permutations([4, 0, 2])))
    log_probs = subset.set_log_prob(spread(logits, orders), orders)
    np.testing.assert_allclose(log_probs, log_probs[0], rtol=1e-13)


def test_a_sets_log_probability_stays_finite_for_extreme_logits() -> None:
    logits = np.array([[400.0, -400.0, 0.0, -1000.0, 0.0, -900.0]])
    picks = np.array([[0, 1, -1]])
    expected = (-400 - np.log(2)) + (-900 - np.log(2))  # 1 after 0, then STOP
    assert subset.set_log_prob(logits, picks)[0] == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_draws_have_the_frequencies_of_their_probabilities(dtype: type[np.floating[Any]]) -> None:
    draws = 200_000
    logits = random_logits(1, seed=7, scale=1.0).astype(dtype)
    picks = subset.sample(np.repeat(logits, draws, axis=0), K, np.random.default_rng(1))
    possible = ordered_subsets()
    code = (M + 1) ** np.arange(K)
    found = np.bincount((picks + 1) @ code, minlength=(M + 1) ** K)[(possible + 1) @ code]
    expected = draws * np.exp(subset.log_prob(spread(logits, possible), possible))
    assert found.sum() == draws
    chi_square = float(((found - expected) ** 2 / expected).sum())
    freedom = len(possible) - 1
    assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)


def test_the_same_seed_draws_the_same_subsets() -> None:
    logits = random_logits(50)
    first, second = (subset.sample(logits, K, np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (first != subset.sample(logits, K, np.random.default_rng(4))).any()


def test_greedy_takes_the_largest_logits_until_stop() -> None:
    logits = np.array(
        [
            [0.0, 3.0, 1.0, 2.0, -1.0, -5.0],
            [0.0, 3.0, 1.0, 2.0, -1.0, 2.5],
            [0.0, 3.0, 1.0, 2.0, -1.0, 9.0],
        ]
    )
    expected = [[1, 3, 2], [1, -1, -1], [-1, -1, -1]]
    np.testing.assert_array_equal(subset.greedy(logits, K), expected)


def test_greedy_breaks_ties_for_the_lower_item_and_against_stop() -> None:
    np.testing.assert_array_equal(subset.greedy(np.zeros((1, M + 1)), 4), [[0, 1, 2, 3]])
    np.testing.assert_array_equal(subset.greedy(np.zeros((1, 3)), 3), [[0, 1, -1]])
    many = np.random.default_rng(0).integers(0, 3, size=(50, 64)).astype(np.float32)
    many[:, -1] = -1
    expected = [np.flatnonzero(row == row.max())[:4] for row in many]
    np.testing.assert_array_equal(subset.greedy(many, 4), expected)


def test_k_may_exceed_the_number_of_items() -> None:
    logits = np.random.default_rng(0).normal(size=(500, 3))
    picks = subset.sample(logits, 6, np.random.default_rng(1))
    assert picks.shape == (500, 6)
    assert (picks[:, 2:] == -1).all()
    assert (picks[:, :2] >= 0).all(axis=1).any()
    every = ordered_subsets(num_items=2, k=6)
    assert np.exp(subset.log_prob(logits[:1].repeat(len(every), 0), every)).sum() == pytest.approx(
        1
    )


def test_k_below_one_is_refused() -> None:
    with pytest.raises(ConfigError, match="k = 0"):
        subset.greedy(np.zeros((1, 3)), 0)


def test_masked_items_have_probability_and_gradient_exactly_zero() -> None:
    mask = np.array([[1, 0, 1, 1, 0]] * 400, dtype=np.int8)
    plain = random_logits(400)
    before = plain.copy()
    logits = subset.apply_mask(plain, mask)
    np.testing.assert_array_equal(plain, before)
    picks = subset.sample(logits, K, np.random.default_rng(0))
    assert (subset.to_mask(picks, M) <= mask).all()

    evaluation = subset.evaluate(logits, picks)
    ones = np.ones(400)
    gradient = subset.backward(evaluation, ones, ones)
    assert np.isfinite(gradient).all()
    assert (gradient[:, :-1][mask == 0] == 0).all()
    assert (gradient[:, [0, 2, 3, 5]] != 0).any(axis=0).all()

    forbidden = np.array([[0, 1, -1]])
    assert subset.log_prob(logits[:1], forbidden)[0] == -np.inf
    assert subset.set_log_prob(logits[:1], forbidden)[0] == -np.inf


def test_with_everything_masked_only_stop_is_left() -> None:
    logits = subset.apply_mask(random_logits(10), np.zeros((10, M), dtype=bool))
    picks = subset.sample(logits, K, np.random.default_rng(0))
    np.testing.assert_array_equal(picks, -1)
    np.testing.assert_array_equal(subset.greedy(logits, K), picks)
    evaluation = subset.evaluate(logits, picks)
    np.testing.assert_array_equal(evaluation.log_prob, 0)
    np.testing.assert_array_equal(evaluation.entropy, 0)
    np.testing.assert_array_equal(subset.backward(evaluation, np.ones(10), np.ones(10)), 0)
    np.testing.assert_array_equal(subset.set_log_prob(logits, picks), 0)


def test_the_expected_entropy_estimate_is_the_entropy_of_ordered_subsets() -> None:
    picks = ordered_subsets()
    evaluation = subset.evaluate(spread(random_logits(1), picks), picks)
    probs = np.exp(evaluation.log_prob)
    assert probs @ evaluation.entropy == pytest.approx(-probs @ evaluation.log_prob, rel=1e-12)
    np.testing.assert_array_equal(
        subset.entropy(spread(random_logits(1), picks), picks), evaluation.entropy
    )


def masked_case(batch: int = 40) -> tuple[NDArray[Any], NDArray[np.int64]]:
    rng = np.random.default_rng(2)
    mask = rng.random((batch, M)) < 0.8
    logits = subset.apply_mask(random_logits(batch, seed=5), mask)
    return logits, subset.sample(logits, K, rng)


def test_the_gradient_agrees_with_central_differences() -> None:
    logits, picks = masked_case()
    rng = np.random.default_rng(3)
    u, w = rng.normal(size=(2, len(logits)))
    gradient = subset.backward(subset.evaluate(logits, picks), u, w)

    def loss(shifted: NDArray[Any]) -> NDArray[Any]:
        evaluation = subset.evaluate(shifted, picks)
        return np.asarray(u * evaluation.log_prob + w * evaluation.entropy)

    step = 1e-5
    for column in range(M + 1):
        shift = step * (np.arange(M + 1) == column)
        numeric = (loss(logits + shift) - loss(logits - shift)) / (2 * step)
        np.testing.assert_allclose(gradient[:, column], numeric, rtol=1e-7, atol=1e-9)


def test_the_gradient_agrees_with_autograd() -> None:
    logits, picks = masked_case()
    rng = np.random.default_rng(4)
    u, w = rng.normal(size=(2, len(logits)))
    evaluation = subset.evaluate(logits, picks)
    gradient = subset.backward(evaluation, u, w)

    leaf = torch.tensor(logits, requires_grad=True)
    for row, chosen in enumerate(picks):
        left = [item for item in range(M + 1) if np.isfinite(logits[row, item])]
        log_prob, entropy = torch.zeros(2, dtype=torch.float64)
        for item in chosen:
            choice = M if item < 0 else int(item)
            log_probs = torch.log_softmax(leaf[row, left], 0)
            log_prob = log_prob + log_probs[left.index(choice)]
            entropy = entropy - (log_probs.exp() * log_probs).sum()
            left.remove(choice)
            if choice == M:
                break
        assert evaluation.log_prob[row] == pytest.approx(log_prob.item(), rel=1e-12)
        assert evaluation.entropy[row] == pytest.approx(entropy.item(), rel=1e-12, abs=1e-12)
        (u[row] * log_prob + w[row] * entropy).backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(gradient, leaf.grad.numpy(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_have_the_type_of_the_logits(dtype: type[np.floating[Any]]) -> None:
    logits = random_logits(4).astype(dtype)
    picks = subset.sample(logits, K, np.random.default_rng(0))
    evaluation = subset.evaluate(logits, picks)
    ones = np.ones(4, dtype=dtype)
    results = [
        evaluation.log_prob,
        evaluation.entropy,
        subset.backward(evaluation, ones, ones),
        subset.set_log_prob(logits, picks),
        subset.apply_mask(logits, np.ones((4, M))),
    ]
    assert [result.dtype for result in results] == [np.dtype(dtype)] * 5


def test_single_precision_agrees_with_double() -> None:
    logits, picks = masked_case()
    exact = subset.evaluate(logits, picks)
    rough = subset.evaluate(logits.astype(np.float32), picks)
    np.testing.assert_allclose(rough.log_prob, exact.log_prob, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(rough.entropy, exact.entropy, rtol=1e-5, atol=1e-5)


def test_picks_become_masks() -> None:
    picks = np.array([[2, 0, -1], [-1, -1, -1], [4, 3, 1]])
    expected = [[1, 0, 1, 0, 0], [0, 0, 0, 0, 0], [0, 1, 0, 1, 1]]
    masks = subset.to_mask(picks, M)
    assert masks.dtype == np.int8
    np.testing.assert_array_equal(masks, expected)


def test_a_batch_of_a_thousand_takes_milliseconds() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(1024, 13)).astype(np.float32)
    ones = np.ones(1024, dtype=np.float32)

    def once() -> float:
        start = time.process_time()
        picks = subset.sample(logits, 3, rng)
        subset.backward(subset.evaluate(logits, picks), ones, ones)
        return time.process_time() - start

    assert min(once() for _ in range(5)) < 0.010
