"""The wire protocol of Letta Code's App Server: JSON messages over one WebSocket.

Requests are answered under their ``request_id``; whatever else comes belongs to a conversation and
waits in its queue. A malformed request gets no answer at all, hence every wait has a limit.
"""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from letta_gym.errors import MissingExtraError
from letta_gym.letta.failures import InfrastructureError, Kind

if TYPE_CHECKING:
    from websockets.asyncio.client import ClientConnection

PROTOCOL_VERSION = 1

Message = dict[str, Any]


class Inbox(asyncio.Queue[Message | None]):
    """Messages of one conversation; None says that the connection is gone."""


class Wire:
    """A connection to an App Server; make one with :meth:`connect`."""

    def __init__(self, socket: ClientConnection) -> None:
        self._socket = socket
        self._numbers = itertools.count(1)
        self._answers: dict[str, asyncio.Future[Message]] = {}
        self._inboxes: dict[str, Inbox] = {}
        self._reader = asyncio.create_task(self._read())

    @classmethod
    async def connect(cls, url: str, token: str, timeout: float) -> Wire:
        """Open the connection.

        Args:
            url: address of the App Server, ``ws://HOST:PORT``.
            token: capability token that the server was started with.
            timeout: seconds.

        Raises:
            InfrastructureError: nobody answers, or not as an App Server.
            MissingExtraError: ``websockets`` is not installed.
        """
        try:
            from websockets.asyncio.client import connect
            from websockets.exceptions import WebSocketException
        except ImportError as error:
            raise MissingExtraError("letta", "Letta Code's App Server") from error
        headers = {"Authorization": f"Bearer {token}"}
        try:
            socket = await connect(
                f"{url}/ws",
                additional_headers=headers,
                open_timeout=timeout,
                close_timeout=1.0,
                max_size=None,
                proxy=None,
            )
        except (OSError, TimeoutError, WebSocketException) as error:
            raise InfrastructureError(
                Kind.REFUSED,
                f"no App Server answers at {url}: {error}",
                may_have_run=False,
            ) from error
        return cls(socket)

    @property
    def closed(self) -> bool:
        """Whether the connection is gone."""
        return self._reader.done()

    async def request(self, type: str, timeout: float, **fields: Any) -> Message:
        """Send a request and wait for its answer.

        Raises:
            InfrastructureError: no answer in time, or the connection broke; whether the request was
                carried out is not known.
        """
        id = f"q{next(self._numbers)}"
        answer: asyncio.Future[Message] = asyncio.get_running_loop().create_future()
        self._answers[id] = answer
        try:
            async with asyncio.timeout(timeout):
                await self._send({"type": type, "request_id": id, **fields})
                return await answer
        except TimeoutError as error:
            raise InfrastructureError(
                Kind.TIMEOUT,
                f"the App Server did not answer {type} within {timeout:.1f} s",
                may_have_run=True,
            ) from error
        finally:
            self._answers.pop(id, None)

    async def tell(self, timeout: float, **message: Any) -> None:
        """Send a message that gets no answer.

        Raises:
            InfrastructureError: the connection broke, or did not take the message in time.
        """
        try:
            async with asyncio.timeout(timeout):
                await self._send(message)
        except TimeoutError as error:
            raise _broken("the App Server takes no more messages") from error

    def listen(self, conversation: str) -> Inbox:
        """The messages of a conversation from now on, until :meth:`forget`."""
        inbox = self._inboxes[conversation] = Inbox()
        if self.closed:
            inbox.put_nowait(None)
        return inbox

    def forget(self, conversation: str) -> None:
        """Drop what still comes for a conversation."""
        self._inboxes.pop(conversation, None)

    async def close(self) -> None:
        """Close the connection; whoever still waits gets a failure."""
        await self._socket.close()
        await self._reader

    async def _send(self, message: Mapping[str, Any]) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            await self._socket.send(json.dumps(message))
        except ConnectionClosed as error:
            raise _broken("the connection to the App Server is closed") from error

    async def _read(self) -> None:
        from websockets.exceptions import ConnectionClosed

        try:
            async for raw in self._socket:
                self._deliver(json.loads(raw))
        except (ValueError, AttributeError):
            await self._socket.close(1002, "not a JSON object")
        except ConnectionClosed:
            pass  # whoever waits is told below
        finally:
            self._let_go()

    def _deliver(self, message: Message) -> None:
        answer = self._answers.get(str(message.get("request_id")))
        if answer is not None and not answer.done():
            answer.set_result(message)
        runtime = message.get("runtime") or {}
        inbox = self._inboxes.get(str(runtime.get("conversation_id")))
        if inbox is not None:
            inbox.put_nowait(message)

    def _let_go(self) -> None:
        for answer in self._answers.values():
            if not answer.done():
                answer.set_exception(_broken("the connection to the App Server broke"))
        for inbox in self._inboxes.values():
            inbox.put_nowait(None)


def _broken(message: str) -> InfrastructureError:
    return InfrastructureError(Kind.BROKEN, message, may_have_run=True)
