"""Policies: who chooses, who chose before, and who may choose next."""

from __future__ import annotations

import asyncio
import functools
from dataclasses import asdict
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, ConfigDict, Field, model_validator
from starlette.requests import Request

from letta_gym.feedback.promotion import Ruling
from letta_gym.service import service
from letta_gym.service.guard import caller_of, guarded, router
from letta_gym.service.problems import ApiError
from letta_gym.service.registry import Registry
from letta_gym.service.routes.skills import UPLOAD
from letta_gym.store.models import PolicyRow

policies: APIRouter = router("policies")

Digest = Annotated[str, Path(pattern="^[0-9a-f]{64}$", description="SHA-256 of the policy file")]
_FILE = {
    "requestBody": {
        "required": True,
        "content": {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}},
    }
}


class ShadowView(BaseModel):
    """What a policy chose in the shadow, since the service started."""

    choices: int
    same: int = Field(description="of these, how often it chose the same skills")
    left_out: int = Field(description="choices that it was not asked for, as there was no time")


class PolicyView(BaseModel):
    """A policy. ``evaluation`` is the table of its training run, where it has one."""

    digest: str
    status: Literal["candidate", "shadow", "canary", "active", "retired"]
    share: float = Field(description="of the decisions, where it is a canary")
    fallback: bool = Field(description="the untrained baseline")
    in_shadow: ShadowView | None = None
    provenance: dict[str, Any]
    evaluation: dict[str, Any]
    added_at: float = Field(description="Unix seconds")


class PolicyList(BaseModel):
    """Every policy, the newest first, and the digest of the one that chooses."""

    active: str
    items: list[PolicyView]


class IntervalView(BaseModel):
    """An estimate with its interval."""

    value: float
    low: float
    high: float


class RulingView(BaseModel):
    """What the gate says of a policy, by the explored decisions of the active one.

    ``gain`` is the difference of the two values, with an interval that holds at any sample size.
    """

    promoted: bool = Field(description="whether it may take over")
    worse: bool = Field(description="whether the log shows that it is worse")
    reason: str
    candidate: float = Field(description="estimated reward of a decision")
    incumbent: float = Field(description="mean reward of the active policy's explored decisions")
    gain: IntervalView
    decisions: int
    effective: float = Field(description="effective sample size")
    largest_weight: float
    clipped: float = Field(description="share of the importance weights that were clipped")

    @classmethod
    def of(cls, ruling: Ruling) -> RulingView:
        """The view of a ruling."""
        found = ruling.diagnostics
        return cls(
            promoted=ruling.promoted,
            worse=ruling.worse,
            reason=ruling.reason,
            candidate=ruling.candidate,
            incumbent=ruling.incumbent,
            gain=IntervalView(**asdict(ruling.gain)),
            decisions=found.decisions,
            effective=found.effective,
            largest_weight=found.largest_weight,
            clipped=found.clipped,
        )


class PromoteRequest(BaseModel):
    """How a policy is promoted."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{}, {"share": 0.1}]})

    share: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="let it choose for this share of the decisions, as a canary",
    )
    force: bool = Field(default=False, description="whatever the log says; the audit keeps that")

    @model_validator(mode="after")
    def _one_of_them(self) -> Self:
        if self.force and self.share is not None:
            raise ValueError("a canary cannot be forced: it is refused only where it is worse")
        return self


@policies.get("/policies", summary="List policies", response_model=PolicyList, **guarded("read"))
async def list_policies(request: Request) -> Any:
    """Every policy that the service knows."""
    of = service.of(request)
    rows = await asyncio.to_thread(of.registry.all)
    return PolicyList(active=of.desks.policy.digest, items=[_view(of, row) for row in rows])


@policies.post(
    "/policies",
    summary="Upload a policy file",
    response_model=PolicyView,
    status_code=201,
    **guarded("admin", **UPLOAD, **_FILE),
)
async def upload(request: Request, response: Response) -> Any:
    """Keep a policy file as a candidate, after checking digest, features and embedder."""
    of = service.of(request)
    data = await request.body()
    row = await asyncio.to_thread(of.registry.add, data, actor=caller_of(request).name)
    response.headers["Location"] = f"/policies/{row.digest}"
    return _view(of, row)


@policies.get(
    "/policies/{digest}",
    summary="Look at a policy",
    response_model=PolicyView,
    **guarded("read", 404),
)
async def look(digest: Digest, request: Request) -> Any:
    """One policy."""
    return await _shown(service.of(request), digest)


@policies.get(
    "/policies/{digest}/comparison",
    summary="What the log says of a policy",
    response_model=RulingView,
    **guarded("admin", 404, 409),
)
async def comparison(digest: Digest, request: Request) -> Any:
    """The figures of the gate: what the policy would have earned in the active one's decisions."""
    of, actor = service.of(request), caller_of(request).name
    return RulingView.of(await asyncio.to_thread(of.board.compare, digest, actor))


@policies.post(
    "/policies/{digest}/shadow",
    summary="Let a policy choose in the shadow",
    response_model=PolicyView,
    **guarded("admin", 404, 409),
)
async def shadow(digest: Digest, request: Request) -> Any:
    """Let a policy choose beside the active one; it is logged, and nobody carries it out."""
    of, actor = service.of(request), caller_of(request).name
    async with of.switching:
        await asyncio.to_thread(of.board.shadow, digest, actor)
        await of.take_seats()
    return await _shown(of, digest)


@policies.post(
    "/policies/{digest}/promote",
    summary="Let a policy choose",
    response_model=PolicyView,
    **guarded("admin", 404, 409),
)
async def promote(digest: Digest, request: Request, body: PromoteRequest | None = None) -> Any:
    """Let a policy choose, for everybody at once, if the log of the active one speaks for it.

    With a share it becomes a canary, unless the log shows that it is worse.
    """
    of, actor = service.of(request), caller_of(request).name
    wanted = body or PromoteRequest()
    async with of.switching:
        if wanted.share is not None:
            await asyncio.to_thread(of.board.canary, digest, wanted.share, actor)
        else:
            act = functools.partial(of.board.promote, digest, actor, force=wanted.force)
            ruling = await asyncio.to_thread(act)
            if ruling is not None and not ruling.promoted and not wanted.force:
                raise ApiError(409, ruling.reason, figures=RulingView.of(ruling).model_dump())
        await of.take_seats()
    return await _shown(of, digest)


@policies.post(
    "/policies/{digest}/rollback",
    summary="Undo the promotion of a policy",
    response_model=PolicyView,
    **guarded("admin", 404, 409),
)
async def rollback(digest: Digest, request: Request) -> Any:
    """Let the policy choose again that the active one took over from; answers with that one.

    A canary, or a policy in the shadow, is a candidate again.
    """
    of, actor = service.of(request), caller_of(request).name
    async with of.switching:
        row = await asyncio.to_thread(of.board.rollback, digest, actor)
        await of.take_seats()
    return await _shown(of, row.digest)


async def _shown(of: service.Service, digest: str) -> PolicyView:
    return _view(of, await asyncio.to_thread(of.registry.get, digest))


def _view(of: service.Service, row: PolicyRow) -> PolicyView:
    found = of.shadows.found.get(row.digest)
    return PolicyView.model_validate(
        {
            "digest": row.digest,
            "status": row.status,
            "share": row.share,
            "fallback": Registry.is_fallback(row),
            "in_shadow": None if found is None else asdict(found),
            "provenance": row.provenance,
            "evaluation": row.evaluation,
            "added_at": row.added_at,
        }
    )
