"""Rehearsal: solved past decisions, replayed over a memory in which some skills are new again.

A deployment learns most about the skills that it uses most, and forgets how to treat a skill that
nobody has tried. Here it meets such skills again and again: of a snapshot of its memory the
outcomes of the decisions to be replayed are taken out, and random skills lose all of their
outcomes, or all but a few. The choice that was found to work is the right one; every other one
counts as wrong, for nobody knows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from pydantic import Field

from letta_gym.config import Section
from letta_gym.envs.catalogue import Catalogue
from letta_gym.envs.deployment import Deployment, ReplayConfig, no_decisions
from letta_gym.envs.glue import PlayDriver
from letta_gym.envs.single import PlayEnv
from letta_gym.envs.vector import PlayVectorEnv
from letta_gym.errors import ConfigError
from letta_gym.letta.backend import Bool, Int, Outcomes, Requests


class RehearsalOptions(Section):
    """What is changed in the memory that decisions are replayed over.

    ``hidden``: mean share of the skills that lose all of their outcomes; a rehearsal draws its own
    share between 0 and twice that.
    ``cut``, ``cut_to``: share of the other skills that keep only 1 to so many, log-uniform.
    ``focus``: share of the decisions that were solved by a hidden or cut skill, as far as there are
    so many.
    ``opening``: decisions that a rehearsal without a deployment of its own first takes, by
    retrieval.
    """

    hidden: float = Field(default=0.2, ge=0, le=0.5)
    cut: float = Field(default=0.3, ge=0, le=1)
    cut_to: int = Field(default=30, ge=1)
    focus: float = Field(default=0.3, ge=0, le=1)
    opening: int = Field(default=256, ge=1)


class RehearsalConfig(ReplayConfig):
    """Keywords of the rehearsal environment: those of replay, and ``rehearsal``."""

    horizon: int = Field(default=4, ge=1)
    rehearsal: RehearsalOptions = RehearsalOptions()

    def sessions(self, count: int) -> Rehearsal:
        """Rehearsals of ``count`` decisions at once."""
        return Rehearsal(self, count)


class Rehearsal(Deployment):
    """A deployment that replays what another one, the ``source``, has solved.

    Every session is a rehearsal over a snapshot of its own; within it outcomes enter that snapshot,
    so that a skill that was hidden is found again.

    Attributes:
        source: whose memory and decisions are replayed.
        solution: skills that solved the task at hand, -1 padded, shape (B, k).
    """

    config: RehearsalConfig

    def __init__(self, config: RehearsalConfig, count: int) -> None:
        self.source: Deployment | None = None
        self._made: Deployment | None = None  # the source, where none was handed in
        self.solution = np.zeros((count, config.max_skills), np.int64)
        super().__init__(config, count)

    def reset(self, rows: Int, generators: Sequence[np.random.Generator], anew: bool) -> None:
        """Begin a rehearsal over what the source knows now; see :meth:`Deployment.reset`."""
        if anew:
            self.rng = np.random.default_rng(generators[0].integers(2**63, size=2))
            if self.source is self._made:
                self.source = self._made = self._opening()
        if len(rows) == self.count and self.source is not None:
            self._rehearse(self.source)
        self.step_index[rows] = 0
        self.tokens_left[rows] = self.config.token_budget

    def outcomes(self, requests: Requests) -> Outcomes:
        """Success 1 for a choice that holds a skill of the solution, or is as empty as it."""
        skills, solution = requests.skills, self.solution
        chosen = skills >= 0
        right = (skills[:, :, None] == solution[:, None, :]).any(2) & chosen
        idle = ~chosen.any(1) & (solution < 0).all(1)
        success = (right.any(1) | idle).astype(np.float32)
        loaded = np.where(right.any(1, keepdims=True), right, chosen)
        tokens = np.where(chosen, self.catalogue.tokens[np.maximum(skills, 0)], 0).sum(1)
        return Outcomes(
            success, loaded, tokens.astype(np.float32), success, np.ones(len(success), bool)
        )

    def _next(self, count: int) -> Int:
        """The next decisions of the rehearsal, from the first again where there are no more."""
        at = np.arange(self._position, self._position + count) % len(self._solutions)
        self._position += count
        self.solution = self._solutions[at]
        return self._order[at]

    def _begin(self, rng: np.random.Generator) -> None:
        self._solutions = np.full((len(self.stream), self.config.max_skills), -1)
        super()._begin(rng)

    def get_state(self) -> dict[str, Any]:
        """See :meth:`Deployment.get_state`; a source that was handed in is no part of it."""
        made = self._made is not None and self.source is self._made
        return super().get_state() | {
            "solution": self.solution.copy(),
            "solutions": self._solutions.copy(),
            "source": self._made.get_state() if made and self._made is not None else None,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`get_state`."""
        super().set_state(state)
        self.solution, self._solutions = state["solution"].copy(), state["solutions"].copy()
        if state["source"] is not None:
            self.source = self._made = self._opening_deployment()
            self._made.set_state(state["source"])

    def _opening_deployment(self) -> Deployment:
        fields = self.config.model_dump(exclude={"rehearsal"})
        config = ReplayConfig.model_validate(fields | {"slots": "retrieval"})
        return config.sessions(self.config.rehearsal.opening)

    def _opening(self) -> Deployment:
        """A deployment that has chosen by retrieval for a while."""
        source = self._opening_deployment()
        count = source.count
        source.reset(np.arange(count), [self.rng], True)
        source.situation()
        picks = np.full((count, self.config.max_skills), -1)
        picks[:, 0] = 0
        if not (source.step(picks).success >= 0.5).any():
            raise ConfigError(
                f"retrieval solved none of {count} tasks, so there is nothing to rehearse; hand in "
                "a deployment that has solved some"
            )
        return source

    def _rehearse(self, source: Deployment) -> None:
        """Draw decisions to replay and the memory to replay them over."""
        o, tasks = self.config.rehearsal, source.journal()[0]
        loaded, success = source.journal()[1:]
        scarce = self._scarce()
        solved = np.flatnonzero(success >= 0.5)
        by_scarce = np.append(scarce, False).take(loaded[solved]).any(1)  # -1: no skill
        drawn = self._draw(solved, by_scarce)
        self._order, self._solutions, self._position = tasks[drawn], loaded[drawn], 0
        entries = source.memory.entries()
        mine = np.isin(tasks[entries.note], tasks[drawn])
        skill = _skills_of(entries.keys, self.catalogue)[entries.key]
        limit = np.full(len(scarce) + 1, len(skill))  # the last one: outcomes without any skill
        limit[:-1][scarce] = 0
        few = scarce & (self.rng.random(len(scarce)) >= self._hidden_part)
        limit[:-1][few] = np.exp(self.rng.random(int(few.sum())) * np.log(o.cut_to + 1)).astype(int)
        keep = ~mine & self._within(skill, limit, ~mine)
        self.memory = source.memory.kept(entries, keep)
        self._journal, self.decided = [no_decisions(self.config.max_skills)], 0
        self.task = self._next(self.count)

    def _scarce(self) -> Bool:
        """Which skills are to be hidden or cut, shape (N,)."""
        o, n = self.config.rehearsal, len(self.present)
        hidden = 2 * o.hidden * self.rng.random()
        either = hidden + (1 - hidden) * o.cut
        self._hidden_part = hidden / either if either else 0.0
        scarce: Bool = self.rng.random(n) < either
        return scarce

    def _draw(self, solved: Int, by_scarce: Any) -> Int:
        """Decisions to replay, of those ``solved``: ``focus`` of them by scarce skills."""
        total = self.count * self.config.horizon
        focus = min(round(self.config.rehearsal.focus * total), int(by_scarce.sum()))
        first = self.rng.permutation(solved[by_scarce])[:focus]
        rest = self.rng.permutation(np.setdiff1d(solved, first))[: total - focus]
        return self.rng.permutation(np.concatenate([first, rest]))

    def _within(self, skill: Int, limit: Int, usable: Bool) -> Bool:
        """Random outcomes, at most ``limit[skill]`` usable ones of each skill, shape (E,)."""
        order = self.rng.permutation(len(skill))
        order = order[usable[order]]
        order = order[skill[order].argsort(kind="stable")]
        starts = np.flatnonzero(np.diff(skill[order], prepend=-2))
        lengths = np.diff(np.append(starts, len(order)))
        rank = np.arange(len(order)) - starts.repeat(lengths)
        keep = np.zeros(len(skill), bool)
        keep[order[rank < limit[skill[order]]]] = True
        return keep


