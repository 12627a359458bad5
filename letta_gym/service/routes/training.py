"""Training: runs are started, followed, cancelled and resumed; what they trained is a candidate."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Header, Path, Query, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from letta_gym.service import service
from letta_gym.service.guard import caller_of, guarded, router
from letta_gym.service.idempotency import KeyHeader, once
from letta_gym.service.parameters import NEXT, After, AgentHeader, Body, Limit, cursor, key_of
from letta_gym.service.problems import ApiError
from letta_gym.service.recipes import Recipe, Value, flat
from letta_gym.store.jobs import RESUMABLE, RUNNING, TrainingRun
from letta_gym.store.models import Viewer

training: APIRouter = router("training")

RunId = Annotated[int, Path(ge=1, le=2**31 - 1, description="number of the run")]
_MOST_STREAMS = 32
_HIDDEN = ("store", "policy")  # of a run from the log: where this machine keeps things

_Key = Annotated[str, Field(max_length=100, pattern=r"^[a-z_0-9]+(\.[a-z_0-9]+)*$")]


class EventStream(StreamingResponse):
    """Server-sent events."""

    media_type = "text/event-stream"


class NewRun(Body):
    """What to train."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [{"config": "mock", "set": {"train.steps": 200_000, "seed": 2}}]
        }
    )

    config: str = Field(
        min_length=1, max_length=100, description="name of one of GET /training/configs"
    )
    set: dict[_Key, Value] = Field(
        {}, max_length=50, description="keys of the configuration to be set otherwise"
    )


class ConfigView(BaseModel):
    """A configuration that may be trained."""

    name: str
    kind: str = Field(description="'log' learns from the decisions of the store")
    description: str
    values: dict[str, Any] = Field(description="what it sets, by dotted keys")


class ConfigList(BaseModel):
    """Every configuration that may be trained."""

    items: list[ConfigView]


class RunView(BaseModel):
    """A training run; times are Unix seconds."""

    id: int
    status: Literal["running", "finished", "failed", "cancelled", "lost"]
    resumable: bool = Field(description="whether POST .../resume continues it")
    cancelling: bool = Field(description="it was asked to stop, and finishes its update")
    config: str | None = Field(description="null for a run that was started by hand")
    kind: str
    set: dict[str, Any]
    agent: str | None = Field(description="of whose decisions alone it learns; null for all")
    step: int
    steps: int | None = Field(description="of the whole run, where that is known beforehand")
    started_by: str | None
    started_at: float
    ended_at: float | None
    attempts: int
    policy_digest: str | None
    error: str | None


class RunPage(BaseModel):
    """Training runs, the newest first."""

    items: list[RunView]
    next: str | None = NEXT


class Curve(BaseModel):
    """A metric by step."""

    steps: list[int]
    values: list[float]


class RunDetail(RunView):
    """A training run with its hyper-parameters and curves."""

    hyper_parameters: dict[str, Any] = Field(description="the whole configuration by dotted keys")
    curves: dict[str, Curve]


def _streamed(route: dict[str, Any]) -> dict[str, Any]:
    """What a route that streams passes to its decorator: the schema is that of one event."""
    text = {"type": "string"}
    event = {
        "type": "object",
        "properties": {"event": text, "data": {**text, "description": "JSON"}, "id": text},
    }
    content = {EventStream.media_type: {"schema": event}}
    return {**route, "responses": {200: {"content": content}, **route["responses"]}}


@training.get(
    "/training/configs",
    summary="List what can be trained",
    response_model=ConfigList,
    **guarded("read"),
)
async def configs(request: Request) -> Any:
    """The configurations that may be trained, with what they set."""
    found = await asyncio.to_thread(service.of(request).training.recipes.all)
    return ConfigList(items=[_config(one) for one in found])


