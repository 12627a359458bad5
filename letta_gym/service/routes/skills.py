"""Skills: what an agent may choose from."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Path, Query, Response
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from letta_gym.errors import SkillError, StoreError
from letta_gym.library.frontmatter import MAX_DESCRIPTION, MAX_NAME, format_skill, parse_skill
from letta_gym.library.skills import Skill
from letta_gym.service import service
from letta_gym.service.access import Caller
from letta_gym.service.archive import read_archive
from letta_gym.service.guard import caller_of, guarded, router
from letta_gym.service.parameters import NEXT, After, AgentHeader, Body, Limit, cursor, key_of
from letta_gym.service.problems import ApiError
from letta_gym.store.figures import DAY, Mean, SkillFigures, harmful
from letta_gym.store.models import PRIVATE, Viewer
from letta_gym.store.offers import Offer

skills: APIRouter = router("skills")

Scope = Literal["private", "team", "shared"]
SkillId = Annotated[str, Path(min_length=1, max_length=200)]
UPLOAD = {"x-upload": True}
_ZIP = {
    "requestBody": {
        "required": True,
        "content": {"application/zip": {"schema": {"type": "string", "format": "binary"}}},
    }
}
_NAMES = "[a-z0-9]+(-[a-z0-9]+)*"


class SkillBody(Body):
    """What a skill says."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "name": "invoice-matching",
                    "description": "Matches invoices with orders. Use when amounts differ.",
                    "body": "1. Read both.\n2. Compare the totals, then each line.",
                    "scope": "private",
                }
            ]
        }
    )

    description: str = Field(
        min_length=1, max_length=MAX_DESCRIPTION, description="what it does and when to use it"
    )
    body: str = Field("", max_length=1 << 20, description="the instructions, in Markdown")
    scope: Scope | None = Field(
        None, description="who may see it; private when it is new, else as it is"
    )


class NewSkill(SkillBody):
    """A new skill; its name becomes its id."""

    name: str = Field(min_length=1, max_length=MAX_NAME, pattern=f"^{_NAMES}$")


class SkillView(BaseModel):
    """A skill that may be chosen."""

    id: str
    name: str
    description: str
    tokens: int
    owner: str = Field(description="whose it is; 'library' owns the bundled ones")
    scope: Scope
    changed_at: float = Field(description="Unix seconds")


class FullSkill(SkillView):
    """A skill with its instructions, as SKILL.md too."""

    body: str
    content_hash: str
    skill_md: str | None = Field(description="null where it does not fit the standard")


class SkillPage(BaseModel):
    """Skills by ascending id."""

    items: list[SkillView]
    total: int
    next: str | None = NEXT


class VersionView(BaseModel):
    """A content that a skill has or had."""

    content_hash: str
    current: bool
    since: float = Field(description="when it was first seen, Unix seconds")
    tokens: int
    chosen: int
    success: Mean = Field(description="of the graded outcomes for which it was loaded")


class SkillPoint(BaseModel):
    """A day that begins at ``at``, Unix seconds; days without an outcome are left out."""

    at: float
    success: Mean


class SkillHistory(BaseModel):
    """What a skill said and how it did: its versions, the newest first, and success by day."""

    versions: list[VersionView]
    days: list[SkillPoint]


class RankedSkill(BaseModel):
    """How a skill did; a success is the mean of graded outcomes with its 95 % interval."""

    id: str
    chosen: int
    loaded: int
    success: Mean
    recent: Mean = Field(description="its success in the last 7 days")
    uplift: float | None = Field(description="its success less that of tasks without a skill")
    harmful: bool = Field(description="its whole interval lies below that of no skill")


class TopSkills(BaseModel):
    """Skills that were used, the best first: by the lower end of the interval."""

    items: list[RankedSkill]
    alone: Mean = Field(description="success of tasks without a skill")


class RefusedFile(BaseModel):
    """A file that could not become a skill."""

    path: str
    reason: str


class Imported(BaseModel):
    """What an archive brought."""

    imported: list[str]
    refused: list[RefusedFile]


