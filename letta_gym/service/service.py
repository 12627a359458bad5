"""The running service: its parts, put together once, started and closed together."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from starlette.requests import Request

from letta_gym.errors import LettaGymError, StoreError
from letta_gym.library.skills import SkillLibrary
from letta_gym.library.suite import BUNDLED, VECTORS_FILE
from letta_gym.library.vectors import SuiteVectors
from letta_gym.service.access import AGENT_HEADER, ANYBODY, Access, Caller
from letta_gym.service.carrier import Carrier, Queue, carrier_of
from letta_gym.service.config import ServeConfig
from letta_gym.service.desk import Desk, Terms
from letta_gym.service.desks import Desks
from letta_gym.service.embedding import LazyEmbedder, SkillVectors, TaskVectors
from letta_gym.service.follower import Follower
from letta_gym.service.journal import Entry, Journal
from letta_gym.service.lineup import Board, Lineup
from letta_gym.service.problems import ApiError
from letta_gym.service.registry import Registry
from letta_gym.service.shadow import Shadows
from letta_gym.service.telemetry import Telemetry
from letta_gym.service.training import Training
from letta_gym.store.log import write_decisions
from letta_gym.store.models import SHARED, Viewer
from letta_gym.store.stock import LIBRARY, seed
from letta_gym.store.store import STORE_VARIABLE, Store

log = logging.getLogger(__name__)

_ACTOR = "service"


class Service:
    """Everything behind the routes.

    Args:
        config: the whole configuration.

    Attributes:
        ready: whether requests are served; ``waits_for`` says what is missing meanwhile.
    """

    def __init__(self, config: ServeConfig) -> None:
        self.config = config
        data = config.service.data
        self.store = Store(os.environ.get(STORE_VARIABLE) or config.service.store)
        self.telemetry = Telemetry()
        self.access = Access(self.store, config.access, config.limits)
        space = SuiteVectors.load(BUNDLED / VECTORS_FILE)
        self.registry = Registry(self.store.policies, data / "policies", space, config.baseline)
        self.embedder = LazyEmbedder(data / "vectors.sqlite", space)
        self.tasks = TaskVectors(self.embedder)
        self.training = Training(self.store, config.service, config.training)
        self._skills = SkillVectors(self.embedder, space.skills)
        self._writer = ThreadPoolExecutor(1, "journal")
        self._agents: dict[str, Viewer] = {}
        self._background: list[asyncio.Task[None]] = []
        self.queue = Queue(config.letta)
        self.carrier: Carrier
        self.desks: Desks
        self.journal: Journal
        self.board = Board(self.store, self.registry, config.gate)
        self.shadows = Shadows()
        self.switching = asyncio.Lock()
        self.waits_for: str | None = "the service has not started yet"

    @property
    def ready(self) -> bool:
        """Whether requests are served."""
        return self.waits_for is None

    async def start(self) -> None:
        """Bring everything into place; on the event loop that will serve."""
        self.journal = Journal(self._write, self._writer, self.telemetry.batch.observe)
        follower = Follower(self, self.config.service.follow)
        await follower.begin()
        lineup = await asyncio.to_thread(self._prepared)
        self.carrier = await asyncio.to_thread(carrier_of, self.config.letta, self.config.seed)
        terms = Terms(
            self.store,
            self.journal,
            self.config.log,
            self._skills,
            self.config.seed,
            self.config.exploration,
            self.shadows,
        )
        self.desks = Desks(terms, lineup)
        await self.access.refresh()
        await self.desk(await self.agent(ANYBODY, None))
        self._background = [
            asyncio.create_task(self._keep_access_fresh()),
            asyncio.create_task(self._load_embedder()),
            asyncio.create_task(follower.follow()),
            asyncio.create_task(self.training.watch()),
        ]
        self.waits_for = None
        active = lineup.active.digest
        log.info("ready; policy %s%s", active, " (fallback)" if self.fallback else "")

    async def close(self) -> None:
        """Finish what was begun, and close the store."""
        self.waits_for = "the service is closing"
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        self.training.close()
        await self.shadows.close()
        await self.journal.close()
        await self.desks.close()
        await asyncio.to_thread(self.carrier.close)
        await asyncio.to_thread(self.embedder.close)
        self.tasks.close()
        self._writer.shutdown()
        self.store.close()

    # --- who calls, and for whom ------------------------------------------------------------------

    async def agent(self, caller: Caller, named: str | None) -> Viewer:
        """The agent on whose behalf ``caller`` acts.

        Args:
            caller: who calls.
            named: the agent that the request names, if any.

        Raises:
            ApiError: 403, the caller is bound to another agent or team; 404, there is no such
                agent; 422, a team's key that names none.
        """
        if caller.agent is not None:
            if named not in (None, caller.agent.name):
                raise ApiError(403, f"the key {caller.name!r} is bound to {caller.agent.name!r}")
            return caller.agent
        if caller.team is not None and named is None:
            raise ApiError(
                422, f"the key {caller.name!r} is a team's; name an agent in {AGENT_HEADER}"
            )
        name = named or self.config.service.agent
        viewer = self._agents.get(name)
        if viewer is None:
            viewer = await asyncio.to_thread(self._known, name)
        if caller.team is not None and viewer.team != caller.team:
            raise ApiError(403, f"the key {caller.name!r} is bound to the team {caller.team!r}")
        return viewer

    async def seen_as(self, caller: Caller, named: str | None) -> Viewer | None:
        """Through whose eyes ``caller`` reads; None, an operator that names none, sees all."""
        if caller.is_operator and "admin" in caller.rights and named is None:
            return None
        return await self.agent(caller, named)

    async def agents_changed(self) -> None:
        """An agent moved: who may see what is to be asked anew."""
        self._agents.clear()
        await self.access.refresh()
        await self.desks.forget()

    def tokens_offered(self) -> int:
        """Tokens of all the skills that the default agent may choose from."""
        viewer = self._agents.get(self.config.service.agent)
        desk = None if viewer is None else self.desks.known(viewer)
        return 0 if desk is None else desk.tokens_offered

    def _known(self, name: str) -> Viewer:
        try:
            viewer = self.store.agents.get(name)
        except StoreError as error:
            raise ApiError(404, f"there is no agent {name!r}; POST it to /agents") from error
        self._agents[name] = viewer
        return viewer

    async def desk(self, agent: Viewer) -> Desk:
        """The desk of an agent."""
        return self.desks.known(agent) or await self.desks.of(agent)

    # --- policies ---------------------------------------------------------------------------------

    @property
    def fallback(self) -> bool:
        """Whether the active policy is the untrained baseline."""
        return self.is_fallback(self.desks.policy.digest)

    def is_fallback(self, digest: str) -> bool:
        """Whether a policy that chooses is the untrained baseline."""
        return digest in self.desks.lineup.fallback

    async def use_active(self) -> None:
        """Let those policies choose that the store names, where others do; see :class:`Board`.

        Raises:
            PolicyFileError: the file of the active policy is not here, or damaged.
        """
        async with self.switching:
            await self.take_seats()

    async def take_seats(self) -> None:
        """The same, for who holds :attr:`switching`."""
        lineup = await asyncio.to_thread(self.board.lineup)
        if lineup.digests != self.desks.lineup.digests:
            await self.desks.change_lineup(lineup)
            log.info("policies choose now: active %s, canary %s (%g), shadow %s", *lineup.digests)

    # --- parts of start ---------------------------------------------------------------------------

    def _prepared(self) -> Lineup:
        self.store.agents.ensure(self.config.service.agent)
        owner = self.store.agents.ensure(LIBRARY, scope=SHARED)
        if not self.store.offers.seen_by(owner):
            seed(self.store, tuple(SkillLibrary.from_folder(BUNDLED)), actor=_ACTOR)
        self.registry.start(self.config.service.policy, _ACTOR)
        return self.board.lineup()

    def _write(self, entries: Sequence[Entry]) -> None:
        write_decisions(self.store.database, entries)

    async def _keep_access_fresh(self) -> None:
        while True:
            await asyncio.sleep(self.config.access.refresh)
            try:
                await self.access.refresh()
            except StoreError as error:
                log.warning("the API keys could not be read again: %s", error)

    async def _load_embedder(self) -> None:
        try:
            await asyncio.to_thread(self.embedder.load)
        except LettaGymError as error:
            log.warning("tasks must bring their embedding: %s", error)


def of(request: Request) -> Service:
    """The service that serves ``request``."""
    service: Service = request.app.state.service
    return service


def new_name() -> str:
    """A name that nothing else has."""
    return secrets.token_hex(16)
