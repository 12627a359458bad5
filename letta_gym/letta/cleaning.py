"""What is ours on a Letta server is removed: in the background, patiently, and only that.

Agents of ours carry the tag ``letta-gym`` and one with the mark of their process, blocks a label
that begins with :data:`letta_gym.letta.blocks.PREFIX`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any

from letta_gym.letta import owner, skill_tool
from letta_gym.letta.blocks import PREFIX, SkillBlocks, mark_of
from letta_gym.letta.failures import InfrastructureError
from letta_gym.letta.wire import AgentRecord, Block, call, pages, unless_gone

log = logging.getLogger(__name__)

TAG = "letta-gym"
OWNER_TAG = "letta-gym-owner:"

WITHIN = 30.0  # seconds in which something is tried to be removed, in tries of at most
TRY = 10.0
SETTLED_AFTER = 1.0

Work = Callable[[], Coroutine[Any, Any, object]]


class Cleaning:
    """Work in the background that is tried again for a while.

    Args:
        where: address of the server, for messages.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self, work: Work) -> asyncio.Task[None]:
        """Begin ``work``, which may be repeated."""
        task = asyncio.create_task(self.patiently(work))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def finished(self) -> None:
        """Wait for all that was begun."""
        while self._tasks:
            await asyncio.wait(self._tasks)

    async def patiently(self, work: Work) -> None:
        """Clean up, again and again for a while; what stays goes at the next start."""
        loop = asyncio.get_running_loop()
        end, wait = loop.time() + WITHIN, 0.2
        while True:
            try:
                async with asyncio.timeout(TRY):
                    await work()
                    return
            except (InfrastructureError, TimeoutError) as error:
                if loop.time() + wait > end:
                    log.error(
                        "something of ours is left on %s, and is removed when a backend starts "
                        "there: %s",
                        *(self._where, error),
                    )
                    return
                log.info("cleaning up failed, trying again: %s", error)
            await asyncio.sleep(wait)
            wait = min(2 * wait, 5.0)


class Sweeper:
    """Finds and removes what is ours.

    Args:
        client: of letta-client, asynchronous.
        blocks: the blocks of this process.
        mark: of this process.
        agent: id of the long-lived agent that is served, if one is.

    Attributes:
        swept: what :meth:`left_behind` removed.
    """

    def __init__(self, client: Any, blocks: SkillBlocks, mark: str, agent: str | None) -> None:
        self._client, self._blocks, self._mark, self._agent = client, blocks, mark, agent
        self.swept = 0

    async def own(self) -> None:
        """Remove what this process has there, and what processes that are gone left."""
        await self._sweep(own=True)

    async def left_behind(self) -> None:
        """Remove what processes that are gone left, until nothing is found.

        Requests of a killed process may still be under way.
        """
        while count := await self._sweep(own=False):
            self.swept += count
            await asyncio.sleep(SETTLED_AFTER)

    async def long_lived(self, *, own: bool) -> int:
        """Give the long-lived agent back as it was: only what is ours goes, with ``own`` all of it.

        What a process of another machine attached goes too: nobody could tell whether that one
        still runs, and an agent serves one process.
        """
        client, agent_id, count = self._client, self._agent, 0
        listing = client.agents.blocks.with_raw_response.list
        for block in [block async for block in pages(Block, listing, agent_id=agent_id)]:
            mark = mark_of(block)
            if not block.label.startswith(PREFIX):
                continue
            if owner.alive(mark) is not True or (own and mark == self._mark):
                detach = client.agents.blocks.with_raw_response.detach
                await unless_gone(detach(block.id, agent_id=agent_id))
                count += 1
        retrieve = client.agents.with_raw_response.retrieve
        agent = await call(AgentRecord, retrieve(agent_id, include=["agent.pending_approval"]))
        asked = skill_tool.pending(agent)
        if asked:  # an answer that never came would block the agent's next message
            create = client.agents.messages.with_raw_response.create
            refusal = skill_tool.answers(asked, {})
            await call(object, create(agent_id, messages=[refusal], max_steps=1))
            count += 1
        # Also where nothing is attached: a process may have ended between detaching and this.
        await call(object, client.agents.with_raw_response.recompile(agent_id))
        return count

    async def delete(self, agent_id: str) -> None:
        """Delete an agent, unless it is gone."""
        await unless_gone(self._client.agents.with_raw_response.delete(agent_id))

    async def _sweep(self, *, own: bool) -> int:
        count = 0 if self._agent is None else await self.long_lived(own=own)
        listing = self._client.agents.with_raw_response.list
        tagged = pages(AgentRecord, listing, tags=[TAG], include=["agent.tags"])
        for agent in [agent async for agent in tagged]:
            marks = [t.removeprefix(OWNER_TAG) for t in agent.tags if t.startswith(OWNER_TAG)]
            if any(owner.alive(m) is False or (own and m == self._mark) for m in marks):
                await self.delete(agent.id)
                count += 1
        return count + await self._blocks.sweep(own=own)
