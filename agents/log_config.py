"""The configuration of a run on the log of a store."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from agents.ppo import PPOConfig
from letta_gym.config import Section


class SetLearningConfig(Section):
    """How to learn from sets that were chosen and carried out elsewhere.

    ``rounds``: times that the policy at hand becomes the one that ratios refer to.
    ``update_epochs``, ``minibatch``: passes over the decisions in a round, and samples of one step.
    ``max_weight``: at which importance weights are truncated.
    ``min_decisions``: nothing is learned from fewer.
    The others are those of PPO.
    """

    rounds: int = Field(default=10, ge=1)
    update_epochs: int = Field(default=4, ge=1)
    minibatch: int = Field(default=256, ge=2)
    max_weight: float = Field(default=5.0, ge=1)
    min_decisions: int = Field(default=200, ge=2)
    learning_rate: float = Field(default=3e-4, gt=0, le=1)
    clip_coef: float = Field(default=0.2, gt=0, lt=1)
    ent_coef: float = Field(default=0.001, ge=0)
    vf_coef: float = Field(default=0.5, ge=0)
    max_grad_norm: float = Field(default=0.5, gt=0)

    def ppo(self) -> PPOConfig:
        """The part that the loss reads."""
        return PPOConfig(
            clip_coef=self.clip_coef, ent_coef=self.ent_coef, vf_coef=self.vf_coef, gamma=0.0
        )


class LogLearningConfig(SetLearningConfig):
    """How to learn from a log.

    ``feedback_weight``: of later feedback in the reward, where there is any; the rest is that of
    the outcome. A decision that only feedback judged has the feedback as its reward.
    """

    feedback_weight: float = Field(default=0.5, ge=0, le=1)


class LogRunConfig(Section):
    """Everything that decides a run on a log.

    ``store``: URL of the store. ``policy``: file of the policy to start from; what it observes must
    be what the log holds. ``agent``: learn from this agent alone.
    """

    kind: Literal["log"] = "log"
    seed: int = Field(default=1, ge=0)
    store: str = "runs/store.sqlite"
    policy: str = "runs/mock/policy.safetensors"
    agent: str | None = None
    train: LogLearningConfig = LogLearningConfig()
