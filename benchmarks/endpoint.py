"""What the service is measured beside: ``python -m benchmarks.endpoint bare|unlogged CONFIG ...``.

``bare`` is a FastAPI endpoint with the request and response of ``POST /tasks/select`` that answers
the same whatever is asked; ``unlogged`` is the service, with a journal that forgets every decision.
Both are served as ``serve.py`` serves.
"""

from __future__ import annotations

import argparse
import asyncio
from unittest.mock import patch

from fastapi import FastAPI

from letta_gym.config import load
from letta_gym.feedback.decision import Decision
from letta_gym.service import service
from letta_gym.service.app import make_app
from letta_gym.service.config import ServeConfig
from letta_gym.service.journal import Journal
from letta_gym.service.routes.tasks import ChosenSkill, SelectRequest, SelectResponse
from letta_gym.service.telemetry import configure_logging
from letta_gym.store.log import StoreLog
from serve import listen


def bare() -> FastAPI:
    """The endpoint without anything behind it."""
    app = FastAPI()

    @app.get("/health/ready")
    async def ready() -> None:
        """The service's own route, so that both are waited for alike."""

    @app.post("/tasks/select", response_model=SelectResponse)
    async def select(body: SelectRequest) -> SelectResponse:
        return SelectResponse(
            decision_id="5f2c9a1b7d3e4f60-0",
            skills=[ChosenSkill(id=f"skill-{i}", score=1.5, tokens=512) for i in range(2)],
            tokens=1024,
            log_propensity=0.0,
            explored=False,
            policy_digest="7c1a" * 16,
            fallback=False,
        )

    return app


class Forgetful(Journal):
    """A journal that keeps nothing."""

    def note(self, log: StoreLog, decision: Decision) -> asyncio.Future[None]:
        """Done at once."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        future.set_result(None)
        return future


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("which", choices=["bare", "unlogged"])
    parser.add_argument("--config", required=True)
    parser.add_argument("--set", action="append", default=[])
    options = parser.parse_args()
    settings = load(ServeConfig, options.config, options.set)
    configure_logging(settings.service.log_level)
    journal = Forgetful if options.which == "unlogged" else Journal
    with patch.object(service, "Journal", journal):
        app = bare() if options.which == "bare" else make_app(settings)
        listen(app, settings.service.host, settings.service.port)


if __name__ == "__main__":
    main()
