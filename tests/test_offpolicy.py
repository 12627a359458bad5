"""Off-policy estimates against worlds in which the truth is known."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from letta_gym.errors import ConfigError
from letta_gym.feedback.offpolicy import (
    LoggedRewards,
    Ridge,
    contributions,
    diagnose,
    empirical_bernstein,
    evaluate,
    folds,
    pseudo_inverse,
    unsupported_mass,
)

Double = NDArray[np.float64]
ESTIMATORS = ("ips", "snips", "dm", "dr", "sndr")


@dataclass(frozen=True)
class World:
    """Contexts with a reward for each action, and two policies; all arrays (contexts, actions)."""

    mean: Double
    logging: Double
    target: Double

    @property
    def value(self) -> float:
        """True value of the target."""
        return float((self.target * self.mean).sum(axis=1).mean())

    def log(self, n: int, seed: int, model: Double | None = None) -> LoggedRewards:
        """n decisions with Bernoulli rewards; ``model`` predicts for (context, action)."""
        rng = np.random.default_rng(seed)
        x = rng.integers(len(self.mean), size=n)
        a = (self.logging[x].cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
        reward = (rng.random(n) < self.mean[x, a]).astype(float)
        with np.errstate(divide="ignore"):
            log_target = np.log(self.target[x, a])
        return LoggedRewards(
            reward,
            np.log(self.logging[x, a]),
            log_target,
            None if model is None else model[x, a],
            None if model is None else (self.target * model)[x].sum(axis=1),
            unsupported_mass(self.target[x], self.logging[x]),
        )


def softmax(scores: Double) -> Double:
    e = np.exp(scores - scores.max(axis=1, keepdims=True))
    return np.asarray(e / e.sum(axis=1, keepdims=True))


def world(seed: int = 0, contexts: int = 6, actions: int = 4) -> World:
    rng = np.random.default_rng(seed)
    mean = rng.uniform(0.1, 0.9, (contexts, actions))
    return World(mean, softmax(rng.standard_normal(mean.shape)), softmax(6 * mean))


def by_hand(log: LoggedRewards, clip: float = math.inf) -> dict[str, float]:
    """The formulas of the module's table, one decision at a time."""
    n, total = len(log), 0.0
    sums = dict.fromkeys(ESTIMATORS, 0.0)
    assert log.predicted is not None
    assert log.predicted_target is not None
    for i in range(n):
        w = min(math.exp(log.target_log_prob[i]) / math.exp(log.log_propensity[i]), clip)
        r, q, v = log.reward[i], log.predicted[i], log.predicted_target[i]
        total += w
        sums["ips"] += w * r / n
        sums["snips"] += w * r
        sums["dm"] += v / n
        sums["dr"] += (v + w * (r - q)) / n
        sums["sndr"] += w * (r - q)
    sums["snips"] /= total
    sums["sndr"] = sums["dm"] + sums["sndr"] / total
    return sums


@pytest.mark.parametrize("clip", [math.inf, 1.5])
def test_every_estimate_is_its_formula(clip: float) -> None:
    log = world().log(300, 1, model=world(5).mean)
    found = evaluate(log, np.random.default_rng(0), clip=clip, samples=10).estimates

    assert {name: one.value for name, one in found.items()} == pytest.approx(by_hand(log, clip))


def test_without_a_model_only_the_weights_speak() -> None:
    log = world().log(300, 1)
    assert list(evaluate(log, np.random.default_rng(0), samples=10).estimates) == ["ips", "snips"]


@pytest.mark.parametrize("name", ["ips", "snips", "dr", "sndr"])
def test_estimates_are_right_on_average_even_with_a_wrong_model(name: str) -> None:
    made, wrong = world(), world(9).mean
    rng = np.random.default_rng(0)
    found = np.array(
        [
            evaluate(made.log(400, seed, wrong), rng, samples=1).estimates[name].value
            for seed in range(400)
        ]
    )
    error = found.std() / math.sqrt(len(found))

    assert abs(found.mean() - made.value) < 4 * error + 0.002  # ratios have a bias of order 1 / n
    assert error < 0.01


def test_the_direct_method_is_as_wrong_as_its_model() -> None:
    made = world()
    log = made.log(2_000, 0, made.mean - 0.2)
    found = evaluate(log, np.random.default_rng(0), samples=1).estimates

    assert found["dm"].value == pytest.approx(made.value - 0.2, abs=0.02)
    assert found["dr"].value == pytest.approx(made.value, abs=0.05)


def test_a_good_model_takes_variance_away() -> None:
    made = world()
    errors: dict[str, list[float]] = {name: [] for name in ESTIMATORS}
    for seed in range(200):
        log = made.log(200, seed, made.mean)
        for name, one in evaluate(log, np.random.default_rng(0), samples=1).estimates.items():
            errors[name].append((one.value - made.value) ** 2)
    mse = {name: float(np.mean(values)) for name, values in errors.items()}

    assert mse["dr"] < 0.5 * mse["ips"]
    assert mse["snips"] < mse["ips"]


