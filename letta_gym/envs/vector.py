"""The batched environment: B sessions in one NumPy pass a step."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium import spaces
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from letta_gym.envs.glue import (
    Arrays,
    Driver,
    EnvConfig,
    PlayDriver,
    Setup,
    Step,
    checked_action,
    observation_space,
)
from letta_gym.errors import ConfigError


class PlayVectorEnv(VectorEnv[Arrays, NDArray[Any], NDArray[Any]], ABC):
    """What the batched environments of all kinds share; :meth:`drive` makes the difference."""

    driver: PlayDriver
    config: Setup

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": [],
        "autoreset_mode": AutoresetMode.SAME_STEP,
    }

    def __init__(
        self,
        num_envs: int = 16,
        *,
        render_mode: None = None,
        max_episode_steps: None = None,
        **keywords: Any,
    ) -> None:
        if num_envs < 1:
            raise ConfigError(f"num_envs must be at least 1; got {num_envs}")
        if render_mode is not None:
            raise ConfigError(
                f"a batch is not rendered (render_mode={render_mode!r}); "
                "watch one session with gymnasium.make(..., render_mode='ansi')"
            )
        if max_episode_steps is not None:
            raise ConfigError(
                f"the length of a session is its horizon: horizon={max_episode_steps} instead of "
                "max_episode_steps"
            )
        self.num_envs = num_envs
        self.driver = self.drive(keywords, num_envs)
        self.config = self.driver.config
        self.single_observation_space = observation_space(self.config, self.driver.dimension)
        self.single_action_space = spaces.MultiBinary(self.config.candidates)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self._batched_space: spaces.Space[Any] | None = None
        self._generators = [seeding.np_random(None)[0] for _ in range(num_envs)]
        self._ready = False

    @abstractmethod
    def drive(self, keywords: Mapping[str, Any], count: int) -> PlayDriver:
        """What drives ``count`` sessions of this kind."""

    @property
    def observation_space(self) -> spaces.Space[Any]:  # type: ignore[override]
        """Batched space, made when asked for: its bounds alone are as large as a batch."""
        if self._batched_space is None:
            self._batched_space = batch_space(self.single_observation_space, self.num_envs)
        return self._batched_space

    def reset(
        self,
        *,
        seed: int | Sequence[int | None] | None = None,
        options: dict[str, Any] | None = None,
    ) -> tuple[Arrays, dict[str, Any]]:
        """Start new sessions; with ``options["reset_mask"]`` only where the mask is true."""
        mask = (options or {}).get("reset_mask")
        rows = np.arange(self.num_envs) if mask is None else np.flatnonzero(self._checked(mask))
        seeds = self._seeds(seed)
        if not self._ready and len(rows) < self.num_envs:
            raise ConfigError("the first reset() starts every session; call it without reset_mask")
        for row in rows.tolist():
            if seeds[row] is not None:
                self._generators[row] = seeding.np_random(seeds[row])[0]
        seeded = any(seeds[row] is not None for row in rows.tolist())
        if len(rows):
            generators = [self._generators[row] for row in rows]
            self.driver.sessions.reset(rows, generators, anew=seeded or not self._ready)
        self._ready = True
        return self.driver.observe(), {}

    def step(
        self, actions: NDArray[Any]
    ) -> tuple[Arrays, NDArray[Any], NDArray[Any], NDArray[Any], dict[str, Any]]:
        """Carry out one action, int8 (B, M), in every session."""
        if not self._ready:
            raise ConfigError("step() came before reset(); call reset() first")
        step = self.driver.step(checked_action(actions, (self.num_envs, self.config.candidates)))
        ended = step.terminated | step.truncated
        infos = self._infos(step)
        observation = self.driver.observe()
        if ended.any():
            infos["final_info"], infos["_final_info"] = dict(infos), ended
            rows = ended.nonzero()[0]
            generators = [self._generators[row] for row in rows]
            infos["final_obs"] = self.driver.restart(rows, generators, observation)
            infos["_final_obs"] = ended
        return observation, step.reward, step.terminated, step.truncated, infos

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on: copies of arrays, and generator states."""
        return {
            "arrays": self.driver.sessions.get_state(),
            "generators": [g.bit_generator.state for g in self._generators],
        }

    def set_state(self, state: dict[str, Any]) -> Arrays:
        """Continue from :meth:`get_state`; returns the current observation."""
        self.driver.sessions.set_state(state["arrays"])
        for generator, saved in zip(self._generators, state["generators"], strict=True):
            generator.bit_generator.state = saved
        self._ready = True
        return self.driver.observe()

    def _seeds(self, seed: int | Sequence[int | None] | None) -> Sequence[int | None]:
        if seed is None:
            return [None] * self.num_envs
        if isinstance(seed, int | np.integer):
            return [int(seed) + i for i in range(self.num_envs)]
        if len(seed) != self.num_envs:
            raise ConfigError(f"{self.num_envs} environments need as many seeds; got {len(seed)}")
        return seed

    def _checked(self, mask: Any) -> NDArray[np.bool_]:
        array = np.asarray(mask)
        if array.dtype != bool or array.shape != (self.num_envs,):
            raise ConfigError(
                f"reset_mask must be bool of shape ({self.num_envs},); "
                f"got {array.dtype} of shape {array.shape}"
            )
        return array

    def _infos(self, step: Step) -> dict[str, Any]:
        out = step.outcomes
        return self._masked(
            {
                "success": out.success,
                "tokens": out.tokens,
                "loaded": out.loaded,
                "picks": step.picks,
                "dropped": step.dropped,
                "new_skills": step.new_skills,
                "token_cost": step.price,
                "outcome": self._masked(
                    {"success": out.success, "tokens": out.tokens, "evidence": out.evidence}
                ),
                "reward_parts": self._masked({"success": out.success, "tokens": -step.price}),
            }
        )

    def _masked(self, known: dict[str, Any]) -> dict[str, Any]:
        """Add to each key the mask ``_key`` of the sessions that it is known of: here all."""
        return known | {f"_{name}": np.ones(self.num_envs, bool) for name in known}


class SkillSelectionVectorEnv(PlayVectorEnv):
    """See :class:`letta_gym.envs.single.SkillSelectionEnv` for the specification.

    Sub-environment i behaves exactly as the single environment with seed ``seed + i``. Sessions
    that end are reset in the same step (``AutoresetMode.SAME_STEP``); their last observations stand
    in ``infos["final_obs"]``, a dict of batched arrays, valid where ``infos["_final_obs"]``. What
    the step told stands in ``infos`` for every session, and for those that ended also in
    ``infos["final_info"]``, where Gymnasium's own vector environments have it.
    ``reset(options={"reset_mask": mask})`` resets only the rows of ``mask``.
    """

    driver: Driver
    config: EnvConfig

    def drive(self, keywords: Mapping[str, Any], count: int) -> Driver:
        """What drives ``count`` sessions."""
        return Driver(EnvConfig.from_keywords(keywords), count)
