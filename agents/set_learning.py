"""PPO on sets that were chosen and carried out elsewhere, with their exact probabilities.

Each decision is one sample: what was observed, the set that was carried out, its log-propensity
under whatever chose it, and the reward. The objective is the decoupled one of Hilton, Cobbe and
Schulman (NeurIPS 2022): the clipped surrogate relative to the policy at the start of a round, each
sample weighted by how likely that policy would have done what was done, relative to what chose it.
These weights are truncated: less variance, and less influence of what was done rarely.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from agents.adam import Adam, Floats, clip_grad_norm
from agents.log_config import SetLearningConfig
from agents.ppo import LossReport, Metrics, loss_and_grad, mean
from agents.rollout import Batch
from agents.set_policy import SetPolicy
from letta_gym.errors import ConfigError
from letta_gym.selection import bilinear
from letta_gym.selection.policy import Policy


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """One decision that was carried out and judged.

    Attributes:
        features, context: what was observed, shapes (M, F) and (C,).
        scores: logits of the slots and, last, of stopping, shape (M + 1,); -inf where masked.
        slots: those that were carried out, in any order.
        k: most that could have been drawn.
        log_propensity: log-probability of the set under what chose it.
        reward: what came of it.
    """

    features: NDArray[np.float32]
    context: NDArray[np.float32]
    scores: NDArray[np.float32]
    slots: Sequence[int]
    k: int
    log_propensity: float
    reward: float


def model_of(policy: Policy) -> SetPolicy:
    """The network of a policy as a distribution over sets.

    Raises:
        ConfigError: the policy has a bilinear term.
    """
    if bilinear.rank(policy.weights):
        raise ConfigError(
            "a policy with a bilinear term reads vectors, which decisions do not hold; start from "
            "one that was trained with policy.bilinear: 0"
        )
    return SetPolicy(policy.weights, policy.max_skills)


def with_weights(policy: Policy, model: SetPolicy) -> Policy:
    """``policy`` with the weights of ``model``."""
    return replace(policy, weights=model.parameters.as_dict(), digest="")


def batches_of(samples: Iterable[Sample]) -> list[Batch]:
    """A batch for each number of slots M and each k.

    A batch has the log-propensities as its log-probabilities and the rewards as its returns; values
    and advantages are those of a round.
    """
    of: dict[tuple[int, int], list[Sample]] = defaultdict(list)
    for sample in samples:
        of[len(sample.features), sample.k].append(sample)
    return [_batch(each, k) for (_, k), each in of.items()]


def learn(
    model: SetPolicy, batches: Sequence[Batch], config: SetLearningConfig, rng: np.random.Generator
) -> Iterator[Metrics]:
    """Train ``model`` in place; yields the metrics of each round."""
    ppo = config.ppo()
    optimizer = Adam(model.parameters, config.learning_rate, eps=ppo.adam_eps)
    for _ in range(config.rounds):
        proximal = [_proximal(model, batch, config) for batch in batches]
        reports: list[LossReport] = []
        for _ in range(config.update_epochs):
            for minibatch in _minibatches(proximal, config.minibatch, rng):
                reports.append(loss_and_grad(model, minibatch, ppo))
                clip_grad_norm(model.parameters.grad, config.max_grad_norm)
                optimizer.step()
        weights = np.concatenate([b.weights for b in proximal if b.weights is not None])
        reward = np.concatenate([b.returns for b in proximal])
        yield {
            "losses/policy_loss": mean(reports, "pg_loss"),
            "losses/value_loss": mean(reports, "v_loss"),
            "losses/entropy": mean(reports, "entropy"),
            "losses/approx_kl": mean(reports, "approx_kl"),
            "losses/clipfrac": mean(reports, "clipfrac"),
            "log/snips": float(weights @ reward / weights.sum()),
            "log/effective": float(weights.sum() ** 2 / (weights @ weights)),
            "log/truncated": float((weights >= config.max_weight).mean()),
        }


def _batch(each: Sequence[Sample], k: int) -> Batch:
    sets = np.full((len(each), k), -1)
    for row, sample in zip(sets, each, strict=True):
        row[: len(sample.slots)] = sample.slots
    reward: Floats = np.array([sample.reward for sample in each], np.float32)
    obs = {
        "features": np.stack([sample.features for sample in each]),
        "context": np.stack([sample.context for sample in each]),
        "action_mask": np.isfinite(np.stack([sample.scores[:-1] for sample in each])),
    }
    log_propensity = np.array([sample.log_propensity for sample in each], np.float32)
    nothing = np.zeros_like(reward)
    return Batch(obs, sets, log_propensity, nothing, nothing, reward)


def _proximal(model: SetPolicy, batch: Batch, config: SetLearningConfig) -> Batch:
    """The batch with the policy at hand as its reference, weighted against what chose."""
    now = model.evaluate(batch.obs, batch.actions)
    ratio = np.exp(np.minimum(now.log_prob - batch.log_probs, 30.0))
    weights = np.minimum(ratio, config.max_weight)
    advantages = batch.returns - now.value
    return Batch(
        batch.obs, batch.actions, now.log_prob, now.value, advantages, batch.returns, weights
    )


def _minibatches(batches: Sequence[Batch], size: int, rng: np.random.Generator) -> Iterator[Batch]:
    parts = []
    for batch in batches:
        order = rng.permutation(len(batch))
        # Evenly cut, for a rest of one sample has no standardised advantage.
        parts += [batch.take(rows) for rows in np.array_split(order, -(-len(order) // size))]
    for at in rng.permutation(len(parts)):
        yield parts[at]
