"""What requests have in common: bodies, parameters, and long lists a page at a time."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Annotated, Any

from fastapi import Header, Path, Query
from pydantic import BaseModel, ConfigDict, Field, field_validator

from letta_gym.service.access import AGENT_HEADER
from letta_gym.service.problems import ApiError

LONGEST_NAME = 100
"""Characters of an agent's name."""

Limit = Annotated[int, Query(ge=1, le=500, description="most items of a page")]
After = Annotated[
    str | None,
    Query(max_length=500, description="`next` of the page before; none for the first page"),
]
AgentHeader = Annotated[
    str | None,
    Header(alias=AGENT_HEADER, max_length=LONGEST_NAME, description="the agent to act for"),
]
DecisionId = Annotated[str, Path(min_length=1, max_length=100)]

NEXT = Field(description="pass it as `after` for the next page; null on the last one")


class Body(BaseModel):
    """A part of a request: closed to unknown keys, every number finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @field_validator("*")
    @classmethod
    def _can_be_kept(cls, value: Any) -> Any:
        if isinstance(value, str) and "\x00" in value:
            raise ValueError("a text has no NUL character; databases do not keep them")
        return value


def cursor(*key: Any) -> str:
    """The key of the last item of a page, for :func:`key_of`."""
    return base64.urlsafe_b64encode(json.dumps(key).encode()).decode().rstrip("=")


def key_of(after: str, *kinds: type) -> list[Any]:
    """The key that :func:`cursor` was made of.

    Raises:
        ApiError: 422, it was made by nobody of ours.
    """
    try:
        padded = after + "=" * (-len(after) % 4)
        key = json.loads(base64.urlsafe_b64decode(padded.encode()))
        if len(key) == len(kinds) and all(map(isinstance, key, kinds)):
            return list(key)
    except (ValueError, TypeError, binascii.Error, RecursionError):
        pass
    raise ApiError(422, f"after: pass on what the page before gave as 'next'; got {after!r}")
