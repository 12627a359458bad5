"""The runtime: loads a policy file, chooses skills for a text, and learns from outcomes at once."""

from __future__ import annotations

import itertools
import secrets
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from letta_gym.errors import ConfigError, DecisionError, EmbeddingError
from letta_gym.feedback.decision import Decision, DecisionLog, Pick
from letta_gym.feedback.evidence import Evidence, Judgement, alone_nearby, alone_rate, judge
from letta_gym.feedback.memory import ALONE, OutcomeMemory
from letta_gym.feedback.outcome import Outcome
from letta_gym.library.embeddings import Embedder, VectorSpace
from letta_gym.library.skills import Skill, SkillLibrary
from letta_gym.library.vectors import is_snapped, snap
from letta_gym.selection import bilinear, candidates, network, subset
from letta_gym.selection.explanation import Explanation, Trace, explain
from letta_gym.selection.exploration import Draw, Explorer
from letta_gym.selection.observation import Scores, Situation, context, features
from letta_gym.selection.policy import Policy
from letta_gym.selection.session import UNLIMITED, Session
from letta_gym.selection.shelf import Shelf

Float = NDArray[np.float32]
Int = NDArray[np.int64]

_BOARD = len(Scores.NAMES) + len(Judgement.NAMES) + len(Evidence.NAMES)


@dataclass(frozen=True, eq=False, slots=True)
class Selection:
    """The choice for one task.

    Attributes:
        decision_id: pass it to :meth:`SkillSelector.record` with the outcome.
        skills: the chosen skills, best first.
        scores: logit of each chosen skill; higher is better, ``stop_score`` is that of stopping.
        tokens: what the chosen skills cost in all.
        log_propensity: log-probability of the chosen *set*; 0 for a choice without exploration.
        explored: whether the set was sampled.
        policy_digest: SHA-256 of the policy that chose.
    """

    decision_id: str
    skills: tuple[Skill, ...]
    scores: tuple[float, ...]
    stop_score: float
    tokens: int
    log_propensity: float
    explored: bool
    policy_digest: str
    _trace: Trace

    def explain(self) -> Explanation:
        """Every candidate with its score and what spoke for and against it."""
        return explain(self._trace)


class _Pending(NamedTuple):
    """A decision that waits for its outcome."""

    vector: Float
    chosen: Mapping[str, Pick]
    session: Session


