"""What another policy would have earned, from the log of the one that chose.

A log holds, for each of n decisions, the joint action (the whole set of skills), its reward r, and
the log-probability with which the logging policy mu took it. With the probability pi of the same
action under the policy to be judged, w = pi / mu is the importance weight, and with a model q of
the reward, q(x, a) is its prediction for what was done and q(x, pi) for what pi would do:

=========  =====================================================  ==================================
``ips``    mean of w r                                            unbiased, much variance [1]
``snips``  sum of w r / sum of w                                  consistent, less variance [2]
``dm``     mean of q(x, pi)                                       as biased as the model [3]
``dr``     mean of q(x, pi) + w (r - q(x, a))                     unbiased, less variance [3]
``sndr``   mean of q(x, pi) + sum of w (r - q(x, a)) / sum of w   consistent [4]
``slate``  :func:`pseudo_inverse`                                 if rewards add up over skills [5]
=========  =====================================================  ==================================

"Unbiased" holds where mu takes every action that pi takes (support), which :class:`Diagnostics`
looks into. Weights may be clipped from above: less variance, and a bias towards less.

[1] Horvitz and Thompson, JASA 47 (1952). [2] Swaminathan and Joachims, NeurIPS 2015. [3] Dudik,
Langford and Li, ICML 2011. [4] Thomas and Brunskill, ICML 2016 (weighted doubly robust). [5]
Swaminathan et al., Off-policy evaluation for slate recommendation, NeurIPS 2017.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import ConfigError

Double = NDArray[np.float64]
Int = NDArray[np.int64]

_TOLERANCE = 1e-9  # probability that counts as none
_BLOCK = 64  # bootstrap samples at a time


@dataclass(frozen=True, eq=False)
class LoggedRewards:
    """A log as the estimators read it.

    Attributes:
        reward: array, shape (n,).
        log_propensity: log-probability of the joint action under the logging policy, shape (n,).
        target_log_prob: the same under the policy to be judged, shape (n,); -inf is allowed.
        predicted: q(x, a), shape (n,); zeros without a model.
        predicted_target: q(x, pi), shape (n,); zeros without a model.
        unsupported: probability of the actions that the policy to be judged would take and the
            logging policy never does, shape (n,); None where that is not known.
        slate: contributions of :func:`pseudo_inverse`, shape (n,); None where it was not computed.

    Raises:
        ConfigError: shapes that differ, an empty log, numbers that are not finite, or an action
            that was taken with probability 0.
    """

    reward: Double
    log_propensity: Double
    target_log_prob: Double
    predicted: Double | None = None
    predicted_target: Double | None = None
    unsupported: Double | None = None
    slate: Double | None = None

    def __post_init__(self) -> None:
        if self.reward.ndim != 1 or not len(self.reward):
            raise ConfigError(
                f"a log needs rewards of shape (n,) with n > 0; got {self.reward.shape}"
            )
        if (self.predicted is None) != (self.predicted_target is None):
            raise ConfigError("a model predicts for what was done and for what would be: pass both")
        for name, values in vars(self).items():
            if values is None:
                continue
            if values.shape != self.reward.shape:
                raise ConfigError(
                    f"{name} must have the shape {self.reward.shape}; got {values.shape}"
                )
            bad = np.isnan(values) if name == "target_log_prob" else ~np.isfinite(values)
            if bad.any():
                raise ConfigError(f"{name} must be finite; decision {int(bad.argmax())} is not")
        if (self.log_propensity > _TOLERANCE).any() or (self.target_log_prob > _TOLERANCE).any():
            raise ConfigError("log-probabilities are at most 0; pass logarithms, not probabilities")

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def weight(self) -> Double:
        """Importance weights pi / mu, shape (n,)."""
        weight: Double = np.exp(self.target_log_prob - self.log_propensity)
        return weight

    @property
    def residual(self) -> Double:
        """What the model does not explain of the rewards, shape (n,)."""
        return self.reward if self.predicted is None else self.reward - self.predicted

    @property
    def baseline(self) -> Double:
        """What the model expects of the policy to be judged, shape (n,)."""
        none = np.zeros_like(self.reward)
        return none if self.predicted_target is None else self.predicted_target


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the ends of its interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Diagnostics:
    """Whether a log can tell anything about a policy.

    Attributes:
        decisions: n.
        effective: effective sample size (sum w)^2 / sum w^2 (Kish), before clipping.
        mean_weight: mean of w, 1 in expectation under support.
        mean_weight_deviation: its distance from 1 in standard errors; below -3 the log hardly
            contains what the policy would do.
        largest_weight: the largest w.
        clipped: share of the decisions whose weight is above the clip.
        violations: decisions in which the policy would do what the logging policy never does; None
            where that is not known.
        unsupported: mean probability of doing so; None where that is not known.
    """

    decisions: int
    effective: float
    mean_weight: float
    mean_weight_deviation: float
    largest_weight: float
    clipped: float
    violations: int | None
    unsupported: float | None


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Every estimate with its interval, and the diagnostics of the log.

    ``dm``, ``dr`` and ``sndr`` are there with a model, ``slate`` where it was computed.
    """

    estimates: Mapping[str, Interval]
    diagnostics: Diagnostics


