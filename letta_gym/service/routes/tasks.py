"""Tasks: skills are chosen for them, and somebody says how it went."""

from __future__ import annotations

import asyncio
from typing import Any, Literal

import numpy as np
from fastapi import Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from letta_gym.errors import DecisionError, EmbeddingError
from letta_gym.feedback.outcome import Outcome
from letta_gym.library.vectors import Float
from letta_gym.selection.choice import Selection
from letta_gym.service import service
from letta_gym.service.desk import Ask, Desk
from letta_gym.service.guard import caller_of, guarded, router
from letta_gym.service.idempotency import KeyHeader, once
from letta_gym.service.parameters import AgentHeader, Body, DecisionId
from letta_gym.service.problems import ApiError
from letta_gym.store.models import Viewer

tasks = router("tasks")


class SelectRequest(Body):
    """A task to choose skills for."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"task": "Merge these three PDF files and number the pages", "k": 3}]
        }
    )

    task: str = Field(min_length=1, description="the task in words")
    k: int | None = Field(None, ge=1, le=100, description="most skills; 3, or the policy's most")
    token_budget: float | None = Field(None, gt=0, description="most tokens of all skills")
    explore: bool = Field(False, description="sample from the policy instead of taking its best")
    embedding: list[float] | None = Field(
        None, max_length=8192, description="vector of the task, where it is known already"
    )
    available: list[str] | None = Field(
        None, min_length=1, max_length=10_000, description="ids of the skills to choose from"
    )


class ChosenSkill(BaseModel):
    """A chosen skill; its score is above that of stopping, so above 0."""

    id: str
    score: float
    tokens: int


class SelectResponse(BaseModel):
    """The choice; it is on the database when it is answered."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "decision_id": "5f2c9a1b7d3e4f60-0",
                    "skills": [{"id": "pdf-forms", "score": 4.2, "tokens": 512}],
                    "tokens": 512,
                    "log_propensity": 0.0,
                    "explored": False,
                    "policy_digest": "7c1a" * 16,
                    "fallback": False,
                }
            ]
        }
    )

    decision_id: str
    skills: list[ChosenSkill] = Field(description="best first; may be empty")
    tokens: int = Field(description="what they cost in all")
    log_propensity: float = Field(description="log-probability of this set; 0 without exploring")
    explored: bool
    policy_digest: str
    fallback: bool = Field(description="whether the untrained baseline chose")