class _Choice(NamedTuple):
    """A choice with all that it was made of; ``order`` are the slots carried out, best first."""

    text: str
    vector: Float
    rows: Int
    situation: Situation
    features: Float
    context: Float
    logits: Float
    draw: Draw
    order: list[int]


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
        budget = UNLIMITED if token_budget is None else token_budget
        return self._choose(Session(self, budget, 1), text, k, explore, embedding, available)

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

    def _choose(
        self,
        session: Session,
        text: str,
        k: int,
        explore: bool,
        embedding: Float | None,
        available: Collection[str] | None,
    ) -> Selection:
        if not 1 <= k <= self.policy.max_skills:
            raise ConfigError(f"k must lie in 1..{self.policy.max_skills}; got {k}")
        self.shelf.refresh()
        choice = self._weigh(session, text, k, explore, self._embed(text, embedding), available)
        picks = self._picks(choice, choice.order)
        decision_id = f"{self._name}-{next(self._numbers)}"
        if self.log is not None:
            self.log.decided(self._decision(decision_id, choice, picks))
        waiting = _Pending(choice.vector, {one.skill: one for one in picks}, session)
        self._remember(decision_id, waiting)
        session.tasks_left = max(session.tasks_left - 1, 0)
        return self._selection(decision_id, choice)

    def _weigh(
        self,
        session: Session,
        text: str,
        k: int,
        explore: bool,
        vector: Float,
        available: Collection[str] | None,
    ) -> _Choice:
        """Score the candidates and take the best of them, or draw."""
        policy = self.policy
        rows, situation = self.situation(session, text, vector, available)
        f = features(situation, policy.evidence, policy.token_price)
        c = context(situation, f)
        logits = network.logits(policy.weights, f, c, situation.mask)
        if bilinear.rank(policy.weights):
            bilinear.add(policy.weights, logits, (vector[None], self.shelf.vectors[rows][None]))
        if policy.opening is not None:
            policy.opening.settle(logits, c, self.shelf.likeness)
        draw = self._draw(logits, situation, k, explore)
        score = logits[0].tolist()
        order = sorted(_affordable(draw.picks, situation, k), key=lambda slot: (-score[slot], slot))
        return _Choice(text, vector, rows, situation, f, c, logits, draw, order)

    def _selection(self, decision_id: str, choice: _Choice) -> Selection:
        shelf, rows, order, draw = self.shelf, choice.rows, choice.order, choice.draw
        logits, e = choice.logits[0], choice.situation.evidence
        skills = tuple([shelf.skills[rows[slot]] for slot in order])
        return Selection(
            decision_id=decision_id,
            skills=skills,
            scores=tuple([logits.item(slot) for slot in order]),
            stop_score=logits.item(-1),
            tokens=sum([skill.tokens for skill in skills]),
            log_propensity=draw.log_propensity,
            explored=draw.explored,
            policy_digest=self.policy.digest,
            _trace=Trace(
                shelf.ids,
                rows,
                order,
                logits,
                choice.features[0],
                choice.situation.tokens[0],
                (e.fit_successes + e.fit_failures)[0],
            ),
        )

    def _decision(self, decision_id: str, choice: _Choice, picks: tuple[Pick, ...]) -> Decision:
        shelf, rows, draw = self.shelf, choice.rows, choice.draw
        return Decision(
            id=decision_id,
            task=choice.text,
            vector=choice.vector,
            skills=tuple([shelf.skills[row] for row in rows]),
            keys=tuple([shelf.keys[row + 1] for row in rows]),
            features=choice.features[0],
            context=choice.context[0],
            scores=choice.logits[0],
            picks=picks,
            k=draw.picks.shape[1],
            log_propensity=draw.log_propensity,
            explored=draw.explored,
            policy_digest=self.policy.digest,
            hold_rate=draw.hold_rate,
            held_out=next(iter(self._picks(choice, draw.held_out)), None),
        )

    def situation(
        self,
        session: Session,
        text: str,
        vector: Float,
        available: Collection[str] | None = None,
    ) -> tuple[Int, Situation]:
        """What is known about the next decision: rows of the shelf in the slots (M,), and the rest.

        The stages are those of the environment, in the same order.
        """
        shelf, p = self.shelf, self.policy
        usable = None if available is None else shelf.usable(available)[None]
        board = np.empty((_BOARD, 1, len(shelf)), np.float32)
        scores, judgement = Scores(board[:3]), board[3:7]
        np.matmul(shelf.vectors, vector, out=scores.dense[0])
        scores.lexical[0] = shelf.lexical(text)
        retrieval = scores.retrieval
        retrieval[:] = candidates.fuse(scores.dense, scores.lexical, p.retrieval)
        best = np.maximum.reduce(retrieval if usable is None else retrieval[usable], None)
        tables = self.memory.tables(vector[None], shelf.keys)
        board[7:] = tables[:, :, 1:]
        alone = Evidence(tables[:, 0, 0])
        general = alone_rate(alone, p.evidence)
        judged = judge(retrieval, best, Evidence(board[7:]), general, p.evidence, judgement)
        slots = candidates.rank(judged.closed_form, usable, self.slots)
        rows = slots[0]
        shown = board.take(rows, 2)
        tokens = shelf.tokens.take(slots)
        tokens_left = np.float32(session.tokens_left)
        mask = tokens <= tokens_left
        if usable is not None:
            mask &= usable[0].take(slots)
        return rows, Situation(
            scores=Scores(shown[:3]),
            judgement=Judgement(shown[3:7]),
            evidence=Evidence(shown[7:]),
            alone=alone,
            alone_rate=general,
            alone_nearby=alone_nearby(alone, general, p.evidence),
            alike=shelf.alike(slots),
            tokens=tokens,
            mask=mask,
            tokens_left=tokens_left,
            budget=np.float32(session.token_budget),
            tasks_left=np.float32(session.tasks_left),
            horizon=np.float32(session.horizon),
            outcomes=np.float32(len(self.memory)),
        )

    def _embed(self, text: str, embedding: Float | None) -> Float:
        if embedding is None:
            row: Float = self.shelf.embedder.encode([text])[0]
            return row
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

    def _draw(self, logits: Float, situation: Situation, k: int, explore: bool) -> Draw:
        """Draw a set, or take the best."""
        if not explore:
            return Draw(subset.greedy(logits, k), 0.0, explored=False)
        # Only as many picks as the budget covers whatever they are: nothing is cut afterwards, so
        # that the probability of the sampled set is the one of the set carried out.
        costs = np.sort(situation.tokens[0][situation.mask[0]])[::-1].cumsum()
        k = max(1, int((costs[:k] <= situation.tokens_left).sum()))
        exact = logits.astype(np.float64)
        if self.explorer is not None:
            e = situation.evidence
            outcomes = (e.fit_successes + e.fit_failures)[0]
            return self.explorer.draw(exact, k, outcomes, self.rng)
        picks = subset.sample(exact, k, self.rng)
        return Draw(picks, float(subset.set_log_prob(exact, picks)[0]), explored=True)

    def _picks(self, choice: _Choice, order: Sequence[int]) -> tuple[Pick, ...]:
        picks: list[Pick] = []
        meant = choice.situation.judgement.fit[0]
        for slot in order:
            row = choice.rows[slot]
            skill = self.shelf.skills[row]
            key = self.shelf.keys[row + 1]
            picks.append(Pick(slot, skill.id, key, float(meant[slot]), skill.tokens))
        return tuple(picks)

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


def _affordable(picks: Int, situation: Situation, k: int) -> list[int]:
    """The slots of ``picks`` (1, k) that are carried out, as the environment carries them out."""
    wanted = [slot for slot in picks[0].tolist() if slot >= 0]
    tokens = situation.tokens
    if sum([tokens[0, slot] for slot in wanted]) <= situation.tokens_left:
        return wanted
    mask = subset.to_mask(picks, tokens.shape[1]).astype(bool)
    kept = candidates.affordable(mask, tokens, situation.tokens_left, k)
    return [slot for slot in kept[0].tolist() if slot >= 0]
