"""What one agent's outcomes say to another: recommendations, and bundles that carry skills along.

For each skill the agents' success rates are taken to come from one Beta distribution, the pool. Its
mean and spread are estimated from all agents (Kleinman, JASA 68 (1973)), each agent is shrunk
towards it, and an agent without outcomes is expected to be like the pool, no surer than its spread
allows. Outcomes count by how much their tasks are like those of the agent that asks.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from letta_gym.config import Section
from letta_gym.errors import BundleError, SkillError
from letta_gym.feedback.beta import Beta, Rate
from letta_gym.feedback.evidence import kernel
from letta_gym.files import write_atomically
from letta_gym.library.embeddings import VectorSpace
from letta_gym.library.skills import Skill
from letta_gym.library.vectors import EmbedderIdentity, from_units, to_units
from letta_gym.sealed import SealError, seal, unseal

Float = NDArray[np.float32]
Int = NDArray[np.int64]

_FORMAT = 1
_PRIOR_AGENTS = 2.0


class TransferConfig(Section):
    """How far evidence travels.

    ``discount``: share of a bundle's outcomes that the receiving agent learns from.
    ``newest``: outcomes of each skill that a bundle carries at most.
    ``bandwidth``: how alike tasks must be, as in the evidence of the runtime.
    ``least_outcomes``: outcomes on like tasks below which nothing is recommended.
    ``prior_mean``, ``prior_strength``: success rate before any outcome, and its worth.
    ``prior_spread``: outcomes that the pool is worth to an agent of its own, where one agent's
    outcomes are all there is.
    """

    discount: float = Field(default=0.5, gt=0, le=1)
    newest: int = Field(default=200, ge=1)
    bandwidth: float = Field(default=0.12, gt=0)
    least_outcomes: float = Field(default=5.0, ge=0)
    prior_mean: float = Field(default=0.45, gt=0, lt=1)
    prior_strength: float = Field(default=2.0, gt=0)
    prior_spread: float = Field(default=10.0, gt=0)
    confidence: float = Field(default=0.95, gt=0, lt=1)


@dataclass(frozen=True, eq=False, slots=True)
class AgentEvidence:
    """Outcomes of one agent with one skill: task vectors (E, D) and success (E,)."""

    agent: str
    key: str
    vectors: Float
    success: Float


@dataclass(frozen=True, slots=True)
class Pool:
    """The distribution that the agents' success rates come from: its mean, and what it is worth."""

    mean: float
    spread: float
    outcomes: float

    def shrunk(self, good: float, bad: float) -> Beta:
        """What is believed of an agent with outcomes of its own."""
        return Beta.around(self.mean, self.spread).after(good, bad)

    def predicted(self) -> Beta:
        """What is believed of an agent without: the pool's spread and its own uncertainty."""
        worth = self.spread * self.outcomes / (self.spread + self.outcomes)
        return Beta.around(self.mean, worth)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A skill that did well for others on tasks like those of the agent that asks.

    ``expected`` is its success rate there, ``outcomes`` on how many like tasks that rests (a sum of
    similarities), and ``agents`` of whom, the best first.
    """

    key: str
    expected: Rate
    outcomes: float
    agents: tuple[str, ...]


def pool(good: Sequence[float], bad: Sequence[float], config: TransferConfig) -> Pool:
    """Estimate the pool from the successes and failures of each agent; they need not be whole.

    The spread comes from the moments: with p the common rate, n the agents' outcomes, N their sum
    and A their number, the share of the variance that lies between agents is

        rho = (sum n (p_a - p)^2 - p (1 - p) (A - 1)) / (p (1 - p) (N - sum n^2 / N - (A - 1)))

    and the spread 1 / rho - 1. Few agents say little of rho, so the prior's counts as two agents.
    """
    s = np.asarray(good, np.float64)
    n = s + np.asarray(bad, np.float64)
    s, n = s[n > 0], n[n > 0]
    total, agents = float(n.sum()), len(n)
    strength = config.prior_strength
    mean = (float(s.sum()) + strength * config.prior_mean) / (total + strength)
    rho = prior_rho = 1 / (1 + config.prior_spread)
    within = mean * (1 - mean)
    room = within * (total - float((n**2).sum()) / max(total, 1e-9) - (agents - 1))
    if agents > 1 and room > 0:
        between = float((n * (s / n - mean) ** 2).sum()) - within * (agents - 1)
        found = min(max(between / room, 0.0), 1.0)
        rho = ((agents - 1) * found + _PRIOR_AGENTS * prior_rho) / (agents - 1 + _PRIOR_AGENTS)
    return Pool(mean, 1 / rho - 1, total + strength)


def recommend(
    evidence: Sequence[AgentEvidence], tasks: Float, config: TransferConfig | None = None
) -> list[Recommendation]:
    """Skills that others did well with, for an agent with the given tasks; the surest first.

    Args:
        evidence: outcomes of other agents.
        tasks: snapped vectors of tasks of the agent that asks, shape (n, D).
        config: the constants.
    """
    config = config or TransferConfig()
    counts: dict[str, list[tuple[str, float, float]]] = defaultdict(list)
    for one in evidence:
        if len(one.success) and len(tasks):
            near = kernel((one.vectors @ tasks.T).max(axis=1), config.bandwidth)
            good, all_ = float(near @ one.success), float(near.sum())
            counts[one.key].append((one.agent, good, all_ - good))
    found = []
    for key, each in counts.items():
        outcomes = sum(good + bad for _, good, bad in each)
        if outcomes < config.least_outcomes:
            continue
        of_all = pool([good for _, good, _ in each], [bad for _, _, bad in each], config)
        ranked = sorted(each, key=lambda one: -of_all.shrunk(one[1], one[2]).mean)
        expected = of_all.predicted().interval(config.confidence)
        agents = tuple(agent for agent, _, _ in ranked)
        found.append(Recommendation(key, expected, outcomes, agents))
    return sorted(found, key=lambda one: (-one.expected.low, one.key))


@dataclass(frozen=True, eq=False)
class Bundle:
    """Skills with the outcomes of one agent.

    Attributes:
        source: the agent's name.
        skills: the skills, length n.
        skill: which of them each outcome is of, shape (E,).
        vectors: snapped task vectors, shape (E, D).
        success, fit: of each outcome, shape (E,).
        space: whose vectors they are; None where that is not known.
    """

    source: str
    skills: tuple[Skill, ...]
    skill: Int
    vectors: Float
    success: Float
    fit: Float
    space: VectorSpace | None = None

    def to_bytes(self) -> bytes:
        """A sealed file; the same bundle gives the same bytes."""
        tensors: dict[str, NDArray[Any]] = {
            "skill": self.skill.astype(np.int16),
            "vectors": to_units(self.vectors),
            "success": self.success.astype(np.float32),
            "fit": self.fit.astype(np.float32),
        }
        if self.space is not None:
            tensors["probes"] = self.space.probes.astype(np.float32)
        header = {
            "format": _FORMAT,
            "kind": "bundle",
            "source": self.source,
            "embedder": None if self.space is None else self.space.identity.to_json(),
            "skills": [
                {
                    "id": skill.id,
                    "name": skill.name,
                    "description": skill.description,
                    "body": skill.body,
                    "tokens": skill.tokens,
                    "content_hash": skill.content_hash,
                }
                for skill in self.skills
            ],
        }
        return seal(tensors, header)

    @classmethod
    def from_bytes(cls, data: bytes) -> Bundle:
        """Read what :meth:`to_bytes` wrote.

        Raises:
            BundleError: any byte differs, or it is something else.
        """
        try:
            tensors, header = unseal(data)
            return cls._read(tensors, header)
        except BundleError:
            raise
        except (SealError, SkillError, KeyError, TypeError, ValueError) as error:
            raise BundleError(f"this is no bundle, or a damaged one: {error}") from error

    @classmethod
    def load(cls, path: Path | str) -> Bundle:
        """Read a file.

        Raises:
            BundleError: it cannot be read, or is damaged.
        """
        try:
            return cls.from_bytes(Path(path).read_bytes())
        except OSError as error:
            raise BundleError(f"cannot read the bundle {path}: {error.strerror}") from error

    def save(self, path: Path | str) -> None:
        """Write a file, whole or not at all."""
        write_atomically(path, self.to_bytes())

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the file."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    def thinned(self, share: float) -> Int:
        """Positions of the newest ``share`` of each skill's outcomes, in order, shape (E',)."""
        kept = []
        for number in range(len(self.skills)):
            mine = np.flatnonzero(self.skill == number)
            kept.append(mine[len(mine) - round(share * len(mine)) :])
        order: Int = np.sort(np.concatenate(kept)) if kept else np.zeros(0, np.int64)
        return order

    @classmethod
    def _read(cls, tensors: Mapping[str, NDArray[Any]], header: Mapping[str, Any]) -> Bundle:
        if (header["kind"], header["format"]) != ("bundle", _FORMAT):
            raise BundleError(
                f"a bundle of format {_FORMAT} is needed; "
                f"got {header['kind']} of format {header['format']}"
            )
        skills = []
        for said in header["skills"]:
            one = Skill(**{name: value for name, value in said.items() if name != "content_hash"})
            if one.content_hash != said["content_hash"]:
                raise BundleError(f"the skill {one.id!r} is not what its hash says")
            skills.append(one)
        skill = tensors["skill"].astype(np.int64)
        if ((skill < 0) | (skill >= len(skills))).any():
            raise BundleError("an outcome is of a skill that the bundle lacks")
        space = None
        if header.get("embedder") is not None:
            space = VectorSpace(EmbedderIdentity(**header["embedder"]), tensors["probes"])
        return cls(
            header["source"],
            tuple(skills),
            skill,
            from_units(tensors["vectors"]),
            tensors["success"],
            tensors["fit"],
            space,
        )