def evaluate(
    log: LoggedRewards,
    rng: np.random.Generator,
    *,
    clip: float = np.inf,
    confidence: float = 0.95,
    samples: int = 1_000,
) -> Evaluation:
    """Estimate the value of a policy with every estimator that the log allows.

    Intervals are percentiles of the bootstrap over decisions (Efron and Tibshirani 1993), of the
    same ``samples`` resampled logs for every estimator; the reward model is taken as given.

    Args:
        log: the log.
        rng: draws the resampled logs.
        clip: largest importance weight.
        confidence: of the intervals, in (0, 1).
        samples: resampled logs.

    Raises:
        ConfigError: an argument out of range.
    """
    if not clip > 0 or not 0 < confidence < 1 or samples < 1:
        raise ConfigError(
            "clip and samples must be above 0 and confidence in (0, 1); "
            f"got {clip}, {samples} and {confidence}"
        )
    terms = _terms(log, np.minimum(log.weight, clip))
    tails = [50 * (1 - confidence), 50 * (1 + confidence)]
    ones = np.ones((1, len(log)))
    resampled = _resampled(terms, rng, samples)
    values, spread = _values(_sums(terms, ones)), _values(resampled)
    wanted = ["ips", "snips"]
    wanted += [] if log.predicted is None else ["dm", "dr", "sndr"]
    wanted += [] if log.slate is None else ["slate"]
    estimates = {
        name: Interval(float(values[name][0]), *np.percentile(spread[name], tails).tolist())
        for name in wanted
    }
    return Evaluation(estimates, diagnose(log, clip))


def diagnose(log: LoggedRewards, clip: float = np.inf) -> Diagnostics:
    """Look into the weights and the support of a log."""
    weight = log.weight
    n, total, squares = len(log), float(weight.sum()), float((weight**2).sum())
    error = float(weight.std() / np.sqrt(n))
    mean = total / n
    missing = log.unsupported
    return Diagnostics(
        decisions=n,
        effective=total**2 / squares if squares else 0.0,
        mean_weight=mean,
        mean_weight_deviation=(mean - 1) / error if error else 0.0,
        largest_weight=float(weight.max()),
        clipped=float((weight > clip).mean()),
        violations=None if missing is None else int((missing > _TOLERANCE).sum()),
        unsupported=None if missing is None else float(missing.mean()),
    )


def unsupported_mass(target: Double, logging: Double) -> Double:
    """Probability of what ``target`` does and ``logging`` never does, shape (n,).

    Args:
        target: probabilities of every joint action, shape (n, A).
        logging: the same of the logging policy.
    """
    mass: Double = np.where(logging <= _TOLERANCE, target, 0.0).sum(axis=1)
    return mass


def contributions(log: LoggedRewards, clip: float = np.inf) -> Double:
    """The n numbers whose mean is ``dr``, or ``ips`` without a model, shape (n,)."""
    return log.baseline + np.minimum(log.weight, clip) * log.residual


def empirical_bernstein(values: Double, low: float, high: float, confidence: float) -> Interval:
    """Bounds of a mean that hold at any sample size, for independent values in [low, high].

    Maurer and Pontil, Empirical Bernstein bounds, COLT 2009, theorem 4: with probability 1 - delta
    the mean lies above

        average - (high - low) (sqrt(2 V ln(2/delta) / n) + 7 ln(2/delta) / (3 (n - 1)))

    for the sample variance V of the values scaled to [0, 1]. Each end takes half of
    1 - ``confidence``.

    Raises:
        ConfigError: fewer than two values, or one outside of the range.
    """
    n = len(values)
    if n < 2 or not low < high or values.min() < low or values.max() > high:
        raise ConfigError(
            f"at least two values in [{low}, {high}] are needed; got {n}, "
            f"from {values.min() if n else None} to {values.max() if n else None}"
        )
    width = high - low
    log_term = np.log(4 / (1 - confidence))  # 2 / delta with half of it for each end
    variance = values.var(ddof=1) / width**2
    radius = width * (np.sqrt(2 * variance * log_term / n) + 7 * log_term / (3 * (n - 1)))
    mean = float(values.mean())
    return Interval(mean, mean - float(radius), mean + float(radius))