@skills.get("/skills", summary="List skills", response_model=SkillPage, **guarded("read", 404))
async def list_skills(
    request: Request,
    limit: Limit = 50,
    after: After = None,
    q: Annotated[str | None, Query(max_length=200, description="words to look for")] = None,
    agent: AgentHeader = None,
) -> Any:
    """The skills that the agent may choose from, by id."""
    offers = (await _desk(request, agent)).offers
    words = (q or "").lower().split()
    found = [o for o in offers.values() if all(word in _said(o.skill) for word in words)]
    start = key_of(after, str)[0] if after is not None else ""
    rest = [offer for offer in found if offer.skill.id > start]
    shown = rest[:limit]
    return SkillPage(
        items=[SkillView(**_view(offer)) for offer in shown],
        total=len(found),
        next=cursor(shown[-1].skill.id) if len(rest) > limit else None,
    )


@skills.post(
    "/skills",
    summary="Create a skill",
    response_model=FullSkill,
    status_code=201,
    **guarded("write", 404, 409),
)
async def create(
    body: NewSkill, request: Request, response: Response, agent: AgentHeader = None
) -> Any:
    """Create a skill of the agent; the very next choice knows it.

    A skill that another agent shares under this name is hidden by it, for this agent only.
    """
    of, viewer = await _at(request, agent)
    known = (await of.desk(viewer)).offers.get(body.name)
    if known is not None and known.owner == viewer.name:
        raise ApiError(409, f"there is a skill {body.name!r} already; PUT it to change it")
    skill = Skill(body.name, body.name, body.description.strip(), body.body.strip("\n"))
    parse_skill(format_skill(skill).encode())
    await of.desks.offer(viewer, [skill], actor=_actor(request), scope=body.scope or PRIVATE)
    response.headers["Location"] = f"/skills/{skill.id}"
    return await _full(request, skill.id, agent)


@skills.get(
    "/skills/top",
    summary="The skills that did best",
    response_model=TopSkills,
    **guarded("read", 404),
)
async def top(
    request: Request,
    limit: Limit = 10,
    since: Annotated[float, Query(ge=0, le=1e12, description="Unix seconds")] = 0.0,
    agent: AgentHeader = None,
) -> Any:
    """How the skills did, the best first."""
    of = service.of(request)
    viewer = await of.seen_as(caller_of(request), agent)
    return await asyncio.to_thread(ranking, of, viewer, since, limit)


@skills.post(
    "/skills/import",
    summary="Import a ZIP archive of skill folders",
    response_model=Imported,
    **guarded("write", 404, **UPLOAD, **_ZIP),
)
async def import_archive(
    request: Request, scope: Scope | None = None, agent: AgentHeader = None
) -> Any:
    """Every `NAME/SKILL.md` becomes a skill of the agent, or is changed; what does not fit is told.

    Nothing is unpacked to disk, so names that lead out of the archive lead nowhere.
    """
    of, viewer = await _at(request, agent)
    data = await request.body()
    found, refused = await asyncio.to_thread(read_archive, data)
    if found:
        await of.desks.offer(viewer, found, actor=_actor(request), scope=scope)
    return Imported(
        imported=sorted(skill.id for skill in found),
        refused=[RefusedFile(path=one.path, reason=one.reason) for one in refused],
    )


@skills.get(
    "/skills/{id}",
    summary="Look at a skill",
    response_model=FullSkill,
    **guarded("read", 404),
)
async def look(id: SkillId, request: Request, agent: AgentHeader = None) -> Any:
    """A skill with its instructions."""
    return await _full(request, id, agent)


@skills.get(
    "/skills/{id}/history",
    summary="Versions and success of a skill",
    response_model=SkillHistory,
    **guarded("read", 404),
)
async def history(id: SkillId, request: Request, agent: AgentHeader = None) -> Any:
    """What a skill said over time and how it did, as far as the caller may see it."""
    of, offer = service.of(request), await _offer(request, id, agent)
    viewer = await of.seen_as(caller_of(request), agent)

    def work() -> SkillHistory:
        figures = of.store.figures(viewer)
        versions = [
            VersionView(
                content_hash=one.content_hash,
                current=one.content_hash == offer.skill.content_hash,
                since=one.since,
                tokens=one.tokens,
                chosen=one.chosen,
                success=one.success,
            )
            for one in figures.versions(id)
        ]
        points = figures.trend(0.0, DAY, id)
        return SkillHistory(
            versions=versions, days=[SkillPoint(at=p.at, success=p.success) for p in points]
        )

    return await asyncio.to_thread(work)


