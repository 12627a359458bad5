"""Learning from the log of a store: PPO on decisions that were made and carried out elsewhere.

Each logged decision is one sample: what was observed, the set that was carried out, its exact
log-propensity under whatever chose it, and the reward. The objective is the decoupled one of
Hilton, Cobbe and Schulman (NeurIPS 2022): the clipped surrogate relative to the policy at the start
of a round, each sample weighted by how likely that policy would have done what was done, relative
to the log. These weights are truncated: less variance, and less influence of what the log did
rarely.
"""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import letta_gym
from agents.adam import Adam, clip_grad_norm
from agents.log_config import LogLearningConfig, LogRunConfig
from agents.ppo import LossReport, Metrics, loss_and_grad, mean
from agents.rollout import Batch
from agents.run import CONFIG, POLICY, SUMMARY
from agents.set_policy import SetPolicy
from letta_gym.config import dump
from letta_gym.errors import ConfigError
from letta_gym.files import write_atomically
from letta_gym.selection import bilinear
from letta_gym.selection.policy import Policy
from letta_gym.store.history import Logged
from letta_gym.store.store import Store


@dataclass(frozen=True, eq=False)
class Samples:
    """Logged decisions of one number of slots M and one k.

    ``batch`` has the log-propensities as its log-probabilities and the rewards as its returns;
    values and advantages are those of a round.
    """

    batch: Batch

    def __len__(self) -> int:
        return len(self.batch)


def train(config: LogRunConfig, folder: Path) -> tuple[Policy, int]:
    """Learn from a log and write the run's folder; returns the policy and how many decisions.

    Raises:
        ConfigError: the folder holds a run, or the log is too short.
        StoreError: the store cannot be used.
        PolicyFileError: the policy cannot be read, or observes something else than the log.
    """
    if (folder / POLICY).exists():
        raise ConfigError(f"{folder} holds a run already; choose another --run-dir")
    start = time.perf_counter()
    first = Policy.load(config.policy)
    if bilinear.rank(first.weights):
        raise ConfigError("a policy with a bilinear term reads vectors, which a log does not hold")
    with Store(config.store, create=False) as store:
        run = store.runs.start(str(folder), config.model_dump(mode="json"))
        try:
            logged = store.history().decisions(agent=config.agent)
            samples = read_samples(logged, config.train)
            model = SetPolicy(first.weights, first.max_skills)
            count = sum(len(one) for one in samples)
            with threadpool_limits(1):
                rng = np.random.default_rng(config.seed)
                for step, metrics in enumerate(learn(model, samples, config.train, rng), 1):
                    store.runs.metrics(run, step, metrics)
            file = _with_weights(first, model).to_file(
                provenance={
                    "letta_gym": letta_gym.__version__,
                    "seed": config.seed,
                    "steps": count,
                    "config": config.model_dump(mode="json"),
                }
            )
        except BaseException as error:
            store.runs.finish(run, error=f"{type(error).__name__}: {error}")
            raise
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / CONFIG, dump(config).encode())
        file.save(folder / POLICY)
        seconds = time.perf_counter() - start
        summary = {"policy": POLICY, "digest": file.digest, "steps": count, "seconds": seconds}
        write_atomically(folder / SUMMARY, (json.dumps(summary, indent=2) + "\n").encode())
        store.runs.finish(run, policy_digest=file.digest)
    return Policy.from_file(file), count


def learn(
    model: SetPolicy,
    samples: Sequence[Samples],
    config: LogLearningConfig,
    rng: np.random.Generator,
) -> Iterator[Metrics]:
    """Train ``model`` in place; yields the metrics of each round."""
    ppo = config.ppo()
    optimizer = Adam(model.parameters, config.learning_rate, eps=ppo.adam_eps)
    for _ in range(config.rounds):
        batches = [_proximal(model, one.batch, config) for one in samples]
        reports: list[LossReport] = []
        for _ in range(config.update_epochs):
            for minibatch in _minibatches(batches, config.minibatch, rng):
                reports.append(loss_and_grad(model, minibatch, ppo))
                clip_grad_norm(model.parameters.grad, config.max_grad_norm)
                optimizer.step()
        weights = np.concatenate([b.weights for b in batches if b.weights is not None])
        reward = np.concatenate([b.returns for b in batches])
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


def read_samples(logged: Iterable[Logged], config: LogLearningConfig) -> list[Samples]:
    """What can be learned from: explored decisions that somebody judged.

    A failure of the infrastructure says nothing about a choice, and is left out.

    Raises:
        ConfigError: too few of them.
    """
    of: dict[tuple[int, int], list[tuple[Logged, float]]] = defaultdict(list)
    for one in logged:
        reward = reward_of(one, config.feedback_weight)
        decision = one.decision
        if decision.explored and decision.mode != "shadow" and reward is not None:
            of[len(decision.candidates), decision.k].append((one, reward))
    count = sum(map(len, of.values()))
    if count < config.min_decisions:
        raise ConfigError(
            f"the log holds {count} explored decisions that were judged; "
            f"train.min_decisions asks for {config.min_decisions}"
        )
    return [_samples(each, m, k) for (m, k), each in of.items()]


def reward_of(logged: Logged, feedback_weight: float) -> float | None:
    """The reward of a decision: of its outcome and of later feedback; None if nobody judged it."""
    outcome = logged.outcome
    if outcome is not None and not outcome.evidence and outcome.error is not None:
        return None
    feedback = [row.value for row in logged.feedback]
    said = sum(feedback) / len(feedback) if feedback else None
    if outcome is None or outcome.success is None or not outcome.evidence:
        return said
    own = outcome.success if outcome.reward is None else outcome.reward
    return own if said is None else (1 - feedback_weight) * own + feedback_weight * said


def _samples(each: Sequence[tuple[Logged, float]], m: int, k: int) -> Samples:
    decisions = [one.decision for one, _ in each]
    sets = np.full((len(each), k), -1)
    for row, (one, _) in zip(sets, each, strict=True):
        row[: len(one.picks)] = [pick.slot for pick in one.picks]
    reward = np.array([reward for _, reward in each], np.float32)
    obs = {
        "features": np.stack([d.features.reshape(m, -1) for d in decisions]),
        "context": np.stack([d.context for d in decisions]),
        "action_mask": np.isfinite(np.stack([d.scores[:-1] for d in decisions])),
    }
    log_propensity = np.array([d.log_propensity for d in decisions], np.float32)
    nothing = np.zeros_like(reward)
    return Samples(Batch(obs, sets, log_propensity, nothing, nothing, reward))


def _proximal(model: SetPolicy, batch: Batch, config: LogLearningConfig) -> Batch:
    """The batch with the policy at hand as its reference, weighted against the log."""
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


def _with_weights(policy: Policy, model: SetPolicy) -> Policy:
    return Policy(
        weights=model.parameters.as_dict(),
        evidence=policy.evidence,
        retrieval=policy.retrieval,
        token_price=policy.token_price,
        max_skills=policy.max_skills,
        slots=policy.slots,
        embedder=policy.embedder,
        probes=policy.probes,
    )
