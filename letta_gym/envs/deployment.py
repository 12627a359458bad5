"""One deployment: simultaneous decisions over one library with one memory, by a suite's labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from letta_gym.config import Section, resolve
from letta_gym.envs.catalogue import Catalogue, catalogue, new_skills, with_validation
from letta_gym.errors import ConfigError, SuiteError
from letta_gym.feedback.entries import Entries, MemoryConfig
from letta_gym.feedback.evidence import (
    Evidence,
    EvidenceConfig,
    alone_nearby,
    alone_rate,
    fit,
    judge,
)
from letta_gym.feedback.memory import ALONE, OutcomeMemory
from letta_gym.letta.backend import Outcomes, Requests
from letta_gym.letta.replay import Labels, Rule
from letta_gym.selection import candidates
from letta_gym.selection.candidates import RetrievalConfig
from letta_gym.selection.observation import Scores, Situation, alike_slots

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]


class DeploymentConfig(Section):
    """A stream of labelled tasks and the library that serves it.

    ``max_skills``: k, most skills loaded for a task.
    ``candidates``: M, slots of an observation; 0 for as many as the library has skills.
    ``horizon``, ``token_budget``: tasks and tokens of a session.
    ``token_price``: reward that 1,000 tokens cost.
    ``success``: what makes a choice succeed: ``any`` relevant skill, ``all`` of them, or the
    ``fraction`` of them that was chosen.
    ``split``: whose tasks are asked, in a random order, again and again.
    ``slots``: what ranks candidates into slots: evidence (the closed form) or retrieval.
    ``new_skills``, ``split_seed``: share of the library that is new, and the draw of which.
    ``library``: ``seen`` leaves new skills out, and the tasks that are made for them;
    ``all`` has them.
    ``validation``: share of the train tasks that serve for validation, where the suite has no such
    split.
    """

    max_skills: int = Field(default=3, ge=1)
    candidates: int = Field(default=0, ge=0)
    horizon: int = Field(default=1, ge=1)
    token_budget: float = Field(default=100_000, gt=0)
    token_price: float = Field(default=0.04, ge=0)
    success: Rule = "any"
    split: str = "train"
    slots: Literal["evidence", "retrieval"] = "evidence"
    new_skills: float = Field(default=0.2, ge=0, lt=1)
    split_seed: int = Field(default=0, ge=0)
    library: Literal["seen", "all"] = "seen"
    validation: float = Field(default=0.1, ge=0, lt=1)


class ReplayConfig(DeploymentConfig):
    """Keywords of the replay environment.

    ``suite``: folder of a task suite with vectors, or "bundled". ``obs``: "full" with the vectors
    of task and skills, "compact" without.
    """

    suite: str = "bundled"
    obs: Literal["full", "compact"] = "full"
    memory: MemoryConfig = MemoryConfig()
    evidence: EvidenceConfig = EvidenceConfig()
    retrieval: RetrievalConfig = RetrievalConfig()

    @classmethod
    def from_keywords(cls, keywords: Mapping[str, Any]) -> Self:
        """Validate the keywords of ``gymnasium.make``.

        Raises:
            ConfigError: an unknown keyword, with the nearest known one, or a value out of range.
        """
        config = resolve(cls, keywords, "the environment's configuration")
        skills = len(config.pool().ids)
        if config.candidates > skills:
            raise ConfigError(
                f"candidates must be at most {skills}, as the library has no more skills; "
                f"got {config.candidates}; 0 takes all"
            )
        return config if config.candidates else config.model_copy(update={"candidates": skills})

    def pool(self) -> Catalogue:
        """The tables of the suite, made once for each suite and retrieval."""
        return catalogue(self.suite, self.retrieval)

    def sessions(self, count: int) -> Deployment:
        """A deployment that takes ``count`` decisions at once."""
        return Deployment(self, count)


class Deployment:
    """B sessions of one deployment, which share its memory.

    All B decide on what the memory knows before; then all their outcomes enter it, in their order.

    Attributes:
        new_skills: which skills do not exist in training, shape (N,).
        present: which skills exist here, shape (N,).
        memory: the outcomes so far.
        learning: whether outcomes enter the memory; turned off to evaluate.
        decided: number of decisions that were learned from.
        task: what to decide on now, shape (B,); ``done`` what was decided last.
    """

    def __init__(self, config: ReplayConfig, count: int) -> None:
        self.config, self.count = config, count
        self.catalogue = c = config.pool()
        self.labels = Labels(c.suite.tasks, c.row, c.tokens, config.success)
        n = len(c.ids)
        self.split = with_validation(c.split, config.validation)
        self.new_skills = new_skills(n, config.new_skills, config.split_seed)
        self.present = ~self.new_skills if config.library == "seen" else np.ones(n, bool)
        self.stream = self.tasks(config.split, new=None if config.library == "all" else False)
        if not len(self.stream):
            raise SuiteError(
                f"the suite {c.suite.name!r} has no task of the split {config.split!r} for the "
                f"skills that exist; it has: {', '.join(np.unique(self.split))}"
            )
        self.learning = True
        self.cheapest = np.full(count, c.tokens[self.present].min(), np.float32)
        self.slots = np.zeros((count, config.candidates), np.int64)
        self.tokens_left = np.zeros(count, np.float32)
        self.step_index = np.zeros(count, np.int64)
        self.task = self.done = np.zeros(count, np.int64)
        self._available = np.zeros((count, n), bool)
        self._asked: Int | None = None
        self._said = np.zeros(0, np.float32)
        self._begin(np.random.default_rng(0))

    def tasks(self, split: str, *, new: bool | None = None) -> Int:
        """Tasks of a split, ascending: of new skills, of the others, or (None) all."""
        of_new = self.labels.relevant[:, self.new_skills].any(1)
        return np.flatnonzero((self.split == split) & (True if new is None else of_new == new))

    # -- reset -------------------------------------------------------------------------------

    def reset(self, rows: Int, generators: Sequence[np.random.Generator], anew: bool) -> None:
        """Begin new sessions in ``rows`` (R,).

        Args:
            rows: the sessions.
            generators: one of each row; the first begins the deployment.
            anew: forget everything, and draw another order of tasks; otherwise the deployment goes
                on with the tasks at hand.

        Raises:
            ConfigError: only some sessions are to begin anew.
        """
        if anew:
            if len(rows) < self.count:
                raise ConfigError(
                    "the sessions share one deployment, so a seed begins all of them anew; leave "
                    "out either the seed or reset_mask"
                )
            self._begin(np.random.default_rng(generators[0].integers(2**63, size=2)))
        self.step_index[rows] = 0
        self.tokens_left[rows] = self.config.token_budget

    def _begin(self, rng: np.random.Generator) -> None:
        c = self.config
        self.rng = rng
        dimension = self.catalogue.task_vectors.shape[1]
        own = np.random.default_rng(rng.integers(2**63, size=2))
        self.memory = OutcomeMemory.of(dimension, c.evidence, c.memory, own)
        self._journal = [no_decisions(c.max_skills)]
        self.decided = 0
        self._order, self._position = self.rng.permutation(self.stream), 0
        self.task = self._next(self.count)

    def _next(self, count: int) -> Int:
        """The next tasks of the stream, which begins again in another order at its end."""
        order = self._order[self._position :]
        while len(order) < count:
            self._order = self.rng.permutation(self.stream)
            order = np.concatenate([order, self._order])
        self._position = len(self._order) - (len(order) - count)
        return order[:count]

    def show(self, tasks: Int) -> None:
        """Decide on these tasks next, (B,) of any number, each in a session of its own."""
        self.count = len(tasks)
        self.task = tasks
        self.step_index = np.zeros(self.count, np.int64)
        self.tokens_left = np.full(self.count, self.config.token_budget, np.float32)
        self.cheapest = np.full(self.count, self.cheapest[0], np.float32)

    def open_library(self) -> None:
        """From now on new skills exist, and the tasks that are made for them are asked."""
        self.present = np.ones_like(self.present)
        self.stream = self.tasks(self.config.split)
        cheapest = self.catalogue.tokens.min()
        self.cheapest = np.full_like(self.cheapest, cheapest)

    # -- decide ------------------------------------------------------------------------------

    def situation(self) -> Situation:
        """Everything that is known about the decisions to take now."""
        p, c, tasks = self.catalogue, self.config, self.task
        scores = Scores(p.scores.table[:, tasks])
        retrieval = scores.retrieval
        self._available = available = self.available(tasks)
        tables = self._tables(tasks)
        mine, alone = Evidence(tables[:, :, 1:]), Evidence(tables[:, :, :1])
        self._best = np.where(available, retrieval, -np.inf).max(1, keepdims=True)
        general = alone_rate(alone, c.evidence)
        judgement = judge(retrieval, self._best, mine, general, c.evidence)
        score = judgement.closed_form if c.slots == "evidence" else retrieval
        self.slots = candidates.rank(score, available, c.candidates)
        tokens = p.tokens[self.slots]
        tokens_left = self.tokens_left[:, None]
        return Situation(
            scores=scores.take(self.slots),
            evidence=mine.take(self.slots),
            judgement=judgement.take(self.slots),
            alone=alone,
            alone_rate=general,
            alone_nearby=alone_nearby(alone, general, c.evidence),
            alike=alike_slots(p.alike, self.slots),
            tokens=tokens,
            mask=self.slot_present() & (tokens <= tokens_left),
            tokens_left=tokens_left,
            budget=np.full_like(tokens_left, c.token_budget),
            tasks_left=(c.horizon - self.step_index[:, None]).astype(np.float32),
            horizon=np.full_like(tokens_left, c.horizon),
            outcomes=np.full_like(tokens_left, len(self.memory)),
        )

    def _tables(self, tasks: Int) -> Float:
        """Evidence about the tasks (7, B, N + 1), kept until something is learned.

        A session that ends is shown twice, at its end and as the next one begins.
        """
        if self._asked is not tasks:
            vectors = self.catalogue.task_vectors[tasks]
            self._asked, self._said = tasks, self.memory.tables(vectors, self.catalogue.keys)
        return self._said

    def available(self, tasks: Int) -> Bool:
        """Which skills may be chosen for each task, shape (B, N)."""
        own = self.catalogue.own
        if own is None:
            return np.broadcast_to(self.present, (len(tasks), len(self.present)))
        return own[tasks] & self.present

    def slot_skills(self) -> Int:
        """Index of the skill in each slot, shape (B, M)."""
        return self.slots

    def slot_present(self) -> Bool:
        """Whether the skill in each slot may be chosen, shape (B, M)."""
        return np.take_along_axis(self._available, self.slots, 1)

    def slot_new(self) -> Bool:
        """Whether the skill in each slot is new, shape (B, M)."""
        return self.new_skills[self.slots]

    # -- act ---------------------------------------------------------------------------------

    def step(self, picks: Int) -> Outcomes:
        """Carry out slot picks (B, k), -1 padded, let the memory know, and take the next tasks."""
        chosen = picks >= 0
        skills = np.take_along_axis(self.slots, np.maximum(picks, 0), 1)
        skills = np.where(chosen, skills, -1)
        out = self.outcomes(Requests(np.arange(self.count), self.task, skills))
        if self.learning:
            self._record(skills, out)
            self._journal.append((self.task, np.where(out.loaded, skills, -1), out.success))
            self.decided += self.count
        self.tokens_left = self.tokens_left - out.tokens
        self.step_index = self.step_index + 1
        self.done = self.task
        if self.learning:
            self.task, self._asked = self._next(self.count), None
        return out

    def outcomes(self, requests: Requests) -> Outcomes:
        """What comes of the choices."""
        return self.labels.execute(requests)

    def _record(self, skills: Int, out: Outcomes) -> None:
        p = self.catalogue
        score = np.take_along_axis(p.scores.retrieval[self.task], np.maximum(skills, 0), 1)
        meant = fit(score, self._best, self.config.evidence).tolist()
        success, loaded = out.success.tolist(), out.loaded.tolist()
        for i, (task, row) in enumerate(zip(self.task.tolist(), skills.tolist(), strict=True)):
            if not out.evidence[i]:
                continue
            vector, note = p.task_vectors[task], self.decided + i
            used = [j for j, on in enumerate(loaded[i]) if on]
            for j in used:
                self.memory.add(p.keys[row[j] + 1], vector, success[i], meant[i][j], note)
            if not used:
                self.memory.add(ALONE, vector, success[i], note=note)

    def journal(self) -> tuple[Int, Int, Float]:
        """Task (J,), skills loaded (J, k) and success (J,) of every decision that was learned from.

        Skills are -1 where none was. Its position here is the note of its entries in the memory.
        """
        tasks, skills, success = (np.concatenate(part) for part in zip(*self._journal, strict=True))
        self._journal = [(tasks, skills, success)]
        return tasks, skills, success

    def introduction(self) -> tuple[str, ...]:
        """How much is known, and who serves whom."""
        c, name = self.config, self.catalogue.suite.name
        known = f"{len(self.memory)} outcomes in memory"
        return known, f"{int(self.present.sum())} skills of {name!r}, split {c.split!r}"

    # -- state -------------------------------------------------------------------------------

    def get_state(self) -> dict[str, Any]:
        """Everything that the next steps depend on: copies of arrays, and JSON values."""
        e = self.memory.entries()
        entries = {name: getattr(e, name) for name in Entries.__slots__ if name != "keys"}
        return {
            "tokens_left": self.tokens_left.copy(),
            "step_index": self.step_index.copy(),
            "task": self.task.copy(),
            "done": self.done.copy(),
            "order": self._order.copy(),
            "position": self._position,
            "rng": self.rng.bit_generator.state,
            "keys": list(e.keys),
            "entries": entries,
            "memory": self.memory.state(),
            "journal": list(self.journal()),
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Continue from :meth:`get_state`."""
        for name in ("tokens_left", "step_index", "task", "done"):
            setattr(self, name, state[name].copy())
        self._order, self._position = state["order"].copy(), int(state["position"])
        entries = Entries(tuple(state["keys"]), **state["entries"])
        m = self.memory
        self.rng = np.random.default_rng()
        self.rng.bit_generator.state = state["rng"]
        self.memory = OutcomeMemory.restored(
            m.dimension, m.config, m.limits, entries, state["memory"]
        )
        tasks, skills, success = (part.copy() for part in state["journal"])
        self._journal, self.decided = [(tasks, skills, success)], len(tasks)


def no_decisions(max_skills: int) -> tuple[Int, Int, Float]:
    """A journal of no decision."""
    none = np.zeros(0, np.int64)
    return none, np.zeros((0, max_skills), np.int64), np.zeros(0, np.float32)
