"""Letta's REST protocol as we need it: what is read of its replies, and what its errors mean.

Replies are validated here and not by the client, which takes anything for a reply: a missing field
shows up as an :class:`AttributeError` far away, or not at all.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, Field, TypeAdapter, ValidationError

from letta_gym.errors import MissingExtraError
from letta_gym.letta.failures import InfrastructureError, Kind, of_status

T = TypeVar("T")

PAGE = 100


class Block(BaseModel):
    """A memory block."""

    id: str
    label: str
    metadata: dict[str, Any] | None = None


class AgentRecord(BaseModel):
    """An agent."""

    id: str
    tags: list[str] = []
    pending_approval: dict[str, Any] | None = None


class Model(BaseModel):
    """A model that the server offers."""

    handle: str


class ToolCall(BaseModel):
    """A tool call that waits for us."""

    name: str
    arguments: str
    tool_call_id: str


class ToolReturn(BaseModel):
    """What a tool call came to."""

    status: str


class Message(BaseModel):
    """A message of a run; the fields depend on its type."""

    message_type: str
    content: str | list[dict[str, Any]] | None = None
    run_id: str | None = None
    step_id: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_returns: list[ToolReturn] | None = None
    status: str | None = None

    @property
    def text(self) -> str:
        """Its content as text."""
        if isinstance(self.content, list):
            return "".join(str(part.get("text", "")) for part in self.content)
        return self.content or ""

    @property
    def failures(self) -> int:
        """Tool calls in it that failed."""
        if self.message_type != "tool_return_message":
            return 0
        if self.tool_returns:
            return sum(one.status == "error" for one in self.tool_returns)
        return int(self.status == "error")


class StopReason(BaseModel):
    """Why a run ended."""

    stop_reason: str


class Usage(BaseModel):
    """What a run took."""

    step_count: int = Field(ge=0)
    total_tokens: int = Field(ge=0)


class Response(BaseModel):
    """The reply to a message."""

    messages: list[Message]
    stop_reason: StopReason
    usage: Usage


async def call(shape: type[T], raw: Awaitable[Any], *, sent: bool = False) -> T:
    """Await a call of ``with_raw_response`` and read its reply as ``shape``.

    Args:
        shape: type of the reply; ``object`` reads nothing of it.
        raw: the call.
        sent: whether this call carries the task out.

    Raises:
        InfrastructureError: whatever went wrong.
    """
    letta_client, httpx = import_client()
    try:
        reply = await raw
    except letta_client.APITimeoutError as error:
        never = isinstance(error.__cause__, httpx.ConnectTimeout)
        raise InfrastructureError(
            Kind.TIMEOUT, "the server did not answer in time", may_have_run=sent and not never
        ) from error
    except letta_client.APIConnectionError as error:
        cause = error.__cause__ or error
        if isinstance(cause, httpx.ConnectError):
            raise InfrastructureError(Kind.REFUSED, _words(cause), may_have_run=False) from error
        raise InfrastructureError(Kind.BROKEN, _words(cause), may_have_run=sent) from error
    except letta_client.APIStatusError as error:
        raise _of_status(error, sent) from error
    except (letta_client.APIError, httpx.HTTPError, httpx.InvalidURL) as error:
        raise InfrastructureError(Kind.BROKEN, _words(error), may_have_run=sent) from error
    if shape is object:
        return reply  # type: ignore[no-any-return]
    try:
        return TypeAdapter(shape).validate_json(reply.http_response.content)
    except ValidationError as error:
        raise InfrastructureError(
            Kind.MALFORMED, f"no {shape.__name__}: {_first(error)}", may_have_run=sent
        ) from error


async def pages(
    shape: type[T], ask: Callable[..., Awaitable[Any]], **filters: Any
) -> AsyncIterator[T]:
    """Every record of a listing, page by page."""
    after: dict[str, str] = {}
    while True:
        page = await call(list[shape], ask(limit=PAGE, **filters, **after))  # type: ignore[valid-type]
        for record in page:
            yield record
        if len(page) < PAGE:
            return
        after = {"after": page[-1].id}  # type: ignore[attr-defined]


async def unless_gone(raw: Awaitable[Any]) -> None:
    """Await a removal; that the thing is gone already is as good."""
    try:
        await call(object, raw)
    except InfrastructureError as error:
        if "HTTP 404" not in str(error):
            raise


def import_client() -> tuple[Any, Any]:
    """The modules ``letta_client`` and ``httpx``.

    Raises:
        MissingExtraError: they are not installed.
    """
    try:
        import httpx
        import letta_client
    except ImportError as error:
        raise MissingExtraError("letta", "Letta's REST API") from error
    return letta_client, httpx


def run_of(messages: Sequence[Message]) -> tuple[str | None, tuple[str, ...]]:
    """The run that the messages ended in, and the steps of all, in order."""
    runs = [message.run_id for message in messages if message.run_id]
    steps = dict.fromkeys(message.step_id for message in messages if message.step_id)
    return runs[-1] if runs else None, tuple(steps)


def _of_status(error: Any, sent: bool) -> InfrastructureError:
    body = error.body if isinstance(error.body, dict) else {}
    inner = body.get("error")
    said = inner.get("detail", inner) if isinstance(inner, dict) else body.get("detail", error.body)
    return of_status(
        error.status_code,
        " ".join(str(said).split())[:300],
        sent=sent,
        retry_after=error.response.headers.get("retry-after"),
        in_mid_run=isinstance(inner, dict) and str(inner.get("type", "")).startswith("llm_"),
    )


def arguments(text: str) -> dict[str, Any]:
    """Arguments of a tool call; empty where the model wrote none that can be read."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _words(error: BaseException) -> str:
    return str(error) or type(error).__name__


def _first(error: ValidationError) -> str:
    problem = error.errors()[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"{where}: {problem['msg']}" if where else str(problem["msg"])
