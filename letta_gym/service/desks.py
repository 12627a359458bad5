"""All desks: one for each agent that calls, kept in step with the offered skills and the policy."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from letta_gym.library.skills import Skill
from letta_gym.selection.policy import Policy
from letta_gym.service.desk import Desk, Terms
from letta_gym.service.lineup import Lineup
from letta_gym.store.models import Viewer


class Desks:
    """The desks of a service. Changes follow each other; choices go on meanwhile.

    Args:
        terms: what all desks share.
        lineup: who chooses at first.
    """

    def __init__(self, terms: Terms, lineup: Lineup) -> None:
        self._terms, self.lineup = terms, lineup
        self._desks: dict[int, Desk] = {}
        self._changing = asyncio.Lock()

    @property
    def policy(self) -> Policy:
        """The active policy."""
        return self.lineup.active

    def known(self, agent: Viewer) -> Desk | None:
        """The desk of an agent that called before."""
        return self._desks.get(agent.id)

    async def of(self, agent: Viewer) -> Desk:
        """The desk of an agent; made where it calls for the first time."""
        desk = self._desks.get(agent.id)
        if desk is not None:
            return desk
        async with self._changing:
            if agent.id not in self._desks:
                made = await asyncio.to_thread(Desk, agent, self._terms, self.lineup)
                self._desks[agent.id] = made
            return self._desks[agent.id]

    async def offer(
        self, owner: Viewer, skills: Sequence[Skill], *, actor: str, scope: str | None = None
    ) -> None:
        """Offer skills; the next choice of whoever may see them knows.

        Raises:
            MissingExtraError: the skills must be embedded and no embedder is installed; nothing
                has changed then.
        """
        async with self._changing:
            await asyncio.to_thread(self._terms.vectors.of, skills)
            put = self._terms.store.offers.put
            await asyncio.to_thread(put, owner, skills, actor=actor, scope=scope)
            await self._rearrange(self.lineup)

    async def withdraw(self, owner: Viewer, skill: str, *, actor: str) -> None:
        """Take a skill back; the next choice knows.

        Raises:
            StoreError: the owner offers no such skill.
        """
        async with self._changing:
            take = self._terms.store.offers.withdraw
            await asyncio.to_thread(take, owner, skill, actor=actor)
            await self._rearrange(self.lineup)

    async def look_again(self) -> None:
        """Take in what others offered and withdrew; the next choice knows."""
        async with self._changing:
            desks = list(self._desks.values())
            if any([await asyncio.to_thread(desk.is_outdated) for desk in desks]):
                await self._rearrange(self.lineup)

    async def change_lineup(self, lineup: Lineup) -> None:
        """Let the policies of ``lineup`` choose from now on, for everybody at once."""
        async with self._changing:
            await self._rearrange(lineup)

    async def forget(self) -> None:
        """Let every desk be made anew when its agent calls next: somebody changed teams."""
        async with self._changing:
            await self.close()
            self._desks.clear()

    async def close(self) -> None:
        """Give back what the desks hold of the store."""
        for desk in self._desks.values():
            await desk.close()

    async def _rearrange(self, lineup: Lineup) -> None:
        desks = list(self._desks.values())
        prepared = [await asyncio.to_thread(desk.arranged, lineup) for desk in desks]
        # Without a pause between them, so that no request sees some of the desks changed.
        self.lineup = lineup
        for desk, arrangement in zip(desks, prepared, strict=True):
            desk.take(arrangement)
