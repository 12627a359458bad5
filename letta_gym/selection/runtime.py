"""The runtime: loads a policy file, chooses skills for a text, and learns from outcomes at once."""

from __future__ import annotations

import itertools
import secrets
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import ConfigError, DecisionError, EmbeddingError
from letta_gym.feedback.decision import DecisionLog, Pick
from letta_gym.feedback.memory import ALONE, OutcomeMemory
from letta_gym.feedback.outcome import Outcome
from letta_gym.library.embeddings import Embedder, VectorSpace
from letta_gym.library.skills import SkillLibrary
from letta_gym.library.vectors import is_snapped, snap
from letta_gym.selection import subset
from letta_gym.selection.choice import Choice, Selection
from letta_gym.selection.exploration import Draw, Explorer
from letta_gym.selection.policy import Policy
from letta_gym.selection.session import UNLIMITED, Query, Session
from letta_gym.selection.shelf import Shelf
from letta_gym.selection.weighing import Case, Weighed, weigh

Float = NDArray[np.float32]
Int = NDArray[np.int64]

_AT_ONCE = 1 << 17  # numbers of one kind about all skills and tasks; more is no faster


class _Pending(NamedTuple):
    """A decision that waits for its outcome."""

    vector: Float
    chosen: Mapping[str, Pick]
    session: Session


