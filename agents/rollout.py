"""What a learner learns from: steps of a vector environment, recorded and laid out as samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

from agents.actor_critic import Action, Actions, Observation
from agents.adam import Floats
from agents.gae import gae
from letta_gym.errors import BackendError, ConfigError

Flags: TypeAlias = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Batch:
    """N samples to learn from."""

    obs: Observation  # name -> (N, ...)
    actions: Actions  # (N, ...)
    log_probs: Floats  # (N,): log-probability under the policy that acted
    values: Floats  # (N,): value estimate at that time
    advantages: Floats  # (N,)
    returns: Floats  # (N,): target of the value estimate
    weights: Floats | None = None  # (N,): influence of each sample, at least 0; None for all ones

    def __len__(self) -> int:
        return len(self.log_probs)

    def take(self, index: NDArray[Any] | slice) -> Batch:
        """Return some of the samples; a slice shares memory."""
        return Batch(
            {name: array[index] for name, array in self.obs.items()},
            self.actions[index],
            self.log_probs[index],
            self.values[index],
            self.advantages[index],
            self.returns[index],
            None if self.weights is None else self.weights[index],
        )

    def counted(self) -> Batch:
        """Return the samples of positive weight: whatever the others hold, even NaN, is gone.

        Raises:
            BackendError: there are none.
        """
        if self.weights is None or (self.weights > 0).all():
            return self
        rows = np.flatnonzero(self.weights > 0)
        if not len(rows):
            raise BackendError(
                f"each of the {len(self)} samples has weight 0, so nothing can be learned from "
                "them; see why the environment marked every step as failed"
            )
        return self.take(rows)

    def shares(self) -> Floats:
        """Return the weights scaled to sum to 1, shape (N,)."""
        weights = np.ones_like(self.log_probs) if self.weights is None else self.weights
        shares: Floats = weights / weights.sum()
        return shares


class Rollout:
    """T steps of B environments, allocated once and filled in place."""

    obs: dict[str, NDArray[Any]]  # name -> (T, B, ...): what was acted on
    actions: Actions  # (T, B, ...)
    log_probs: Floats  # (T, B)
    values: Floats  # (T, B)
    next_values: Floats  # (T, B): value of what the action led to, before any reset
    rewards: Floats  # (T, B)
    terminated: Flags  # (T, B)
    truncated: Flags  # (T, B)
    weights: Floats  # (T, B): influence on the update, 1 unless the environment says otherwise

    def __init__(self, num_steps: int, obs: Observation, action: Action) -> None:
        """Allocate for observations and actions like the given ones."""
        steps = (num_steps, *action.value.shape)
        self.obs = {k: np.zeros((num_steps, *v.shape), dtype=v.dtype) for k, v in obs.items()}
        self.actions = np.zeros((num_steps, *action.action.shape), dtype=action.action.dtype)
        self.log_probs = np.zeros(steps, dtype=action.log_prob.dtype)
        self.values = np.zeros(steps, dtype=action.value.dtype)
        self.next_values = np.zeros_like(self.values)
        self.rewards = np.zeros_like(self.values)
        self.terminated = np.zeros(steps, dtype=np.bool_)
        self.truncated = np.zeros(steps, dtype=np.bool_)
        self.weights = np.ones_like(self.values)

    def decide(self, t: int, obs: Observation, action: Action) -> None:
        """Record what was seen and done at step t."""
        for name, buffer in self.obs.items():
            buffer[t] = obs[name]
        self.actions[t] = action.action
        self.log_probs[t] = action.log_prob
        self.values[t] = action.value

    def observe(
        self, t: int, rewards: NDArray[Any], terminated: Flags, truncated: Flags, weights: Floats
    ) -> None:
        """Record what came of step t."""
        self.rewards[t] = rewards
        self.terminated[t] = terminated
        self.truncated[t] = truncated
        self.weights[t] = weights

    def batch(self, gamma: float, gae_lambda: float) -> Batch:
        """Return all T * B samples with their advantages; observations share memory."""
        ended = self.terminated | self.truncated
        advantages, returns = gae(
            self.rewards, self.values, self.next_values, self.terminated, ended, gamma, gae_lambda
        )
        return Batch(
            {name: flatten(buffer) for name, buffer in self.obs.items()},
            flatten(self.actions),
            flatten(self.log_probs),
            flatten(self.values),
            flatten(advantages),
            flatten(returns),
            flatten(self.weights),
        )


@runtime_checkable
class Resumable(Protocol):
    """A vector environment that can be stopped in mid-episode and continued elsewhere."""

    def get_state(self) -> Mapping[str, Any]:
        """Return arrays and JSON values, nested at will."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`get_state` returned."""
        ...


