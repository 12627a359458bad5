"""Metrics: how well choosing goes, as far as the caller may see it."""

from __future__ import annotations

import asyncio
import time
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel, Field
from starlette.requests import Request

from letta_gym.feedback.beta import difference
from letta_gym.feedback.beta import success as rate_of
from letta_gym.service import service
from letta_gym.service.guard import caller_of, guarded, router
from letta_gym.service.parameters import AgentHeader
from letta_gym.service.registry import Registry
from letta_gym.service.routes.policies import IntervalView
from letta_gym.service.routes.skills import RankedSkill, TopSkills, less, ranking
from letta_gym.service.telemetry import CONTENT_TYPE
from letta_gym.store.figures import DAY, Mean
from letta_gym.store.models import Viewer

metrics: APIRouter = router("metrics")

Days = Annotated[float, Query(gt=0, le=36_500, description="how far to look back")]
_HOUR = 3600.0
_WIDTHS = {"hour": _HOUR, "day": DAY, "week": 7 * DAY}
Width = Literal["hour", "day", "week"]


class SummaryView(BaseModel):
    """Figures over the decisions that were carried out. Means have 95 % intervals."""

    decisions: int
    coverage: float | None = Field(description="share of the tasks for which a skill was chosen")
    success: Mean
    alone: Mean = Field(description="success of tasks without a skill")
    uplift: float | None = Field(description="success with skills less that of tasks without")
    reward: float | None = Field(description="mean reward; null where nothing was priced")
    tokens_per_task: float | None
    tokens_saved: float | None = Field(
        description="share of the tokens that loading every skill each time would have cost"
    )
    failures: int = Field(description="outcomes of which nothing can be learned")
    liked: int
    disliked: int


class TrendPoint(BaseModel):
    """A stretch of time that begins at ``at``, Unix seconds."""

    at: float
    count: int
    value: float | None
    low: float | None
    high: float | None


class Trend(BaseModel):
    """Figures over time; stretches without an outcome are left out."""

    width: Width
    points: list[TrendPoint]


class ComparedPolicy(BaseModel):
    """A policy, over the decisions that it made."""

    digest: str
    active: bool
    fallback: bool
    decisions: int
    success: Mean
    reward: float | None
    tokens_per_task: float
    lead: IntervalView | None = Field(
        description="success less that of the untrained baseline; null without outcomes of both"
    )


class Comparison(BaseModel):
    """Policies side by side, the one with the most decisions first.

    They served different tasks at different times, so a difference need not be the policies'.
    """

    items: list[ComparedPolicy]


class DashboardView(BaseModel):
    """What the dashboard shows at a glance."""

    summary: SummaryView
    success: Trend
    best: list[RankedSkill]
    harmful: list[RankedSkill]


@metrics.get(
    "/metrics/summary",
    summary="Figures over all decisions",
    response_model=SummaryView,
    **guarded("read", 404),
)
async def summary(request: Request, days: Days = 30, agent: AgentHeader = None) -> Any:
    """How many decisions there were, and how well they went."""
    of, viewer = await _eyes(request, agent)
    return await asyncio.to_thread(_summary, of, viewer, _since(days))


@metrics.get(
    "/metrics/skills",
    summary="Figures of every skill",
    response_model=TopSkills,
    **guarded("read", 404),
)
async def of_skills(request: Request, days: Days = 30, agent: AgentHeader = None) -> Any:
    """Every skill that was chosen, the best first."""
    of, viewer = await _eyes(request, agent)
    return await asyncio.to_thread(ranking, of, viewer, _since(days), None)


@metrics.get(
    "/metrics/trends/success",
    summary="Success over time",
    response_model=Trend,
    **guarded("read", 404),
)
async def success(
    request: Request, days: Days = 30, width: Width = "day", agent: AgentHeader = None
) -> Any:
    """Mean success of each stretch, with its 95 % interval."""
    of, viewer = await _eyes(request, agent)
    return await asyncio.to_thread(_success, of, viewer, _since(days), width)