class SkillSelector:
    """Chooses skills with a trained policy; :meth:`load` makes one.

    Args:
        policy: the policy.
        shelf: the library with its vectors.
        memory: past outcomes; a new empty memory by default.
        rng: source of exploration; needed for ``explore=True`` to be reproducible.
        log: where decisions and outcomes are kept beyond the process; by default nowhere.
        explorer: how ``explore=True`` draws; by default from the policy's distribution alone.
    """

    def __init__(
        self,
        policy: Policy,
        shelf: Shelf,
        memory: OutcomeMemory | None = None,
        rng: np.random.Generator | None = None,
        log: DecisionLog | None = None,
        explorer: Explorer | None = None,
    ) -> None:
        self.policy, self.shelf = policy, shelf
        if memory is None:
            memory = OutcomeMemory(policy.dimension, policy.evidence)
        if (memory.dimension, memory.config) != (policy.dimension, policy.evidence):
            raise ConfigError(
                "the memory was made for other vectors or constants than the policy's; make it "
                "with OutcomeMemory(policy.dimension, policy.evidence) and add its outcomes again"
            )
        self.memory = memory
        self.rng = np.random.default_rng() if rng is None else rng
        self.log, self.explorer = log, explorer
        if log is not None:
            log.begin(VectorSpace(policy.embedder, policy.probes))
        self._pending: OrderedDict[str, _Pending] = OrderedDict()
        self._name, self._numbers = secrets.token_hex(8), itertools.count()
        self.max_pending = 10_000
        self.slots = policy.slots

    @classmethod
    def load(
        cls,
        policy: Path | str | Policy,
        skills: Path | str | SkillLibrary,
        *,
        embedder: Embedder | None = None,
        memory: OutcomeMemory | None = None,
        rng: np.random.Generator | None = None,
        log: DecisionLog | None = None,
        explorer: Explorer | None = None,
    ) -> SkillSelector:
        """Load a policy file and a library.

        Args:
            policy: a policy file, a policy, or "default" for the one that comes with the package.
            skills: a folder of ``SKILL.md`` (stored vectors are used where they are right), or a
                library.
            embedder: embeds skills and tasks; by default whichever is installed, when needed.
            memory, rng, log, explorer: see the class.

        Raises:
            PolicyFileError: the file is damaged or does not fit this version.
            SkillError: the library is malformed.
            EmbeddingError: the embedder is not the one that the policy was trained with.
            MissingExtraError: an embedder is needed and none is installed.
        """
        loaded = policy if isinstance(policy, Policy) else Policy.load(policy)
        return cls(loaded, Shelf.open(skills, loaded, embedder), memory, rng, log, explorer)

    def session(self, token_budget: float, horizon: int) -> Session:
        """A stream of ``horizon`` tasks under one budget of tokens."""
        return Session(self, token_budget, horizon)

    def select(
        self,
        text: str,
        k: int = 3,
        token_budget: float | None = None,
        explore: bool = False,
        embedding: Float | None = None,
        available: Collection[str] | None = None,
    ) -> Selection:
        """Choose skills for one task.

        Args:
            text: the task.
            k: most skills to choose, at most the policy's ``max_skills``.
            token_budget: most tokens that the chosen skills may cost together; None is no limit.
            explore: sample the set from the policy's distribution instead of taking the best.
            embedding: vector of ``text``, shape (D,), where it is known already.
            available: ids of the skills that may be chosen; by default all.

        Raises:
            ConfigError: an argument out of range, or an id that the library lacks.
            EmbeddingError: the embedding has the wrong shape, or no direction.
            MissingExtraError: the text has to be embedded and no embedder is installed.
        """
        return self.select_many([Query(text, k, token_budget, explore, embedding, available)])[0]

    def select_many(self, queries: Sequence[Query]) -> list[Selection]:
        """Choose skills for several tasks, in the order in which they are given.

        Chosen is what :meth:`select` chooses for one after the other when no outcome comes between
        them; scores may differ by rounding. Many together take a fraction of the time.

        Raises:
            ConfigError, EmbeddingError, MissingExtraError: as :meth:`select`; nothing is chosen for
                any task then.
        """
        unlimited = [UNLIMITED if q.token_budget is None else q.token_budget for q in queries]
        return self._choose(queries, [Session(self, budget, 1) for budget in unlimited])

    def weigh(self, cases: Sequence[Case]) -> Weighed:
        """Score the candidates of tasks whose vectors are known, and choose nothing."""
        return weigh(self.policy, self.shelf, self.memory, cases, self.slots)

    def record(self, decision_id: str, outcome: Outcome) -> None:
        """Learn from the outcome of a decision; the very next choice knows it.

        With a log the decision may be another process's, or older than this one, and recording the
        same outcome again changes nothing.

        Raises:
            DecisionError: the decision is unknown, was recorded before, or is too long ago.
            ConfigError: the outcome names a skill that was not chosen.
        """
        pending = self._pending.get(decision_id) or self._recall(decision_id)
        chosen = pending.chosen
        loaded = tuple(chosen if outcome.loaded is None else dict.fromkeys(outcome.loaded))
        foreign = [i for i in loaded if i not in chosen]
        if foreign:
            raise ConfigError(
                f"the outcome says that {foreign} were loaded; chosen were {list(chosen)}. "
                "Record it again with those of the chosen skills that the agent loaded"
            )
        new = self.log is None or self.log.recorded(decision_id, outcome)
        self._pending.pop(decision_id, None)
        if not new:
            return
        self._learn(pending, loaded, outcome)

    def _learn(self, pending: _Pending, loaded: Sequence[str], outcome: Outcome) -> None:
        chosen = pending.chosen
        if not outcome.evidence or outcome.success is None:
            return
        cost = sum(chosen[i].tokens for i in loaded) if outcome.tokens is None else outcome.tokens
        pending.session.tokens_left = max(pending.session.tokens_left - cost, 0.0)
        for i in loaded:
            self.memory.add(chosen[i].key, pending.vector, outcome.success, chosen[i].fit)
        if not loaded:
            self.memory.add(ALONE, pending.vector, outcome.success)

    def _choose(self, queries: Sequence[Query], sessions: Sequence[Session]) -> list[Selection]:
        """Choose for tasks, each the next of a session of its own."""
        for query in queries:
            if not 1 <= query.k <= self.policy.max_skills:
                raise ConfigError(f"k must lie in 1..{self.policy.max_skills}; got {query.k}")
        self.shelf.refresh()
        vectors = self._embed(queries)
        cases = [
            Case(query.text, vector, session, query.available)
            for query, vector, session in zip(queries, vectors, sessions, strict=True)
        ]
        step = max(1, _AT_ONCE // len(self.shelf))
        parts = [slice(first, first + step) for first in range(0, len(cases), step)]
        # All are weighed before the first is drawn: where one is wrong, nothing is spent on others.
        weighed = [self.weigh(cases[part]) for part in parts]
        choices: list[Choice] = []
        for part, found in zip(parts, weighed, strict=True):
            choices += self._chosen(queries[part], found)
        return [self._decide(*pair) for pair in zip(choices, cases, strict=True)]

    def _chosen(self, queries: Sequence[Query], weighed: Weighed) -> list[Choice]:
        """Take the best of the candidates, or draw."""
        best = subset.greedy(weighed.logits, max([query.k for query in queries]))
        choices = []
        for at, query in enumerate(queries):
            if query.explore:
                draw = self._draw(weighed, at, query.k)
            else:
                draw = Draw(best[at : at + 1, : query.k], 0.0, explored=False)
            choices.append(Choice(self.shelf, weighed, at, draw))
        return choices

    def _decide(self, choice: Choice, case: Case) -> Selection:
        """Make a choice known, and wait for its outcome."""
        decision_id, digest = f"{self._name}-{next(self._numbers)}", self.policy.digest
        if self.log is not None:
            self.log.decided(choice.decision(decision_id, digest, case))
        chosen = {pick.skill: pick for pick in choice.picks}
        self._remember(decision_id, _Pending(case.vector, chosen, case.session))
        case.session.tasks_left = max(case.session.tasks_left - 1, 0)
        return choice.selection(decision_id, digest)

    def _embed(self, queries: Sequence[Query]) -> list[Float]:
        """Snapped vectors of the tasks, each of shape (D,); new texts are embedded together."""
        new = [query.text for query in queries if query.embedding is None]
        fresh = iter(self.shelf.embedder.encode(new) if new else ())
        return [
            next(fresh) if query.embedding is None else self._snapped(query.embedding)
            for query in queries
        ]

    def _snapped(self, embedding: Float) -> Float:
        vector = np.asarray(embedding)
        if vector.shape != (self.policy.dimension,):
            raise EmbeddingError(
                f"an embedding of this policy has the shape ({self.policy.dimension},); "
                f"got {vector.shape}; use {self.policy.embedder}"
            )
        if is_snapped(vector):
            return vector
        snapped: Float = snap(vector[None])[0]
        return snapped

    def _draw(self, weighed: Weighed, at: int, k: int) -> Draw:
        """Draw a set for one task."""
        situation = weighed.situation
        # Only as many picks as the budget covers whatever they are: nothing is cut afterwards, so
        # that the probability of the sampled set is the one of the set carried out.
        costs = np.sort(situation.tokens[at][situation.mask[at]])[::-1].cumsum()
        k = max(1, int((costs[:k] <= weighed.tokens_left(at)).sum()))
        exact = weighed.logits[at : at + 1].astype(np.float64)
        if self.explorer is not None:
            return self.explorer.draw(exact, k, weighed.outcomes(at), self.rng)
        picks = subset.sample(exact, k, self.rng)
        return Draw(picks, float(subset.set_log_prob(exact, picks)[0]), explored=True)

    def _remember(self, decision_id: str, pending: _Pending) -> None:
        self._pending[decision_id] = pending
        if len(self._pending) > self.max_pending:
            self._pending.popitem(last=False)

    def _recall(self, decision_id: str) -> _Pending:
        """A decision that only the log knows; its session is over."""
        if self.log is None:
            raise DecisionError(
                f"no decision {decision_id!r} waits for an outcome: it was recorded before, came "
                f"from another selector, or is not among the last {self.max_pending:,}"
            )
        waiting = self.log.waiting(decision_id)
        chosen = {pick.skill: pick for pick in waiting.picks}
        return _Pending(waiting.vector, chosen, Session(self, UNLIMITED, 1))