def _skills_of(keys: Sequence[str], catalogue: Catalogue) -> Int:
    """Index of the skill of each key, -1 for outcomes without any."""
    place = {key: i - 1 for i, key in enumerate(catalogue.keys)}
    return np.array([place.get(key, -1) for key in keys], np.int64)


class RehearsalDriver(PlayDriver):
    """Drives rehearsals."""

    config: RehearsalConfig
    pool: Catalogue
    sessions: Rehearsal


class RehearsalEnv(PlayEnv):
    """
    ## Description

    Decisions that a deployment has solved are taken again, over a snapshot of its memory that lacks
    their own outcomes, and in which some skills have no outcome, or few. An episode is one such
    rehearsal; what is found out in it enters its snapshot.

    ## Action Space, Observation Space

    Those of :class:`letta_gym.envs.single.SkillSelectionEnv`.

    ## Rewards

    1 for a choice that holds a skill that solved the task then, or for the empty one where the
    agent solved it alone; less ``token_price`` for every 1,000 tokens of the chosen skills.

    ## Starting State

    ``driver.sessions.source`` is the deployment whose decisions are replayed. Without one, the
    first reset makes one that takes ``rehearsal.opening`` decisions by retrieval.

    ## Episode End

    Truncated after ``horizon`` decisions.

    ## Arguments

    The fields of :class:`RehearsalConfig`.

    ## Version History

    * v0: first version.
    """

    driver: RehearsalDriver
    config: RehearsalConfig

    def drive(self, keywords: Mapping[str, Any]) -> RehearsalDriver:
        """What drives one decision of a rehearsal after the other."""
        return RehearsalDriver(RehearsalConfig.from_keywords(keywords), 1)


class RehearsalVectorEnv(PlayVectorEnv):
    """See :class:`RehearsalEnv` for the specification.

    All sub-environments take part in one rehearsal, and learn from it after each step. One that a
    spent budget ends early goes on in the rehearsal at hand.
    """

    driver: RehearsalDriver
    config: RehearsalConfig

    def drive(self, keywords: Mapping[str, Any], count: int) -> RehearsalDriver:
        """What drives ``count`` decisions of a rehearsal at once."""
        return RehearsalDriver(RehearsalConfig.from_keywords(keywords), count)