def pseudo_inverse(
    reward: Double, chosen: Double, logging_moments: Double, target_means: Double
) -> Double:
    """Contributions of the slate estimator, shape (n,); their mean estimates the value.

    An assumption, not a fact: the expected reward is a sum of one unknown number for each chosen
    skill and one for the task. Where skills help or hurt each other it is biased. In exchange a
    policy may be judged whose sets the logging policy never chose, as long as it chose each skill:

        r times (mean of 1_a under pi)' pinv(mean of 1_a 1_a' under mu) 1_a

    Args:
        reward: array, shape (n,).
        chosen: 1_a, the chosen set: 1 for each chosen slot, and a last 1 that stands for the task,
            shape (n, M + 1).
        logging_moments: mean of 1_a 1_a' under the logging policy, shape (n, M + 1, M + 1).
        target_means: mean of 1_a under the policy to be judged, shape (n, M + 1).
    """
    inverse = np.linalg.pinv(logging_moments, hermitian=True)
    weight = np.einsum("ni,nij,nj->n", target_means, inverse, chosen)
    result: Double = weight * reward
    return result


class Ridge:
    """A linear model of the reward, fitted with a penalty on its weights and none on the mean.

    Args:
        inputs: array, shape (n, d).
        reward: array, shape (n,).
        penalty: weight of the squared coefficients, above 0.
    """

    def __init__(self, inputs: Double, reward: Double, penalty: float = 1.0) -> None:
        self._mean, self._offset = inputs.mean(axis=0), float(reward.mean())
        centred = inputs - self._mean
        gram = centred.T @ centred + penalty * np.eye(inputs.shape[1])
        self._weights: Double = np.linalg.solve(gram, centred.T @ (reward - self._offset))

    def predict(self, inputs: Double) -> Double:
        """Expected rewards, shape (...), for inputs (..., d)."""
        predicted: Double = self._offset + (inputs - self._mean) @ self._weights
        return predicted


def folds(n: int, count: int, rng: np.random.Generator) -> Int:
    """A random fold in 0..count-1 for each of n decisions, sizes as equal as can be, shape (n,).

    A model that predicts for the decisions it was fitted on understates what is left over, so
    ``dr`` wants each fold predicted by a model of the others (cross-fitting; Chernozhukov et al.
    2018).
    """
    assigned: Int = rng.permutation(np.arange(n) % count)
    return assigned


def _terms(log: LoggedRewards, weight: Double) -> Double:
    """What the estimators sum up: w, w r, w (r - q), q(x, pi), slate, shape (n, 5)."""
    slate = np.zeros_like(weight) if log.slate is None else log.slate
    columns = [weight, weight * log.reward, weight * log.residual, log.baseline, slate]
    return np.stack(columns, axis=1)


def _sums(terms: Double, counts: Double) -> Double:
    """Sums of the terms over logs in which decision i occurs ``counts[:, i]`` times, (B, 6).

    The last column is the size of each log.
    """
    return np.concatenate([counts @ terms, counts.sum(axis=1, keepdims=True)], axis=1)


def _resampled(terms: Double, rng: np.random.Generator, samples: int) -> Double:
    n = len(terms)
    blocks = []
    for start in range(0, samples, _BLOCK):
        size = min(_BLOCK, samples - start)
        drawn = rng.integers(n, size=(size, n)) + n * np.arange(size)[:, None]
        counts = np.bincount(drawn.reshape(-1), minlength=size * n).reshape(size, n)
        blocks.append(_sums(terms, counts.astype(np.float64)))
    return np.concatenate(blocks)


def _values(sums: Double) -> dict[str, Double]:
    """Every estimate of B logs, arrays (B,), from their :func:`_sums`."""
    weight, reward, residual, baseline, slate, n = sums.T
    share = np.maximum(weight, np.finfo(np.float64).tiny)  # no weight at all: nothing was seen
    return {
        "ips": reward / n,
        "snips": reward / share,
        "dm": baseline / n,
        "dr": (baseline + residual) / n,
        "sndr": baseline / n + residual / share,
        "slate": slate / n,
    }
