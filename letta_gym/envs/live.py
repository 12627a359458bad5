"""The environment of a real Letta: one deployment whose outcomes come from a live backend."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from letta_gym.envs.catalogue import Catalogue
from letta_gym.envs.deployment import Deployment, ReplayConfig
from letta_gym.envs.glue import Arrays, PlayDriver, Step
from letta_gym.envs.single import PlayEnv
from letta_gym.envs.vector import PlayVectorEnv
from letta_gym.errors import BackendError, ConfigError
from letta_gym.letta.backend import Backend, Outcomes, Requests
from letta_gym.letta.code import CodeConfig, code_backend
from letta_gym.letta.live import LiveBackend
from letta_gym.letta.ray_backend import RayBackend, RayConfig
from letta_gym.letta.rest import RestConfig, rest_backend
from letta_gym.library.suite import Suite


class LiveEnvConfig(ReplayConfig):
    """Keywords of the environment of a real Letta.

    Those of the replay environment, of which ``success`` does not matter here: a grader decides.
    ``backend``: who carries the tasks out, told by the section of that name; ``masking`` marks a
    task that could not be carried out or graded with the weight 0, instead of raising. The price of
    tokens is that of the section's ``reward``. ``ray`` spreads the tasks over actors, each with
    such a backend of its own.
    """

    backend: Literal["rest", "code"] = "rest"
    rest: RestConfig | None = None
    code: CodeConfig | None = None
    ray: RayConfig | None = None
    masking: bool = False
    new_skills: float = 0.0
    horizon: int = 16

    @model_validator(mode="after")
    def _is_told_who(self) -> Self:
        if self.section is None:
            raise ValueError(
                f"backend={self.backend!r} needs the section {self.backend!r}, such as "
                f"{self.backend}={{'model': 'openai/gpt-4o-mini'}}"
            )
        return self

    @property
    def section(self) -> RestConfig | CodeConfig | None:
        """The section of the backend."""
        return self.rest if self.backend == "rest" else self.code

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> Self:
        """Validate the keywords of ``gymnasium.make``.

        Raises:
            ConfigError: an unknown keyword, with the nearest known one, or a value out of range.
        """
        config = super().from_keywords(keywords)
        assert config.section is not None
        price = 1000 * config.section.reward.token_price
        if keywords.get("token_price", price) != price:
            raise ConfigError(
                f"token_price={keywords['token_price']} is not the price of the backend, {price:g};"
                f" set tokens and token_budget of {config.backend}.reward, and leave it out"
            )
        return config.model_copy(update={"token_price": price})

    def connect(self, suite: Suite) -> LiveBackend | RayBackend:
        """The backend for the tasks and skills of ``suite``.

        Raises:
            BackendError: it cannot work; the message has the remedy.
            MissingExtraError: Ray is wanted and not installed.
        """
        section = self.section
        assert section is not None
        make: Callable[[], LiveBackend]
        if isinstance(section, CodeConfig):
            make = partial(code_backend, section, suite)
        else:
            make = partial(rest_backend, section, suite)
        return make() if self.ray is None else RayBackend(make, self.ray)

    def sessions(self, count: int) -> LiveDeployment:
        """A deployment that takes ``count`` decisions at once."""
        return LiveDeployment(self, count)


class LiveDeployment(Deployment):
    """A deployment whose choices a real agent carries out.

    Attributes:
        backend: who does.
        failures: tasks so far that could not be carried out, ``ungraded`` those without a grade.
    """

    config: LiveEnvConfig

    def __init__(self, config: LiveEnvConfig, count: int, backend: Backend | None = None) -> None:
        super().__init__(config, count)
        suite = self.catalogue.suite
        by_id = {skill.id: skill for skill in suite.library}
        ordered = type(suite.library)(by_id[skill_id] for skill_id in self.catalogue.ids)
        self.backend = backend or config.connect(replace(suite, library=ordered, vectors=None))
        self.failures = self.ungraded = 0

    def outcomes(self, requests: Requests) -> Outcomes:
        """What came of the choices.

        Raises:
            BackendError: a task could not be carried out or graded, and ``masking`` is off. Nothing
                was learned of any; the same decisions may be taken again.
        """
        out = self.backend.execute(requests)
        failed = [one for one in out.details if not one.evidence]
        self.failures += sum(one.response is None for one in failed)
        self.ungraded += sum(one.response is not None for one in failed)
        if failed and not self.config.masking:
            first = failed[0]
            why = first.error or "nobody graded it; give the task a grader, or the backend one"
            raise BackendError(
                f"{len(failed)} of {len(out.details)} tasks are no evidence; the first: {why}. "
                "masking=True marks such steps with weight 0 instead"
            )
        return out

    def counts(self) -> dict[str, int]:
        """What went wrong so far: failed and ungraded tasks, pauses of this process's backend."""
        counts = {"failed": self.failures, "ungraded": self.ungraded}
        if isinstance(self.backend, LiveBackend):
            counts["paused"] = self.backend.paused
        return counts

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on, and what was counted."""
        return super().get_state() | {"failures": self.failures, "ungraded": self.ungraded}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`get_state`."""
        super().set_state(state)
        self.failures, self.ungraded = int(state["failures"]), int(state["ungraded"])

    def close(self) -> None:
        """Let the backend go."""
        if isinstance(self.backend, LiveBackend | RayBackend):
            self.backend.close()


