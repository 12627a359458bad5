"""Transfers: what one agent learned of its skills, offered to another, and taken in by choice."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

import numpy as np
from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from letta_gym.errors import BundleError, StoreError
from letta_gym.feedback.transfer import Bundle
from letta_gym.service import service
from letta_gym.service.guard import caller_of, guarded, router
from letta_gym.service.parameters import LONGEST_NAME, AgentHeader
from letta_gym.service.problems import ApiError, InvalidField
from letta_gym.service.routes.skills import UPLOAD
from letta_gym.store.models import TransferRow, Viewer
from letta_gym.store.transfers import Conflict, Transfers, UnresolvedError

transfers: APIRouter = router("transfers")

_KIND = "application/octet-stream"
_BINARY = {_KIND: {"schema": {"type": "string", "format": "binary"}}}
_BODY = {"requestBody": {"required": True, "content": _BINARY}}
_RECENT = 500
"""Decisions of the agent whose tasks say what would help it."""

_FILE = guarded("read", 404, 409)
_FILE["responses"][200] = {"description": "the bundle", "content": _BINARY}

Fate = Literal["new", "same", "kept", "taken"]
Names = Annotated[list[str] | None, Query(max_length=1000)]


class ExpectedSuccess(BaseModel):
    """A success rate with its 95 % interval."""

    mean: float
    low: float
    high: float


class RecommendedSkill(BaseModel):
    """A skill that did well for other agents on tasks like the agent's own."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": "invoice-matching",
                    "content_hash": "9b1d" * 16,
                    "tokens": 512,
                    "expected": {"mean": 0.81, "low": 0.66, "high": 0.93},
                    "outcomes": 17.5,
                    "agents": ["ada"],
                    "known": False,
                }
            ]
        }
    )

    id: str
    content_hash: str
    tokens: int
    expected: ExpectedSuccess = Field(description="for the agent that asks")
    outcomes: float = Field(description="on like tasks, on which that rests")
    agents: list[str] = Field(description="whose outcomes these are, the best first")
    known: bool = Field(description="whether the agent may choose another skill of this name now")


class Recommendations(BaseModel):
    """What is worth taking over, the surest first; ``tasks`` of the agent were looked at."""

    tasks: int
    items: list[RecommendedSkill]


class TransferView(BaseModel):
    """A bundle that was taken in; the time is in Unix seconds.

    ``skills`` says what became of each: ``new`` to the agent, the ``same`` as its own, another one
    beside which its own was ``kept``, or the bundle's ``taken``.
    """

    source: str
    agent: str
    skills: dict[str, Fate]
    discount: float = Field(description="share of the outcomes that counts for the agent")
    bundle_sha256: str
    imported_at: float


class TransferList(BaseModel):
    """Bundles that were taken in, the newest first."""

    items: list[TransferView]


@transfers.get(
    "/transfers",
    summary="List what an agent took in",
    response_model=TransferList,
    **guarded("read", 404),
)
async def list_taken(request: Request, agent: AgentHeader = None) -> Any:
    """The bundles that the agent took in, the newest first."""
    of = service.of(request)
    viewer = await of.agent(caller_of(request), agent)
    rows = await asyncio.to_thread(Transfers(of.store).received, viewer)
    return TransferList(items=[_view(row, viewer) for row in rows])


@transfers.get(
    "/transfers/recommendations",
    summary="Skills of other agents that would help",
    response_model=Recommendations,
    **guarded("read", 404),
)
async def recommendations(request: Request, agent: AgentHeader = None) -> Any:
    """Skills that did well on tasks like the agent's latest ones, for agents that it may see; those
    that it has itself, in the same content, are left out.
    """
    of = service.of(request)
    viewer = await of.agent(caller_of(request), agent)
    known = frozenset((await of.desk(viewer)).offers)
    return await asyncio.to_thread(_recommended, of, viewer, known)


