"""Routes that say what right they need, and are closed to whoever lacks it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from fastapi import APIRouter
from fastapi.routing import APIRoute
from starlette.requests import Request
from starlette.responses import Response

from letta_gym.service import problems, service
from letta_gym.service.access import Caller
from letta_gym.store.keys import RIGHTS

RIGHT = "x-right"
SCHEME = "apiKey"
ADMITTED = "letta_gym.caller"
"""Where the scope has a caller who was admitted to this route already."""

_ALWAYS = (400, 401, 403, 413, 422, 429, 500, 503)


class GuardedRoute(APIRoute):
    """A route that admits its caller before the body is read."""

    def get_route_handler(self) -> Callable[[Request], Awaitable[Response]]:  # type: ignore[override]
        handle = super().get_route_handler()
        right = (self.openapi_extra or {}).get(RIGHT)
        if right not in RIGHTS:
            raise TypeError(f"the route {self.path} must say its right: **guarded(...)")

        async def guarded_handler(request: Request) -> Response:
            of = service.of(request)
            if not of.ready:
                raise problems.ApiError(503, f"not ready: {of.waits_for}", retry_after=1)
            caller = request.scope.get(ADMITTED)
            if caller is None:
                caller = of.access.admit(request.headers.get("authorization", ""), right)
            request.scope["caller"] = caller.name
            request.state.caller = caller
            return await handle(request)

        return guarded_handler


def router(tag: str) -> APIRouter:
    """A router whose routes are all guarded."""
    return APIRouter(tags=[tag], route_class=GuardedRoute)


def guarded(right: str, *statuses: int, **extra: Any) -> dict[str, Any]:
    """What a guarded route passes to its decorator.

    Args:
        right: which its callers need.
        statuses: of the errors that it answers with, beside those that every route has.
        extra: more of the operation in OpenAPI.
    """
    return {
        "responses": error_responses(*_ALWAYS, *statuses),
        "openapi_extra": {RIGHT: right, "security": [{SCHEME: []}], **extra},
    }


def error_responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's responses for errors."""
    content = {problems.MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    responses: dict[int | str, dict[str, Any]] = {}
    for status in sorted(statuses):
        responses[status] = {"description": problems.title_of(status), "content": content}
        if status in (429, 503):
            after = {"schema": {"type": "integer"}, "description": "seconds to wait"}
            responses[status]["headers"] = {"Retry-After": after}
    return responses


def caller_of(request: Request) -> Caller:
    """Who sent ``request``."""
    caller: Caller = request.state.caller
    return caller
