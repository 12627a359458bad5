"""The configuration of a run on a real Letta."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from agents.config import PolicyConfig, SuiteConfig
from agents.ppo import PPOConfig
from letta_gym.config import Section
from letta_gym.envs.live import LiveEnvConfig
from letta_gym.feedback.entries import MemoryConfig
from letta_gym.feedback.evidence import EvidenceConfig
from letta_gym.letta.code import CodeConfig
from letta_gym.letta.ray_backend import RayConfig
from letta_gym.letta.rest import RestConfig
from letta_gym.selection.candidates import RetrievalConfig


class LiveSessionConfig(Section):
    """The sessions of the environment; ``masking`` leaves failed rollouts out of the update."""

    max_skills: int = Field(default=3, ge=1)
    candidates: int = Field(default=12, ge=0)
    horizon: int = Field(default=16, ge=1)
    token_budget: float = Field(default=100_000, gt=0)
    backend: Literal["rest", "code"] = "rest"
    masking: bool = True


class LiveTrainConfig(Section):
    """How long to train: ``steps`` counts rollouts; ``start`` is a policy to go on from."""

    steps: int = Field(default=480, ge=1)
    start: str | None = None
    checkpoint_every: int = Field(default=1, ge=1)
    histogram_every: int = Field(default=10, ge=1)
    evaluate: bool = True
    ppo: PPOConfig = PPOConfig()


class LiveTrialConfig(Section):
    """How to evaluate: ``tasks`` of ``split`` for each agent, ``batch`` at once, no learning."""

    split: str = "test"
    tasks: int = Field(default=48, ge=2)
    batch: int = Field(default=8, ge=1)


class LiveRunConfig(Section):
    """Everything that decides a run on a real Letta."""

    kind: Literal["letta"] = "letta"
    seed: int = Field(default=1, ge=0)
    suite: SuiteConfig = SuiteConfig()
    env: LiveSessionConfig = LiveSessionConfig()
    rest: RestConfig | None = None
    code: CodeConfig | None = None
    ray: RayConfig | None = None
    memory: MemoryConfig = MemoryConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    policy: PolicyConfig = PolicyConfig()
    train: LiveTrainConfig = LiveTrainConfig()
    evaluate: LiveTrialConfig = LiveTrialConfig()

    def environment(self) -> LiveEnvConfig:
        """The environment's configuration, checked.

        Raises:
            ConfigError: something does not fit.
        """
        return LiveEnvConfig.from_keywords(self.keywords())

    def keywords(self) -> dict[str, Any]:
        """Keywords of the environment."""
        return {
            **self.env.model_dump(),
            "suite": self.suite.path,
            "obs": "full" if self.policy.bilinear else "compact",
            "rest": None if self.rest is None else self.rest.model_dump(),
            "code": None if self.code is None else self.code.model_dump(),
            "ray": None if self.ray is None else self.ray.model_dump(),
            "memory": self.memory.model_dump(),
            "evidence": self.evidence.model_dump(),
            "retrieval": self.retrieval.model_dump(),
        }
