"""Letta by its REST API: a self-hosted V1 server, or whatever speaks its wire format.

Two ways to give an agent its skills: an agent of its own for each rollout, thrown away afterwards
(training), or a person's long-lived agent, to which blocks are attached for one task and detached
again. Two ways to present them: ``preloaded`` puts the body into the prompt as a memory block,
``listed`` shows name and description, and the agent loads what it wants with a tool ``Skill``.
"""

from __future__ import annotations

import asyncio
import difflib
import logging
import os
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from letta_gym.errors import BackendError
from letta_gym.letta import owner, skill_tool
from letta_gym.letta.blocks import PREFIX, SkillBlocks
from letta_gym.letta.cleaning import OWNER_TAG, TAG, Cleaning, Sweeper
from letta_gym.letta.failures import InfrastructureError, Kind
from letta_gym.letta.grading import Grader
from letta_gym.letta.live import LiveBackend, LiveConfig
from letta_gym.letta.rollout import Attempt, Reply, Rollout
from letta_gym.letta.wire import (
    AgentRecord,
    Block,
    Message,
    Model,
    Response,
    arguments,
    call,
    import_client,
    pages,
    run_of,
)
from letta_gym.library.skills import Skill
from letta_gym.library.suite import Suite

log = logging.getLogger(__name__)

START_WITHIN = 5.0  # seconds

_FAILED = {
    "error": Kind.SERVER,
    "llm_api_error": Kind.MODEL,
    "invalid_llm_response": Kind.MODEL,
    "insufficient_credits": Kind.CREDIT,
    "cancelled": Kind.CANCELLED,
}
"""Stop reasons that tell of the infrastructure; the others tell of the agent."""


class RestConfig(LiveConfig):
    """How to reach Letta, and how it gets its skills.

    ``model``: handle of the model of new agents. ``agent``: id of a long-lived agent that serves
    every task instead, one at a time; keep to one process for each such agent. ``key_variable``
    names the environment variable that holds the API key; unset means none is sent. ``project`` is
    that of Letta Cloud. ``system`` replaces the system prompt of new agents, ``tools`` are names of
    server-side tools for them.
    """

    base_url: str = Field(default="http://127.0.0.1:8283", pattern=r"^https?://")
    key_variable: str = "LETTA_API_KEY"
    project: str | None = None
    model: str | None = None
    agent: str | None = None
    present: Literal["preloaded", "listed"] = "preloaded"
    system: str | None = None
    tools: tuple[str, ...] = ()
    max_steps: int = Field(default=20, ge=1)

    @model_validator(mode="after")
    def _names_who_serves(self) -> Self:
        if (self.model is None) == (self.agent is None):
            raise ValueError(
                "name either model, the handle of a model for agents made for each task, or "
                f"agent, the id of an agent; got {self.model!r} and {self.agent!r}"
            )
        return self


def rest_backend(
    config: RestConfig, suite: Suite | None = None, *, grader: Grader | None = None, seed: int = 0
) -> LiveBackend:
    """The backend that ``config`` describes; see :class:`letta_gym.letta.live.LiveBackend`."""
    if config.agent is not None:
        config = config.model_copy(update={"concurrency": 1})
    agent = RestAgent(config)
    return LiveBackend(agent, config, suite, grader=grader, name="rest", seed=seed)


