"""Training runs: started, cancelled and resumed here, carried out by processes of their own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import secrets
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

import letta_gym
from letta_gym.errors import ConfigError, StoreError
from letta_gym.files import write_atomically
from letta_gym.service.config import ServiceConfig, TrainingConfig
from letta_gym.service.problems import ApiError
from letta_gym.service.recipes import Recipe, Recipes, Value, assignments
from letta_gym.service.supervision import CHECKPOINT, CONFIG, LOG, Order
from letta_gym.store.jobs import RESUMABLE, NewJob, TrainingRun
from letta_gym.store.models import FROM_LOG, Viewer
from letta_gym.store.store import STORE_VARIABLE, Store

_STARTS_WITHIN = 30.0  # seconds that a supervisor has until its first sign of life
_CHECKED_WITHIN = 60.0  # seconds that the trainer has to look at a configuration

log = logging.getLogger(__name__)


class Training:
    """Starts training runs, one at a time, and notices those whose supervisor died.

    Its methods wait for the database and for files: call them beside the loop, but for those that
    are async.

    Args:
        store: where runs are kept.
        service: names the command that trains, and the folder of the policies.
        config: of training.

    Attributes:
        followers: streams of events that are open.
    """

    def __init__(self, store: Store, service: ServiceConfig, config: TrainingConfig) -> None:
        self._store, self._service, self._config = store, service, config
        self.recipes = Recipes(config.configs, config.allowed)
        self.followers = 0
        self._supervisors: dict[tuple[int, str], subprocess.Popen[bytes]] = {}

    # --- what callers ask for ---------------------------------------------------------------------

    async def start(
        self, name: str, changes: Mapping[str, Value], *, actor: str, agent: Viewer | None
    ) -> TrainingRun:
        """Start a run of the configuration ``name`` with ``changes``.

        Args:
            name: of an allowed configuration.
            changes: its keys that are set otherwise.
            actor: who starts it.
            agent: of whose decisions a run from the log learns; None for those of all.

        Raises:
            ApiError: 409, a run is under way; 501, there is nothing that trains.
            ConfigError: there is no such configuration, or the changes do not fit.
        """
        command = self._command()
        recipe = await asyncio.to_thread(self.recipes.get, name)
        settings = assignments(changes, recipe.kind)
        await asyncio.to_thread(self._refuse_second)
        if recipe.kind == FROM_LOG:
            settings += await asyncio.to_thread(self._log_settings, agent)
        resolved = await self._checked(command, recipe, settings)
        return await asyncio.to_thread(self._begin, recipe, changes, resolved, actor, agent)

    def cancel(self, run: TrainingRun, *, actor: str) -> TrainingRun:
        """Ask a run to stop; it finishes its update, saves it, and ends.

        Raises:
            ApiError: 409, it does not run.
        """
        if run.beat_at is None or not self._store.jobs.cancel(run.id, actor=actor):
            raise ApiError(409, f"the run {run.id} is {run.state}, so there is nothing to cancel")
        return self._get(run.id)

    def resume(self, run: TrainingRun, *, actor: str) -> TrainingRun:
        """Continue a run from its last checkpoint; one that has none begins again.

        Raises:
            ApiError: 409, it cannot be resumed, or a run is under way; 501, there is nothing that
                trains.
        """
        self._command()
        if run.beat_at is None or run.state not in RESUMABLE:
            self._refuse_second()
            raise ApiError(409, f"the run {run.id} is {run.state}; start a new one")
        if not Path(run.folder, CONFIG).is_file():
            raise ApiError(409, f"the run {run.id} has no folder here any more; start a new one")
        holder = secrets.token_hex(16)
        if not self._store.jobs.resume(run.id, actor=actor, holder=holder, lease=self._first_lease):
            self._refuse_second()
            raise ApiError(409, "another run was quicker; try again when it is over")
        self._launch(self._get(run.id), holder)
        return self._get(run.id)

    # --- what goes on meanwhile -------------------------------------------------------------------

    async def watch(self) -> None:
        """Notice runs whose supervisor died, for as long as the service runs."""
        while True:
            try:
                for run in await asyncio.to_thread(self.look_after):
                    log.warning("the training run %d is lost: its supervisor died", run)
            except StoreError as error:
                log.warning("the training runs could not be looked after: %s", error)
            await asyncio.sleep(self._config.heartbeat)

    def look_after(self) -> list[int]:
        """Mark the runs whose supervisor is gone; returns their numbers."""
        lost = self._store.jobs.mark_lost()
        for (run, holder), process in [*self._supervisors.items()]:
            if process.poll() is not None:
                del self._supervisors[run, holder]
                lost += self._store.jobs.give_up(run, holder)
        return lost

    def close(self) -> None:
        """Let the supervisors go on alone."""
        for process in self._supervisors.values():
            if process.poll() is None:
                process.returncode = 0  # nobody waits for it here any more
        self._supervisors.clear()

    # --- parts ------------------------------------------------------------------------------------

    @property
    def _first_lease(self) -> float:
        return max(self._config.lease, _STARTS_WITHIN)

    def _command(self) -> tuple[str, ...]:
        if os.name == "nt":
            raise ApiError(501, "training over HTTP needs a POSIX system; run train.py by hand")
        if self._service.train_command is not None:
            return self._service.train_command
        script = _checkout() / "train.py"
        if not script.is_file():
            raise ApiError(
                501,
                "training needs a checkout of letta-gym, and the package that serves was installed "
                "without one: serve from a checkout, name a command in service.train_command, or "
                "train elsewhere and POST the policy file to /policies",
            )
        return sys.executable, str(script)

    def _refuse_second(self) -> None:
        run = self._store.jobs.under_way()
        if run is not None:
            raise ApiError(
                409, f"the training run {run} is under way; wait for its end, or cancel it"
            )

    def _log_settings(self, agent: Viewer | None) -> list[str]:
        """The store, the policy that chooses, and whose decisions: never what a caller names."""
        active = self._store.policies.with_status("active")[0]
        values = {
            "store": "that of the service",  # its address goes by the environment
            "policy": active.path,
            "agent": None if agent is None else agent.name,
        }
        return [f"{key}={json.dumps(value)}" for key, value in values.items()]

    async def _checked(
        self, command: Sequence[str], recipe: Recipe, settings: Sequence[str]
    ) -> dict[str, Any]:
        """The configuration as the trainer reads it."""
        words = [*command, "--config", str(recipe.path.absolute()), "--check"]
        words += [f"--set={one}" for one in settings]
        try:
            process = await asyncio.create_subprocess_exec(
                *words,
                cwd=_workplace(),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        except OSError as error:
            raise _no_trainer(command, str(error)) from error
        with contextlib.suppress(ProcessLookupError):  # it has ended already
            os.setpriority(os.PRIO_PROCESS, process.pid, self._config.nice)
        try:
            said, wrong = await asyncio.wait_for(process.communicate(), _CHECKED_WITHIN)
        except TimeoutError as error:
            raise ApiError(503, "the trainer did not answer; try again", retry_after=10) from error
        finally:
            if process.returncode is None:
                process.kill()
        if process.returncode != 0:
            message = wrong.decode(errors="replace").rpartition("train.py: ")[2].strip()
            raise ConfigError(message.replace(str(recipe.path.absolute()), recipe.name))
        try:
            resolved = json.loads(said)
        except ValueError as error:
            raise _no_trainer(command, "it prints no JSON for --check") from error
        if not isinstance(resolved, dict):
            raise _no_trainer(command, f"it prints {said!r} for --check")
        return resolved

    def _begin(
        self,
        recipe: Recipe,
        changes: Mapping[str, Value],
        resolved: Mapping[str, Any],
        actor: str,
        agent: Viewer | None,
    ) -> TrainingRun:
        when = time.strftime("%Y%m%d-%H%M%S")
        folder = self._config.folder.absolute() / f"{recipe.name}-{when}-{secrets.token_hex(3)}"
        text = yaml.safe_dump(dict(resolved), sort_keys=False, allow_unicode=True)
        write_atomically(folder / CONFIG, text.encode())
        steps = resolved.get("train", {}).get("steps")
        job = NewJob(recipe.name, recipe.kind, changes, resolved, str(folder), steps, agent)
        holder = secrets.token_hex(16)
        run = self._store.jobs.begin(job, actor=actor, holder=holder, lease=self._first_lease)
        if run is None:
            (folder / CONFIG).unlink()
            folder.rmdir()
            self._refuse_second()
            raise ApiError(409, "another run was quicker; try again when it is over")
        self._launch(self._get(run), holder)
        return self._get(run)

    def _launch(self, run: TrainingRun, holder: str) -> None:
        """Start the supervisor, which outlives this process."""
        folder, c = Path(run.folder), self._config
        words = [*self._command(), "--config", str(folder / CONFIG), "--run-dir", str(folder)]
        if (folder / CHECKPOINT).is_file():
            words.append("--resume")
        order = Order(
            run=run.id,
            holder=holder,
            actor=run.actor or "training",
            command=tuple(words),
            cwd=str(_workplace()),
            folder=folder,
            policies=(self._service.data / "policies").absolute(),
            heartbeat=c.heartbeat,
            lease=c.lease,
            patience=c.patience,
            nice=c.nice,
        )
        with (folder / LOG).open("ab") as said:
            self._supervisors[run.id, holder] = subprocess.Popen(
                [sys.executable, "-m", "letta_gym.service.supervisor", order.model_dump_json()],
                cwd=Path.cwd(),
                env={**os.environ, STORE_VARIABLE: self._url(), "OPENBLAS_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                start_new_session=True,
            )

    def _url(self) -> str:
        database = self._store.database
        url = database.url
        if database.is_sqlite:  # the trainer runs in another folder
            url = url.set(database=str(Path(str(url.database)).absolute()))
        return url.render_as_string(hide_password=False)

    def _get(self, run: int) -> TrainingRun:
        found = self._store.jobs.get(run)
        assert found is not None
        return found


def _no_trainer(command: Sequence[str], why: str) -> ApiError:
    return ApiError(
        501,
        f"{' '.join(command)!r} does not train: {why}. service.train_command must take the options "
        "of train.py",
    )


def _checkout() -> Path:
    return Path(letta_gym.__file__).parent.parent


def _workplace() -> Path:
    """Where the trainer runs: relative paths of its configuration begin here."""
    checkout = _checkout()
    return checkout if (checkout / "train.py").is_file() else Path.cwd()
