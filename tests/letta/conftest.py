"""One real server for all tests of this folder; `make test-letta` installs it and runs them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.letta.servers import LettaServer, letta_server


@pytest.fixture(scope="session")
def server() -> Iterator[LettaServer]:
    """A Letta V1 server with PostgreSQL and the stub model."""
    with letta_server() as running:
        yield running
