"""Who calls, on whose behalf, and whether it may."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

from letta_gym.service.config import AccessConfig, LimitsConfig
from letta_gym.service.problems import ApiError
from letta_gym.store.keys import RIGHTS, digest_of
from letta_gym.store.models import Viewer
from letta_gym.store.store import Store

AGENT_HEADER = "Letta-Agent"


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the name of its key, what it may do, and what it is bound to."""

    name: str
    rights: frozenset[str]
    agent: Viewer | None = None
    team: str | None = None

    @property
    def is_operator(self) -> bool:
        """Whether the caller is bound to no agent and no team."""
        return self.agent is None and self.team is None


ANYBODY = Caller("local", frozenset(RIGHTS))
"""The caller where keys are off: somebody on this machine."""


class Access:
    """Knows the keys that hold, and how often each was used of late.

    Args:
        store: where the keys are kept.
        config: whether keys are needed.
        limits: the rate that each key may have.
        clock: monotonic seconds.
    """

    def __init__(
        self,
        store: Store,
        config: AccessConfig,
        limits: LimitsConfig,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store, self.config, self._limits, self._clock = store, config, limits, clock
        self._callers: dict[str, Caller] = {}
        self._buckets: dict[str, tuple[float, float]] = {}

    async def refresh(self) -> None:
        """Take in the keys that were made and revoked since."""
        held = await asyncio.to_thread(self._store.keys.held)
        self._callers = {
            digest: Caller(key.name, key.rights, key.agent, key.team)
            for digest, key in held.items()
        }

    def admit(self, authorization: str, right: str) -> Caller:
        """The caller of a request with the header ``authorization``, which needs ``right``.

        Raises:
            ApiError: 401 without a key that holds, 403 without the right, 429 above the rate.
        """
        caller = self._caller(authorization) if self.config.keys else ANYBODY
        if right not in caller.rights:
            raise ApiError(
                403,
                f"the key {caller.name!r} has the rights {sorted(caller.rights)}; this needs "
                f"{right!r}",
            )
        self.count(caller.name)
        return caller

    def _caller(self, authorization: str) -> Caller:
        scheme, _, secret = authorization.partition(" ")
        if scheme.lower() != "bearer" or not secret:
            raise ApiError(
                401, "this needs an API key; send the header 'Authorization: Bearer KEY'"
            )
        caller = self._callers.get(digest_of(secret.strip()))
        if caller is None:
            raise ApiError(
                401,
                "the API key does not hold: it is mistyped, was revoked, or was made less than "
                f"{self.config.refresh:g} s ago",
            )
        return caller

    def count(self, name: str) -> None:
        """Take one token out of the key's bucket, which fills at the rate that is allowed.

        Raises:
            ApiError: 429, it is empty.
        """
        now, burst = self._clock(), float(self._limits.burst)
        left, since = self._buckets.get(name, (burst, now))
        left = min(left + (now - since) * self._limits.rate, burst)
        if left < 1:
            self._buckets[name] = left, now
            wait = (1 - left) / self._limits.rate
            raise ApiError(
                429,
                f"the key {name!r} may send {self._limits.rate:g} requests per second; "
                "send fewer, or try again later",
                retry_after=wait,
            )
        self._buckets[name] = left - 1, now
