"""Spreads requests over Ray actors, each around a backend of its own, on one machine or many.

Needs the extra ``ray``. The environment does not notice: it calls :meth:`RayBackend.execute` like
that of any other backend and gets one outcome for each request, in the order of the requests. A
request whose actor dies is given to another one, so a task may be carried out twice; its outcome is
still counted once. The backends in the actors must not keep state between requests, as the mock of
the environment does: which actor gets a request depends on who is free.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any, Self

import numpy as np
from pydantic import Field

from letta_gym.config import Section
from letta_gym.errors import BackendError, MissingExtraError
from letta_gym.feedback.outcome import Outcome
from letta_gym.letta.backend import Backend, Outcomes, Requests

log = logging.getLogger(__name__)


class RayConfig(Section):
    """How requests are spread.

    ``address`` of a cluster, "auto" for the running one, null for a new one on this machine.
    ``in_flight`` is the most requests that one actor holds at once, waiting ones included: further
    ones stay here. ``retries``: how often a request is given away again when its actor dies.
    ``cpus`` that Ray reserves for each actor; 0 suits backends that only wait for a server.
    """

    actors: int = Field(default=4, ge=1)
    in_flight: int = Field(default=2, ge=1)
    retries: int = Field(default=2, ge=0)
    cpus: float = Field(default=0.0, ge=0)
    address: str | None = None


@dataclass(slots=True)
class _Job:
    """One request: its place, how often its actor died, and who has it now."""

    place: int
    deaths: int = 0
    actor: int = -1


class RayBackend:
    """A :class:`letta_gym.letta.backend.Backend` around many.

    Use it as a context manager, or call :meth:`close`.

    Args:
        make: makes the backend of one actor, there; Ray pickles it.
        config: how many actors, and how they are used.

    Attributes:
        died: actors that died so far and were replaced.

    Raises:
        MissingExtraError: Ray is not installed.
        BackendError: the cluster cannot be reached, or ``make`` fails there.
    """

    def __init__(self, make: Callable[[], Backend], config: RayConfig | None = None) -> None:
        self.config, self.died = config or RayConfig(), 0
        self._make, self._ray, self._owner = make, _ray(), False
        if not self._ray.is_initialized():
            self._connect()
        self._worker = self._ray.remote(num_cpus=self.config.cpus, max_restarts=0)(_Worker)
        self._actors = [self._worker.remote(make) for _ in range(self.config.actors)]
        try:
            self._ray.get([actor.ping.remote() for actor in self._actors])
        except self._ray.exceptions.RayActorError as error:
            self.close()
            raise BackendError(f"the backend cannot be made in an actor: {error}") from error

    def _connect(self) -> None:
        try:
            self._ray.init(
                address=self.config.address, include_dashboard=False, log_to_driver=False
            )
        except (ConnectionError, RuntimeError, ValueError) as error:
            raise BackendError(
                f"no Ray cluster at {self.config.address!r}: {error}. Start one with: ray start "
                "--head, or leave the address out for one on this machine"
            ) from error
        self._owner = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the actors, and Ray where this backend started it; harmless to call again."""
        if not self._ray.is_initialized():
            return
        for actor in self._actors:
            self._ray.kill(actor)
        self._actors = []
        if self._owner:
            self._ray.shutdown()

    def execute(self, requests: Requests) -> Outcomes:
        """Carry out every request, and wait for all; outcomes in the order of the requests.

        A request that its backend could not carry out, or whose actors died too often, has an
        outcome that is no evidence.

        Raises:
            BackendError: no request could be carried out at all, or the backend is closed.
        """
        if not self._actors:
            raise BackendError("this backend is closed; make a new one")
        count = len(requests.rows)
        found: list[Outcomes | None] = [None] * count
        failures: dict[int, str] = {}
        waiting = deque(_Job(place) for place in range(count))
        flying: dict[Any, _Job] = {}
        load = [0] * len(self._actors)
        while waiting or flying:
            while waiting and min(load) < self.config.in_flight:
                self._send(waiting.popleft(), requests, flying, load)
            done, _ = self._ray.wait(list(flying), num_returns=1)
            job = flying.pop(done[0])
            load[job.actor] -= 1
            self._receive(done[0], job, found, failures, waiting)
        if count and len(failures) == count:
            raise BackendError(f"no request could be carried out: {failures[0]}")
        return _joined(requests, found, failures)

    def _send(
        self, job: _Job, requests: Requests, flying: dict[Any, _Job], load: list[int]
    ) -> None:
        """Give a request to the actor that has the fewest."""
        job.actor = load.index(min(load))
        load[job.actor] += 1
        at = slice(job.place, job.place + 1)
        one = Requests(requests.rows[at], requests.tasks[at], requests.skills[at])
        flying[self._actors[job.actor].execute.remote(one)] = job

    def _receive(
        self,
        result: Any,
        job: _Job,
        found: list[Outcomes | None],
        failures: dict[int, str],
        waiting: deque[_Job],
    ) -> None:
        """Keep an outcome, or note why there is none, or let the request wait for another actor."""
        actor = self._actors[job.actor]
        try:
            found[job.place] = self._ray.get(result)
        except self._ray.exceptions.RayActorError as error:
            self._replace(job.actor, actor, error)
            job.deaths += 1
            if job.deaths <= self.config.retries:
                waiting.appendleft(job)
            else:
                failures[job.place] = f"its actor died {job.deaths} times, at last: {error}"
        except BackendError as error:  # Ray adds the actor's traceback and keeps the cause
            failures[job.place] = str(getattr(error, "cause", error))

    def _replace(self, index: int, dead: Any, error: Exception) -> None:
        """Start another actor in the place of one that died, once for all of its requests."""
        if self._actors[index] is dead and not self._alive(dead):
            log.warning("a Ray actor died, and another takes its place: %s", error)
            self._actors[index] = self._worker.remote(self._make)
            self.died += 1

    def _alive(self, actor: Any) -> bool:
        try:
            self._ray.get(actor.ping.remote())
        except self._ray.exceptions.RayActorError:
            return False
        return True


class _Worker:
    """What runs in an actor: one backend."""

    def __init__(self, make: Callable[[], Backend]) -> None:
        self._backend = make()

    def execute(self, requests: Requests) -> Outcomes:
        return self._backend.execute(requests)

    def ping(self) -> None:
        """Answer, if alive."""


def _joined(requests: Requests, found: list[Outcomes | None], failures: dict[int, str]) -> Outcomes:
    """One batch of the single outcomes; those of ``failures`` are no evidence."""
    count, k = requests.skills.shape
    joined = Outcomes(
        success=np.zeros(count, np.float32),
        loaded=np.zeros((count, k), bool),
        tokens=np.zeros(count, np.float32),
        expected=np.full(count, np.nan, np.float32),
        evidence=np.zeros(count, bool),
    )
    details: list[Outcome] = []
    for place, one in enumerate(found):
        if one is None:
            details.append(Outcome(None, evidence=False, error=failures[place]))
            continue
        for name in ("success", "loaded", "tokens", "expected", "evidence"):
            getattr(joined, name)[place] = getattr(one, name)[0]
        details.extend(one.details)
    if len(details) == count:
        return Outcomes(
            joined.success, joined.loaded, joined.tokens, joined.expected, joined.evidence,
            tuple(details),
        )  # fmt: skip
    return joined


def _ray() -> ModuleType:
    try:
        import ray
    except ImportError as error:
        raise MissingExtraError("ray", "spreading rollouts over actors") from error
    module: ModuleType = ray
    return module
