"""B sessions stepped together: task streams, installed skills, opening histories, evidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from letta_gym.config import Section
from letta_gym.envs.history import Historian, occurring, starts
from letta_gym.envs.ledger import Ledger
from letta_gym.envs.pool import Pool
from letta_gym.errors import ConfigError
from letta_gym.feedback.evidence import (
    EvidenceConfig,
    alone_nearby,
    alone_rate,
    flat,
    judge,
)
from letta_gym.letta.backend import Outcomes, Requests
from letta_gym.letta.draws import Draws, Layout
from letta_gym.letta.mock import MockConfig, MockWorld
from letta_gym.selection import candidates, observation

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

CHUNK = 32
"""Sessions that are begun together."""


class SessionConfig(Section):
    """How a session looks; defaults are the calibrated ones of ``configs/mock.yaml``."""

    max_skills: int = Field(default=3, ge=1, le=4)
    candidates: int = Field(default=12, ge=1)
    horizon: int = Field(default=64, ge=1)
    token_budget: float = Field(default=100_000, gt=0)
    token_price: float = Field(default=0.04, ge=0)
    world: Literal["fresh", "fixed"] = "fresh"
    world_seed: int = 0
    split: str = "train"
    slots: Literal["evidence", "retrieval"] = "evidence"
    installed: int = Field(default=16, ge=1)
    twin_share: float = Field(default=0.6, ge=0, le=1)
    twin_cosine: float = Field(default=0.97, gt=0, lt=1)
    new_share: float = Field(default=0.15, ge=0, le=1)
    none_share: float = Field(default=0.14, ge=0, le=1)
    pair_share: float = Field(default=0.12, ge=0, le=1)
    topic_exponent: float = Field(default=1.2, ge=0)
    stream_share: float = Field(default=0.34, gt=0, le=1)
    history: tuple[int, int] = (400, 3200)
    history_empty: float = Field(default=0.05, ge=0, le=1)
    history_none: float = Field(default=0.15, ge=0, le=1)
    history_temperature: float = Field(default=0.05, gt=0)


class Sessions:
    """State of B sessions over one pool, and the transitions between their decisions."""

    STATE = frozenset(
        {
            *("step_index", "tokens_left", "cheapest", "outcomes"),
            *("stream", "skills", "present", "new", "slots"),
        }
    )

    def __init__(
        self,
        pool: Pool,
        config: SessionConfig,
        mock: MockConfig,
        evidence: EvidenceConfig,
        count: int,
    ) -> None:
        self.pool, self.config, self.evidence_config = pool, config, evidence
        self.count = count
        n_skills = len(pool.ids)
        self.originals = np.flatnonzero(pool.origin == np.arange(n_skills))
        twins = np.flatnonzero(pool.origin != np.arange(n_skills))
        self.twins = twins[np.argsort(pool.origin[twins])]
        self.width = 2 * config.installed
        B, L, T = count, self.width, config.horizon
        self.world = MockWorld(
            mock, pool.relevant, pool.topic, pool.origin, pool.tokens, B, T, config.max_skills
        )
        self.step_index = np.zeros(B, np.int64)
        self.tokens_left = np.zeros(B, np.float32)
        self.stream = np.zeros((B, T), np.int64)
        self.skills = np.zeros((B, L), np.int64)
        self.present = np.zeros((B, L), bool)
        self.new = np.zeros((B, L), bool)
        self.slots = np.zeros((B, config.candidates), np.int64)
        self._fit = np.zeros((B, config.candidates), np.float32)  # of the slots' skills
        self.outcomes = np.zeros(B, np.float32)
        self.cheapest = np.zeros(B, np.float32)
        self.ledger = Ledger(pool, B, L, T)
        names = ["train"] if config.split == "train" else ["train", "validation", config.split]
        self.asked = np.flatnonzero(np.isin(pool.split, names))
        self._lay_out(n_skills)
        self._split = pool.split[self.asked]
        single = pool.relevant[self.asked][:, self.originals]
        self._need = single.sum(1)
        self._member = single.astype(np.float64)
        # Tasks in the order of their one skill; those of none or more stand together, too.
        skill = np.where(self._need == 1, single.argmax(1), single.shape[1])
        self._by_skill = skill.argsort(kind="stable")
        self._first = starts(skill[self._by_skill])
        self._skill_of = np.unique(skill, return_inverse=True)[1]
        self._reach = single.any(0)
        self._check()
        self.historian = Historian(
            pool, evidence, self.world, config.history_temperature, config.history_none
        )

    def _lay_out(self, n_skills: int) -> None:
        """Name the draws of a session; a fixed world makes its own once and for all."""
        c, S = self.config, len(self.originals)
        world = {"installed": S, "popularity": S, "twin": S, "side": S, "new": n_skills}
        world |= self.world.world_sizes()
        episode = {"part": len(self.asked), "task": c.horizon, "length": 1, "empty": 1}
        episode |= self.world.step_sizes()
        self._fixed: dict[str, NDArray[np.float64]] = {}
        if c.world == "fixed":
            self._fixed = Layout(world).draw([np.random.default_rng(c.world_seed)])
            self._layout = Layout(episode)
        else:
            self._layout = Layout(world | episode)

    # -- reset -------------------------------------------------------------------------------

    def reset(
        self, rows: Int, generators: Sequence[np.random.Generator], anew: bool = True
    ) -> None:
        """Begin a new session in ``rows`` (R,), each from its own generator.

        Every session of the mock is a world of its own, so ``anew`` changes nothing.
        """
        # A few at a time: their draws then stay in the processor's cache.
        for first in range(0, len(rows), CHUNK):
            part = slice(first, first + CHUNK)
            self._begin(rows[part], generators[part])

    def _begin(self, rows: Int, generators: Sequence[np.random.Generator]) -> None:
        c, p = self.config, self.pool
        draws = self._layout.draw(generators)
        draws |= self._fixed  # of one row, so that what follows from them has one row too
        streamed, past = self._parts(draws["part"])
        chosen, broken = self._install(rows, draws)
        popular = np.zeros((len(chosen), len(self.originals)))
        order = np.argsort(np.argsort(np.take_along_axis(draws["popularity"], chosen, 1), 1), 1)
        np.put_along_axis(popular, chosen, (1.0 + order) ** -c.topic_exponent, 1)
        weights, before = self._task_weights(popular, streamed, past)
        # A small stream_share may leave a session no task of its skills: then any of its split.
        weights[weights.sum(1) == 0] = self._split == c.split
        self.stream[rows] = self.asked[_pick(weights, draws["task"])]
        self.world.reset(rows, draws, broken)
        self.step_index[rows] = 0
        self.tokens_left[rows] = c.token_budget
        price = np.where(self.present[rows], p.tokens[self.skills[rows]], np.inf)
        self.cheapest[rows] = price.min(1)
        self._write_history(rows, before, draws, generators)

    def _parts(self, part: NDArray[np.float64]) -> tuple[Bool, Bool]:
        """Which of the tasks ``asked`` may come now, and which may have come before; (R, A)."""
        if self.config.split == "train":
            now = part < self.config.stream_share
            return now, ~now
        earlier = ["train"] if self.config.split == "validation" else ["train", "validation"]
        shape = part.shape
        return (
            np.broadcast_to(self._split == self.config.split, shape),
            np.broadcast_to(np.isin(self._split, earlier), shape),
        )

    def _check(self) -> None:
        c, most = self.config, int(self._reach.sum())
        self.pool.suite.split(c.split)
        if c.installed > most:
            raise ConfigError(
                f"installed must be at most {most}, the skills that the split {c.split!r} may "
                f"meet; got {c.installed}"
            )
        if c.candidates > 2 * c.installed:
            raise ConfigError(
                f"candidates must be at most {2 * c.installed} = 2 x installed, as a session's "
                f"library has no more skills, look-alikes included; got {c.candidates}"
            )
        if not 1 <= c.history[0] <= c.history[1]:
            raise ConfigError(
                "history must be (fewest, most) outcomes with 1 <= fewest <= most; "
                f"got {c.history}; for sessions without a history set history_empty=1"
            )

    def _install(self, rows: Int, draws: Draws) -> tuple[Int, Bool]:
        """Fill the libraries of ``rows``.

        Returns:
            Which of the original skills are installed, (R, installed), and which skills of the
            pool are broken: one of each pair of look-alikes, (R, N). In a fixed world R is 1.
        """
        c = self.config
        ease = np.where(self._reach, draws["installed"], 9.0)
        chosen = np.sort(np.argsort(ease, 1)[:, : c.installed], 1)
        original, twin = self.originals[chosen], self.twins[chosen]
        has_twin = np.take_along_axis(draws["twin"], chosen, 1) < c.twin_share
        skills = np.concatenate([original, twin], 1)
        present = np.concatenate([np.ones_like(has_twin), has_twin], 1)
        order = np.argsort(skills, 1, kind="stable")
        self.skills[rows] = np.take_along_axis(skills, order, 1)
        self.present[rows] = np.take_along_axis(present, order, 1)
        self.new[rows] = np.take_along_axis(draws["new"], self.skills[rows], 1) < c.new_share
        side = np.take_along_axis(draws["side"], chosen, 1) < 0.5
        broken = np.zeros((len(chosen), len(self.pool.ids)), bool)
        np.put_along_axis(broken, original, has_twin & side, 1)
        np.put_along_axis(broken, twin, has_twin & ~side, 1)
        return chosen, broken

    def _task_weights(
        self, popular: NDArray[np.float64], *allowed: Bool
    ) -> list[NDArray[np.float64]]:
        """Probability of each task in each session, (R, A), for each set that is ``allowed``."""
        c = self.config
        wanted = popular @ self._member.T
        installed = (popular > 0) @ self._member.T == self._need
        result = []
        for these in allowed:
            # Tasks of one skill share its popularity.
            single = these & (self._need == 1)
            alike = np.add.reduceat(single.take(self._by_skill, 1), self._first, 1, np.float64)
            per_skill = (1 / np.maximum(alike, 1)).take(self._skill_of, 1)
            shares = (
                these & (self._need == 0),
                single * wanted * per_skill,
                (these & installed & (self._need > 1)) * wanted,
            )
            none, one, more = (s.sum(1, keepdims=True, dtype=np.float64) for s in shares)
            pair = c.pair_share * (more > 0)
            weights = shares[0] * (c.none_share / np.maximum(none, 1))
            weights += shares[1] * ((1 - c.none_share) * (1 - pair) / np.where(one > 0, one, 1))
            weights += shares[2] * ((1 - c.none_share) * pair / np.where(more > 0, more, 1))
            result.append(weights)
        return result

    def _write_history(
        self,
        rows: Int,
        weights: NDArray[np.float64],
        draws: Draws,
        generators: Sequence[np.random.Generator],
    ) -> None:
        low, high = self.config.history
        length = np.exp(np.log(low) + np.log(high / low) * draws["length"][:, 0]).astype(np.int64)
        nothing = weights.sum(1) == 0
        weights[nothing, 0] = 1  # of no consequence: none is drawn
        length[nothing | (draws["empty"][:, 0] < self.config.history_empty)] = 0
        self.outcomes[rows] = length
        usable = self.present[rows] & ~self.new[rows]
        tasks, share = occurring(weights)
        past = self.historian.write(
            rows, self.skills[rows], usable, self.asked[tasks], share, length, generators
        )
        self.ledger.load(past, self.stream[rows])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Every array that changes from step to step, by a dotted name; the arrays themselves."""
        return {
            f"{prefix}{name}": value
            for prefix, owner in (("", self), ("world.", self.world), ("ledger.", self.ledger))
            for name, value in sorted(vars(owner).items())
            if name in owner.STATE
        }

    def get_state(self) -> dict[str, Any]:
        """Copies of :meth:`arrays`."""
        return {name: array.copy() for name, array in self.arrays().items()}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`get_state`."""
        for name, array in self.arrays().items():
            array[...] = state[name]

    def slot_skills(self) -> Int:
        """Pool index of the skill in each slot, shape (B, M)."""
        return self.skills.take(flat(self.slots, self.width))

    def slot_new(self) -> Bool:
        """Whether the skill in each slot is new in its session, shape (B, M)."""
        return self.new.take(flat(self.slots, self.width))

    def slot_present(self) -> Bool:
        """Whether each slot holds an installed skill, shape (B, M)."""
        return self.present.take(flat(self.slots, self.width))

    # -- decide ------------------------------------------------------------------------------

    @property
    def task(self) -> Int:
        """Task to decide on now, shape (B,)."""
        rows = np.arange(self.count)
        now: Int = self.stream[rows, np.minimum(self.step_index, self.config.horizon - 1)]
        return now

    @property
    def done(self) -> Int:
        """Task that was decided on last, shape (B,)."""
        last: Int = self.stream[np.arange(self.count), self.step_index - 1]
        return last

    def introduction(self) -> tuple[str, ...]:
        """Length of the first session's history, and its skills."""
        names = ", ".join(self.pool.ids[i] for i in self.skills[0][self.present[0]])
        return f"{int(self.outcomes[0])} outcomes in memory", f"installed: {names}"

    def situation(self, rows: Int | slice = slice(None)) -> observation.Situation:
        """Everything that is known about the decisions to take now, here or in ``rows`` alone."""
        p, c = self.pool, self.config
        library, present, step = self.skills[rows], self.present[rows], self.step_index[rows]
        line = len(p.ids) * self.task[rows, None]  # where the scores of each task begin
        retrieval = p.retrieval.take(line + library)
        evidence = self.ledger.at(np.minimum(step, c.horizon - 1), rows)
        mine, alone = evidence.columns(slice(0, -1)), evidence.columns(slice(-1, None))
        best = np.where(present, retrieval, -np.inf).max(1, keepdims=True)
        general = alone_rate(alone, self.evidence_config)
        judgement = judge(retrieval, best, mine, general, self.evidence_config)
        score = judgement.closed_form if c.slots == "evidence" else retrieval
        slots = candidates.rank(score, present, c.candidates)
        judgement = judgement.take(slots)
        self.slots[rows], self._fit[rows] = slots, judgement.fit

        at = flat(slots, self.width)
        skills = library.take(at)
        tokens = p.tokens.take(skills)
        tokens_left = self.tokens_left[rows, None]
        return observation.Situation(
            scores=observation.Scores(p.scores.reshape(3, -1).take(line + skills, 1)),
            evidence=evidence.take(slots),
            judgement=judgement,
            alone=alone,
            alone_rate=general,
            alone_nearby=alone_nearby(alone, general, self.evidence_config),
            alike=observation.alike_slots(p.alike, skills),
            tokens=tokens,
            mask=present.take(at) & (tokens <= tokens_left),
            tokens_left=tokens_left,
            budget=np.full_like(tokens_left, c.token_budget),
            tasks_left=(c.horizon - step[:, None]).astype(np.float32),
            horizon=np.full_like(tokens_left, c.horizon),
            outcomes=self.outcomes[rows, None],
        )

    # -- act ---------------------------------------------------------------------------------

    def step(self, picks: Int) -> Outcomes:
        """Carry out slot picks (B, k), -1 padded; updates evidence, budget and clock."""
        place = flat(np.maximum(picks, 0), self.config.candidates)
        slot, meant = self.slots.take(place), self._fit.take(place)
        skill = np.where(picks >= 0, self.skills.take(flat(slot, self.width)), -1)
        task = self.task
        out = self.world.execute(Requests(np.arange(self.count), task, skill))
        self.ledger.record(self.step_index, task, slot, out, meant)
        self.outcomes += np.maximum(out.loaded.sum(1), 1) * out.evidence
        self.tokens_left -= out.tokens
        self.step_index += 1
        return out


def _pick(weights: NDArray[np.float64], uniform: NDArray[np.float64]) -> Int:
    """Draw indices from each row's ``weights`` (R, n) by inversion of ``uniform`` (R, m)."""
    cumulative = np.cumsum(weights, 1)
    cumulative /= cumulative[:, -1:]
    offset = np.arange(len(weights))[:, None]
    flat = np.searchsorted((cumulative + offset).ravel(), (uniform + offset).ravel(), "right")
    local: Int = flat.reshape(uniform.shape) - offset * weights.shape[1]
    return np.clip(local, 0, weights.shape[1] - 1)
