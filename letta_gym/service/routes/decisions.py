"""Decisions: what was chosen for which task, why, and what came of it."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request

from letta_gym.feedback.evidence import EvidenceConfig
from letta_gym.selection.explanation import Trace, explain
from letta_gym.selection.observation import FEATURE, FEATURES
from letta_gym.service import service
from letta_gym.service.guard import caller_of, guarded, router
from letta_gym.service.parameters import NEXT, After, AgentHeader, DecisionId, Limit, cursor, key_of
from letta_gym.service.problems import ApiError
from letta_gym.store.history import History, Logged
from letta_gym.store.models import Viewer

decisions: APIRouter = router("tasks")

# certainty = outcomes / (outcomes + prior strength), so the one gives the other.
_PRIOR = EvidenceConfig().prior_strength


class OutcomeView(BaseModel):
    """What came of a decision."""

    success: float | None
    evidence: bool
    reward: float | None
    reward_parts: dict[str, float]
    source: str
    tokens: float | None
    steps: int | None
    latency: float | None
    stop_reason: str | None
    error: str | None
    response: str | None
    recorded_at: float


class WordView(BaseModel):
    """A later word on a decision."""

    source: str
    value: float
    comment: str | None
    given_at: float


class DecisionView(BaseModel):
    """A decision; times are Unix seconds."""

    decision_id: str
    agent: str
    task: str | None = Field(description="null unless the log keeps texts")
    task_sha256: str
    skills: list[str] = Field(description="chosen, best first")
    policy_digest: str
    mode: str
    explored: bool
    log_propensity: float
    decided_at: float
    outcome: OutcomeView | None
    feedback: list[WordView]


class CandidateView(BaseModel):
    """A skill that could have been chosen; a score above 0 beats stopping."""

    skill: str
    chosen: bool
    score: float
    tokens: int
    reasons: list[str]


class ExplainedDecision(DecisionView):
    """A decision with what spoke for and against every candidate, best first."""

    explanation: list[CandidateView]


class DecisionPage(BaseModel):
    """Decisions, the newest first."""

    items: list[DecisionView]
    next: str | None = NEXT


@decisions.get(
    "/tasks",
    summary="List decisions",
    response_model=DecisionPage,
    **guarded("read", 404),
)
async def latest(
    request: Request, limit: Limit = 50, after: After = None, agent: AgentHeader = None
) -> Any:
    """The decisions that the caller may see, the newest first."""
    of = service.of(request)
    viewer = await of.seen_as(caller_of(request), agent)
    before = None
    if after is not None:
        at, last = key_of(after, float, str)
        before = at, last
    found = await asyncio.to_thread(of.store.history(viewer).latest, limit, before)
    last_row = found[-1].decision if len(found) == limit else None
    return DecisionPage(
        items=[DecisionView(**_decision(logged)) for logged in found],
        next=None if last_row is None else cursor(last_row.decided_at, last_row.id),
    )


@decisions.get(
    "/tasks/{decision_id}",
    summary="Look at a decision, and why it was made",
    response_model=ExplainedDecision,
    **guarded("read", 404),
)
async def look(decision_id: DecisionId, request: Request, agent: AgentHeader = None) -> Any:
    """The decision, what came of it, and what spoke for and against every candidate."""
    of = service.of(request)
    viewer = await of.seen_as(caller_of(request), agent)
    return await asyncio.to_thread(_explained, of, viewer, decision_id)


def _explained(of: service.Service, viewer: Viewer | None, decision_id: str) -> ExplainedDecision:
    history = of.store.history(viewer)
    logged = history.one(decision_id)
    if logged is None:
        raise ApiError(404, f"there is no decision {decision_id!r}; GET /tasks lists them")
    return ExplainedDecision(**_decision(logged), explanation=_candidates(logged, history))


def _candidates(logged: Logged, history: History) -> list[CandidateView]:
    row = logged.decision
    contents = history.contents(row.candidates)
    features = row.features.reshape(len(contents), len(FEATURES))
    certainty = features[:, FEATURE["certainty"]].astype(np.float64)
    trace = Trace(
        ids=[skill for skill, _ in contents],
        rows=np.arange(len(contents)),
        picks=[pick.slot for pick in logged.picks],
        logits=row.scores,
        features=features,
        tokens=np.array([tokens for _, tokens in contents], np.float32),
        outcomes=(_PRIOR * certainty / np.maximum(1 - certainty, 1e-6)).astype(np.float32),
    )
    return [CandidateView(**candidate) for candidate in explain(trace).to_json()]


def _decision(logged: Logged) -> dict[str, Any]:
    row, outcome = logged.decision, logged.outcome
    return {
        "decision_id": row.id,
        "agent": logged.agent,
        "task": row.task_text,
        "task_sha256": row.task_hash,
        "skills": [pick.skill for pick in logged.picks],
        "policy_digest": row.policy_digest,
        "mode": row.mode,
        "explored": row.explored,
        "log_propensity": row.log_propensity,
        "decided_at": row.decided_at,
        "outcome": None if outcome is None else {n: getattr(outcome, n) for n in _OF_OUTCOME},
        "feedback": [{n: getattr(word, n) for n in _OF_WORD} for word in logged.feedback],
    }


_OF_OUTCOME, _OF_WORD = tuple(OutcomeView.model_fields), tuple(WordView.model_fields)
