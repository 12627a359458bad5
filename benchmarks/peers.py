"""What PPO is measured beside: the same learner on torch, and PPO of Stable-Baselines3.

Those of Stable-Baselines3 may have the batched environment, too, by :class:`BatchedVecEnv` and for
MaskablePPO by :class:`PickVecEnv`; both are what Stable-Baselines3 would make of single ones.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from sb3_contrib import MaskablePPO
from stable_baselines3 import PPO as SB3PPO
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnv

from agents.actor_critic import Action, Actions, Observation
from agents.adam import Floats
from agents.ppo import PPO
from agents.skill_policy import SkillPolicy
from letta_gym.envs.vector import SkillSelectionVectorEnv
from letta_gym.selection import subset

ID = "letta_gym/MockSkillSelection-v0"


class TorchPolicy(SkillPolicy):
    """The network of :class:`SkillPolicy` in torch; the tensors share its weights' memory."""

    def __init__(self, model: SkillPolicy) -> None:
        self.parameters, self.max_skills = model.parameters, model.max_skills
        self.w = {
            name: torch.from_numpy(array).requires_grad_()
            for name, array in self.parameters.items()
        }

    def forward(self, obs: Mapping[str, Any]) -> tuple[Any, Any]:
        """Logits (B, M + 1), -inf where masked, and values (B,)."""
        w = self.w
        x, c = torch.as_tensor(obs["features"]), torch.as_tensor(obs["context"])
        mask = torch.as_tensor(obs["action_mask"]).bool()
        self._slots = x.shape[1]
        hidden = torch.tanh(
            x @ w["score_features"] + (c @ w["score_context"] + w["score_bias"])[:, None]
        )
        scores = x @ w["score_linear"] + hidden @ w["score_out"]
        free = mask.sum(1, keepdim=True)
        largest = torch.where(mask[..., None], x, -torch.inf).amax(1)
        pooled = torch.cat(
            [c, torch.where(free > 0, largest, 0.0), x.sum(1) / free.clamp(min=1)], 1
        )
        stop = pooled @ w["stop_linear"] + w["stop_level"]
        stop = stop + torch.tanh(pooled @ w["stop_hidden"] + w["stop_bias"]) @ w["stop_out"]
        value = torch.tanh(pooled @ w["value_hidden"] + w["value_bias"]) @ w["value_out"]
        logits = torch.cat([scores.masked_fill(~mask, -torch.inf), stop[:, None]], 1)
        return logits, value + w["value_level"]

    def likelihood(self, logits: Any, picks: Any) -> tuple[Any, Any]:
        """Log-probability and entropy of ordered picks (B, k); see :mod:`...selection.subset`."""
        log_prob = entropy = torch.zeros(len(logits))
        active = torch.ones(len(logits), dtype=torch.bool)
        stop = logits.shape[1] - 1
        for pick in picks.T:
            logp = torch.log_softmax(logits, 1)
            choice = torch.where(pick >= 0, pick, stop)[:, None]
            log_prob = log_prob + torch.where(active, logp.gather(1, choice)[:, 0], 0.0)
            plogp = (logp.exp() * logp.clamp(min=-1e30)).sum(1)
            entropy = entropy - torch.where(active, plogp, 0.0)
            active = active & (pick >= 0)
            taken = torch.zeros_like(logits, dtype=torch.bool).scatter(1, choice, True)
            taken[:, stop] = False
            logits = logits.masked_fill(taken, -torch.inf)
        return log_prob, entropy

    def act(self, obs: Observation, rng: np.random.Generator, *, greedy: bool = False) -> Action:
        """Draw picks for each row."""
        with torch.no_grad():
            logits, value = self.forward(obs)
            drawn = logits.numpy()
            k = self.max_skills
            picks = subset.greedy(drawn, k) if greedy else subset.sample(drawn, k, rng)
            log_prob, _ = self.likelihood(logits, torch.from_numpy(picks))
        return Action(picks, log_prob.numpy(), value.numpy())

    def value(self, obs: Observation) -> Floats:
        """Estimated return of each row."""
        with torch.no_grad():
            values: Floats = self.forward(obs)[1].numpy()
        return values


