"""Letta Code as an agent: one warm App Server, a throw-away conversation for each rollout.

The command line stands in where no App Server can be had: the same skills and the same messages, at
the price of a new process for each rollout.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
from collections.abc import Coroutine, Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from letta_gym.errors import BackendError, ConfigError, MissingExtraError
from letta_gym.letta import code_cli
from letta_gym.letta.app_server import AppServer, Fleet
from letta_gym.letta.code_home import PROVIDER, Home, Root, openai_compatible, sweep
from letta_gym.letta.conversation import GRACE, Conversation, Terms
from letta_gym.letta.failures import Deadline, InfrastructureError, Kind
from letta_gym.letta.grading import Grader
from letta_gym.letta.live import LiveBackend, LiveConfig
from letta_gym.letta.rollout import Attempt, Reply
from letta_gym.letta.run_folder import bodies, lay_out
from letta_gym.library.skills import Skill
from letta_gym.library.suite import Suite

EXECUTABLE_VARIABLE = "LETTA_GYM_LETTA_CODE"
"""Environment variable with the path of the ``letta`` command."""

_INSTALL = (
    "python3 -m venv .letta-code && .letta-code/bin/pip install --no-deps letta==0.34.12, then set "
    f"{EXECUTABLE_VARIABLE}=.letta-code/bin/letta or code.executable"
)
_CHECK = 4.0  # seconds for the model's address to answer at the start

log = logging.getLogger(__name__)


class CodeConfig(LiveConfig):
    """How Letta Code is reached, and what its agent gets.

    ``executable`` is the ``letta`` command: by default that of the environment variable
    ``LETTA_GYM_LETTA_CODE``, else the one on PATH. The model comes from an OpenAI-compatible
    address, whose key is taken from the environment variable ``key_variable``, or from
    ``providers``, a ``providers/auth.json`` that ``letta connect`` wrote.

    ``present``: "listed" shows name and description, and the agent loads what it wants;
    "preloaded" puts the bodies into the system prompt. ``permissions`` "unrestricted" lets the
    agent run any command as this user: use it in a container. ``tools`` names the tools that the
    agent has; null means all of Letta Code's.
    """

    model: str = Field(min_length=1)
    base_url: str | None = Field(default=None, pattern=r"^https?://")
    key_variable: str = "LETTA_GYM_MODEL_KEY"
    providers: Path | None = None
    executable: Path | None = None
    transport: Literal["auto", "app-server", "cli"] = "auto"
    present: Literal["listed", "preloaded"] = "listed"
    system: str = "You are a helpful agent. Do the task, and end with its result."
    permissions: Literal["standard", "acceptEdits", "unrestricted"] = "standard"
    tools: tuple[str, ...] | None = None
    max_steps: int = Field(default=30, ge=1)  # model calls of a rollout
    recycle_after: int = Field(default=400, ge=1)  # rollouts of one App Server
    start_timeout: float = Field(default=30.0, gt=0)  # seconds
    environment: tuple[str, ...] = ()  # names of further variables that the agent may see

    @model_validator(mode="after")
    def _one_source_of_models(self) -> Self:
        if (self.base_url is None) == (self.providers is None):
            raise ValueError("set either base_url or providers")
        return self

    @property
    def handle(self) -> str:
        """The model as Letta Code calls it."""
        return self.model if self.base_url is None else f"{PROVIDER}/{self.model}"


def code_backend(
    config: CodeConfig, suite: Suite | None = None, *, grader: Grader | None = None, seed: int = 0
) -> LiveBackend:
    """The backend that ``config`` describes; see :class:`letta_gym.letta.live.LiveBackend`."""
    return LiveBackend(CodeAgent(config), config, suite, grader=grader, name="code", seed=seed)


class CodeAgent:
    """Carries rollouts out with Letta Code; a :class:`letta_gym.letta.rollout.Agent`.

    Args:
        config: how.
    """

    disposable = True

    def __init__(self, config: CodeConfig) -> None:
        self.config = config
        self._root: Root | None = None
        self._providers = b""
        self._fleet: Fleet | None = None
        self._background: set[asyncio.Task[None]] = set()
        self._executable = Path()

    async def start(self) -> None:
        """Find the command, check address, key and model, and start the App Server.

        Raises:
            ConfigError: the command is missing, or address, key or model are wrong.
            BackendError: Letta Code does not come up.
        """
        self._executable = find_executable(self.config.executable)
        self._providers = await self._credentials()
        swept = await asyncio.to_thread(sweep)
        if swept:
            log.info("removed what %d killed processes left of Letta Code", len(swept))
        self._root = Root()
        if self.config.transport != "cli":
            await self._start_fleet()

    async def carry_out(self, attempt: Attempt) -> Reply:
        """Carry the task out in a conversation of its own; see :class:`Agent`."""
        if self._root is None:
            raise BackendError("the agent was not started; call start() first")
        if self._fleet is None:
            return await self._by_command(attempt)
        server = await self._served(self._fleet, attempt.deadline)
        folder = server.home.runs / _unique(attempt.rollout.id)
        conversation = Conversation(server, folder, attempt.deadline)
        try:
            return await self._converse(conversation, attempt)
        finally:
            if conversation.running:
                self._later(self._abandon(self._fleet, conversation))
            else:
                conversation.clear()
                self._fleet.release(server)

    async def feedback(self, run_id: str, step_ids: tuple[str, ...], reward: float) -> None:
        """Do nothing: a throw-away conversation keeps no run."""

    async def release(self, attempt: Attempt) -> None:
        """Do nothing: nothing of a rollout is left once it was carried out."""

    async def close(self) -> None:
        """Stop Letta Code, with the turns that nobody waits for."""
        for task in self._background:
            task.cancel()
        await asyncio.gather(*self._background, return_exceptions=True)
        if self._fleet is not None:
            await self._fleet.close()
            self._fleet = None
        if self._root is not None:
            await asyncio.to_thread(self._root.remove)
            self._root = None

    async def _start_fleet(self) -> None:
        fleet = Fleet(self._new_server, self.config.recycle_after)
        try:
            server = await fleet.acquire()
        except MissingExtraError:
            raise
        except BackendError as error:
            if self.config.transport == "app-server":
                raise
            log.warning("no App Server, so each rollout starts a new process: %s", error)
            return
        self._fleet = fleet
        fleet.release(server)
        known = await server.models(self.config.start_timeout)
        if self.config.handle not in known:
            raise ConfigError(
                f"Letta Code knows no model {self.config.handle!r}; it knows "
                f"{', '.join(known) or 'none'}. See model, base_url and the key in "
                f"{self.config.key_variable}"
            )

    async def _new_server(self) -> AppServer:
        home = self._new_home("server")
        return await AppServer.start(self._executable, home, self.config.start_timeout)

    async def _served(self, fleet: Fleet, deadline: Deadline) -> AppServer:
        try:
            return await fleet.acquire()
        except InfrastructureError:
            raise
        except BackendError as error:
            raise InfrastructureError(Kind.REFUSED, str(error), may_have_run=False) from error

    async def _converse(self, conversation: Conversation, attempt: Attempt) -> Reply:
        rollout = attempt.rollout
        names = await self._lay_out(conversation.folder, rollout.skills)
        await conversation.start(self._terms(rollout.skills))
        attempt.sent = True
        await conversation.ask(rollout.text, self.config.max_steps)
        return conversation.turn.reply(names, conversation.id, self._preloaded(rollout.skills))

    async def _abandon(self, fleet: Fleet, conversation: Conversation) -> None:
        """End a turn that nobody waits for; a server that does not end it is replaced."""
        try:
            await conversation.abort(GRACE)
        except InfrastructureError as error:
            log.warning("an App Server is replaced, for a turn on it does not end: %s", error)
            fleet.retire(conversation.server)
        finally:
            conversation.clear()
            fleet.release(conversation.server)

    async def _by_command(self, attempt: Attempt) -> Reply:
        rollout = attempt.rollout
        home = self._new_home("command")
        try:
            folder = home.runs / _unique(rollout.id)
            names = await self._lay_out(folder, rollout.skills)
            attempt.sent = True
            turn = await code_cli.ask(
                self._executable,
                self._terms(rollout.skills),
                home,
                folder,
                rollout.text,
                (attempt.deadline, self.config.max_steps),
            )
            return turn.reply(names, preloaded=self._preloaded(rollout.skills))
        finally:
            await asyncio.to_thread(home.remove)

    async def _lay_out(self, folder: Path, skills: Sequence[Skill]) -> dict[str, str]:
        shown = skills if self.config.present == "listed" else ()
        try:
            return await asyncio.to_thread(lay_out, folder, shown)
        except OSError as error:
            raise InfrastructureError(
                Kind.SERVER, f"cannot write the skills of a rollout: {error}", may_have_run=False
            ) from error

    def _preloaded(self, skills: Sequence[Skill]) -> tuple[str, ...]:
        return tuple(s.id for s in skills) if self.config.present == "preloaded" else ()

    def _terms(self, skills: Sequence[Skill]) -> Terms:
        c = self.config
        added = bodies(skills) if c.present == "preloaded" else ""
        system = f"{c.system}\n\n{added}" if added else c.system
        return Terms(c.handle, system, c.permissions, c.tools)

    def _new_home(self, kind: str) -> Home:
        assert self._root is not None
        return Home.make(
            self._root.folder / _unique(kind), self._providers, self.config.environment
        )

    def _later(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def _credentials(self) -> bytes:
        c = self.config
        if c.base_url is not None:
            key = os.environ.get(c.key_variable, "")
            await _check_model(c.base_url, c.model, key, c.key_variable)
            return openai_compatible(c.base_url, key or "none")
        assert c.providers is not None
        try:
            return c.providers.expanduser().read_bytes()
        except OSError as error:
            raise ConfigError(
                f"cannot read the providers file {c.providers}: {error.strerror}; "
                "letta connect writes one"
            ) from error


def find_executable(path: Path | None = None) -> Path:
    """The ``letta`` command of Letta Code: ``path``, that of the environment, or the one on PATH.

    Raises:
        ConfigError: there is none; the message says how to install it.
    """
    named = str(path or os.environ.get(EXECUTABLE_VARIABLE) or "letta")
    found = shutil.which(os.path.expanduser(named))
    if found is None:
        raise ConfigError(f"there is no Letta Code at {named!r}; install it: {_INSTALL}")
    return Path(found).absolute()


async def _check_model(base_url: str, model: str, key: str, variable: str) -> None:
    """Ask the address for its models, so that a mistake shows before anything is started."""
    try:
        import httpx
    except ImportError as error:
        raise MissingExtraError("letta", "Letta Code") from error
    remedy = f"see base_url, and the key in the environment variable {variable}"
    url = f"{base_url.rstrip('/')}/models"
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        async with httpx.AsyncClient(timeout=_CHECK, headers=headers) as client:
            reply = await client.get(url)
        reply.raise_for_status()
        known = [str(entry["id"]) for entry in reply.json()["data"]]
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise ConfigError(f"{url} does not answer: {error}; {remedy}") from error
    except (ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{url} lists no models as OpenAI's API does; {remedy}") from error
    if model not in known:
        some = ", ".join(known[:20]) or "none"
        raise ConfigError(f"{base_url} has no model {model!r}; it has {some}")


def _unique(name: str) -> str:
    return f"{name}-{secrets.token_hex(4)}"
