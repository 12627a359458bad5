"""Whatever is sent to the API, it answers as its OpenAPI says, and never with a 5xx."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from schemathesis import Case
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from letta_gym.service.app import bare_app
from tests.services import config, served

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]


@schemathesis.serializer("application/zip")
def as_it_is(_: object, value: object) -> bytes:
    """Archives are sent as the bytes that were made up."""
    data = getattr(value, "data", value)
    return data if isinstance(data, bytes) else str(data).encode()


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("served")
    trainer = folder / "trainer.py"  # whatever is started ends at once
    trainer.write_text("print('{}')\n")
    command = [sys.executable, str(trainer)]
    with served(config(folder, service={"train_command": command})) as url:
        yield url


schema = schemathesis.openapi.from_dict(bare_app().openapi())


@schema.parametrize()
@settings(
    max_examples=10,
    deadline=None,
    derandomize=True,
    phases=(Phase.explicit, Phase.generate),
    suppress_health_check=list(HealthCheck),
)
def test_every_answer_is_one_that_is_documented(case: Case[Any], address: str) -> None:
    case.call_and_validate(base_url=address, checks=CHECKS)
