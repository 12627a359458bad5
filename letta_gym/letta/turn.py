"""One turn of a Letta Code agent, read from its messages as they come.

The App Server's deltas and the lines of ``--output-format stream-json`` are the same messages, so
one reader serves both.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from letta_gym.letta.failures import InfrastructureError, Kind
from letta_gym.letta.rollout import Reply

SKILL_TOOL = "Skill"
"""Name of the tool with which Letta Code loads a skill."""

MAX_STEPS = "max_steps"
"""Stop reason of a turn that was ended because it took too many steps."""

_FAILED = {
    "error": Kind.MODEL,
    "llm_api_error": Kind.MODEL,
    "invalid_llm_response": Kind.MODEL,
    "insufficient_credits": Kind.CREDIT,
    "cancelled": Kind.CANCELLED,
}


class Turn:
    """What happened so far in a turn; :meth:`feed` takes its messages in order.

    Attributes:
        steps: model calls that were answered.
        usage: tokens that the model read and wrote.
        tool_errors: tool calls that failed or were refused.
        loaded: names of the skills whose body the agent got, in order.
        listed: names of the skills that the agent was shown; None where nobody said.
        stop_reason: of the latest step, or of the turn when it is over.
        errors: what failed, in the words of Letta.
        runs: ids of the model calls.
    """

    def __init__(self) -> None:
        self.steps = self.usage = self.tool_errors = 0
        self.loaded: list[str] = []
        self.listed: tuple[str, ...] | None = None
        self.stop_reason: str | None = None
        self.errors: list[str] = []
        self.runs: list[str] = []
        self._skill_calls: dict[str, str] = {}
        self._answer: tuple[str | None, str] = None, ""
        self._returned: set[str] = set()

    @property
    def response(self) -> str:
        """The latest text of the agent; empty while there is none."""
        return self._answer[1]

    @property
    def wants_more(self) -> bool:
        """Whether the latest step called a tool, so that another will follow."""
        return self.stop_reason == "requires_approval"

    def feed(self, message: Mapping[str, Any]) -> None:
        """Take one message; kinds that say nothing about the outcome are passed over.

        Raises:
            InfrastructureError: the message is not of the protocol.
        """
        try:
            self._feed(message)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise InfrastructureError(
                Kind.MALFORMED,
                f"Letta Code sent a {message.get('message_type')!r} that cannot be read: {error!r}",
                may_have_run=True,
            ) from error

    def show(self, skills: object) -> None:
        """Take the list of skills that the agent was shown, as the App Server reports it."""
        if isinstance(skills, list) and skills:  # it is empty while nothing was looked up yet
            names = [skill.get("name") for skill in skills if isinstance(skill, Mapping)]
            self.listed = tuple(sorted(map(str, names)))

    def finish(self, stop_reason: str, error: str | None = None) -> None:
        """The turn is over; what was not reported before is taken from its last message."""
        self.stop_reason = stop_reason
        if error and not self.errors:
            self.errors.append(error)

    def failure(self) -> InfrastructureError | None:
        """Why the turn is no outcome of its skills, if it is none."""
        kind = _FAILED.get(self.stop_reason or "error")
        if kind is None:
            return None
        said = self.errors[-1] if self.errors else f"the turn ended with {self.stop_reason}"
        return InfrastructureError(kind, said, may_have_run=True)

    def reply(
        self, ids: Mapping[str, str], run_id: str | None = None, preloaded: tuple[str, ...] = ()
    ) -> Reply:
        """The finished turn as a reply.

        Args:
            ids: id of each skill that was to be shown, by the name it was shown under.
            run_id: where Letta kept the turn.
            preloaded: ids of skills whose body stood in the prompt anyway.

        Raises:
            InfrastructureError: the turn is over without an outcome, or other skills were shown.
        """
        failure = self.failure()
        if failure is not None:
            raise failure
        strange = [name for name in self.listed or () if name not in ids]
        if strange:
            raise InfrastructureError(
                Kind.FOREIGN,
                f"the agent was shown {strange}, which were not chosen",
                may_have_run=True,
            )
        names = dict.fromkeys(self.loaded)
        return Reply(
            response=self.response,
            loaded=(*preloaded, *(ids[name] for name in names if name in ids)),
            stop_reason=str(self.stop_reason),
            steps=self.steps,
            tool_errors=self.tool_errors,
            usage=self.usage,
            run_id=run_id,
            step_ids=tuple(self.runs),
            foreign=tuple(name for name in names if name not in ids),
        )

    def _feed(self, message: Mapping[str, Any]) -> None:
        run = message.get("run_id")
        if run is not None and run not in self.runs:
            self.runs.append(str(run))
        match message.get("message_type"):
            case "assistant_message":
                self._say(message.get("id"), message["content"])
            case "client_tool_start":
                self._call(message["tool_call_id"], message["tool_name"], message["tool_args"])
            case "tool_call_message":
                call = message["tool_call"]
                self._call(call["tool_call_id"], call["name"], call["arguments"])
            case "tool_return_message":
                for returned in message.get("tool_returns") or [message]:
                    self._return(returned["tool_call_id"], returned["status"])
            case "usage_statistics":
                self.steps += 1
                self.usage += int(message.get("total_tokens") or 0)
            case "stop_reason":
                self.stop_reason = str(message["stop_reason"])
            case "loop_error" | "error_message" | "error":
                self.errors.append(_words(message))

    def _say(self, id: str | None, content: Any) -> None:
        text = content if isinstance(content, str) else "".join(map(_text, content))
        before = self._answer[1] if id is not None and id == self._answer[0] else ""
        self._answer = id, before + text

    def _call(self, id: str, tool: str, arguments: str) -> None:
        if tool == SKILL_TOOL:
            self._skill_calls[id] = _skill_of(arguments)

    def _return(self, id: str, status: str) -> None:
        if id in self._returned:
            return
        self._returned.add(id)
        if status != "success":
            self.tool_errors += 1
        elif id in self._skill_calls:
            self.loaded.append(self._skill_calls[id])


def _skill_of(arguments: str) -> str:
    try:
        return str(json.loads(arguments)["skill"])
    except (ValueError, KeyError, TypeError):  # the model's own mistake, and the call will fail
        return ""


def _text(part: Mapping[str, Any]) -> str:
    return str(part.get("text") or "")


def _words(message: Mapping[str, Any]) -> str:
    """What an error says, without the frames of JSON around it."""
    api = message.get("api_error")
    if isinstance(api, Mapping) and api.get("message"):
        return str(api["message"])
    return str(message.get("message") or message.get("detail") or "an error without words")