def test_the_same_policy_is_worth_what_was_earned() -> None:
    made = world()
    log = replace(made, target=made.logging).log(500, 3)
    found = evaluate(log, np.random.default_rng(0), samples=10)

    assert found.estimates["ips"].value == pytest.approx(log.reward.mean())
    assert found.estimates["snips"].value == pytest.approx(log.reward.mean())
    assert found.diagnostics.effective == pytest.approx(500)
    assert found.diagnostics.mean_weight == pytest.approx(1)


def test_bootstrap_intervals_cover_the_truth_as_often_as_they_say() -> None:
    made, rng = world(), np.random.default_rng(1)
    covered = dict.fromkeys(ESTIMATORS, 0)
    for seed in range(200):
        log = made.log(400, seed, made.mean)
        for name, one in evaluate(log, rng, samples=300).estimates.items():
            covered[name] += one.low <= made.value <= one.high

    for name in ("snips", "dr", "sndr"):
        assert 180 <= covered[name] <= 199, name  # 190 expected, standard deviation 3


def test_what_the_log_never_does_is_reported() -> None:
    made = world()
    logging = made.logging.copy()
    logging[:3, 0] = 0
    logging /= logging.sum(axis=1, keepdims=True)
    blind = replace(made, logging=logging)
    whole = diagnose(made.log(1_000, 0))
    found = diagnose(blind.log(1_000, 0))

    assert (whole.violations, whole.unsupported) == (0, 0.0)
    assert found.violations == pytest.approx(500, abs=80)
    expected = made.target[:3, 0].sum() / 6
    assert found.unsupported == pytest.approx(expected, rel=0.2)


def test_the_mean_weight_tells_of_missing_support_too() -> None:
    n = 400
    half = LoggedRewards(np.ones(n), np.full(n, -0.7), np.full(n, -1.4) + 0.1 * (np.arange(n) % 2))

    assert diagnose(half).mean_weight == pytest.approx(0.52, abs=0.02)
    assert diagnose(half).mean_weight_deviation < -3
    assert abs(diagnose(world().log(4_000, 0)).mean_weight_deviation) < 3


def test_the_diagnostics_are_those_of_the_weights() -> None:
    weights = np.array([0.5, 1.0, 1.0, 4.0])
    log = LoggedRewards(np.ones(4), np.full(4, -2.0), np.log(weights) - 2.0)
    found = diagnose(log, clip=2.0)

    assert found.decisions == 4
    assert found.effective == pytest.approx(6.5**2 / 18.25)
    assert found.largest_weight == pytest.approx(4)
    assert found.clipped == 0.25
    assert found.violations is None


# --- the additive slate ---------------------------------------------------------------------------


def sets(m: int, k: int) -> Double:
    """Every subset of at most k of m slots as 1_a, shape (A, m + 1)."""
    chosen = [c for size in range(k + 1) for c in itertools.combinations(range(m), size)]
    rows = np.zeros((len(chosen), m + 1))
    rows[:, m] = 1
    for row, members in zip(rows, chosen, strict=True):
        row[list(members)] = 1
    return rows


def test_the_slate_estimator_is_exact_where_rewards_add_up() -> None:
    rng = np.random.default_rng(0)
    actions = sets(5, 2)
    gain = np.array([0.2, -0.1, 0.15, 0.05, -0.05, 0.4])  # of each slot, and of the task
    logging = softmax(rng.standard_normal((1, len(actions))))[0]
    target = softmax(3 * (actions @ gain)[None] * 10)[0]
    moments = np.einsum("a,ai,aj->ij", logging, actions, actions)
    each = pseudo_inverse(
        actions @ gain,
        actions,
        np.broadcast_to(moments, (len(actions), *moments.shape)),
        np.broadcast_to(target @ actions, actions.shape),
    )

    assert logging @ each == pytest.approx(target @ actions @ gain)


def test_the_slate_estimator_needs_the_skills_and_not_the_sets() -> None:
    actions = sets(4, 2)
    pairs = actions[:, :4].sum(axis=1) == 2
    logging = np.where(pairs, 0.0, 1.0) / (~pairs).sum()  # never two skills
    target = np.where(pairs, 1.0, 0.0) / pairs.sum()
    gain = np.array([0.3, 0.1, 0.2, 0.0, 0.2])
    moments = np.einsum("a,ai,aj->ij", logging, actions, actions)
    each = pseudo_inverse(
        actions @ gain,
        actions,
        np.broadcast_to(moments, (len(actions), *moments.shape)),
        np.broadcast_to(target @ actions, actions.shape),
    )

    assert unsupported_mass(target[None], logging[None]) == pytest.approx([1.0])
    assert logging @ each == pytest.approx(target @ actions @ gain)