@transfers.get(
    "/transfers/bundle",
    summary="Download skills with their outcomes",
    response_class=Response,
    **_FILE,
)
async def pack(
    request: Request,
    source: Annotated[str | None, Query(max_length=LONGEST_NAME)] = None,
    content_hash: Names = None,
    agent: AgentHeader = None,
) -> Response:
    """A bundle of what ``source`` has, as far as the agent may see it; by default of every skill
    with an outcome.

    Without ``source`` it is the agent's own: what it shares with everybody, for another store.
    """
    of = service.of(request)
    viewer = await of.agent(caller_of(request), agent)
    if source is None or source == viewer.name:
        ends: tuple[str, str | None] = (viewer.name, None)
    else:
        ends = (source, viewer.name)
    packed = await asyncio.to_thread(_packed, of, *ends, content_hash)
    headers = {"Content-Disposition": f'attachment; filename="{packed.digest[:12]}.bundle"'}
    return Response(packed.to_bytes(), media_type=_KIND, headers=headers)


@transfers.post(
    "/transfers",
    summary="Take a bundle in",
    response_model=TransferView,
    **guarded("write", 404, 409, **UPLOAD, **_BODY),
)
async def take_in(
    request: Request, keep: Names = None, take: Names = None, agent: AgentHeader = None
) -> Any:
    """Give the skills of a bundle and a share of its evidence to the agent; its next choice knows.

    Where the agent has another content under the name of a skill, it is to be said of each whether
    to ``keep`` its own or ``take`` the bundle's; else 409 names them, and nothing was taken in. To
    take the same bundle in again changes nothing.
    """
    of = service.of(request)
    viewer = await of.agent(caller_of(request), agent)
    data, actor = await request.body(), caller_of(request).name
    chosen = dict.fromkeys(keep or (), Conflict.KEEP) | dict.fromkeys(take or (), Conflict.TAKE)
    bundle, row = await asyncio.to_thread(_taken, of, viewer, data, chosen, actor)
    fates = row.content["skills"]
    own = [skill for skill in bundle.skills if fates[skill.id] in ("new", "taken")]
    if own:
        await of.desks.offer(viewer, own, actor=actor)
    await of.desks.forget()  # the evidence is read again when the agent calls next
    return _view(row, viewer)


def _packed(
    of: service.Service, source: str, recipient: str | None, keys: list[str] | None
) -> Bundle:
    try:
        return Transfers(of.store).pack(source, recipient, keys)
    except StoreError as error:
        raise ApiError(404, str(error)) from error
    except BundleError as error:
        raise ApiError(409, str(error)) from error


def _taken(
    of: service.Service, viewer: Viewer, data: bytes, chosen: dict[str, Conflict], actor: str
) -> tuple[Bundle, TransferRow]:
    try:
        bundle = Bundle.from_bytes(data)
    except BundleError as error:
        raise ApiError(422, str(error)) from error
    try:
        row = Transfers(of.store).take_in(bundle, viewer.name, conflicts=chosen, actor=actor)
    except UnresolvedError as error:
        asked = [InvalidField(where=skill, problem="keep or take?") for skill in error.skills]
        said = "; name each of these skills in keep= or in take="
        raise ApiError(409, f"{error.reason}{said}", errors=asked) from error
    except (BundleError, StoreError) as error:
        raise ApiError(409, str(error)) from error
    return bundle, row


def _recommended(of: service.Service, viewer: Viewer, known: frozenset[str]) -> Recommendations:
    history = of.store.history(viewer)
    latest = [one.decision for one in history.latest(_RECENT) if one.agent == viewer.name]
    if not latest:
        return Recommendations(tasks=0, items=[])
    found = Transfers(of.store).recommend(
        viewer.name, np.stack([decision.vector for decision in latest])
    )
    versions = {version.key: version for version in history.versions().values()}
    items = [
        RecommendedSkill(
            id=versions[one.key].skill,
            content_hash=one.key,
            tokens=versions[one.key].tokens,
            expected=ExpectedSuccess(
                mean=one.expected.value, low=one.expected.low, high=one.expected.high
            ),
            outcomes=one.outcomes,
            agents=list(one.agents),
            known=versions[one.key].skill in known,
        )
        for one in found
    ]
    return Recommendations(tasks=len(latest), items=items)


def _view(row: TransferRow, viewer: Viewer) -> TransferView:
    return TransferView(
        source=row.content["source"],
        agent=viewer.name,
        skills=row.content["skills"],
        discount=row.discount,
        bundle_sha256=row.bundle_sha256,
        imported_at=row.imported_at,
    )
