"""Serve the API: ``python serve.py --config configs/serve.yaml``."""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from letta_gym.errors import LettaGymError, MissingExtraError

if TYPE_CHECKING:
    from fastapi import FastAPI


def main(arguments: Sequence[str] | None = None) -> int:
    """Serve until interrupted; returns the exit code."""
    parser = argparse.ArgumentParser(description="Serve the API on one port.")
    parser.add_argument("--config", required=True, help="configuration file, YAML")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key"
    )
    options = parser.parse_args(arguments)
    try:
        serve(options.config, options.set)
    except (LettaGymError, OSError) as error:
        print(f"serve.py: {error}", file=sys.stderr)
        return 2
    return 0


def serve(config: str, changes: Sequence[str]) -> None:
    """Serve what ``config`` describes, with ``changes`` of the form key=value.

    Raises:
        ConfigError: the configuration does not fit.
        MissingExtraError: the extra ``serve`` is not installed.
        StoreError: the database cannot be used.
    """
    from letta_gym.config import load

    try:
        import uvicorn  # noqa: F401

        from letta_gym.service.app import make_app
        from letta_gym.service.config import ServeConfig
        from letta_gym.service.telemetry import configure_logging
    except ModuleNotFoundError as error:
        raise MissingExtraError("serve", f"serving (module {error.name})") from error

    settings = load(ServeConfig, config, changes)
    configure_logging(settings.service.log_level)
    listen(make_app(settings), settings.service.host, settings.service.port)


def listen(app: FastAPI, host: str, port: int) -> None:
    """Serve ``app`` until interrupted."""
    import uvicorn

    # The event loop and the thread that writes the log take turns often: with Python's 5 ms an
    # answer waits that long whenever the writer is at work.
    sys.setswitchinterval(0.0005)
    # What is loaded by now stays: looking through it again stops every request for 50 to 100 ms.
    gc.collect()
    gc.freeze()
    uvicorn.run(
        app,
        host=host,
        port=port,
        log_level="warning",
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
    )


if __name__ == "__main__":
    sys.exit(main())
