"""What the single and the batched environment share: configuration, spaces, one step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any, Literal, Protocol

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from letta_gym.config import resolve
from letta_gym.envs.pool import Pool, build
from letta_gym.envs.sessions import SessionConfig, Sessions
from letta_gym.errors import ConfigError
from letta_gym.feedback.evidence import EvidenceConfig, Rows, flat
from letta_gym.letta.backend import Outcomes
from letta_gym.letta.mock import MockConfig
from letta_gym.library.suite import Suite, bundled_suite
from letta_gym.selection.candidates import RetrievalConfig, affordable
from letta_gym.selection.observation import CONTEXT, FEATURES, Column, Situation, context, features

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]
Arrays = dict[str, NDArray[Any]]


class EnvConfig(SessionConfig):
    """Keywords of the mock environment.

    ``suite``: folder of a task suite with vectors, or "bundled". ``obs``: "full" with the vectors
    of task and skills, "compact" without.
    """

    suite: str = "bundled"
    obs: Literal["full", "compact"] = "full"
    mock: MockConfig = MockConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    retrieval: RetrievalConfig = RetrievalConfig()

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> EnvConfig:
        """Validate the keywords of ``gymnasium.make``.

        Raises:
            ConfigError: an unknown keyword, with the nearest known one, or a value out of range.
        """
        return resolve(cls, keywords, "the environment's configuration")

    def pool(self) -> Pool:
        """The task pool of the suite, built once for each configuration."""
        return _pool(self.suite, self.twin_cosine, self.retrieval, self.evidence)

    def sessions(self, count: int) -> Sessions:
        """``count`` sessions of the mock."""
        return Sessions(self.pool(), self, self.mock, self.evidence, count)


@lru_cache(maxsize=4)
def _pool(
    suite: str, twin_cosine: float, retrieval: RetrievalConfig, evidence: EvidenceConfig
) -> Pool:
    loaded = bundled_suite() if suite == "bundled" else Suite.load(suite)
    return build(loaded, retrieval, evidence, twin_cosine)


class Tables(Protocol):
    """What a suite gives to every kind of session."""

    @property
    def suite(self) -> Suite:
        """The suite."""
        ...

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the skills, length N."""
        ...

    @property
    def task_vectors(self) -> Float:
        """Snapped, shape (T, D)."""
        ...

    @property
    def skill_vectors(self) -> Float:
        """Snapped, shape (N, D)."""
        ...


class Play(Protocol):
    """B sessions between their decisions: the mock's, or those of a deployment.

    Attributes:
        tokens_left, step_index: of each session, shape (B,).
        cheapest: tokens of the cheapest skill of each session, shape (B,).
        outcomes: outcomes in memory at its decision, shape (B,).
    """

    tokens_left: Float
    step_index: Int
    cheapest: Float

    @property
    def task(self) -> Int:
        """Task to decide on now, shape (B,)."""
        ...

    @property
    def done(self) -> Int:
        """Task that was decided on last, shape (B,)."""
        ...

    def reset(self, rows: Int, generators: Sequence[np.random.Generator], anew: bool) -> None:
        """Begin new sessions in ``rows`` (R,); ``anew`` where a seed was given."""
        ...

    def situation(self) -> Situation:
        """Everything that is known about the decisions to take now."""
        ...

    def slot_skills(self) -> Int:
        """Index of the skill in each slot, shape (B, M)."""
        ...

    def slot_present(self) -> Bool:
        """Whether the skill in each slot may be chosen, shape (B, M)."""
        ...

    def slot_new(self) -> Bool:
        """Whether the skill in each slot is new, shape (B, M)."""
        ...

    def step(self, picks: Int) -> Outcomes:
        """Carry out slot picks (B, k), -1 padded."""
        ...

    def introduction(self) -> tuple[str, ...]:
        """What the first session begins with, line by line."""
        ...

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on: copies of arrays, and JSON values."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`get_state`."""
        ...


class Setup(Protocol):
    """The configuration of an environment, as far as all kinds share it."""

    @property
    def max_skills(self) -> int:
        """k, most skills of one choice."""
        ...

    @property
    def candidates(self) -> int:
        """M, slots of one decision."""
        ...

    @property
    def horizon(self) -> int:
        """Tasks of a session."""
        ...

    @property
    def token_price(self) -> float:
        """Reward that 1,000 tokens cost."""
        ...

    @property
    def obs(self) -> Literal["full", "compact"]:
        """Whether an observation holds the vectors."""
        ...

    @property
    def evidence(self) -> EvidenceConfig:
        """Constants of the evidence."""
        ...

    def pool(self) -> Tables:
        """The tables of the suite."""
        ...

    def sessions(self, count: int) -> Play:
        """``count`` sessions."""
        ...


def observation_space(config: Setup, dimension: int) -> spaces.Dict:
    """Space of one observation with D-dimensional vectors."""
    m = config.candidates
    parts: dict[str, spaces.Space[Any]] = {
        "features": _box(FEATURES, (m,)),
        "context": _box(CONTEXT, ()),
        "action_mask": spaces.Box(0, 1, (m,), np.int8),
    }
    if config.obs == "full":
        parts["task"] = spaces.Box(-1, 1, (dimension,), np.float32)
        parts["skills"] = spaces.Box(-1, 1, (m, dimension), np.float32)
    return spaces.Dict(parts)


def _box(columns: Sequence[Column], shape: tuple[int, ...]) -> spaces.Box:
    full = (*shape, len(columns))
    low = np.broadcast_to(np.array([c.low for c in columns], np.float32), full)
    high = np.broadcast_to(np.array([c.high for c in columns], np.float32), full)
    return spaces.Box(low.copy(), high.copy(), dtype=np.float32)


