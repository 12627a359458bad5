"""One rollout on an App Server: a conversation of its own, one task, the turn that answers it."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letta_gym.letta.app_server import AppServer
from letta_gym.letta.code_wire import Inbox, Message
from letta_gym.letta.failures import Deadline, InfrastructureError, Kind
from letta_gym.letta.turn import MAX_STEPS, Turn

PATIENCE = 15.0
"""Seconds after which a request to the App Server counts as unanswered."""

GRACE = 10.0
"""Seconds that an aborted turn gets to end; it waits for the model's pending reply."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a conversation is started with.

    Attributes:
        model: handle of the model.
        system: system prompt.
        permissions: mode of Letta Code's permissions.
        tools: names of the tools that the agent has; None for all.
    """

    model: str
    system: str
    permissions: str
    tools: tuple[str, ...] | None

    def command(self, folder: Path) -> dict[str, Any]:
        """Fields of the ``runtime_start`` of a conversation in ``folder``."""
        fields = {
            "create_conversation": {"body": {"model": self.model, "system": self.system}},
            "cwd": str(folder),
            "mode": self.permissions,
            "skill_sources": ["project"],
            "recover_approvals": False,
            "force_device_status": False,
            "wait_for_replay": True,
        }
        if self.tools is not None:
            fields["execution_settings"] = {
                "tools": list(self.tools),
                "allowed_tools": [],
                "disallowed_tools": [],
                "disable_memory_guard": False,
            }
        return fields


class Conversation:
    """A conversation on ``server`` in ``folder``, which is gone after :meth:`clear`.

    Attributes:
        turn: what happened so far.
        running: whether a task was sent whose turn is not known to be over.
        id: of the conversation; None before it started.
    """

    def __init__(self, server: AppServer, folder: Path, deadline: Deadline) -> None:
        self.server, self.folder = server, folder
        self.turn = Turn()
        self.running = False
        self.id: str | None = None
        self._deadline = deadline
        self._runtime: Mapping[str, Any] = {}
        self._inbox = Inbox()

    async def start(self, terms: Terms) -> None:
        """Open the conversation.

        Raises:
            InfrastructureError: the App Server refused, or gave no answer. Nothing has run yet.
        """
        try:
            answer = await self._request("runtime_start", self._left, **terms.command(self.folder))
        except InfrastructureError as error:
            raise InfrastructureError(
                error.kind, "the App Server did not start a conversation", may_have_run=False
            ) from error
        if not answer.get("success") or not isinstance(answer.get("runtime"), dict):
            raise InfrastructureError(
                Kind.SERVER,
                f"the App Server started no conversation: {answer.get('error')}",
                may_have_run=False,
            )
        self._runtime = answer["runtime"]
        self.id = str(self._runtime.get("conversation_id"))
        self._inbox = self.server.wire.listen(self.id)

    async def ask(self, text: str, max_steps: int) -> None:
        """Send the task and read its turn to the end, or to ``max_steps`` model calls.

        Raises:
            InfrastructureError: the task was not accepted, or the turn broke off.
        """
        message = {"role": "user", "content": text, "client_message_id": str(uuid.uuid4())}
        self.running = True
        answer = await self._request(
            "input",
            self._left,
            runtime=self._runtime,
            payload={
                "kind": "create_message",
                "messages": [message],
                "exclude_interactive_tools": True,
            },
        )
        if not answer.get("accepted"):
            self.running = False
            raise InfrastructureError(
                Kind.SERVER,
                f"the App Server did not accept the task: {answer.get('error')}",
                may_have_run=False,
            )
        while self.running:
            await self._take(await self._next(self._deadline.left))
            if self.running and self.turn.wants_more and self.turn.steps >= max_steps:
                with contextlib.suppress(InfrastructureError):  # what counts is known already
                    await self.abort(min(GRACE, self._deadline.left))
                self.turn.stop_reason = MAX_STEPS
                return

    async def abort(self, grace: float) -> None:
        """Stop the turn, and wait until it is over.

        Args:
            grace: seconds to wait; an aborted turn still waits for the model's pending reply.

        Raises:
            InfrastructureError: it is not over by then.
        """
        limit = Deadline(grace)
        await self._request("abort_message", min(PATIENCE, limit.left), runtime=self._runtime)
        while self.running:
            await self._take(await self._next(limit.left))

    def clear(self) -> None:
        """Remove the folder, and drop what still comes."""
        if self.id is not None:
            self.server.wire.forget(self.id)
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _left(self) -> float:
        return min(PATIENCE, self._deadline.left)

    async def _request(self, type: str, timeout: float, **fields: Any) -> Message:
        return await self.server.wire.request(type, timeout, **fields)

    async def _next(self, patience: float) -> Message:
        try:
            async with asyncio.timeout(patience):
                message = await self._inbox.get()
        except TimeoutError as error:
            raise InfrastructureError(
                Kind.TIMEOUT, "the turn did not end in time", may_have_run=True
            ) from error
        if message is None:
            self.running = False  # it went with its server
            raise InfrastructureError(
                Kind.BROKEN, "the App Server went away in mid-turn", may_have_run=True
            )
        return message

    async def _take(self, message: Message) -> None:
        match message.get("type"):
            case "stream_delta":
                self.turn.feed(_part(message, "delta"))
            case "update_device_status":
                status = _part(message, "device_status")
                self.turn.show(status.get("current_available_skills"))
            case "control_request":
                await self._deny(message)
            case "turn_finished":
                self.running = False
                self.turn.finish(str(message.get("stop_reason")), message.get("error"))

    async def _deny(self, message: Message) -> None:
        """Answer a request for permission: nobody is there to ask."""
        decision = {"behavior": "deny", "message": "Nobody is there to allow this."}
        await self.server.wire.tell(
            PATIENCE,
            type="input",
            runtime=self._runtime,
            payload={
                "kind": "approval_response",
                "request_id": message.get("request_id"),
                "decision": decision,
            },
        )


def _part(message: Message, key: str) -> Message:
    part = message.get(key)
    if not isinstance(part, dict):
        raise InfrastructureError(
            Kind.MALFORMED,
            f"the App Server sent a {message.get('type')} without {key}",
            may_have_run=True,
        )
    return part