@training.post(
    "/training/run",
    summary="Start a training run",
    response_model=RunView,
    status_code=201,
    **guarded("train", 404, 409, 501),
)
async def start(
    body: NewRun,
    request: Request,
    response: Response,
    agent: AgentHeader = None,
    idempotency_key: KeyHeader = None,
) -> Any:
    """Start a run in a process of its own; there is one at a time. 409 names the one under way.

    A run from the log learns from the decisions of the agent that the caller is bound to or names;
    of an operator that names none, from those of all.
    """
    of, caller = service.of(request), caller_of(request)
    whose = await of.seen_as(caller, agent)

    async def carry_out() -> dict[str, Any]:
        run = await of.training.start(body.config, body.set, actor=caller.name, agent=whose)
        return RunView(**_run(run)).model_dump()

    for_whom = whose or await of.agent(caller, agent)
    asked = {"training": body.model_dump()}
    view = await once(of, for_whom, idempotency_key, asked, response, carry_out)
    response.headers["Location"] = f"/training/runs/{view['id']}"
    return view


@training.get(
    "/training/runs",
    summary="List training runs",
    response_model=RunPage,
    **guarded("read", 404),
)
async def runs(
    request: Request, limit: Limit = 50, after: After = None, agent: AgentHeader = None
) -> Any:
    """The runs that the caller may see, the newest first."""
    of = service.of(request)
    viewer = await of.seen_as(caller_of(request), agent)
    before = None if after is None else key_of(after, int)[0]
    found = await asyncio.to_thread(of.store.jobs.latest, limit, before, viewer)
    return RunPage(
        items=[RunView(**_run(run)) for run in found],
        next=cursor(found[-1].id) if len(found) == limit else None,
    )


@training.get(
    "/training/runs/{run_id}",
    summary="Look at a training run",
    response_model=RunDetail,
    **guarded("read", 404),
)
async def look(
    run_id: RunId,
    request: Request,
    points: Annotated[int, Query(ge=2, le=5_000, description="most points of a curve")] = 300,
    agent: AgentHeader = None,
) -> Any:
    """A run with its hyper-parameters and curves, each thinned out to ``points``."""
    of = service.of(request)
    run = await _seen(of, request, run_id, agent)
    curves = await asyncio.to_thread(of.store.jobs.curves, run_id)
    return RunDetail(
        **_run(run),
        hyper_parameters={k: v for k, v in flat(run.config).items() if k not in _HIDDEN},
        curves={name: _thinned(curve, points) for name, curve in curves.items()},
    )


@training.get(
    "/training/runs/{run_id}/events",
    summary="Follow a training run",
    response_class=EventStream,
    **_streamed(guarded("read", 404)),
)
async def events(
    run_id: RunId,
    request: Request,
    agent: AgentHeader = None,
    last: Annotated[
        int,
        Header(alias="Last-Event-ID", ge=-1, le=2**31 - 1, description="step to continue after"),
    ] = -1,
) -> Any:
    """Server-sent events: ``metrics`` for each new step, with the step as its id, and ``status``
    with the run whenever that changes. The stream ends with the run.
    """
    of = service.of(request)
    await _seen(of, request, run_id, agent)
    if of.training.followers >= _MOST_STREAMS:
        raise ApiError(503, f"{_MOST_STREAMS} follow a run already; try again", retry_after=10)
    return EventStream(_followed(of, request, run_id, last), headers={"X-Accel-Buffering": "no"})


@training.post(
    "/training/runs/{run_id}/cancel",
    summary="Cancel a training run",
    response_model=RunView,
    **guarded("train", 404, 409),
)
async def cancel(run_id: RunId, request: Request, agent: AgentHeader = None) -> Any:
    """Ask a run to stop: it finishes its update, saves it, and can be resumed."""
    of = service.of(request)
    run = await _own(of, request, run_id, agent)
    work = of.training.cancel
    return RunView(**_run(await asyncio.to_thread(work, run, actor=caller_of(request).name)))


