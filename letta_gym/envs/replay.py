"""The replay environment: a labelled suite, asked task by task, with the feedback of a bandit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from letta_gym.envs.catalogue import Catalogue
from letta_gym.envs.deployment import Deployment, ReplayConfig
from letta_gym.envs.glue import PlayDriver
from letta_gym.envs.single import PlayEnv
from letta_gym.envs.vector import PlayVectorEnv


class ReplayDriver(PlayDriver):
    """Drives a deployment."""

    config: ReplayConfig
    pool: Catalogue
    sessions: Deployment


class ReplayEnv(PlayEnv):
    """
    ## Description

    One deployment of an agent serves the tasks of a labelled suite in a random order. The skills
    that it chooses for a task are graded by the task's labels, and nothing is said of the skills
    that it did not choose. Outcomes enter the memory at once.

    ## Action Space, Observation Space

    Those of :class:`letta_gym.envs.single.SkillSelectionEnv`; M may be the whole library.

    ## Rewards

    The success by the labels, see :mod:`letta_gym.letta.replay`, less ``token_price`` for every
    1,000 tokens of the chosen skills.

    ## Starting State

    ``reset(seed=...)`` begins a new deployment: an empty memory, the tasks in another order.
    ``reset()`` begins the next session of the same one, with the next tasks and what it learned.

    ## Episode End

    Truncated after ``horizon`` tasks; terminated when the budget no longer covers any skill.

    ## Arguments

    The fields of :class:`letta_gym.envs.deployment.ReplayConfig`.

    ## Version History

    * v0: first version.
    """

    driver: ReplayDriver
    config: ReplayConfig

    def drive(self, keywords: Mapping[str, Any]) -> ReplayDriver:
        """What drives one session of a deployment."""
        return ReplayDriver(ReplayConfig.from_keywords(keywords), 1)


class ReplayVectorEnv(PlayVectorEnv):
    """See :class:`ReplayEnv` for the specification.

    The n sub-environments are n simultaneous decisions of one deployment with one memory, which
    learns after each step from all of them. So only n = 1 equals the single environment, and a seed
    begins all n sessions anew.
    """

    driver: ReplayDriver
    config: ReplayConfig

    def drive(self, keywords: Mapping[str, Any], count: int) -> ReplayDriver:
        """What drives ``count`` sessions of a deployment."""
        return ReplayDriver(ReplayConfig.from_keywords(keywords), count)
