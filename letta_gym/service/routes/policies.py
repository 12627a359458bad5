"""Policies: who chooses, who chose before, and who may choose next."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Response
from pydantic import BaseModel, Field
from starlette.requests import Request

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


class PolicyView(BaseModel):
    """A policy. ``evaluation`` is the table of its training run, where it has one."""

    digest: str
    status: Literal["candidate", "shadow", "canary", "active", "retired"]
    fallback: bool = Field(description="the untrained baseline")
    provenance: dict[str, Any]
    evaluation: dict[str, Any]
    added_at: float = Field(description="Unix seconds")


class PolicyList(BaseModel):
    """Every policy, the newest first, and the digest of the one that chooses."""

    active: str
    items: list[PolicyView]


@policies.get("/policies", summary="List policies", response_model=PolicyList, **guarded("read"))
async def list_policies(request: Request) -> Any:
    """Every policy that the service knows."""
    of = service.of(request)
    rows = await asyncio.to_thread(of.registry.all)
    return PolicyList(active=of.desks.policy.digest, items=[_view(row) for row in rows])


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
    return _view(row)


@policies.get(
    "/policies/{digest}",
    summary="Look at a policy",
    response_model=PolicyView,
    **guarded("read", 404),
)
async def look(digest: Digest, request: Request) -> Any:
    """One policy."""
    return _view(await asyncio.to_thread(service.of(request).registry.get, digest))


@policies.post(
    "/policies/{digest}/shadow",
    summary="Mark a policy as shadow",
    response_model=PolicyView,
    **guarded("admin", 404, 409),
)
async def shadow(digest: Digest, request: Request) -> Any:
    """Mark a candidate, or a retired policy, as the one to be watched; it chooses nothing."""
    of = service.of(request)
    row = await asyncio.to_thread(of.registry.get, digest)
    if row.status in ("active", "canary"):
        raise ApiError(409, f"the policy chooses already: it is {row.status}")
    return _view(await _switch(of, request, digest, "shadow", "asked for"))


@policies.post(
    "/policies/{digest}/promote",
    summary="Let a policy choose",
    response_model=PolicyView,
    **guarded("admin", 404),
)
async def promote(digest: Digest, request: Request) -> Any:
    """Let a policy choose from now on, for everybody at once; the one before it is retired."""
    return await _activate(service.of(request), request, digest, "promoted")


@policies.post(
    "/policies/{digest}/rollback",
    summary="Undo the promotion of a policy",
    response_model=PolicyView,
    **guarded("admin", 404, 409),
)
async def rollback(digest: Digest, request: Request) -> Any:
    """Let the policy choose again that the active policy took over from; answers with that one."""
    of = service.of(request)
    earlier = await asyncio.to_thread(of.registry.before, digest)
    return await _activate(of, request, earlier, f"rolled back from {digest}")


async def _activate(of: service.Service, request: Request, digest: str, why: str) -> PolicyView:
    async with of.switching:
        await asyncio.to_thread(of.registry.get, digest)
        policy = await asyncio.to_thread(of.registry.load, digest)
        row = await _switch(of, request, digest, "active", why)
        await of.use(policy, Registry.is_fallback(row))
    return _view(row)


async def _switch(
    of: service.Service, request: Request, digest: str, status: str, why: str
) -> PolicyRow:
    actor = caller_of(request).name
    return await asyncio.to_thread(of.registry.switch, digest, status, actor=actor, why=why)


def _view(row: PolicyRow) -> PolicyView:
    return PolicyView.model_validate(
        {
            "digest": row.digest,
            "status": row.status,
            "fallback": Registry.is_fallback(row),
            "provenance": row.provenance,
            "evaluation": row.evaluation,
            "added_at": row.added_at,
        }
    )