class EpisodeMeter:
    """Return and length of the running episodes, and of those that ended since the last flush."""

    def __init__(self, num_envs: int) -> None:
        self.returns = np.zeros(num_envs)
        self.lengths = np.zeros(num_envs, dtype=np.int64)
        self._ended_returns: list[float] = []
        self._ended_lengths: list[int] = []

    def add(self, rewards: NDArray[Any], ended: Flags) -> None:
        """Count one step of every environment."""
        self.returns += rewards
        self.lengths += 1
        if ended.any():
            self._ended_returns += self.returns[ended].tolist()
            self._ended_lengths += self.lengths[ended].tolist()
            self.returns[ended] = 0
            self.lengths[ended] = 0

    def flush(self) -> dict[str, float]:
        """Return the means over the episodes that ended, nothing if none did, and forget them."""
        if not self._ended_returns:
            return {}
        metrics = {
            "charts/episodic_return": float(np.mean(self._ended_returns)),
            "charts/episodic_length": float(np.mean(self._ended_lengths)),
        }
        self._ended_returns.clear()
        self._ended_lengths.clear()
        return metrics

    def state(self) -> dict[str, NDArray[Any]]:
        """Return copies of the running sums; call it after :meth:`flush`."""
        return {"returns": self.returns.copy(), "lengths": self.lengths.copy()}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.returns[...] = state["returns"]
        self.lengths[...] = state["lengths"]


def check_env(env: VectorEnv[Any, Any, Any], num_envs: int) -> None:
    """Raise ConfigError unless ``env`` has ``num_envs`` environments and same-step resets."""
    mode = env.metadata.get("autoreset_mode")
    if mode is not AutoresetMode.SAME_STEP:
        raise ConfigError(
            f"PPO needs an environment that resets in the step that ends an episode; got {mode}. "
            "Make it with vector_kwargs={'autoreset_mode': AutoresetMode.SAME_STEP}"
        )
    if env.num_envs != num_envs:
        raise ConfigError(
            f"num_envs is {num_envs}, but the vector environment has {env.num_envs}; "
            "make them equal"
        )


def as_observation(obs: Mapping[str, NDArray[Any]] | NDArray[Any]) -> Observation:
    """Return a batch of observations as a mapping; a plain array becomes ``{"obs": array}``."""
    return obs if isinstance(obs, Mapping) else {"obs": obs}


def final_observations(infos: Mapping[str, Any], rows: NDArray[np.intp]) -> Observation:
    """Return the last observations of episodes that ended in this step: name -> (len(rows), ...).

    ``infos["final_obs"]`` may be an object array with one observation for each ended environment,
    as Gymnasium's vector environments give it, or a batched observation of all environments.

    Args:
        infos: what ``env.step`` returned
        rows: the environments asked for, in ascending order

    Raises:
        ConfigError: the environment does not give its final observations.
    """
    final = infos.get("final_obs")
    if final is None:
        raise ConfigError(
            "an episode was truncated, but infos has no 'final_obs' to take the value of; "
            f"got the keys {sorted(infos)}. Add it to the infos of env.step"
        )
    if isinstance(final, np.ndarray) and final.dtype == object:
        each = [as_observation(final[row]) for row in rows]
        return {name: np.stack([obs[name] for obs in each]) for name in each[0]}
    return {name: array[rows] for name, array in as_observation(final).items()}


def sample_weights(infos: Mapping[str, Any], ended: Flags) -> NDArray[np.float64]:
    """Return the influence of each step on the update, shape (B,): 1 unless the infos say other.

    They say it under ``"weight"``, for a step that ended an episode under ``"final_info"``.
    """
    weights = np.ones(len(ended))
    for source, rows in ((infos, ~ended), (infos.get("final_info", {}), ended)):
        if "weight" in source:
            given = rows & source.get("_weight", True)
            weights[given] = source["weight"][given]
    return weights


def flatten(buffer: NDArray[Any]) -> NDArray[Any]:
    """Return a view that joins the first two axes: (T, B, ...) -> (T * B, ...)."""
    return buffer.reshape(-1, *buffer.shape[2:])