def test_the_slate_estimator_of_single_skills_is_the_importance_weight() -> None:
    made, m = world(), 4
    rng = np.random.default_rng(2)
    x = rng.integers(6, size=200)
    a = rng.integers(m, size=200)
    reward = rng.random(200)
    chosen = np.concatenate([np.eye(m)[a], np.ones((200, 1))], axis=1)
    actions = np.concatenate([np.eye(m), np.ones((m, 1))], axis=1)
    moments = np.einsum("na,ai,aj->nij", made.logging[x], actions, actions)
    each = pseudo_inverse(reward, chosen, moments, made.target[x] @ actions)
    expected = made.target[x, a] / made.logging[x, a] * reward

    np.testing.assert_allclose(each, expected, rtol=1e-6)
    log = LoggedRewards(reward, np.log(made.logging[x, a]), np.log(made.target[x, a]), slate=each)
    found = evaluate(log, np.random.default_rng(0), samples=20).estimates
    assert found["slate"].value == pytest.approx(found["ips"].value)
    assert found["slate"].low == pytest.approx(found["ips"].low)


# --- bounds and models ----------------------------------------------------------------------------


def test_empirical_bernstein_bounds_hold_and_shrink() -> None:
    rng = np.random.default_rng(0)
    outside, widths = 0, []
    for n in (50, 500, 5_000):
        for _ in range(100):
            values = rng.beta(0.3, 2.0, n) * 4 - 1
            bound = empirical_bernstein(values, -1, 3, 0.9)
            outside += not bound.low <= 4 * 0.3 / 2.3 - 1 <= bound.high
        widths.append(bound.high - bound.low)

    assert outside <= 30
    assert widths[0] > 2 * widths[1] > 4 * widths[2]


def test_empirical_bernstein_is_its_formula() -> None:
    bound = empirical_bernstein(np.array([0.0, 1.0, 1.0]), 0, 1, 0.95)
    radius = math.sqrt(2 * (1 / 3) * math.log(80) / 3) + 7 * math.log(80) / 6
    assert bound.high - bound.value == pytest.approx(radius)
    with pytest.raises(ConfigError, match=r"values in \[0, 1\] are needed; got 3, from 0.0 to 2.0"):
        empirical_bernstein(np.array([0.0, 1.0, 2.0]), 0, 1, 0.95)


def test_contributions_are_what_dr_averages() -> None:
    log = world().log(100, 1, model=world(5).mean)
    found = evaluate(log, np.random.default_rng(0), clip=2.0, samples=1).estimates
    assert contributions(log, 2.0).mean() == pytest.approx(found["dr"].value)


def test_ridge_finds_the_weights_and_leaves_the_mean_alone() -> None:
    rng = np.random.default_rng(0)
    inputs = rng.standard_normal((500, 3))
    reward = 5 + inputs @ np.array([1.0, -2.0, 0.0])

    np.testing.assert_allclose(Ridge(inputs, reward, 1e-6).predict(inputs), reward, atol=1e-6)
    np.testing.assert_allclose(Ridge(inputs, reward, 1e9).predict(inputs), reward.mean(), atol=1e-3)


def test_folds_are_equal_and_random() -> None:
    one, two = (folds(103, 5, np.random.default_rng(seed)) for seed in (0, 1))
    assert sorted(np.bincount(one)) == [20, 20, 21, 21, 21]
    assert (one != two).any()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"reward": np.zeros(0)}, "n > 0"),
        ({"target_log_prob": np.zeros(3)}, r"target_log_prob must have the shape \(2,\)"),
        ({"log_propensity": np.array([0.0, -np.inf])}, "log_propensity must be finite; decision 1"),
        ({"reward": np.array([np.nan, 1.0])}, "reward must be finite; decision 0"),
        ({"log_propensity": np.array([0.5, 0.5])}, "pass logarithms"),
        ({"predicted": np.zeros(2)}, "pass both"),
    ],
)
def test_a_log_that_cannot_be_read_is_told(changes: dict[str, Double], words: str) -> None:
    given = {name: -np.ones(2) for name in ("reward", "log_propensity", "target_log_prob")}
    with pytest.raises(ConfigError, match=words):
        LoggedRewards(**(given | changes))


def test_arguments_out_of_range_are_told() -> None:
    log = world().log(10, 0)
    for keywords in ({"clip": 0.0}, {"confidence": 1.0}, {"samples": 0}):
        with pytest.raises(ConfigError, match="clip and samples must be above 0"):
            evaluate(log, np.random.default_rng(0), **keywords)
