"""The environment: which skills should an agent see for this task?"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
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
from letta_gym.envs.render import Transcript
from letta_gym.errors import ConfigError


class PlayEnv(gymnasium.Env[Arrays, NDArray[np.int8]], ABC):
    """What the single environments of all kinds share; :meth:`drive` makes the difference."""

    driver: PlayDriver
    config: Setup

    metadata: dict[str, Any] = {  # noqa: RUF012
        "render_modes": ["ansi"],
        "render_fps": 4,
    }

    def __init__(self, *, render_mode: str | None = None, **keywords: Any) -> None:
        if render_mode not in (None, "ansi"):
            raise ConfigError(f"render_mode must be None or 'ansi'; got {render_mode!r}")
        self.render_mode = render_mode
        self.driver = self.drive(keywords)
        self.config = self.driver.config
        space: spaces.Space[Any] = observation_space(self.config, self.driver.dimension)
        self.observation_space = space
        self.action_space = spaces.MultiBinary(self.config.candidates)
        self._transcript = Transcript(self.driver)
        self._ready = self._begun = False

    @abstractmethod
    def drive(self, keywords: Mapping[str, Any]) -> PlayDriver:
        """What drives one session of this kind."""

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        """Start a new session; ``options`` are not used."""
        super().reset(seed=seed)
        anew = seed is not None or not self._begun
        self.driver.sessions.reset(np.zeros(1, np.int64), [self.np_random], anew)
        self._ready = self._begun = True
        self._transcript.clear()
        return self._observe(), {}

    def step(self, action: NDArray[Any]) -> tuple[Arrays, float, bool, bool, dict[str, Any]]:
        """Load the chosen skills, carry out the task, and show the next one."""
        if not self._ready:
            raise ConfigError("step() came before reset(), or after the end; call reset() first")
        bits = checked_action(action, (self.config.candidates,))
        step = self.driver.step(bits[None])
        info = self._info(step)
        if self.render_mode == "ansi":
            self._transcript.add(step)
        ended = bool(step.terminated[0]), bool(step.truncated[0])
        self._ready = not any(ended)
        return self._observe(), float(step.reward[0]), *ended, info

    def render(self) -> str | None:
        """The session so far, as text (``render_mode="ansi"``)."""
        return self._transcript.text() if self.render_mode == "ansi" else None

    def _observe(self) -> Arrays:
        return {name: array[0].copy() for name, array in self.driver.observe().items()}

    def _info(self, step: Step) -> dict[str, Any]:
        s = self.driver.sessions
        picks = [int(slot) for slot in step.picks[0] if slot >= 0]
        ids = [self.driver.pool.ids[skill] for skill in s.slot_skills()[0, picks]]
        loaded = [name for name, on in zip(ids, step.outcomes.loaded[0], strict=False) if on]
        success, cost = float(step.outcomes.success[0]), float(step.price[0])
        return {
            "skills": ids,
            "dropped": int(step.dropped[0]),
            "outcome": {
                "success": success,
                "loaded": loaded,
                "tokens": float(step.outcomes.tokens[0]),
                "evidence": bool(step.outcomes.evidence[0]),
            },
            "reward_parts": {"success": success, "tokens": -cost},
        }


class SkillSelectionEnv(PlayEnv):
    """
    ## Description

    An agent serves a stream of tasks under one token budget. Before each task it may be given some
    of its skills: instructions that help with the right task, cost tokens, and now and then do
    harm. An episode is one such session. Which skills are any good is hidden and differs from
    session to session (``world="fresh"``); what happened before, in an opening history and in the
    session itself, tells.

    ## Action Space

    ``MultiBinary(M)``: the set of slots to load, at most ``max_skills``. A bit on a masked slot
    does nothing; of more than ``max_skills`` the first in slot order count, and a skill that the
    budget no longer covers is dropped. The empty set is a choice. ``info["dropped"]`` counts what
    was not carried out.

    ## Observation Space

    ``Dict`` of M candidate slots, sorted by the closed-form score, however large the library:

    | key | shape | meaning |
    |---|---|---|
    | ``task`` | (D,) | vector of the task (``obs="full"``) |
    | ``skills`` | (M, D) | vectors of the slots' skills (``obs="full"``) |
    | ``features`` | (M, F) | the columns of :data:`letta_gym.selection.observation.FEATURES` |
    | ``context`` | (C,) | the columns of :data:`letta_gym.selection.observation.CONTEXT` |
    | ``action_mask`` | (M,) | 1 where a slot holds a skill that the budget covers |

    ## Rewards

    The graded success of the task, in [0, 1], less ``token_price`` for every 1,000 tokens that the
    agent loaded. ``info["reward_parts"]`` names both.

    ## Starting State

    A new session: installed skills, their hidden quality, the stream of tasks, and an opening
    history of outcomes, all drawn from the environment's generator, and nothing later.

    ## Episode End

    Terminated when the budget no longer covers the cheapest installed skill, truncated after
    ``horizon`` tasks.

    ## Arguments

    The fields of :class:`letta_gym.envs.glue.EnvConfig`, as keywords of ``gymnasium.make``.

    ## Version History

    * v0: first version.
    """

    driver: Driver
    config: EnvConfig

    def drive(self, keywords: Mapping[str, Any]) -> Driver:
        """What drives one session."""
        return Driver(EnvConfig.from_keywords(keywords), 1)