@skills.put(
    "/skills/{id}",
    summary="Change a skill",
    response_model=FullSkill,
    **guarded("write", 404),
)
async def change(id: SkillId, body: SkillBody, request: Request, agent: AgentHeader = None) -> Any:
    """Change a skill. Evidence belongs to its content, so what was learned of the old one stays
    with the old one.
    """
    of, viewer = await _at(request, agent)
    offer = await _offer(request, id, agent)
    owner = await _owner(of, caller_of(request), viewer, offer)
    old = offer.skill
    skill = Skill(
        id, old.name, body.description.strip(), body.body.strip("\n"), metadata=old.metadata
    )
    await of.desks.offer(owner, [skill], actor=_actor(request), scope=body.scope)
    return await _full(request, id, agent)


@skills.delete(
    "/skills/{id}",
    summary="Remove a skill",
    status_code=204,
    response_class=Response,
    **guarded("write", 404),
)
async def remove(id: SkillId, request: Request, agent: AgentHeader = None) -> None:
    """Remove a skill; the very next choice does without it. What was decided with it stays."""
    of, viewer = await _at(request, agent)
    offer = await _offer(request, id, agent)
    owner = await _owner(of, caller_of(request), viewer, offer)
    try:
        await of.desks.withdraw(owner, id, actor=_actor(request))
    except StoreError as error:  # somebody was quicker
        raise ApiError(404, str(error)) from error


def ranking(
    of: service.Service, viewer: Viewer | None, since: float, limit: int | None
) -> TopSkills:
    """How the skills did that ``viewer`` may see, the best first."""
    figures = of.store.figures(viewer)
    alone, found = figures.summary(since).alone, figures.skills(since)
    bad = set(harmful(found, alone))

    def merit(one: SkillFigures) -> tuple[float, str]:
        return -(one.success.low if one.success.low is not None else -1.0), one.skill

    items = [
        RankedSkill(
            id=one.skill,
            chosen=one.chosen,
            loaded=one.loaded,
            success=one.success,
            recent=one.recent,
            uplift=less(one.success.mean, alone.mean),
            harmful=one.skill in bad,
        )
        for one in sorted(found, key=merit)
    ]
    return TopSkills(items=items[:limit], alone=alone)


async def _at(request: Request, agent: str | None) -> tuple[service.Service, Viewer]:
    of = service.of(request)
    return of, await of.agent(caller_of(request), agent)


async def _desk(request: Request, agent: str | None) -> Any:
    of, viewer = await _at(request, agent)
    return await of.desk(viewer)


async def _offer(request: Request, id: str, agent: str | None) -> Offer:
    offers: dict[str, Offer] = (await _desk(request, agent)).offers
    if id not in offers:
        raise ApiError(404, f"there is no skill {id!r}; GET /skills lists them")
    return offers[id]


async def _owner(of: service.Service, caller: Caller, viewer: Viewer, offer: Offer) -> Viewer:
    if offer.owner == viewer.name:
        return viewer
    if caller.is_operator and "admin" in caller.rights:
        return await asyncio.to_thread(of.store.agents.get, offer.owner)
    raise ApiError(
        403,
        f"the skill {offer.skill.id!r} is {offer.owner!r}'s; POST one of your own under its name, "
        "which takes its place for you",
    )


async def _full(request: Request, id: str, agent: str | None) -> FullSkill:
    offer = await _offer(request, id, agent)
    try:
        written = format_skill(offer.skill)
    except SkillError:
        written = None
    skill = offer.skill
    return FullSkill(
        **_view(offer), body=skill.body, content_hash=skill.content_hash, skill_md=written
    )


def _view(offer: Offer) -> dict[str, Any]:
    skill = offer.skill
    return {
        "id": skill.id,
        "name": skill.name,
        "description": skill.description,
        "tokens": skill.tokens,
        "owner": offer.owner,
        "scope": offer.scope,
        "changed_at": offer.changed_at,
    }


def _said(skill: Skill) -> str:
    return f"{skill.id} {skill.description}".lower()


def _actor(request: Request) -> str:
    return caller_of(request).name


def less(first: float | None, second: float | None) -> float | None:
    """The difference, where both are known."""
    return None if first is None or second is None else first - second
