"""Learning from the log of a store: PPO on decisions that were made and carried out elsewhere.

The objective is that of :mod:`agents.set_learning`.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from threadpoolctl import threadpool_limits

import letta_gym
from agents.log_config import LogLearningConfig, LogRunConfig
from agents.run import CONFIG, POLICY, SUMMARY
from agents.set_learning import Sample, batches_of, learn, model_of, with_weights
from letta_gym.config import dump
from letta_gym.errors import ConfigError
from letta_gym.files import write_atomically
from letta_gym.selection.policy import Policy
from letta_gym.store.history import Logged
from letta_gym.store.store import STORE_VARIABLE, Store


def train(config: LogRunConfig, folder: Path) -> tuple[Policy, int]:
    """Learn from a log and write the run's folder; returns the policy and how many decisions.

    The environment variable LETTA_GYM_STORE takes the place of ``config.store``, so that a password
    stays out of files.

    Raises:
        ConfigError: the folder holds a run, or the log is too short.
        StoreError: the store cannot be used.
        PolicyFileError: the policy cannot be read, or observes something else than the log.
    """
    if (folder / POLICY).exists():
        raise ConfigError(f"{folder} holds a run already; choose another --run-dir")
    start = time.perf_counter()
    first = Policy.load(config.policy)
    model = model_of(first)
    with Store(os.environ.get(STORE_VARIABLE) or config.store, create=False) as store:
        run = store.runs.start(str(folder), config.model_dump(mode="json"))
        try:
            logged = store.history().decisions(agent=config.agent)
            samples = read_samples(logged, config.train)
            count = len(samples)
            with threadpool_limits(1):
                rng, batches = np.random.default_rng(config.seed), batches_of(samples)
                for step, metrics in enumerate(learn(model, batches, config.train, rng), 1):
                    store.runs.metrics(run, step, metrics)
            file = with_weights(first, model).to_file(
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


def read_samples(logged: Iterable[Logged], config: LogLearningConfig) -> list[Sample]:
    """What can be learned from: explored decisions that somebody judged.

    A failure of the infrastructure says nothing about a choice, and is left out.

    Raises:
        ConfigError: too few of them.
    """
    samples = []
    for one in logged:
        reward, decision = reward_of(one, config.feedback_weight), one.decision
        if decision.explored and decision.mode != "shadow" and reward is not None:
            samples.append(
                Sample(
                    features=decision.features.reshape(len(decision.candidates), -1),
                    context=decision.context,
                    scores=decision.scores,
                    slots=[pick.slot for pick in one.picks],
                    k=decision.k,
                    log_propensity=decision.log_propensity,
                    reward=reward,
                )
            )
    if len(samples) < config.min_decisions:
        raise ConfigError(
            f"the log holds {len(samples)} explored decisions that were judged; "
            f"train.min_decisions asks for {config.min_decisions}"
        )
    return samples


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
