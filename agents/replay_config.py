"""The configuration of a run on a labelled suite: one pass over a stream, with rehearsal."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from agents.config import PolicyConfig, SuiteConfig
from agents.ppo import PPOConfig
from letta_gym.config import Section
from letta_gym.envs.deployment import DeploymentConfig, ReplayConfig
from letta_gym.envs.rehearsal import RehearsalConfig, RehearsalOptions
from letta_gym.feedback.entries import MemoryConfig
from letta_gym.feedback.evidence import EvidenceConfig
from letta_gym.selection.candidates import RetrievalConfig


class RehearseConfig(RehearsalOptions):
    """How the trainer rehearses.

    ``batch``, ``steps``: decisions taken at once, and how often, in one rehearsal.
    ``every``: updates on the stream between rehearsals; 0 for none at all.
    """

    batch: int = Field(default=64, ge=2)
    steps: int = Field(default=2, ge=1)
    every: int = Field(default=1, ge=0)


class StreamConfig(Section):
    """How to train on a stream.

    ``passes``: how often the tasks of the train split are asked.
    ``slots``: M in training; 0 for that of ``env``. The network does not depend on it.
    ``curve_points``: evaluations on the validation split along the way, for the learning curve.
    """

    passes: int = Field(default=1, ge=1)
    slots: int = Field(default=0, ge=0)
    curve_points: int = Field(default=6, ge=0)
    checkpoint_every: int = Field(default=20, ge=1)
    histogram_every: int = Field(default=10, ge=1)
    evaluate: bool = True
    ppo: PPOConfig = PPOConfig()
    rehearsal: RehearseConfig = RehearseConfig()


class TrialConfig(Section):
    """How to evaluate: on ``splits`` draws of the new skills, trained anew for each.

    ``levels``: tasks of each new skill after which it is looked at again.
    ``batch``: simultaneous decisions while those tasks are asked.
    ``optimism``: how much more than it expects the policy hopes to gain from a skill without
    outcomes, while the tasks of new skills are asked.
    ``linucb_alpha``, ``neighbours``: of the baselines of these names.
    """

    split: str = "test"
    splits: int = Field(default=5, ge=2)
    first_split: int = Field(default=0, ge=0)
    levels: tuple[int, ...] = (5, 20, 50)
    batch: int = Field(default=40, ge=1)
    optimism: float = Field(default=0.0, ge=0)
    linucb_alpha: float = Field(default=0.3, ge=0)
    neighbours: int = Field(default=20, ge=1)


class ReplayRunConfig(Section):
    """Everything that decides a run on a labelled suite."""

    kind: Literal["replay"] = "replay"
    seed: int = Field(default=1, ge=0)
    suite: SuiteConfig = SuiteConfig()
    env: DeploymentConfig = DeploymentConfig()
    memory: MemoryConfig = MemoryConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    retrieval: RetrievalConfig = RetrievalConfig()
    policy: PolicyConfig = PolicyConfig()
    train: StreamConfig = StreamConfig()
    evaluate: TrialConfig = TrialConfig()

    def environment(self, **changes: Any) -> ReplayConfig:
        """The environment's configuration with ``changes`` to its fields.

        Observations are compact unless the policy reads vectors.
        """
        return ReplayConfig.from_keywords(self._fields() | changes)

    def rehearsal(self, **changes: Any) -> RehearsalConfig:
        """The configuration of rehearsals beside :meth:`environment`."""
        known = RehearsalOptions.model_fields
        options = {k: v for k, v in self.train.rehearsal.model_dump().items() if k in known}
        # One step longer than a rollout: only a new rehearsal takes a snapshot.
        more = {"rehearsal": options, "horizon": self.train.rehearsal.steps + 1}
        return RehearsalConfig.from_keywords(self._fields() | more | changes)

    def _fields(self) -> dict[str, Any]:
        return {
            **self.env.model_dump(),
            "suite": self.suite.path,
            "obs": "full" if self.policy.bilinear else "compact",
            "memory": self.memory.model_dump(),
            "evidence": self.evidence.model_dump(),
            "retrieval": self.retrieval.model_dump(),
        }
