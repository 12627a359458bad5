"""Agents: on whose behalf skills are chosen, and who may see what they do."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from letta_gym.errors import StoreError
from letta_gym.service import service
from letta_gym.service.guard import caller_of, guarded, router
from letta_gym.service.parameters import Body
from letta_gym.service.problems import ApiError
from letta_gym.service.routes.skills import Scope
from letta_gym.store.models import Agent

agents: APIRouter = router("agents")


class AgentBody(Body):
    """Who may see what an agent does: itself, its team, or every agent."""

    team: str | None = Field(None, min_length=1, max_length=100)
    scope: Scope = "private"


class NewAgent(AgentBody):
    """A new agent."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"name": "ada", "team": "billing"}]})

    name: str = Field(min_length=1, max_length=100, pattern=r"^[!-~]+$")


class AgentView(BaseModel):
    """An agent; the time is in Unix seconds."""

    name: str
    team: str | None
    scope: Scope
    created_at: float


class AgentList(BaseModel):
    """Agents by name."""

    items: list[AgentView]


@agents.get("/agents", summary="List agents", response_model=AgentList, **guarded("read"))
async def list_agents(request: Request) -> Any:
    """The agents that the caller may see."""
    of, caller = service.of(request), caller_of(request)
    rows = await asyncio.to_thread(of.store.agents.all, caller.agent)
    if caller.team is not None:
        rows = [row for row in rows if row.team == caller.team]
    return AgentList(items=[_view(row) for row in rows])


@agents.post(
    "/agents",
    summary="Add an agent",
    response_model=AgentView,
    status_code=201,
    **guarded("admin", 409),
)
async def add(body: NewAgent, request: Request) -> Any:
    """Add an agent; keys may be bound to it, and calls may name it."""
    of, actor = service.of(request), caller_of(request).name

    def work() -> Agent:
        if any(row.name == body.name for row in of.store.agents.all()):
            raise ApiError(409, f"there is an agent {body.name!r} already; PUT it to change it")
        of.store.agents.ensure(body.name, team=body.team, scope=body.scope)
        of.store.note(actor, "add agent", body.name, body.model_dump(exclude={"name"}))
        return _row(of, body.name)

    return _view(await asyncio.to_thread(work))


@agents.put(
    "/agents/{name}",
    summary="Change an agent",
    response_model=AgentView,
    **guarded("admin", 404),
)
async def change(
    name: Annotated[str, Path(min_length=1, max_length=100)], body: AgentBody, request: Request
) -> Any:
    """Put an agent into a team and a scope; what it did before moves along."""
    of, actor = service.of(request), caller_of(request).name

    def work() -> Agent:
        try:
            of.store.agents.change(name, team=body.team, scope=body.scope)
        except StoreError as error:
            raise ApiError(404, str(error)) from error
        of.store.note(actor, "change agent", name, body.model_dump())
        return _row(of, name)

    row = await asyncio.to_thread(work)
    await of.agents_changed()
    return _view(row)


def _row(of: service.Service, name: str) -> Agent:
    return next(row for row in of.store.agents.all() if row.name == name)


def _view(row: Agent) -> AgentView:
    return AgentView.model_validate(row, from_attributes=True)
