"""Follows what other processes change in the database that they share."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from letta_gym.errors import LettaGymError

if TYPE_CHECKING:
    from letta_gym.service.service import Service

log = logging.getLogger(__name__)

_KEYS = frozenset(["make key", "revoke key"])
_AGENTS = frozenset(["change agent", "transfer"])
_POLICIES = frozenset(["switch"])
_SKILLS = frozenset(["offer skill", "withdraw skill"])

_LOOKED_BACK = 64
"""Entries that are looked at again: PostgreSQL numbers them when they are begun, and the lower
number may be committed later."""


class Follower:
    """Reads the new entries of the audit, in which every change of state leaves a line.

    What this process changed itself is found in place, and costs no more than looking.

    Args:
        of: the service that is kept in step.
        seconds: between two looks.
    """

    def __init__(self, of: Service, seconds: float) -> None:
        self._of, self._seconds = of, seconds
        self._known: dict[int, str] = {}

    async def begin(self) -> None:
        """Take what stands in the audit as known; before the state is read that it is about."""
        last = await asyncio.to_thread(self._of.store.last_change)
        self._known = await asyncio.to_thread(self._of.store.changes, last - _LOOKED_BACK)

    async def follow(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(self._seconds)
            try:
                await self.look()
            except LettaGymError as error:
                log.warning("the changes of other processes could not be taken in: %s", error)

    async def look(self) -> None:
        """Take in what changed since the last look; where it fails, the next look tries again."""
        after = max(self._known, default=0) - _LOOKED_BACK
        found = await asyncio.to_thread(self._of.store.changes, after)
        actions = {action for number, action in found.items() if number not in self._known}
        of = self._of
        if actions & _KEYS:
            await of.access.refresh()
        if actions & _AGENTS:
            await of.agents_changed()
        if actions & _POLICIES:
            await of.use_active()
        if actions & _SKILLS:
            await of.desks.look_again()
        self._known = found
