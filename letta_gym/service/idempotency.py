"""Requests that may be sent twice and are carried out once."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Annotated, Any

from fastapi import Header, Response

from letta_gym.service import service
from letta_gym.service.problems import ApiError
from letta_gym.store.models import Viewer

REPLAYED = "Idempotent-Replayed"

KeyHeader = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        min_length=1,
        max_length=200,
        description="your own name for the request: sent again under it, it is not carried out "
        "again, and answered as before; kept for a day",
    ),
]


async def once(
    of: service.Service,
    agent: Viewer,
    key: str | None,
    request: Mapping[str, Any],
    response: Response,
    carry_out: Callable[[], Awaitable[dict[str, Any]]],
) -> dict[str, Any]:
    """Carry a request out, or answer as before where it came before.

    Args:
        of: the service.
        agent: on whose behalf.
        key: the sender's name for the request; None carries it out in any case.
        request: what is asked for.
        response: gets a header when the answer is repeated.
        carry_out: does it, and returns the body of the answer.

    Raises:
        ApiError: 409, the request is under way, or was cut off when the service ended; 422, the
            key names another request.
    """
    if key is None:
        return await carry_out()
    digest = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
    replies = of.store.replies
    known = await asyncio.to_thread(replies.begin, agent, key, digest)
    if known is None:
        return await _first(of, agent, key, carry_out)
    if not known.same:
        raise ApiError(422, f"the idempotency key {key!r} was used for another request")
    if known.body is None:
        raise ApiError(
            409,
            f"the request {key!r} is under way, or was cut off when the service ended; "
            "GET /tasks tells what came of it",
        )
    response.headers[REPLAYED] = "true"
    return known.body


async def _first(
    of: service.Service, agent: Viewer, key: str, carry_out: Callable[[], Awaitable[dict[str, Any]]]
) -> dict[str, Any]:
    replies = of.store.replies
    try:
        body = await carry_out()
    except BaseException:
        # An error is not kept: the request may be sent again under its key.
        await asyncio.shield(asyncio.to_thread(replies.abandon, agent, key))
        raise
    await asyncio.to_thread(replies.finish, agent, key, 200, body)
    return body