class RestAgent:
    """Letta by REST; an :class:`letta_gym.letta.rollout.Agent`."""

    def __init__(self, config: RestConfig) -> None:
        letta_client, httpx = import_client()
        self.config = config
        self._client = letta_client.AsyncLetta(
            base_url=config.base_url,
            project=config.project,
            max_retries=0,  # its own retries run the task again, unseen
            timeout=httpx.Timeout(None, connect=START_WITHIN),  # a deadline bounds every call
        )
        # Set, not handed in: for no key at all the client would look for another one by itself.
        self._client.api_key = os.environ.get(config.key_variable)
        self._mark = owner.new_mark()
        self._blocks = SkillBlocks(self._client, self._mark)
        self._sweeper = Sweeper(self._client, self._blocks, self._mark, config.agent)
        self._cleaning = Cleaning(config.base_url)
        self._started = False
        self._own: dict[str, str] = {}  # rollout -> the agent that was made for it
        self._free = asyncio.Lock()  # the long-lived agent serves one task at a time
        self._unclean = False  # something of ours may still be attached to it

    @property
    def disposable(self) -> bool:
        """Whether each rollout has an agent of its own."""
        return self.config.agent is None

    @property
    def swept(self) -> int:
        """What processes that were killed had left, and was removed at the start."""
        return self._sweeper.swept

    # -- start and end -----------------------------------------------------------------------

    async def start(self) -> None:
        """Check address, key, and model or agent; remove what a killed process left.

        Raises:
            BackendError: one of them is wrong; the message has the remedy.
        """
        url = self.config.base_url
        try:
            async with asyncio.timeout(START_WITHIN):
                await self._check()
        except TimeoutError as error:
            raise BackendError(
                f"no Letta server answers at {url} within {START_WITHIN:g} s; see base_url, and "
                f"whether the server runs: curl {url}/v1/health/"
            ) from error
        except InfrastructureError as error:
            raise BackendError(self._remedy(error)) from error
        self._started = True
        await self._cleaning.patiently(self._sweeper.left_behind)
        if self.swept:
            log.warning("removed %d things that a killed process had left on %s", self.swept, url)

    async def _check(self) -> None:
        client, config = self._client, self.config
        models = await call(list[Model], client.models.with_raw_response.list())
        if config.agent is not None:
            await call(AgentRecord, client.agents.with_raw_response.retrieve(config.agent))
            return
        handles = [model.handle for model in models]
        if config.model not in handles:
            near = difflib.get_close_matches(str(config.model), handles, n=3, cutoff=0.4)
            known = ", ".join(near or handles[:10]) or "none at all"
            raise BackendError(
                f"the server at {config.base_url} has no model {config.model!r}; it has: {known}"
            )

    def _remedy(self, error: InfrastructureError) -> str:
        url, text, variable = self.config.base_url, str(error), self.config.key_variable
        if "HTTP 401" in text or "HTTP 403" in text:
            given = "is wrong" if os.environ.get(variable) else "is not set"
            return f"{url} refuses the key: the environment variable {variable} {given} ({text})"
        if "HTTP 404" in text and self.config.agent is not None:
            return f"{url} has no agent {self.config.agent!r}; see agent ({text})"
        return f"no Letta server answers at {url}; see base_url, and whether it runs ({text})"

    async def close(self) -> None:
        """Wait for what is being removed, remove the rest, disconnect."""
        await self._cleaning.finished()
        if self._started:
            await self._cleaning.patiently(self._sweeper.own)
        await self._client.close()

    # -- one task ----------------------------------------------------------------------------

    async def carry_out(self, attempt: Attempt) -> Reply:
        """See :class:`letta_gym.letta.rollout.Agent`."""
        if self.config.agent is None:
            return await self._with_own_agent(attempt)
        return await self._with_long_lived(attempt, self.config.agent)

    async def _with_own_agent(self, attempt: Attempt) -> Reply:
        rollout, config = attempt.rollout, self.config
        options: dict[str, Any] = {} if config.system is None else {"system": config.system}
        if config.tools:
            options["tools"] = list(config.tools)
        try:
            made = self._client.agents.with_raw_response.create(
                name=f"{TAG}-{rollout.id}",
                tags=[TAG, f"{OWNER_TAG}{self._mark}"],
                agent_type="letta_v1_agent",
                model=config.model,
                block_ids=[block.id for block in await self._preloaded(rollout)],
                include_base_tools=False,
                **options,
            )
            agent = await call(AgentRecord, made)
            self._own[rollout.id] = agent.id
            return await self._converse(agent.id, attempt)
        except BaseException:
            self._discard(rollout.id)
            raise

    async def release(self, attempt: Attempt) -> None:
        """Throw the agent of a rollout away; a long-lived one is clean already."""
        task = self._discard(attempt.rollout.id)
        if task is not None:
            await asyncio.wait([task], timeout=attempt.deadline.left)

    def _discard(self, rollout_id: str) -> asyncio.Task[None] | None:
        agent_id = self._own.pop(rollout_id, None)
        if agent_id is None:  # never made; or made unseen, then it goes at the end
            return None
        return self._cleaning.start(lambda: self._sweeper.delete(agent_id))

    async def _with_long_lived(self, attempt: Attempt, agent_id: str) -> Reply:
        await self._free.acquire()
        try:
            await self._restore()
        except BaseException:
            self._free.release()
            raise
        attached: list[Block] = []
        try:
            for block in await self._preloaded(attempt.rollout):
                attached.append(block)
                self._unclean = True
                attach = self._client.agents.blocks.with_raw_response.attach
                await call(object, attach(block.id, agent_id=agent_id))
            if attached:
                # Without it the blocks are attached, but not in the prompt.
                await call(object, self._client.agents.with_raw_response.recompile(agent_id))
            await self._check_blocks(agent_id, attached)
            self._unclean |= self.config.present == "listed"
            return await self._converse(agent_id, attempt)
        finally:
            restored = self._cleaning.start(self._restore)
            restored.add_done_callback(lambda _: self._free.release())

    async def _restore(self) -> None:
        if self._unclean:
            await self._sweeper.long_lived(own=True)
            self._unclean = False

    async def _check_blocks(self, agent_id: str, wanted: Sequence[Block]) -> None:
        """The agent has our blocks, and none that another process of ours attached."""
        listing = self._client.agents.blocks.with_raw_response.list
        present = [block async for block in pages(Block, listing, agent_id=agent_id)]
        labels = {block.label for block in present if block.label.startswith(PREFIX)}
        if labels != {block.label for block in wanted}:
            self._unclean = True  # so that it is swept before the next try
            raise InfrastructureError(
                Kind.FOREIGN,
                f"the agent {agent_id} has the skill blocks {sorted(labels)} instead of "
                f"{sorted(block.label for block in wanted)}: does another process use it?",
                may_have_run=False,
            )

    async def _preloaded(self, rollout: Rollout) -> list[Block]:
        listed = self.config.present == "listed"
        return [] if listed else await self._blocks.of(rollout.skills)

    async def _converse(self, agent_id: str, attempt: Attempt) -> Reply:
        """Send the task, hand out the skills that the agent asks for, read the end."""
        rollout, loaded = attempt.rollout, list[str]()
        listed = self.config.present == "listed"
        skills = skill_tool.by_name(rollout.skills) if listed else {}
        options = skill_tool.listing(skills) if skills else {}
        messages: list[Message] = []
        usage = steps = 0
        said: dict[str, Any] = {"input": rollout.text}
        attempt.sent = True
        while True:
            left = max(1, self.config.max_steps - steps)
            create = self._client.agents.messages.with_raw_response.create
            raw = create(agent_id, max_steps=left, **said, **options)
            response = await call(Response, raw, sent=True)
            messages += response.messages
            steps += response.usage.step_count
            usage += response.usage.total_tokens
            reason = response.stop_reason.stop_reason
            asked = skill_tool.calls_of(response) if skills else []
            if not asked or steps >= self.config.max_steps:
                break
            said = {"messages": [skill_tool.answers(asked, skills)]}
            names = [str(arguments(one.arguments).get("skill")) for one in asked]
            loaded += [skills[name].id for name in names if name in skills]
        if reason in _FAILED:
            raise InfrastructureError(
                _FAILED[reason], f"the agent stopped with {reason!r}", may_have_run=True
            )
        run_id, step_ids = run_of(messages)
        answers = [one.text for one in messages if one.message_type == "assistant_message"]
        return Reply(
            response=answers[-1] if answers else "",
            loaded=tuple(dict.fromkeys(loaded)) if listed else _ids(rollout.skills),
            stop_reason=reason,
            steps=steps,
            tool_errors=sum(message.failures for message in messages),
            usage=usage,
            run_id=run_id,
            step_ids=step_ids,
        )

    async def feedback(self, run_id: str, step_ids: tuple[str, ...], reward: float) -> None:
        """Write the reward to each step: its sign as feedback, its value as a tag."""
        for step_id in step_ids:
            create = self._client.steps.feedback.with_raw_response.create
            verdict = "positive" if reward > 0 else "negative"
            await call(object, create(step_id, feedback=verdict, tags=[f"reward:{reward:.4g}"]))


def _ids(skills: Sequence[Skill]) -> tuple[str, ...]:
    return tuple(skill.id for skill in skills)
