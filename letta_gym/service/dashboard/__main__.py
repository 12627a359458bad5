"""The dashboard alone, of an API that runs elsewhere: ``python -m letta_gym.service.dashboard``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from letta_gym.errors import LettaGymError, MissingExtraError


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted; returns the exit code."""
    parser = argparse.ArgumentParser(description="Serve the dashboard of a running API.")
    parser.add_argument(
        "--api", default="http://127.0.0.1:8000", metavar="URL", help="where the API listens"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (loopback)")
    parser.add_argument("--port", type=int, default=8001, help="port to listen on (8001)")
    options = parser.parse_args(arguments)
    try:
        serve(options.api, options.host, options.port)
    except (LettaGymError, OSError) as error:
        print(f"dashboard: {error}", file=sys.stderr)
        return 2
    return 0


def serve(api: str, host: str, port: int) -> None:
    """Serve the dashboard of the API at ``api``.

    Raises:
        MissingExtraError: the extra ``ui`` or ``serve`` is not installed.
    """
    try:
        import uvicorn
        from fastapi import FastAPI
        from fastapi.responses import RedirectResponse

        from letta_gym.service.dashboard.api import Api
        from letta_gym.service.dashboard.page import PATH, mount
    except ModuleNotFoundError as error:
        extra = "serve" if error.name in ("uvicorn", "fastapi") else "ui"
        raise MissingExtraError(extra, f"the dashboard (module {error.name})") from error

    app = FastAPI(openapi_url=None)
    app.get("/")(lambda: RedirectResponse(f"{PATH}/"))
    print(f"http://{host}:{port}{PATH}/ shows {api}")
    uvicorn.run(mount(app, Api(api), keys=True), host=host, port=port, log_level="warning")


if __name__ == "__main__":
    sys.exit(main())