class LiveDriver(PlayDriver):
    """Drives a deployment of a real agent."""

    config: LiveEnvConfig
    pool: Catalogue
    sessions: LiveDeployment

    def step(self, action: NDArray[Any]) -> Step:
        """Carry the action out in every session; rewards are those of the outcomes."""
        step = super().step(action)
        details = step.outcomes.details
        rewards = np.array([one.reward or 0.0 for one in details], np.float32)
        price = np.array([-one.reward_parts.get("tokens", 0.0) for one in details], np.float32)
        return replace(step, reward=rewards, price=price)


class LiveEnv(PlayEnv):
    """
    ## Description

    A real Letta agent serves the tasks of a suite in a random order. The skills that the action
    chooses are given to it, it carries the task out, and a grader judges its answer. Outcomes enter
    the memory at once.

    ## Action Space, Observation Space

    Those of :class:`letta_gym.envs.single.SkillSelectionEnv`; M may be the whole library.

    ## Rewards

    The parts that the backend's section ``reward`` gives a weight, named in
    ``info["reward_parts"]``; by default the success less the price of the tokens of the skills that
    the agent loaded. ``info["outcome"]`` tells everything that is known of the task.

    A task that cannot be carried out or graded raises :class:`letta_gym.errors.BackendError`; with
    ``masking=True`` its ``info["weight"]`` is 0 instead, otherwise 1.

    ## Starting State, Episode End

    Those of :class:`letta_gym.envs.replay.ReplayEnv`.

    ## Arguments

    The fields of :class:`LiveEnvConfig`.

    ## Version History

    * v0: first version.
    """

    driver: LiveDriver
    config: LiveEnvConfig

    def drive(self, keywords: Mapping[str, Any]) -> LiveDriver:
        """What drives one session of a deployment."""
        return LiveDriver(LiveEnvConfig.from_keywords(keywords), 1)

    def close(self) -> None:
        """Let the backend go."""
        self.driver.sessions.close()

    def _info(self, step: Step) -> dict[str, Any]:
        outcome = step.outcomes.details[0]
        told = {name: getattr(outcome, name) for name in _TOLD}
        info = super()._info(step)
        return info | {
            "outcome": info["outcome"] | told,
            "reward_parts": dict(outcome.reward_parts),
            "weight": float(outcome.evidence),
        }


class LiveVectorEnv(PlayVectorEnv):
    """See :class:`LiveEnv` for the specification.

    The n sub-environments are n simultaneous decisions of one deployment with one memory, carried
    out side by side as far as the backend's ``concurrency`` allows.
    """

    driver: LiveDriver
    config: LiveEnvConfig

    def drive(self, keywords: Mapping[str, Any], count: int) -> LiveDriver:
        """What drives ``count`` sessions of a deployment."""
        return LiveDriver(LiveEnvConfig.from_keywords(keywords), count)

    def close_extras(self, **kwargs: Any) -> None:
        """Let the backend go."""
        self.driver.sessions.close()

    def _infos(self, step: Step) -> dict[str, Any]:
        infos, details = super()._infos(step), step.outcomes.details
        parts = dict.fromkeys(name for one in details for name in one.reward_parts)
        rewards = {
            name: np.array([one.reward_parts.get(name, 0.0) for one in details]) for name in parts
        }
        told: Arrays = {}
        for name in _TOLD:
            column = np.empty(len(details), object)
            column[:] = [getattr(one, name) for one in details]
            told[name] = column
        outcome = {k: v for k, v in infos["outcome"].items() if not k.startswith("_")}
        return infos | self._masked(
            {
                "weight": step.outcomes.evidence.astype(np.float64),
                "outcome": self._masked(outcome | told),
                "reward_parts": self._masked(rewards),
            }
        )


_TOLD = (
    *("source", "steps", "tool_errors", "usage", "latency", "stop_reason", "error", "response"),
    *("run_id", "step_ids", "may_have_run"),
)
"""What ``info["outcome"]`` has beside what every environment tells."""
