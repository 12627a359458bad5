"""What the container is made of is there, and it starts with options that the service knows."""

from __future__ import annotations

import json
import re
import tomllib
from itertools import pairwise
from pathlib import Path

import yaml

from letta_gym.config import load
from letta_gym.service.config import ServeConfig

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")
LINES = re.sub(r"\\\n\s*", "", DOCKERFILE).splitlines()


def copied() -> list[str]:
    """What is copied out of the checkout, in all stages."""
    words = [line.split()[1:-1] for line in LINES if line.startswith("COPY ")]
    return [one for line in words if not line[0].startswith("--from") for one in line]


def test_what_is_copied_exists_and_is_sent_to_the_build() -> None:
    ignored = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    sent = {line[1:] for line in ignored if line.startswith("!")}

    assert "letta_gym" in copied()
    assert [path for path in copied() if not (ROOT / path).exists()] == []
    assert {path.split("/")[0] for path in copied()} == sent


def test_the_image_starts_with_keys_and_options_that_fit() -> None:
    (entry,) = [line for line in LINES if line.startswith("ENTRYPOINT ")]
    command = json.loads(entry.removeprefix("ENTRYPOINT "))
    changes = [after for before, after in pairwise(command) if before == "--set"]
    settings = load(ServeConfig, ROOT / command[command.index("--config") + 1], changes)

    assert settings.service.host == "0.0.0.0"
    assert settings.access.keys


def test_the_image_does_not_run_as_root_and_has_no_torch() -> None:
    users = [line.split()[1] for line in LINES if line.startswith("USER ")]
    (extras,) = re.findall(r"^ARG EXTRAS=(.*)$", DOCKERFILE, re.M)
    known = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    known = known["optional-dependencies"]

    assert users[-1] not in ("root", "0")
    assert set(extras.split(",")) <= set(known)
    assert [x for e in extras.split(",") for x in known[e] if x.startswith("torch")] == []


def test_the_composition_needs_only_what_the_example_names() -> None:
    text = (ROOT / "compose.yaml").read_text(encoding="utf-8")
    example = (ROOT / ".env.example").read_text(encoding="utf-8")
    services = yaml.safe_load(text)["services"]

    assert set(re.findall(r"\$\{(\w+)", text)) == set(re.findall(r"^(\w+)=", example, re.M))
    assert all(port.startswith("127.0.0.1:") for port in services["api"]["ports"])
