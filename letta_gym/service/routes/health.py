"""Health, for whoever restarts the service or sends requests to it; open to everybody."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request

from letta_gym.service import problems, service
from letta_gym.service.guard import error_responses

health = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    status: Literal["alive"] = "alive"


class Ready(BaseModel):
    """Requests are served."""

    status: Literal["ready"] = "ready"
    policy_digest: str
    fallback: bool = Field(description="whether the untrained baseline chooses")


@health.get(
    "/health/live",
    summary="Whether the process answers",
    response_model=Alive,
    responses=error_responses(413, 500),
)
async def live() -> Any:
    """Answered as long as the event loop turns."""
    return Alive()


@health.get(
    "/health/ready",
    summary="Whether requests are served",
    response_model=Ready,
    responses=error_responses(413, 500, 503),
)
async def ready(request: Request) -> Any:
    """503 with the reason while the service starts or closes."""
    of = service.of(request)
    if not of.ready:
        raise problems.ApiError(503, f"not ready: {of.waits_for}", retry_after=1)
    return Ready(policy_digest=of.desks.policy.digest, fallback=of.fallback)