def checked_action(action: Any, shape: tuple[int, ...]) -> NDArray[Any]:
    """The action as an array of ``shape``, of zeros and ones.

    Raises:
        ConfigError: it has another shape, or other numbers.
    """
    array = np.asarray(action)
    if array.shape != shape:
        raise ConfigError(f"an action has one bit a slot, shape {shape}; got shape {array.shape}")
    if not ((array == 0) | (array == 1)).all():
        raise ConfigError(f"the bits of an action are 0 or 1; got {np.unique(array)[:8]}")
    return array


def _put(situation: Situation, rows: Int, part: Situation) -> None:
    """Replace what is known about the decisions ``rows`` (R,) by ``part``, of R decisions."""
    for field in fields(Situation):
        whole, new = getattr(situation, field.name), getattr(part, field.name)
        if isinstance(whole, Rows):
            whole.table[:, rows] = new.table
        elif field.name == "alike":
            whole[:, rows] = new
        else:
            whole[rows] = new


@dataclass(frozen=True, slots=True)
class Step:
    """What one action of every session led to; arrays of shape (B,) unless said otherwise.

    ``picks`` are the slots carried out, in slot order, -1 padded, (B, k); ``dropped`` counts bits
    of the action that were not: masked, beyond k, or beyond the budget; ``new_skills`` how many of
    the skills carried out are new in their session.
    """

    reward: Float
    terminated: Bool
    truncated: Bool
    picks: Int
    dropped: Int
    new_skills: Int
    outcomes: Outcomes
    price: Float


class PlayDriver:
    """Drives sessions by actions and turns situations into observations."""

    config: Setup
    pool: Tables
    sessions: Play

    def __init__(self, config: Setup, count: int) -> None:
        self.config = config
        self.pool = config.pool()
        self.sessions = config.sessions(count)
        self.situation: Situation | None = None
        # One more row, of zeros, for slots without a skill.
        self._skill_vectors = np.pad(self.pool.skill_vectors, ((0, 1), (0, 0)))

    @property
    def dimension(self) -> int:
        """D, length of the vectors."""
        return int(self.pool.task_vectors.shape[1])

    def slot_skills(self) -> Int:
        """Pool index of the skill in each slot of the decisions at hand, shape (B, M)."""
        return self.sessions.slot_skills()

    def observe(self) -> Arrays:
        """Fresh arrays of the current observation of every session."""
        self.situation = self.sessions.situation()
        return self._arrays(self.situation, slice(None))

    def restart(
        self, rows: Int, generators: Sequence[np.random.Generator], shown: Arrays
    ) -> Arrays:
        """Begin new sessions in ``rows`` (R,) that have ended, each from its own generator.

        Args:
            rows: the sessions.
            generators: of these sessions.
            shown: the current observation; its ``rows`` become those of the new sessions.

        Returns:
            The last observations of ``rows``, in arrays like ``shown`` that are 0 elsewhere.
        """
        final = {name: np.zeros_like(array) for name, array in shown.items()}
        for name, array in shown.items():
            final[name][rows] = array[rows]
        self.sessions.reset(rows, generators, anew=False)
        for name, array in self._look_again(rows).items():
            shown[name][rows] = array
        return final

    def _look_again(self, rows: Int) -> Arrays:
        """Observations of ``rows`` (R,), which have changed."""
        return {name: array[rows] for name, array in self.observe().items()}

    def _arrays(self, situation: Situation, rows: Int | slice) -> Arrays:
        """The observation of ``rows`` from their situation."""
        f = features(situation, self.config.evidence, self.config.token_price / 1000)
        arrays: Arrays = {
            "features": f,
            "context": context(situation, f),
            "action_mask": situation.mask.astype(np.int8),
        }
        if self.config.obs == "full":
            s = self.sessions
            arrays["task"] = self.pool.task_vectors.take(s.task[rows], 0)
            skills = np.where(s.slot_present()[rows], s.slot_skills()[rows], len(self.pool.ids))
            arrays["skills"] = self._skill_vectors.take(skills, 0)
        return arrays

    def picks(self, action: NDArray[Any]) -> tuple[Int, Int]:
        """Slots to carry out (B, k), and how many bits of ``action`` (B, M) are dropped (B,)."""
        assert self.situation is not None
        situation, k = self.situation, self.config.max_skills
        wanted = action.astype(bool)
        picks = affordable(wanted & situation.mask, situation.tokens, situation.tokens_left, k)
        return picks, wanted.sum(1) - (picks >= 0).sum(1)

    def step(self, action: NDArray[Any]) -> Step:
        """Carry the action out in every session; the situation must be observed anew after."""
        picks, dropped = self.picks(action)
        s, c = self.sessions, self.config
        new = s.slot_new().take(flat(np.maximum(picks, 0), c.candidates))
        out = s.step(picks)
        price = np.float32(c.token_price / 1000) * out.tokens
        spent = s.tokens_left < s.cheapest
        over = s.step_index >= c.horizon
        ended = spent, over & ~spent
        tried = (new & (picks >= 0)).sum(1)
        return Step(out.success - price, *ended, picks, dropped, tried, out, price)


class Driver(PlayDriver):
    """Drives sessions of the mock."""

    config: EnvConfig
    pool: Pool
    sessions: Sessions

    def _look_again(self, rows: Int) -> Arrays:
        """Observations of ``rows`` (R,), which have changed; nothing is computed for the others."""
        assert self.situation is not None
        part = self.sessions.situation(rows)
        _put(self.situation, rows, part)
        return self._arrays(part, rows)
