"""Training on a stream: real outcomes once, and rehearsals over what they taught in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from agents.best_weights import best_of
from agents.ppo import PPO, Metrics, OnStep
from agents.replay_config import ReplayRunConfig
from agents.skill_policy import SkillPolicy
from agents.stop_level import with_stop_level
from letta_gym.envs.rehearsal import RehearsalVectorEnv
from letta_gym.envs.replay import ReplayDriver, ReplayVectorEnv
from letta_gym.errors import ConfigError
from letta_gym.selection.network import Weights
from letta_gym.selection.policy import Policy


class StreamTrainer:
    """Trains one policy on one pass over the tasks of the skills that exist.

    Every update on the stream is followed by a rehearsal, once enough tasks were solved; both learn
    the same weights, with one optimiser and one average. Exploration is the policy's own.

    Args:
        config: what to do.
        split_seed: draws which skills are new.
        on_step: see :class:`agents.ppo.PPO`.

    Attributes:
        steps: outcomes of the whole pass.
        untrained: the weights that training began with.
        ppo: learns on the stream; ``rehearsing`` on rehearsals, None before the first.
    """

    def __init__(
        self, config: ReplayRunConfig, split_seed: int, on_step: OnStep | None = None
    ) -> None:
        self.config, self.split_seed = config, split_seed
        c = config.train
        changes: dict[str, Any] = {"split_seed": split_seed, "split": "train", "library": "seen"}
        if c.slots:
            changes["candidates"] = c.slots
        self._changes = changes
        self.env = ReplayVectorEnv(c.ppo.num_envs, **config.environment(**changes).model_dump())
        batch = c.ppo.num_envs * c.ppo.num_steps
        self.steps = c.passes * len(self.driver.sessions.stream) // batch * batch
        if not self.steps:
            raise ConfigError(
                f"{c.passes} pass over {len(self.driver.sessions.stream)} tasks is less than one "
                f"rollout of {batch}; lower train.ppo.num_envs or num_steps"
            )
        self.rng = np.random.default_rng([config.seed, split_seed])
        self.model = SkillPolicy(
            self.rng,
            config.env.max_skills,
            hidden=config.policy.hidden,
            sharpness=config.policy.sharpness,
            threshold=config.policy.threshold,
            rank=config.policy.bilinear,
            dimension=self.driver.dimension,
            without=config.policy.without,
        )
        start = self.model.parameters.as_dict()
        self.untrained: Weights = {name: weight.copy() for name, weight in start.items()}
        self.ppo = PPO(
            self.env, self.model, c.ppo, self.rng, total_steps=self.steps, on_step=on_step
        )
        self.rehearsing: PPO | None = None

    @property
    def driver(self) -> ReplayDriver:
        """Drives the deployment that is trained on."""
        return self.env.driver

    def train(self) -> None:
        """The whole pass."""
        while self.ppo.global_step < self.steps:
            self.learn()

    def learn(self) -> Metrics:
        """One update on the stream and, when it is time, a rehearsal; metrics of both."""
        self.ppo.collect()
        metrics = self.ppo.update()
        every = self.config.train.rehearsal.every
        if every and self.ppo.num_updates % every == 0:
            metrics |= self._rehearse()
        return metrics

    def _rehearse(self) -> Metrics:
        c = self.config.train.rehearsal
        solved = int((self.driver.sessions.journal()[2] >= 0.5).sum())
        if solved < 2 * c.batch * c.steps:
            return {}
        if self.rehearsing is None:
            self.rehearsing = self._rehearser()
        self.rehearsing.restart()
        self.rehearsing.collect()
        metrics = self.rehearsing.update()
        kept = ("losses/policy_loss", "losses/entropy", "losses/approx_kl", "losses/clipfrac")
        shown = {f"rehearsal/{tag.split('/')[1]}": metrics[tag] for tag in kept}
        return shown | {"rehearsal/reward": float(self.rehearsing.rollout.rewards.mean())}

    def _rehearser(self) -> PPO:
        c = self.config.train
        config = self.config.rehearsal(**self._changes)
        env = RehearsalVectorEnv(c.rehearsal.batch, **config.model_dump())
        env.driver.sessions.source = self.driver.sessions
        env.driver.sessions.learning = (
            c.rehearsal.steps > 1
        )  # nobody looks at what the last one adds
        share = c.rehearsal.batch * c.rehearsal.steps / c.ppo.batch_size / c.rehearsal.every
        return PPO(
            env,
            self.model,
            c.ppo.model_copy(
                update={"num_envs": c.rehearsal.batch, "num_steps": c.rehearsal.steps}
            ),
            self.rng,
            total_steps=max(1, round(self.steps * share)),
            partner=self.ppo,
        )

    def copied(self) -> ReplayDriver:
        """A deployment of its own that knows what this one learned so far, with all slots."""
        changes = self._changes | {"candidates": self.config.env.candidates}
        driver = ReplayDriver(self.config.environment(**changes), self.config.train.ppo.num_envs)
        driver.sessions.set_state(self.driver.sessions.get_state())
        return driver

    def chosen(self) -> tuple[Weights, bool]:
        """What earns most on the validation tasks, and whether that is the trained weights.

        The others are the untrained ones. The trained are averaged if the average is kept, and both
        have the level of STOP that is best for them.
        """
        driver = self.copied()
        trained = self.ppo.parameters.as_dict()
        both = [with_stop_level(weights, driver) for weights in (self.untrained, trained)]
        rng = np.random.default_rng([self.config.seed, self.split_seed, 3])
        best = best_of(both, driver, rng)
        return both[best], best == 1

    def weights(self) -> Weights:
        """See :meth:`chosen`."""
        return self.chosen()[0]

    def policy(self) -> Policy:
        """The policy as trained so far."""
        vectors = self.driver.pool.suite.vectors
        assert vectors is not None
        config = self.driver.config
        return Policy(
            weights=self.weights(),
            evidence=config.evidence,
            retrieval=config.retrieval,
            token_price=config.token_price / 1000,
            max_skills=config.max_skills,
            slots=self.config.environment().candidates,
            embedder=vectors.identity,
            probes=vectors.probes,
        )

    def state(self) -> dict[str, Any]:
        """All that a continued pass depends on."""
        done = None
        if self.rehearsing is not None:
            r = self.rehearsing
            done = {"global_step": r.global_step, "num_updates": r.num_updates}
        return {"ppo": self.ppo.state(), "rehearsing": done}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`state`."""
        self.ppo.restore(state["ppo"])
        if state["rehearsing"] is not None:
            saved = self.rng.bit_generator.state
            self.rehearsing = self._rehearser()
            self.rng.bit_generator.state = saved  # a learner draws a seed when it is made
            self.rehearsing.global_step = int(state["rehearsing"]["global_step"])
            self.rehearsing.num_updates = int(state["rehearsing"]["num_updates"])
