"""Errors of the API, as problem+json (RFC 9457): what came, what was expected, what to do."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from letta_gym.errors import (
    BackendError,
    ConfigError,
    DecisionError,
    EmbeddingError,
    LettaGymError,
    MissingExtraError,
    PolicyFileError,
    PromotionError,
    SkillError,
    StoreError,
)

MEDIA_TYPE = "application/problem+json"

log = logging.getLogger(__name__)


class InvalidField(BaseModel):
    """One field of a request that does not fit."""

    where: str = Field(examples=["body.k"])
    problem: str = Field(examples=["Input should be greater than or equal to 1"])


class Problem(BaseModel):
    """What went wrong. ``type`` is a stable name, ``detail`` says what to do about it."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "type": "urn:letta-gym:not-found",
                    "title": "Not Found",
                    "status": 404,
                    "detail": "no skill 'pdf-form' in the library; did you mean 'pdf-forms'?",
                    "instance": "/skills/pdf-form",
                    "request_id": "0c5d1e7a9b3f4a62",
                    "errors": [],
                }
            ]
        }
    )

    type: str
    title: str
    status: int
    detail: str
    instance: str
    request_id: str
    errors: list[InvalidField] = []
    figures: dict[str, Any] | None = Field(None, description="what speaks against it, in numbers")


class ApiError(Exception):
    """An error with a status of its own.

    Args:
        status: of HTTP.
        detail: what came, what was expected, what to do.
        retry_after: seconds after which trying again is sensible.
        figures: what speaks against it, in numbers.
        errors: what of the request does not fit, by its parts.
    """

    def __init__(
        self,
        status: int,
        detail: str,
        retry_after: float | None = None,
        figures: dict[str, Any] | None = None,
        errors: Sequence[InvalidField] = (),
    ) -> None:
        super().__init__(detail)
        self.status, self.detail, self.retry_after = status, detail, retry_after
        self.figures, self.errors = figures, [*errors]


_TITLES = {413: "Content Too Large", 422: "Unprocessable Content"}
"""As RFC 9110 has them; Python's own names differ from version to version."""

_STATUS: tuple[tuple[type[LettaGymError], int], ...] = (
    (MissingExtraError, 503),
    (PromotionError, 409),
    (StoreError, 503),
    (BackendError, 502),
    (DecisionError, 409),
    (ConfigError, 422),
    (SkillError, 422),
    (EmbeddingError, 422),
    (PolicyFileError, 422),
)


def title_of(status: int) -> str:
    """What a status is called."""
    return _TITLES.get(status) or HTTPStatus(status).phrase


def status_of(error: LettaGymError) -> int:
    """The status that an error of the library is answered with."""
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def response(
    status: int,
    detail: str,
    *,
    instance: str,
    request_id: str,
    retry_after: float | None = None,
    errors: list[InvalidField] | None = None,
    figures: dict[str, Any] | None = None,
) -> JSONResponse:
    """A problem as a response."""
    title = title_of(status)
    problem = Problem(
        type=f"urn:letta-gym:{title.lower().replace(' ', '-')}",
        title=title,
        status=status,
        detail=detail,
        instance=instance,
        request_id=request_id,
        errors=errors or [],
        figures=figures,
    )
    headers = {} if retry_after is None else {"Retry-After": str(max(1, round(retry_after)))}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    content = problem.model_dump(exclude_none=True)
    return JSONResponse(content, status, headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Answer every error of ``app`` with a problem."""
    for kind, answer in _HANDLERS.items():
        app.add_exception_handler(kind, answer)


async def answer_to(request: Request, error: Exception) -> JSONResponse:
    """The problem that an error of one of the kinds of :func:`install` is answered with."""
    for kind, answer in _HANDLERS.items():
        if isinstance(error, kind):
            return await answer(request, error)
    raise error


def _answer(request: Request, status: int, detail: str, **more: Any) -> JSONResponse:
    request_id = request.scope.get("request_id", "")
    return response(status, detail, instance=request.url.path, request_id=request_id, **more)


async def _api_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, ApiError)
    return _answer(
        request,
        error.status,
        error.detail,
        retry_after=error.retry_after,
        figures=error.figures,
        errors=error.errors,
    )


async def _library_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, LettaGymError)
    status = status_of(error)
    if status >= 500:
        log.error("%s: %s", type(error).__name__, error)
    return _answer(request, status, str(error), retry_after=5 if status == 503 else None)


async def _invalid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    fields = [
        InvalidField(where=".".join(str(part) for part in one["loc"]), problem=one["msg"])
        for one in error.errors()
    ]
    said = "; ".join(f"{field.where}: {field.problem}" for field in fields)
    return _answer(request, 422, f"the request does not fit: {said}", errors=fields)


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    answer = _answer(request, error.status_code, str(error.detail))
    answer.headers.update(error.headers or {})
    return answer


_HANDLERS: Mapping[type[Exception], Callable[[Request, Exception], Awaitable[JSONResponse]]] = {
    ApiError: _api_error,
    LettaGymError: _library_error,
    RequestValidationError: _invalid,
    HTTPException: _http_error,
}
