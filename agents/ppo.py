"""Proximal policy optimisation (Schulman et al., 2017) in NumPy, over any actor-critic.

It reads from top to bottom: the hyper-parameters, the loss with its gradient, the learner. Names
and metric tags are those of CleanRL. Episodes that were truncated are bootstrapped with the value
of their final observation.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, TypeAlias

import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray
from pydantic import Field, model_validator

from agents import ppo_state
from agents.actor_critic import ActorCritic, Observation
from agents.adam import Adam, Ema, Floats, Parameters, clip_grad_norm
from agents.rollout import (
    Batch,
    EpisodeMeter,
    Flags,
    Rollout,
    as_observation,
    check_env,
    final_observations,
    sample_weights,
)
from letta_gym.config import Section
from letta_gym.errors import ConfigError, LettaGymError

log = logging.getLogger(__name__)

Metrics: TypeAlias = dict[str, float]
OnStep: TypeAlias = Callable[[Mapping[str, Any], NDArray[Any], Flags, Flags], None]


class PPOConfig(Section):
    """Hyper-parameters of :class:`PPO`."""

    learning_rate: float = Field(default=3e-4, gt=0, le=1)
    anneal_lr: bool = True  # linearly to zero over all steps
    num_envs: int = Field(default=64, ge=1)
    num_steps: int = Field(default=16, ge=1)  # per environment and rollout
    gamma: float = Field(default=0.99, ge=0, le=1)
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    num_minibatches: int = Field(default=4, ge=1)
    update_epochs: int = Field(default=4, ge=1)
    norm_adv: bool = True  # standardise advantages in each minibatch
    clip_coef: float = Field(default=0.2, gt=0, lt=1)
    clip_vloss: bool = False  # keep values within clip_coef of the recorded ones, too
    ent_coef: float = Field(default=0.01, ge=0, allow_inf_nan=False)
    vf_coef: float = Field(default=0.5, ge=0, allow_inf_nan=False)
    max_grad_norm: float = Field(default=0.5, gt=0)  # Euclidean, over all parameters
    target_kl: float | None = Field(default=None, gt=0)  # an epoch beyond it is the update's last
    ema_decay: float | None = Field(default=None, ge=0, lt=1)  # averages weights over updates
    adam_eps: float = Field(default=1e-5, gt=0, allow_inf_nan=False)

    @property
    def batch_size(self) -> int:
        """Samples in one rollout."""
        return self.num_envs * self.num_steps

    @model_validator(mode="after")
    def _minibatches_divide_the_batch(self) -> Self:
        if self.batch_size % self.num_minibatches:
            raise ValueError(
                f"num_envs * num_steps = {self.batch_size} must be a multiple of "
                f"num_minibatches; got {self.num_minibatches}"
            )
        if self.norm_adv and self.batch_size == self.num_minibatches:
            raise ValueError(
                "norm_adv turns the advantage of a minibatch of one sample into 0; "
                "lower num_minibatches or set norm_adv: false"
            )
        return self


@dataclass(frozen=True, slots=True)
class LossReport:
    """The loss of one minibatch and its parts; every one is a weighted mean over samples."""

    loss: float  # pg_loss - ent_coef * entropy + vf_coef * v_loss
    pg_loss: float  # clipped surrogate
    v_loss: float  # half the squared error
    entropy: float
    old_approx_kl: float  # E[-log ratio]
    approx_kl: float  # E[ratio - 1 - log ratio]: lower variance, never negative
    clipfrac: float  # share of the samples whose ratio left the clipping range
    ratio: float  # new over old probability


def loss_and_grad(model: ActorCritic[Any], batch: Batch, config: PPOConfig) -> LossReport:
    """Return the PPO loss of a batch, and write its gradient into ``model.parameters.grad``.

    Means are weighted by ``batch.weights``; a sample of weight 0 has no influence on anything.

    Raises:
        BackendError: every sample has weight 0.
    """
    batch = batch.counted()
    shares = batch.shares()
    evaluation = model.evaluate(batch.obs, batch.actions)
    logratio = evaluation.log_prob - batch.log_probs
    ratio = np.exp(logratio)

    advantages = standardise(batch.advantages, shares) if config.norm_adv else batch.advantages
    pg_loss1 = -advantages * ratio
    pg_loss2 = -advantages * np.clip(ratio, 1 - config.clip_coef, 1 + config.clip_coef)
    pg_loss = float(shares @ np.maximum(pg_loss1, pg_loss2))
    dlog_prob = np.where(pg_loss1 >= pg_loss2, shares * pg_loss1, 0)  # d ratio = ratio d log_prob

    squared_error, derror = value_error(evaluation.value, batch, config)
    v_loss = float(shares @ squared_error) / 2
    entropy = float(shares @ evaluation.entropy)

    model.backward(
        evaluation,
        dlog_prob=dlog_prob,
        dentropy=-config.ent_coef * shares,
        dvalue=config.vf_coef * shares * derror,
    )
    return LossReport(
        loss=pg_loss - config.ent_coef * entropy + config.vf_coef * v_loss,
        pg_loss=pg_loss,
        v_loss=v_loss,
        entropy=entropy,
        old_approx_kl=float(-shares @ logratio),
        approx_kl=float(shares @ (ratio - 1 - logratio)),
        clipfrac=float(shares @ (np.abs(ratio - 1) > config.clip_coef)),
        ratio=float(shares @ ratio),
    )


def standardise(advantages: Floats, shares: Floats) -> Floats:
    """Return advantages with weighted mean 0 and standard deviation 1.

    The deviation is the population's (divisor N, ddof 0), which is defined for weights.
    """
    centred = advantages - shares @ advantages
    return centred / (np.sqrt(shares @ (centred * centred)) + 1e-8)


def value_error(value: Floats, batch: Batch, config: PPOConfig) -> tuple[Floats, Floats]:
    """Return the squared error of each value, (N,), and half its derivative for the value, (N,).

    With ``clip_vloss`` it is the larger of the errors of the value and of the value clipped to
    within ``clip_coef`` of the recorded one.
    """
    error = value - batch.returns
    if not config.clip_vloss:
        return error * error, error
    change = value - batch.values
    clipped = batch.values + np.clip(change, -config.clip_coef, config.clip_coef) - batch.returns
    unclipped_counts = (np.abs(change) <= config.clip_coef) | (error * error >= clipped * clipped)
    counted = np.where(unclipped_counts, error, clipped)
    return counted * counted, np.where(unclipped_counts, error, 0)


class PPO:
    """Learns a model's parameters by acting in a vector environment.

    The environment must reset in the step that ends an episode (``AutoresetMode.SAME_STEP``) and
    give ``infos["final_obs"]``. ``infos["weight"]``, and for episodes that ended
    ``infos["final_info"]["weight"]``, may give each sample's influence on the update: 0 excludes a
    step that failed for reasons of its own (its reward still belongs to the return of the steps
    before it). Plain array observations reach the model as ``{"obs": array}``.

    Args:
        env: vector environment of ``config.num_envs`` environments; it is reset with a seed
            drawn from ``rng``
        model: what acts and learns
        config: hyper-parameters
        rng: source of all randomness: seed of the environments, actions, minibatches
        partner: another learner of the same model, with whom the optimiser and the averaged weights
            are shared
        total_steps: environment steps over which the learning rate is annealed and :meth:`train`
            runs
        on_step: called after each step with ``infos, rewards, terminated, truncated``

    Raises:
        ConfigError: the environment does not fit, or ``total_steps`` is not positive.

    Attributes:
        global_step: environment steps taken, over all environments
        num_updates: updates done, skipped ones among them
        num_skipped: updates that were skipped, for every sample of their rollout had weight 0
        episodes: returns and lengths of the running episodes
        rollout: the last rollout
    """

    global_step: int
    num_updates: int
    num_skipped: int
    rollout: Rollout

    def __init__(
        self,
        env: VectorEnv[Any, Any, Any],
        model: ActorCritic[Any],
        config: PPOConfig,
        rng: np.random.Generator,
        *,
        total_steps: int,
        on_step: OnStep | None = None,
        partner: PPO | None = None,
    ) -> None:
        check_env(env, config.num_envs)
        if total_steps < 1:
            raise ConfigError(f"total_steps must be at least 1; got {total_steps}")
        self.env = env
        self.model = model
        self.config = config
        self.rng = rng
        self.total_steps = total_steps
        self.on_step = on_step
        self.global_step = 0
        self.num_updates = self.num_skipped = 0
        if partner is None:
            self.optimizer = Adam(model.parameters, config.learning_rate, eps=config.adam_eps)
            self.ema = None if config.ema_decay is None else Ema(model.parameters, config.ema_decay)
        else:
            self.optimizer, self.ema = partner.optimizer, partner.ema

        self.restart()
        # The shape of an action is the model's own business: try one, off the record.
        self.rollout = Rollout(
            config.num_steps, self.obs, model.act(self.obs, np.random.default_rng(0))
        )
        self.episodes = EpisodeMeter(config.num_envs)
        self._clock = (time.perf_counter(), 0)  # when, and at which step, this process began

    @property
    def parameters(self) -> Parameters:
        """The weights to use: the averaged ones if ``ema_decay`` is set, else the latest."""
        return self.model.parameters if self.ema is None else self.ema.parameters

    def train(
        self,
        total_steps: int | None = None,
        callback: Callable[[Metrics], None] | None = None,
    ) -> None:
        """Collect and update until ``total_steps`` (by default all) steps were taken in all.

        The last rollout is a full one. ``callback`` receives the metrics of each update.
        """
        end = self.total_steps if total_steps is None else total_steps
        while self.global_step < end:
            self.collect()
            metrics = self.update()
            if callback is not None:
                callback(metrics)

    def restart(self) -> None:
        """Begin new episodes in every environment, with a seed drawn from ``rng``."""
        obs, _ = self.env.reset(seed=int(self.rng.integers(2**31)))
        self.obs = as_observation(obs)

    def collect(self) -> None:
        """Act for ``num_steps`` steps in every environment and fill the rollout."""
        final_obs: list[Observation] = []
        for t in range(self.config.num_steps):
            action = self.model.act(self.obs, self.rng)
            self.rollout.decide(t, self.obs, action)

            env_action = self.model.env_action(action.action)
            obs, rewards, terminated, truncated, infos = self.env.step(env_action)
            self.obs = as_observation(obs)
            weights = sample_weights(infos, terminated | truncated)
            self.rollout.observe(t, rewards, terminated, truncated, weights)

            if self.config.gamma and (cut := truncated & ~terminated).any():
                final_obs.append(final_observations(infos, np.flatnonzero(cut)))
            self.episodes.add(rewards, terminated | truncated)
            if self.on_step is not None:
                self.on_step(infos, rewards, terminated, truncated)
        self.global_step += self.config.batch_size
        self._bootstrap(final_obs)

    def update(self) -> Metrics:
        """Learn from the rollout for ``update_epochs`` epochs; return metrics by CleanRL's tags.

        Losses are means over the minibatches of all epochs that were run. Where every sample of the
        rollout has weight 0 nothing is learned: the update is skipped and counted, the weights
        stay, and there are no losses.
        """
        config = self.config
        self.optimizer.learning_rate = self._learning_rate()
        if not self.rollout.weights.any():
            return self._skip()
        batch = self.rollout.batch(config.gamma, config.gae_lambda).counted()
        reports: list[LossReport] = []
        grad_norms: list[float] = []
        for _ in range(config.update_epochs):
            epoch = []
            for minibatch in self._minibatches(batch):
                report = loss_and_grad(self.model, minibatch, config)
                grad_norms.append(self._descend(report.loss))
                epoch.append(report)
            reports += epoch
            if config.target_kl is not None and mean(epoch, "approx_kl") > config.target_kl:
                break
        if self.ema is not None:
            self.ema.update(self.model.parameters)
        self.num_updates += 1
        return self._metrics(batch, reports, grad_norms)

    def _skip(self) -> Metrics:
        self.num_updates += 1
        self.num_skipped += 1
        log.warning(
            "update %d is skipped: each of its %d samples has weight 0, so there is nothing to "
            "learn from; see why the environment marked every step as failed",
            *(self.num_updates, self.config.batch_size),
        )
        return self._charts()

    def state(self) -> dict[str, Any]:
        """Return all that a continued run depends on; see :func:`agents.ppo_state.taken`."""
        return ppo_state.taken(self)

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned: with a resumable environment, bit for bit.

        Raises:
            CheckpointError: the state belongs to another configuration, network or environment.
        """
        ppo_state.restore(self, state)
        self._clock = (time.perf_counter(), self.global_step)

    def _learning_rate(self) -> float:
        if not self.config.anneal_lr:
            return self.config.learning_rate
        done = self.num_updates * self.config.batch_size / self.total_steps
        return self.config.learning_rate * max(0.0, 1.0 - done)

    def _minibatches(self, batch: Batch) -> Iterator[Batch]:
        shuffled = batch.take(self.rng.permutation(len(batch)))
        size = math.ceil(len(batch) / self.config.num_minibatches)
        for start in range(0, len(batch), size):
            yield shuffled.take(slice(start, start + size))

    def _descend(self, loss: float) -> float:
        """Take one step of the optimiser; return the gradient's norm before clipping."""
        norm = clip_grad_norm(self.model.parameters.grad, self.config.max_grad_norm)
        if not (math.isfinite(norm) and math.isfinite(loss)):
            raise LettaGymError(
                f"update {self.num_updates + 1} has the loss {loss} and the gradient norm {norm}; "
                "expected finite numbers. Look for non-finite rewards or observations, or lower "
                "learning_rate"
            )
        self.optimizer.step()
        return norm

    def _bootstrap(self, final_obs: Sequence[Observation]) -> None:
        """Fill ``rollout.next_values``, looking beyond the rollout and beyond truncations.

        Without a future (``gamma`` 0) nobody asks for them.
        """
        if not self.config.gamma:
            return
        rollout = self.rollout
        rollout.next_values[:-1] = rollout.values[1:]
        rollout.next_values[-1] = self.model.value(self.obs)
        if final_obs:  # in order of step and environment, like the elements that a mask selects
            obs = {k: np.concatenate([final[k] for final in final_obs]) for k in final_obs[0]}
            cut = rollout.truncated & ~rollout.terminated
            rollout.next_values[cut] = self.model.value(obs)

    def _metrics(
        self, batch: Batch, reports: Sequence[LossReport], grad_norms: Sequence[float]
    ) -> Metrics:
        return {
            "losses/policy_loss": mean(reports, "pg_loss"),
            "losses/value_loss": mean(reports, "v_loss"),
            "losses/entropy": mean(reports, "entropy"),
            "losses/old_approx_kl": mean(reports, "old_approx_kl"),
            "losses/approx_kl": mean(reports, "approx_kl"),
            "losses/clipfrac": mean(reports, "clipfrac"),
            "losses/explained_variance": explained_variance(batch.values, batch.returns),
            "losses/grad_norm": float(np.mean(grad_norms)),
            **self._charts(),
        }

    def _charts(self) -> Metrics:
        start, first_step = self._clock
        return {
            "charts/learning_rate": self.optimizer.learning_rate,
            "charts/SPS": (self.global_step - first_step) / (time.perf_counter() - start),
            **self.episodes.flush(),
        }


def explained_variance(values: Floats, returns: Floats) -> float:
    """Return 1 - Var(returns - values) / Var(returns): 1 is perfect, 0 no better than the mean."""
    variance = float(np.var(returns))
    return math.nan if variance == 0 else 1 - float(np.var(returns - values)) / variance


def mean(reports: Sequence[LossReport], field: str) -> float:
    """Return the mean of one field over minibatches."""
    return float(np.mean([getattr(report, field) for report in reports]))