class FeedbackRequest(Body):
    """How a task went."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"success": 1.0, "comment": "just what I needed"}]}
    )

    success: float = Field(ge=0, le=1, description="from 0, failed, to 1, done right")
    loaded: list[str] | None = Field(
        None, max_length=100, description="the chosen skills that were really used; null is all"
    )
    tokens: float | None = Field(None, ge=0, description="what the loaded skills cost")
    source: Literal["human", "grader", "delayed"] = "human"
    comment: str | None = Field(None, max_length=10_000)


class FeedbackResponse(BaseModel):
    """What became of it.

    ``outcome``: the first word on a decision, learned at once. ``word``: a later one, kept beside
    the outcome.
    """

    decision_id: str
    kept_as: Literal["outcome", "word"]


@tasks.post(
    "/tasks/select",
    summary="Choose skills for a task",
    response_model=SelectResponse,
    **guarded("select", 404, 409),
)
async def select(body: SelectRequest, request: Request, agent: AgentHeader = None) -> Any:
    """Choose, from what the agent may choose from, with what it learned so far."""
    of = service.of(request)
    viewer = await of.agent(caller_of(request), agent)
    _, selection, _, fallback = await chosen_for(of, viewer, body)
    return view(selection, fallback)


def selecting() -> APIRoute:
    """The route of :func:`select`."""
    return next(r for r in tasks.routes if isinstance(r, APIRoute) and r.endpoint is select)


@tasks.post(
    "/tasks/{decision_id}/feedback",
    summary="Say how a task went",
    response_model=FeedbackResponse,
    **guarded("select", 404, 409),
)
async def feedback(
    decision_id: DecisionId,
    body: FeedbackRequest,
    request: Request,
    response: Response,
    agent: AgentHeader = None,
    idempotency_key: KeyHeader = None,
) -> Any:
    """The first word on a decision is its outcome, and is learned at once; later ones are kept."""
    of = service.of(request)
    viewer = await of.agent(caller_of(request), agent)

    async def carry_out() -> dict[str, Any]:
        return await _record(of, viewer, decision_id, body, idempotency_key)

    what = {"decision": decision_id, **body.model_dump()}
    return await once(of, viewer, idempotency_key, what, response, carry_out)


async def chosen_for(
    of: service.Service, viewer: Viewer, body: SelectRequest
) -> tuple[Desk, Selection, Float, bool]:
    """Choose for a task, and return once the decision is on the database.

    Returns the desk, the choice, the task's vector (D,), and whether the baseline chose.
    """
    desk = await of.desk(viewer)
    check_length(of, body.task)
    vector = await vector_of(of, body.task, body.embedding)
    selection = await desk.select(
        Ask(body.task, vector, body.k, body.token_budget, body.explore, body.available)
    )
    of.telemetry.chosen_by(selection.policy_digest)
    return desk, selection, vector, of.is_fallback(selection.policy_digest)


def check_length(of: service.Service, task: str) -> None:
    """Raise :class:`ApiError` when a task is too long, or no text."""
    limit = of.config.limits.task
    if len(task) > limit:
        raise ApiError(422, f"a task has at most {limit:,} characters; got {len(task):,}")
    if not task.strip():
        raise ApiError(422, "a task needs words; got white space only")


async def vector_of(of: service.Service, task: str, embedding: list[float] | None) -> Float:
    """The vector of a task, as given or as embedded, shape (D,)."""
    if embedding is None:
        return await of.tasks.of(task)
    vector = np.array(embedding, np.float64)
    if not np.isfinite(vector).all() or not (np.abs(vector) < 1e30).all() or not vector.any():
        raise EmbeddingError("an embedding has a direction and no component beyond 1e30")
    return (vector / np.linalg.norm(vector)).astype(np.float32)


def view(selection: Selection, fallback: bool) -> SelectResponse:
    """A choice as it is answered."""
    stop = selection.stop_score
    return SelectResponse(
        decision_id=selection.decision_id,
        skills=[
            ChosenSkill(id=skill.id, score=score - stop, tokens=skill.tokens)
            for skill, score in zip(selection.skills, selection.scores, strict=True)
        ],
        tokens=selection.tokens,
        log_propensity=selection.log_propensity,
        explored=selection.explored,
        policy_digest=selection.policy_digest,
        fallback=fallback,
    )


async def _record(
    of: service.Service,
    viewer: Viewer,
    decision_id: str,
    body: FeedbackRequest,
    key: str | None,
) -> dict[str, Any]:
    desk = await of.desk(viewer)
    logged = await asyncio.to_thread(of.store.history(viewer).one, decision_id)
    if logged is None or logged.agent != viewer.name:
        raise ApiError(404, f"the agent {viewer.name!r} made no decision {decision_id!r}")
    said = logged.outcome
    ungraded = said is not None and said.success is None and said.error is None
    if said is None or ungraded:
        loaded = None if body.loaded is None else tuple(body.loaded)
        if ungraded and loaded is None:  # whoever carried it out has told
            loaded = tuple(pick.skill for pick in logged.picks if pick.loaded)
        outcome = Outcome(body.success, loaded, body.tokens, source=body.source)
        try:
            await desk.record(decision_id, outcome)
        except DecisionError as error:
            raise ApiError(409, str(error)) from error
        of.telemetry.outcomes.labels("true").inc()
        return {"decision_id": decision_id, "kept_as": "outcome"}
    word = key or service.new_name()
    say = desk.store_log.feedback
    await asyncio.to_thread(say, decision_id, word, body.source, body.success, body.comment)
    return {"decision_id": decision_id, "kept_as": "word"}
