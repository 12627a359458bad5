"""The short way to ``POST /tasks/select``, which is called for every task.

FastAPI finds the route, reads the parameters and puts the answer together in about the time that
the choice itself takes. What fits is done here, by the same functions; what does not goes the whole
way, and is answered there.
"""

from __future__ import annotations

from fastapi.routing import APIRoute
from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from letta_gym.errors import LettaGymError
from letta_gym.service import problems
from letta_gym.service.access import AGENT_HEADER
from letta_gym.service.guard import ADMITTED, RIGHT
from letta_gym.service.parameters import LONGEST_NAME
from letta_gym.service.routes.tasks import SelectRequest, chosen_for, view
from letta_gym.service.service import Service

_AGENT, _KEY = AGENT_HEADER.lower().encode(), b"authorization"
_JSON = b"application/json"


class Express:
    """Wraps the application.

    Args:
        app: the whole way.
        of: the service.
        route: the one that is served here.
    """

    def __init__(self, app: ASGIApp, of: Service, route: APIRoute) -> None:
        self._app, self._of, self._route = app, of, route
        self._right = str((route.openapi_extra or {})[RIGHT])

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = self._fitting(scope)
        if headers is None:
            await self._app(scope, receive, send)
            return
        try:
            answer = await self._answer(scope, headers, receive)
        except (LettaGymError, HTTPException, problems.ApiError) as error:
            problem = await problems.answer_to(Request(scope), error)
            await problem(scope, receive, send)
            return
        if isinstance(answer, _Replay):
            await self._app(scope, answer, send)
            return
        length = str(len(answer)).encode()
        sent = [(b"content-type", _JSON), (b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": sent})
        await send({"type": "http.response.body", "body": answer})

    def _fitting(self, scope: Scope) -> dict[bytes, bytes] | None:
        """The headers of a request that may go the short way."""
        if scope["type"] != "http" or scope["path"] != self._route.path:
            return None
        if scope["method"] != "POST" or scope["query_string"] or not self._of.ready:
            return None
        headers = dict(scope["headers"])
        fits = (
            headers.get(b"content-type") == _JSON
            and len(headers) == len(scope["headers"])
            and len(headers.get(_AGENT, b"")) <= LONGEST_NAME
        )
        return headers if fits else None

    async def _answer(
        self, scope: Scope, headers: dict[bytes, bytes], receive: Receive
    ) -> bytes | _Replay:
        """The answer; or what was read of a request that does not fit."""
        of = self._of
        scope["route"] = self._route
        caller = of.access.admit(headers.get(_KEY, b"").decode("latin-1"), self._right)
        scope[ADMITTED], scope["caller"] = caller, caller.name
        messages = [await receive()]
        while messages[-1].get("more_body"):
            messages.append(await receive())
        if messages[-1]["type"] != "http.request":
            return _Replay(messages, receive)
        content = b"".join([message["body"] for message in messages])
        try:
            body = SelectRequest.model_validate_json(content)
        except ValidationError:
            return _Replay(messages, receive)
        named = headers.get(_AGENT)
        agent = await of.agent(caller, None if named is None else named.decode("latin-1"))
        _, selection, _, fallback = await chosen_for(of, agent, body)
        chosen = view(selection, fallback)
        return chosen.__pydantic_serializer__.to_json(chosen)


class _Replay:
    """Receives what was received before, and then what comes."""

    def __init__(self, messages: list[Message], receive: Receive) -> None:
        self._messages, self._receive = messages, receive

    async def __call__(self) -> Message:
        return self._messages.pop(0) if self._messages else await self._receive()
