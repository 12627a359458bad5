"""Skills as memory blocks on a Letta server: made once, shared read-only, removed at the end."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Sequence
from typing import Any

from letta_gym.letta import owner
from letta_gym.letta.failures import InfrastructureError, Kind
from letta_gym.letta.wire import Block, call, pages, unless_gone
from letta_gym.library.skills import Skill

PREFIX = "letta_gym_"
"""Labels of our blocks begin so. With a slash, as in skills/<name>, Letta hides the body."""

OWNER = "letta_gym_owner"
MAKE_WITHIN = 10.0  # seconds; all rollouts with the skill wait for its block


class SkillBlocks:
    """The blocks that one user of a server made there.

    Agents share them: a block is read-only, so no agent can change what another one reads.

    Args:
        client: the client.
        mark: whose they are, see :mod:`letta_gym.letta.owner`.
    """

    def __init__(self, client: Any, mark: str) -> None:
        self._client, self._mark = client, mark
        self._made: dict[str, asyncio.Task[Block]] = {}  # by content hash

    async def of(self, skills: Sequence[Skill]) -> list[Block]:
        """The block of each skill; made where there is none yet.

        Raises:
            InfrastructureError: one could not be made.
        """
        # Shielded: whoever is cancelled leaves the block to the others that wait for it.
        return [await asyncio.shield(self._task(skill)) for skill in skills]

    def _task(self, skill: Skill) -> asyncio.Task[Block]:
        key = skill.content_hash
        made = self._made.get(key)
        if made is None or (made.done() and (made.cancelled() or made.exception())):
            made = self._made[key] = asyncio.create_task(self._make(skill))
        return made

    async def _make(self, skill: Skill) -> Block:
        value = skill.body or skill.text
        made = self._client.blocks.with_raw_response.create(
            label=label(skill),
            value=value,
            limit=max(len(value), 1),
            description=skill.description,
            read_only=True,
            metadata={OWNER: self._mark},
        )
        try:
            async with asyncio.timeout(MAKE_WITHIN):
                return await call(Block, made)
        except TimeoutError as error:
            raise InfrastructureError(
                Kind.TIMEOUT, f"no block was made within {MAKE_WITHIN:g} s", may_have_run=False
            ) from error

    async def sweep(self, *, own: bool) -> int:
        """Delete what processes left that are gone, with ``own`` also what this user made.

        Returns:
            How many blocks that were.
        """
        if own:
            for task in self._made.values():
                task.cancel()  # one that is made unseen has our mark too
            await asyncio.gather(*self._made.values(), return_exceptions=True)
            self._made.clear()
        listed = pages(Block, self._client.blocks.with_raw_response.list, label_search=PREFIX)
        blocks = [block async for block in listed if block.label.startswith(PREFIX)]
        gone = [
            block
            for block in blocks
            if owner.alive(mark_of(block)) is False or (own and mark_of(block) == self._mark)
        ]
        for block in gone:
            await unless_gone(self._client.blocks.with_raw_response.delete(block.id))
        return len(gone)


def mark_of(block: Block) -> str:
    """The mark of whoever made the block; empty where it has none."""
    return str((block.metadata or {}).get(OWNER, ""))


def label(skill: Skill) -> str:
    """Label of the skill's block, unlike that of another skill of its name."""
    name = re.sub(r"[^A-Za-z0-9-]", "-", skill.name)[:40]
    return f"{PREFIX}{name}_{skill.content_hash[:8]}"
