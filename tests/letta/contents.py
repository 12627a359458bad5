"""What is on a real server, for tests and drills to compare."""

from __future__ import annotations

import re
from typing import Any, Self

import httpx

from letta_gym.letta.blocks import PREFIX
from letta_gym.letta.cleaning import TAG


class Contents:
    """Reads a server directly, without the code under test; a context manager."""

    def __init__(self, url: str, model: str) -> None:
        self._http = httpx.Client(base_url=f"{url}/v1", timeout=60)
        self.model = model

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._http.close()

    def ours(self) -> list[str]:
        """What there is of letta-gym: names of agents and labels of blocks."""
        agents = self._get("agents/", tags=[TAG], limit=1000)
        blocks = self._get("blocks/", label_search=PREFIX, limit=1000)
        labels = [block["label"] for block in blocks if block["label"].startswith(PREFIX)]
        return [agent["name"] for agent in agents] + labels

    def new_agent(self, *blocks: tuple[str, str]) -> str:
        """Make an agent as a person would, with blocks (label, value); returns its id."""
        memory = [{"label": label, "value": value} for label, value in blocks]
        body = {
            "agent_type": "letta_v1_agent",
            "model": self.model,
            "memory_blocks": memory,
            "include_base_tools": False,
        }
        reply = self._http.post("agents/", json=body)
        reply.raise_for_status()
        return str(reply.json()["id"])

    def blocks(self, agent_id: str) -> list[tuple[str, str, str]]:
        """Id, label and value of each block of an agent, sorted."""
        found = self._get(f"agents/{agent_id}/core-memory/blocks", limit=100)
        return sorted((block["id"], block["label"], block["value"]) for block in found)

    def prompt(self, agent_id: str) -> list[str]:
        """The system prompt of an agent, as it was compiled last: its lines, sorted.

        Sorted, for Letta puts blocks in the order in which the database happens to give them;
        without the time of the compilation.
        """
        messages = self._get(f"agents/{agent_id}/context")["messages"]
        text = "".join(part["text"] for part in messages[0]["content"])
        return sorted(re.sub(r"\d+-\d+-\d+ \d+:\d+:\d+ [AP]M UTC\+\d+", "", text).splitlines())

    def said_to(self, agent_id: str) -> list[str]:
        """What users said to an agent, oldest first."""
        messages = self._get(f"agents/{agent_id}/messages", limit=1000, order="asc")
        return [m["content"] for m in messages if m["message_type"] == "user_message"]

    def step(self, step_id: str) -> dict[str, Any]:
        """A step of a run."""
        step: dict[str, Any] = self._get(f"steps/{step_id}")
        return step

    def _get(self, path: str, **query: Any) -> Any:
        reply = self._http.get(path, params=query)
        reply.raise_for_status()
        return reply.json()