@training.post(
    "/training/runs/{run_id}/resume",
    summary="Resume a training run",
    response_model=RunView,
    **guarded("train", 404, 409, 501),
)
async def resume(run_id: RunId, request: Request, agent: AgentHeader = None) -> Any:
    """Continue a run from its last checkpoint. It ends with the same policy, bit for bit, as one
    that nobody stopped.
    """
    of = service.of(request)
    run = await _own(of, request, run_id, agent)
    work = of.training.resume
    return RunView(**_run(await asyncio.to_thread(work, run, actor=caller_of(request).name)))


async def _seen(
    of: service.Service, request: Request, run_id: int, agent: str | None
) -> TrainingRun:
    viewer: Viewer | None = await of.seen_as(caller_of(request), agent)
    run = await asyncio.to_thread(of.store.jobs.get, run_id, viewer)
    if run is None:
        raise ApiError(404, f"there is no training run {run_id}; GET /training/runs lists them")
    return run


async def _own(
    of: service.Service, request: Request, run_id: int, agent: str | None
) -> TrainingRun:
    run, caller = await _seen(of, request, run_id, agent), caller_of(request)
    if not caller.is_operator and run.actor != caller.name:
        raise ApiError(403, f"the run {run_id} was started by {run.actor!r}, not {caller.name!r}")
    return run


async def _followed(
    of: service.Service, request: Request, run_id: int, last: int
) -> AsyncIterator[str]:
    jobs, told, spoken = of.store.jobs, None, time.monotonic()
    of_last: set[str] = set()  # metrics of the step ``last`` that were sent: more may follow
    of.training.followers += 1
    try:
        while of.ready and not await request.is_disconnected():
            run = await asyncio.to_thread(jobs.get, run_id)
            assert run is not None
            curves = await asyncio.to_thread(jobs.curves, run_id, last - bool(of_last))
            for step, values in _by_step(curves):
                sent = of_last if step == last else set()
                new = {name: value for name, value in values.items() if name not in sent}
                last, of_last = step, set(values)
                if new:
                    spoken = time.monotonic()
                    yield _event("metrics", {"step": step, "values": new}, step)
            view = RunView(**_run(run)).model_dump()
            if view != told:
                told, spoken = view, time.monotonic()
                yield _event("status", view)
            if run.state != RUNNING:
                return
            if time.monotonic() - spoken > 15:
                spoken = time.monotonic()
                yield ": nothing new\n\n"  # or a proxy would think that nobody is there
            await asyncio.sleep(1.0)
    finally:
        of.training.followers -= 1


def _event(name: str, data: dict[str, Any], id: int | None = None) -> str:
    named = "" if id is None else f"id: {id}\n"
    return f"{named}event: {name}\ndata: {json.dumps(data)}\n\n"


def _by_step(
    curves: dict[str, list[tuple[int, float]]],
) -> list[tuple[int, dict[str, float]]]:
    found: dict[int, dict[str, float]] = {}
    for name, curve in curves.items():
        for step, value in curve:
            found.setdefault(step, {})[name] = value
    return sorted(found.items())


def _thinned(curve: Sequence[tuple[int, float]], most: int) -> Curve:
    """At most ``most`` points, evenly spread, the last one among them."""
    every = -(-len(curve) // most)
    kept = curve[::-1][::every][::-1]
    return Curve(steps=[step for step, _ in kept], values=[value for _, value in kept])


def _config(recipe: Recipe) -> ConfigView:
    return ConfigView(
        name=recipe.name, kind=recipe.kind, description=recipe.says, values=dict(recipe.values)
    )


def _run(run: TrainingRun) -> dict[str, Any]:
    return {
        "id": run.id,
        "status": run.state,
        "resumable": run.beat_at is not None and run.state in RESUMABLE,
        "cancelling": run.cancelling,
        "config": run.source,
        "kind": run.kind,
        "set": dict(run.changes),
        "agent": run.agent,
        "step": run.step,
        "steps": run.steps,
        "started_by": run.actor,
        "started_at": run.started_at,
        "ended_at": run.ended_at,
        "attempts": run.attempts,
        "policy_digest": run.policy_digest,
        "error": run.error,
    }
