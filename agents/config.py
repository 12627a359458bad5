"""The configuration of a run: what ``train.py`` and ``evaluate.py`` read from one YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from agents.ppo import PPOConfig
from letta_gym import config
from letta_gym.config import Section
from letta_gym.envs.glue import EnvConfig
from letta_gym.envs.sessions import SessionConfig
from letta_gym.feedback.evidence import EvidenceConfig
from letta_gym.letta.mock import MockConfig
from letta_gym.selection.candidates import RetrievalConfig
from letta_gym.selection.observation import FEATURE


class SuiteConfig(Section):
    """Which tasks and skills: a folder in the suite format with vectors, or "bundled"."""

    path: str = "bundled"


class PolicyConfig(Section):
    """The network: its width, and the closed form that it starts as.

    ``bilinear`` is the rank of the term on the vectors, see :mod:`letta_gym.selection.bilinear`.
    ``without`` names columns of the features that the network does not get, to see what they are
    worth.
    """

    hidden: int = Field(default=32, ge=1)
    sharpness: float = Field(default=30.0, gt=0)
    threshold: float = 0.03
    bilinear: int = Field(default=0, ge=0)
    without: tuple[str, ...] = ()

    @field_validator("without")
    @classmethod
    def _known(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [name for name in names if name not in FEATURE]
        if unknown:
            raise ValueError(f"no such columns: {unknown}; known are {', '.join(FEATURE)}")
        return names


class TrainConfig(Section):
    """How long to train (``steps`` counts decisions) and what to write on the way.

    ``new_share`` replaces that of ``env`` in training: evaluation sessions hold skills that were
    never trained on beside the new ones, so more skills without a history than the share says.
    ``none_recall`` is the least share of the tasks that need no skill for which none is loaded; see
    :mod:`agents.calibration`.
    """

    steps: int = Field(default=300_000, ge=1)
    checkpoint_every: int = Field(default=20, ge=1)
    histogram_every: int = Field(default=10, ge=1)
    evaluate: bool = True
    new_share: float | None = Field(default=None, ge=0, le=1)
    none_recall: float | None = Field(default=None, ge=0, le=1)
    ppo: PPOConfig = PPOConfig()


Extra = Literal["linucb", "linucb_per_skill", "thompson", "thompson_per_skill", "priced"]
"""Agents that an evaluation has only when it is asked for them, for they must learn first."""


class EvaluateConfig(Section):
    """How to evaluate: ``seeds`` batches of ``sessions`` each; baselines on ``tune_sessions``.

    ``also`` names further agents; the bandits among them learn from ``bandit_steps`` decisions of
    their own on the train split.
    """

    split: str = "test"
    seeds: int = Field(default=8, ge=2)
    sessions: int = Field(default=96, ge=2)
    tune_sessions: int = Field(default=64, ge=2)
    first_seed: int = Field(default=10_000, ge=2)  # those just before serve to tune
    also: tuple[Extra, ...] = ()
    bandit_steps: int = Field(default=40_000, ge=1)


class RunConfig(Section):
    """Everything that decides a run on the mock."""

    kind: Literal["mock"] = "mock"
    seed: int = Field(default=1, ge=0)
    suite: SuiteConfig = SuiteConfig()
    env: SessionConfig = SessionConfig()
    mock: MockConfig = MockConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    policy: PolicyConfig = PolicyConfig()
    train: TrainConfig = TrainConfig()
    evaluate: EvaluateConfig = EvaluateConfig()

    def environment(self, **changes: Any) -> EnvConfig:
        """The environment's configuration with ``changes`` to its fields.

        Observations are compact unless the policy reads vectors.
        """
        fields = {
            **self.env.model_dump(),
            "suite": self.suite.path,
            "obs": "full" if self.policy.bilinear else "compact",
            "mock": self.mock.model_dump(),
            "evidence": self.evidence.model_dump(),
            "retrieval": self.retrieval.model_dump(),
        }
        return EnvConfig.from_keywords(fields | changes)


def read(path: Path | str, assignments: list[str]) -> RunConfig:
    """Read a configuration file of the mock and apply ``--set`` assignments.

    Raises:
        ConfigError: something does not fit; the message names the nearest known key.
    """
    return config.load(RunConfig, path, assignments)