@metrics.get(
    "/metrics/trends/reward",
    summary="Reward over time",
    response_model=Trend,
    **guarded("read", 404),
)
async def reward(
    request: Request, days: Days = 30, width: Width = "day", agent: AgentHeader = None
) -> Any:
    """Mean reward of each stretch; without an interval, for rewards have no bounds."""
    of, viewer = await _eyes(request, agent)
    found = await asyncio.to_thread(of.store.figures(viewer).trend, _since(days), _WIDTHS[width])
    points = [
        TrendPoint(at=p.at, count=p.success.count, value=p.reward, low=None, high=None)
        for p in found
    ]
    return Trend(width=width, points=points)


@metrics.get(
    "/metrics/compare",
    summary="Policies side by side",
    response_model=Comparison,
    **guarded("read", 404),
)
async def compare(request: Request, days: Days = 30, agent: AgentHeader = None) -> Any:
    """How well each policy did."""
    of, viewer = await _eyes(request, agent)
    return await asyncio.to_thread(_comparison, of, viewer, _since(days))


@metrics.get(
    "/metrics/dashboard",
    summary="What the dashboard shows at a glance",
    response_model=DashboardView,
    **guarded("read", 404),
)
async def dashboard(request: Request, days: Days = 30, agent: AgentHeader = None) -> Any:
    """Summary, trend, best and harmful skills in one answer."""
    of, viewer = await _eyes(request, agent)
    since = _since(days)

    def work() -> DashboardView:
        ranked = ranking(of, viewer, since, None).items
        return DashboardView(
            summary=_summary(of, viewer, since),
            success=_success(of, viewer, since, "day"),
            best=[one for one in ranked if not one.harmful][:5],
            harmful=[one for one in ranked if one.harmful],
        )

    return await asyncio.to_thread(work)


@metrics.get(
    "/metrics",
    summary="Prometheus metrics of the process",
    response_class=Response,
    **guarded("admin"),
)
async def prometheus(request: Request) -> Response:
    """Requests, their times, choices, outcomes and batches of this process, as text."""
    return Response(service.of(request).telemetry.text(), media_type=CONTENT_TYPE)


async def _eyes(request: Request, agent: str | None) -> tuple[service.Service, Viewer | None]:
    of = service.of(request)
    return of, await of.seen_as(caller_of(request), agent)


def _since(days: float) -> float:
    return time.time() - days * DAY


def _summary(of: service.Service, viewer: Viewer | None, since: float) -> SummaryView:
    s = of.store.figures(viewer).summary(since)
    desk = None if viewer is None else of.desks.known(viewer)
    everything = desk.tokens_offered if desk is not None else of.tokens_offered()
    per_task = s.tokens / s.decisions if s.decisions else None
    return SummaryView(
        decisions=s.decisions,
        coverage=1 - s.without_skill / s.decisions if s.decisions else None,
        success=s.success,
        alone=s.alone,
        uplift=less(s.with_skill.mean, s.alone.mean),
        reward=s.reward,
        tokens_per_task=per_task,
        tokens_saved=1 - per_task / everything if per_task is not None and everything else None,
        failures=s.failures,
        liked=s.liked,
        disliked=s.disliked,
    )


def _success(of: service.Service, viewer: Viewer | None, since: float, width: Width) -> Trend:
    found = of.store.figures(viewer).trend(since, _WIDTHS[width])
    points = [
        TrendPoint(
            at=p.at,
            count=p.success.count,
            value=p.success.mean,
            low=p.success.low,
            high=p.success.high,
        )
        for p in found
    ]
    return Trend(width=width, points=points)


def _comparison(of: service.Service, viewer: Viewer | None, since: float) -> Comparison:
    known = {row.digest for row in of.registry.all() if Registry.is_fallback(row)}
    found = of.store.figures(viewer).policies(since)
    baseline = next((p.success for p in found if p.digest in known and p.success.count), None)
    return Comparison(
        items=[
            ComparedPolicy(
                digest=p.digest,
                active=p.digest == of.desks.policy.digest,
                fallback=p.digest in known,
                decisions=p.decisions,
                success=p.success,
                reward=p.reward,
                tokens_per_task=p.tokens_per_task,
                lead=None if p.digest in known else _lead(p.success, baseline),
            )
            for p in found
        ]
    )


def _lead(one: Mean, other: Mean | None) -> IntervalView | None:
    if other is None or one.mean is None or other.mean is None:
        return None
    lead = difference(rate_of(one.count, one.mean), rate_of(other.count, other.mean))
    return IntervalView(**asdict(lead))