class TorchPPO(PPO):
    """The learner with its update on autograd and torch's Adam; the rest is inherited."""

    def __init__(self, ours: PPO) -> None:
        assert isinstance(ours.model, SkillPolicy)
        self.policy = TorchPolicy(ours.model)
        super().__init__(ours.env, self.policy, ours.config, ours.rng, total_steps=ours.total_steps)
        self._torch_adam = torch.optim.Adam(
            list(self.policy.w.values()), ours.config.learning_rate, eps=ours.config.adam_eps
        )

    def updated(self) -> int:
        """Collect a rollout and learn from it; returns its size."""
        self.collect()
        self.update()
        return self.config.batch_size

    def update(self) -> dict[str, float]:
        """As :meth:`PPO.update`, without its metrics."""
        c = self.config
        for group in self._torch_adam.param_groups:
            group["lr"] = self._learning_rate()
        batch = self.rollout.batch(c.gamma, c.gae_lambda)
        for _ in range(c.update_epochs):
            for part in self._minibatches(batch):
                self._step(part)
        if self.ema is not None:
            self.ema.update(self.model.parameters)
        self.num_updates += 1
        return {}

    def _step(self, batch: Any) -> None:
        c = self.config
        logits, value = self.policy.forward(batch.obs)
        log_prob, entropy = self.policy.likelihood(logits, torch.from_numpy(batch.actions))
        gain = torch.from_numpy(batch.advantages)
        if c.norm_adv:
            gain = (gain - gain.mean()) / (gain.std(unbiased=False) + 1e-8)
        ratio = (log_prob - torch.from_numpy(batch.log_probs)).exp()
        clipped = ratio.clamp(1 - c.clip_coef, 1 + c.clip_coef)
        pg_loss = torch.max(-gain * ratio, -gain * clipped).mean()
        v_loss = (value - torch.from_numpy(batch.returns)).square().mean() / 2
        self._torch_adam.zero_grad()
        (pg_loss - c.ent_coef * entropy.mean() + c.vf_coef * v_loss).backward()
        torch.nn.utils.clip_grad_norm_(list(self.policy.w.values()), c.max_grad_norm)
        self._torch_adam.step()


class BatchedVecEnv(VecEnv):
    """Our batched environment as a vector environment of Stable-Baselines3."""

    def __init__(self, env: SkillSelectionVectorEnv) -> None:
        self.env = env
        super().__init__(env.num_envs, env.single_observation_space, env.single_action_space)

    def reset(self) -> Any:
        """Start all sessions, each with its seed."""
        shown = self.env.reset(seed=self._seeds)[0]
        self._reset_seeds()
        self._free = shown["action_mask"]
        return shown

    def step_async(self, actions: NDArray[Any]) -> None:
        """Remember the actions."""
        self._actions: Actions = actions

    def step_wait(self) -> tuple[Any, Any, Any, list[dict[str, Any]]]:
        """Carry them out; the last observation of a session stands in its info."""
        obs, rewards, terminated, truncated, infos = self.env.step(self._actions)
        self._free = obs["action_mask"]
        told: list[dict[str, Any]] = [{} for _ in range(self.num_envs)]
        for row in np.flatnonzero(terminated | truncated):
            last = {name: part[row] for name, part in infos["final_obs"].items()}
            told[row] = {
                "terminal_observation": last,
                "TimeLimit.truncated": bool(truncated[row] and not terminated[row]),
            }
        return obs, rewards, terminated | truncated, told

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """The same of every session."""
        return [getattr(self.env, attr_name, None)] * self.num_envs

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Sessions have no attributes of their own."""
        raise NotImplementedError

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        """Sessions have no methods of their own."""
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Nothing is wrapped."""
        return [False] * self.num_envs


class PickVecEnv(BatchedVecEnv):
    """The same with the actions and masks of :class:`letta_gym.envs.wrappers.PickActions`."""

    def __init__(self, env: SkillSelectionVectorEnv) -> None:
        super().__init__(env)
        self.slots, self.picks = env.config.candidates, env.config.max_skills
        self.action_space = spaces.MultiDiscrete([self.slots + 1] * self.picks)

    def step_async(self, actions: NDArray[Any]) -> None:
        """Remember the sets that the picks stand for."""
        super().step_async(picked(actions, self.slots))

    def env_method(self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any) -> Any:
        """What each pick may be, for the one method that is asked for."""
        assert method_name == "action_masks"
        return list(pick_masks(self._free, self.picks))


def picked(picks: NDArray[Any], slots: int) -> NDArray[np.int8]:
    """The sets (B, M) that picks (B, k), each a slot or M for none, stand for."""
    bits = np.zeros((len(picks), slots + 1), np.int8)
    np.put_along_axis(bits, picks, 1, 1)
    return bits[:, :-1]


def pick_masks(free: NDArray[Any], picks: int) -> NDArray[np.bool_]:
    """What each of k picks may be, where the slots ``free`` (B, M) are, (B, k (M + 1))."""
    return np.tile(np.pad(free.astype(bool), ((0, 0), (0, 1)), constant_values=True), picks)


def sb3(envs: VecEnv, num_steps: int, **options: Any) -> Any:
    """PPO of Stable-Baselines3 with its defaults, but for a batch of 256 and ``options``."""
    return SB3PPO("MultiInputPolicy", envs, n_steps=num_steps, **_DEFAULTS | options)


def masked_sb3(envs: PickVecEnv, num_steps: int, **options: Any) -> Any:
    """MaskablePPO of sb3-contrib likewise."""
    return MaskablePPO("MultiInputPolicy", envs, n_steps=num_steps, **_DEFAULTS | options)


_DEFAULTS: dict[str, Any] = {"batch_size": 256, "seed": 0}


def sb3_ppo(num_envs: int, num_steps: int) -> Any:
    """PPO of Stable-Baselines3 on environments of its own."""
    envs = DummyVecEnv([lambda: gymnasium.make(ID, obs="compact")] * num_envs)
    return sb3(envs, num_steps)


def batched_sb3(num_envs: int, num_steps: int) -> Any:
    """The same on the batched environment."""
    return sb3(BatchedVecEnv(SkillSelectionVectorEnv(num_envs, obs="compact")), num_steps)
