"""The dashboard's way to the API: it is a caller like any other, with the same keys and rights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import gradio as gr
import httpx

from letta_gym.service.access import AGENT_HEADER

_SECONDS = 150.0  # longer than any deadline of a task
_SHOWN = 12  # seconds that an error stands


class Api:
    """Calls the API.

    Args:
        address: where it listens.
        app: the application itself, where the dashboard is part of it; then nothing is sent over
            the network.
    """

    def __init__(self, address: str, app: Any = None) -> None:
        transport = None if app is None else httpx.ASGITransport(app=app)
        self._client = httpx.AsyncClient(
            transport=transport, base_url=address, timeout=_SECONDS, trust_env=False
        )

    async def get(self, key: str, path: str, agent: str | None = None, **query: Any) -> Any:
        """The body of the answer to GET.

        Raises:
            gr.Error: in the words of the API.
        """
        return await self.send(key, "GET", path, query=query, agent=agent)

    async def send(
        self,
        key: str,
        method: str,
        path: str,
        body: Any = None,
        query: Mapping[str, Any] | None = None,
        content: bytes | None = None,
        agent: str | None = None,
    ) -> Any:
        """The body of the answer; None where it has none. ``agent`` is the one to act for.

        Raises:
            gr.Error: in the words of the API, with its ``problem``; or because it cannot be
                reached or needs a key.
        """
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if agent is not None:
            headers[AGENT_HEADER] = agent
        try:
            answer = await self._client.request(
                method, path, json=body, params=query, content=content, headers=headers
            )
        except httpx.HTTPError as error:
            raise told(
                "The API cannot be reached", f"{error or type(error).__name__}. Is it running?"
            ) from error
        if answer.status_code == 401:
            raise told("An API key is needed", "Enter one at the top of the page.")
        if answer.is_error:
            problem = answer.json()
            refused = told(str(problem["title"]), str(problem["detail"]))
            refused.problem = problem
            raise refused
        if answer.headers.get("content-type") != "application/json":
            return answer.content or None
        return answer.json()


def told(title: str, detail: str) -> gr.Error:
    """An error that the page shows in words."""
    return gr.Error(detail, title=title, duration=_SHOWN, print_exception=False)
