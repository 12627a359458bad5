"""Weighing: what is known about a library's skills for some tasks, and how the policy scores them.

The stages are those of the environment, in the same order. Several tasks cost little more than one,
for most of the time goes into calling NumPy and not into its sums.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from letta_gym.feedback.evidence import (
    Evidence,
    Judgement,
    Rows,
    alone_nearby,
    alone_rate,
    judge,
)
from letta_gym.feedback.memory import OutcomeMemory
from letta_gym.selection import bilinear, candidates, network
from letta_gym.selection.observation import PerSession, Scores, Situation, context, features
from letta_gym.selection.policy import Policy
from letta_gym.selection.session import Session
from letta_gym.selection.shelf import Shelf

Float = NDArray[np.float32]
Int = NDArray[np.int64]
Bool = NDArray[np.bool_]

_SCORES = len(Scores.NAMES)
_JUDGED = _SCORES + len(Judgement.NAMES)
_BOARD = _JUDGED + len(Evidence.NAMES)


class Case(NamedTuple):
    """What skills are chosen for.

    Attributes:
        text: in words.
        vector: its snapped vector, shape (D,).
        session: of which it is the next.
        available: ids of the skills that may be chosen; None for all.
    """

    text: str
    vector: Float
    session: Session
    available: Collection[str] | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Weighed:
    """B tasks with everything that a choice is made of.

    Attributes:
        rows: rows of the shelf in the slots, shape (B, M).
        situation: what is known.
        features, context: what the policy observes, shapes (B, M, F) and (B, C).
        logits: of the slots and, last, of stopping, shape (B, M + 1); -inf where masked.
    """

    rows: Int
    situation: Situation
    features: Float
    context: Float
    logits: Float

    def outcomes(self, at: int) -> Float:
        """Weight of the outcomes behind the evidence of each slot of a task, shape (M,)."""
        e = self.situation.evidence
        outcomes: Float = e.fit_successes[at] + e.fit_failures[at]
        return outcomes

    def tokens_left(self, at: int) -> np.float32:
        """Tokens that are left for a task."""
        left = self.situation.tokens_left
        return left[at, 0] if isinstance(left, np.ndarray) else left


def weigh(
    policy: Policy, shelf: Shelf, memory: OutcomeMemory, cases: Sequence[Case], slots: int
) -> Weighed:
    """Score the best ``slots`` skills of the shelf for each of the tasks."""
    rows, situation = observe(policy, shelf, memory, cases, slots)
    f = features(situation, policy.evidence, policy.token_price)
    c = context(situation, f)
    logits = network.logits(policy.weights, f, c, situation.mask)
    if bilinear.rank(policy.weights):
        bilinear.add(policy.weights, logits, (_vectors(cases), shelf.vectors[rows]))
    if policy.opening is not None:
        policy.opening.settle(logits, c, shelf.likeness)
    return Weighed(rows, situation, f, c, logits)


def observe(
    policy: Policy, shelf: Shelf, memory: OutcomeMemory, cases: Sequence[Case], slots: int
) -> tuple[Int, Situation]:
    """What is known about each task, and before it the rows of the shelf in the slots (B, M)."""
    vectors, config, usable = _vectors(cases), policy.evidence, _usable(shelf, cases)
    board = np.empty((_BOARD, len(cases), len(shelf)), np.float32)
    scores, judgement = Scores(board[:_SCORES]), board[_SCORES:_JUDGED]
    _multiply(vectors, shelf.vectors, scores.dense)
    for row, case in zip(scores.lexical, cases, strict=True):
        row[:] = shelf.lexical(case.text)
    retrieval = candidates.fuse(scores.dense, scores.lexical, policy.retrieval, scores.retrieval)
    free = retrieval if usable is None else np.where(usable, retrieval, np.float32(-np.inf))
    tables = memory.tables(vectors, shelf.keys)
    board[_JUDGED:] = tables[:, :, 1:]
    # Scalars where they may be: on arrays of one number the sums below take five times as long.
    if len(cases) == 1:
        best, alone = np.maximum.reduce(free, None), Evidence(tables[:, 0, 0])
    else:
        best, alone = np.maximum.reduce(free, 1, keepdims=True), Evidence(tables[:, :, :1])
    general = alone_rate(alone, config)
    judged = judge(retrieval, best, Evidence(board[_JUDGED:]), general, config, judgement)
    taken = candidates.rank(judged.closed_form, usable, slots)
    shown = Rows(board).take(taken).table
    tokens = shelf.tokens.take(taken)
    tokens_left, budget, tasks_left, horizon = _sessions(cases)
    mask = tokens <= tokens_left
    if usable is not None:
        mask &= np.take_along_axis(usable, taken, 1)
    return taken, Situation(
        scores=Scores(shown[:_SCORES]),
        judgement=Judgement(shown[_SCORES:_JUDGED]),
        evidence=Evidence(shown[_JUDGED:]),
        alone=alone,
        alone_rate=general,
        alone_nearby=alone_nearby(alone, general, config),
        alike=shelf.alike(taken),
        tokens=tokens,
        mask=mask,
        tokens_left=tokens_left,
        budget=budget,
        tasks_left=tasks_left,
        horizon=horizon,
        outcomes=np.float32(len(memory)),
    )


def _multiply(vectors: Float, skills: Float, out: Float) -> None:
    """Cosines of the tasks (B, D) and the skills (N, D), shape (B, N)."""
    if len(vectors) == 1:  # a matrix times a vector is faster, and as exact
        np.matmul(skills, vectors[0], out=out[0])
    else:
        np.matmul(vectors, skills.T, out=out)


def _vectors(cases: Sequence[Case]) -> Float:
    """Shape (B, D)."""
    return cases[0].vector[None] if len(cases) == 1 else np.stack([case.vector for case in cases])


def _usable(shelf: Shelf, cases: Sequence[Case]) -> Bool | None:
    """Which skills may be chosen, shape (B, N); None where all may be."""
    if all(case.available is None for case in cases):
        return None
    usable = np.ones((len(cases), len(shelf)), bool)
    for row, case in zip(usable, cases, strict=True):
        if case.available is not None:
            row[:] = shelf.usable(case.available)
    return usable


def _sessions(cases: Sequence[Case]) -> Sequence[PerSession]:
    """Tokens left, budget, tasks left and horizon: scalars for one task, else of shape (B, 1)."""
    of = [case.session for case in cases]
    rows = [(s.tokens_left, s.token_budget, s.tasks_left, s.horizon) for s in of]
    if len(rows) == 1:
        return [np.float32(number) for number in rows[0]]
    return list(np.array(rows, np.float32).T[..., None])
