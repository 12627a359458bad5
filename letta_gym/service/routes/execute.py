"""Executing a task: skills are chosen, a Letta carries it out, the outcome is learned at once."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from letta_gym.service import service
from letta_gym.service.guard import caller_of, guarded, router
from letta_gym.service.idempotency import KeyHeader, once
from letta_gym.service.parameters import AgentHeader
from letta_gym.service.problems import ApiError
from letta_gym.service.routes.tasks import (
    ChosenSkill,
    SelectRequest,
    chosen_for,
    view,
)
from letta_gym.store.models import Viewer

execute: APIRouter = router("tasks")


class ExecuteResponse(BaseModel):
    """What came of a task."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "decision_id": "5f2c9a1b7d3e4f60-1",
                    "response": "Simulated: nothing was done. Judged as the task: ...",
                    "success": 0.75,
                    "graded_by": "simulation",
                    "skills": [{"id": "pdf-forms", "score": 4.2, "tokens": 512}],
                    "loaded": ["pdf-forms"],
                    "reward": 0.73,
                    "reward_parts": {"success": 0.75, "tokens": -0.02},
                    "tokens": 512,
                    "latency": 0.0,
                    "steps": None,
                    "stop_reason": "end_turn",
                    "policy_digest": "7c1a" * 16,
                    "fallback": False,
                }
            ]
        }
    )

    decision_id: str
    response: str | None
    success: float | None = Field(description="from 0 to 1; null where nobody graded it")
    graded_by: str = Field(description="'simulation' comes from the offline mock")
    skills: list[ChosenSkill] = Field(description="chosen, best first")
    loaded: list[str] = Field(description="those that the agent really loaded")
    reward: float | None
    reward_parts: dict[str, float]
    tokens: float | None = Field(description="of the loaded skills")
    latency: float | None = Field(description="seconds")
    steps: int | None
    stop_reason: str | None
    policy_digest: str
    fallback: bool


@execute.post(
    "/tasks/execute",
    summary="Choose skills for a task and carry it out",
    response_model=ExecuteResponse,
    **guarded("select", 404, 409, 502, 504),
)
async def execute_task(
    body: SelectRequest,
    request: Request,
    response: Response,
    agent: AgentHeader = None,
    idempotency_key: KeyHeader = None,
) -> Any:
    """Choose, carry out, grade, and learn. Where nobody grades, feedback later does.

    Where the infrastructure fails, nothing is learned: 502 says what happened.
    """
    of = service.of(request)
    viewer = await of.agent(caller_of(request), agent)

    async def carry_out() -> dict[str, Any]:
        return (await _execute(of, viewer, body)).model_dump()

    what = {"execute": body.model_dump()}
    return await once(of, viewer, idempotency_key, what, response, carry_out)


async def _execute(of: service.Service, viewer: Viewer, body: SelectRequest) -> ExecuteResponse:
    desk, selection, vector, fallback = await chosen_for(of, viewer, body)
    outcome = await of.queue.carry_out(of.carrier, body.task, vector, selection.skills)
    chosen = view(selection, fallback)
    if outcome.success is not None or outcome.response is None:
        await desk.record(selection.decision_id, outcome)
        of.telemetry.outcomes.labels(str(outcome.evidence).lower()).inc()
    if outcome.response is None:
        again = " It may have been carried out all the same." if outcome.may_have_run else ""
        raise ApiError(502, f"Letta did not carry the task out: {outcome.error}.{again}")
    return ExecuteResponse(
        decision_id=selection.decision_id,
        response=outcome.response,
        success=outcome.success,
        graded_by=outcome.source,
        skills=chosen.skills,
        loaded=list(outcome.loaded if outcome.loaded is not None else map(_id, chosen.skills)),
        reward=outcome.reward,
        reward_parts=dict(outcome.reward_parts),
        tokens=outcome.tokens,
        latency=outcome.latency,
        steps=outcome.steps,
        stop_reason=outcome.stop_reason,
        policy_digest=selection.policy_digest,
        fallback=fallback,
    )


def _id(skill: ChosenSkill) -> str:
    return skill.id
