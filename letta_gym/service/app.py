"""The application: routes, the gate in front of them, and what starts and ends with it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI
from fastapi.middleware.cors import CORSMiddleware
from fastapi.openapi.utils import get_openapi
from fastapi.responses import RedirectResponse

import letta_gym
from letta_gym.errors import MissingExtraError
from letta_gym.service import problems
from letta_gym.service.access import AGENT_HEADER
from letta_gym.service.config import ServeConfig
from letta_gym.service.express import Express
from letta_gym.service.gate import Gate
from letta_gym.service.guard import SCHEME, guarded, router
from letta_gym.service.routes.agents import agents
from letta_gym.service.routes.decisions import decisions
from letta_gym.service.routes.execute import execute
from letta_gym.service.routes.health import health
from letta_gym.service.routes.metrics import metrics
from letta_gym.service.routes.policies import policies
from letta_gym.service.routes.skills import skills
from letta_gym.service.routes.tasks import selecting, tasks
from letta_gym.service.routes.training import training
from letta_gym.service.routes.transfers import transfers
from letta_gym.service.service import Service

log = logging.getLogger(__name__)

_ROUTERS = (
    *(tasks, execute, decisions, skills, policies, training, transfers, metrics, agents, health),
)

_DESCRIPTION = """Chooses skills for the tasks of an agent, and learns from what came of it.

Send an API key as `Authorization: Bearer KEY`. Errors are problem+json (RFC 9457); each names the
request id that stands in the service's log.
"""


def make_app(config: ServeConfig) -> FastAPI:
    """The application of a configuration; opens the store, and starts with its lifespan.

    Raises:
        StoreError: the store cannot be opened.
        MissingExtraError: it is PostgreSQL and psycopg is not installed.
    """
    service = Service(config)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        try:
            yield
        finally:
            await service.close()

    app = bare_app(lifespan)
    app.state.service = service
    _add_middleware(app, service)
    if config.service.ui:
        _add_dashboard(app, config)
    return app


def bare_app(lifespan: Any = None) -> FastAPI:
    """The routes alone, with their OpenAPI; there is nothing behind them."""
    app = FastAPI(
        title="letta-gym",
        version=letta_gym.__version__,
        description=_DESCRIPTION,
        lifespan=lifespan,
        openapi_url=None,  # its own route below, behind a key
        docs_url=None,  # the pages would load scripts from elsewhere
        redoc_url=None,
    )
    problems.install(app)
    for one in (*_ROUTERS, _about(app)):
        app.include_router(one)
    _complete_openapi(app)
    return app


def _add_dashboard(app: FastAPI, config: ServeConfig) -> None:
    """Mount the dashboard, where its extra is installed."""
    try:
        from letta_gym.service.dashboard.api import Api
        from letta_gym.service.dashboard.page import PATH, mount
    except ModuleNotFoundError as error:
        missing = MissingExtraError("ui", f"the dashboard (module {error.name})")
        log.warning("no dashboard: %s", missing)
        return
    mount(app, Api("http://service", app), config.access.keys)

    @app.get("/", include_in_schema=False)
    async def to_the_dashboard() -> RedirectResponse:
        return RedirectResponse(f"{PATH}/")


def _about(app: FastAPI) -> Any:
    about = router("about")

    @about.get(
        "/openapi.json",
        summary="This description",
        response_model=dict[str, Any],
        **guarded("read"),
    )
    async def openapi() -> Any:
        """The OpenAPI of the service."""
        return app.openapi()

    return about


def _add_middleware(app: FastAPI, service: Service) -> None:
    """Add what stands in front of the routes; what is added last is passed first."""
    config = service.config
    app.add_middleware(Express, of=service, route=selecting())
    if config.access.origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=list(config.access.origins),
            allow_methods=["GET", "POST", "PUT", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", AGENT_HEADER],
            expose_headers=["X-Request-Id", "Location", "Retry-After"],
        )
    uploads = [
        path
        for path, operations in app.openapi()["paths"].items()
        if any(operation.get("x-upload") for operation in operations.values())
    ]
    app.add_middleware(Gate, limits=config.limits, telemetry=service.telemetry, uploads=uploads)


def _complete_openapi(app: FastAPI) -> None:
    """Add to OpenAPI what FastAPI does not know: how keys are sent, and the form of errors."""

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            schema = get_openapi(
                title=app.title,
                version=app.version,
                description=app.description,
                routes=app.routes,
            )
            parts = schema["components"]
            parts["securitySchemes"] = {SCHEME: {"type": "http", "scheme": "bearer"}}
            problem = problems.Problem.model_json_schema(
                ref_template="#/components/schemas/{model}"
            )
            parts["schemas"] |= {**problem.pop("$defs"), "Problem": problem}
            for unused in ("HTTPValidationError", "ValidationError"):
                parts["schemas"].pop(unused, None)
            app.openapi_schema = schema
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]
