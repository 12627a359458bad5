"""The warm side of the hooks: narrows the skills for each prompt, and records what was loaded."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from letta_gym.feedback.outcome import Outcome
from letta_gym.letta.folders import deliver, ours, withdraw
from letta_gym.letta.run_folder import names_of
from letta_gym.letta.turn import SKILL_TOOL
from letta_gym.selection.runtime import SkillSelector

STOP = b"stop"
"""Message that ends the server."""

RATING = "LettaGymRating"
"""Event of a person's word on a prompt, besides those of Letta Code."""

DONE = "done"
"""Reason of a verdict that says more than that the session may go on."""

_REQUEST_TIMEOUT = 2.0  # seconds for a client to say what it wants
_MOST = 1 << 22  # bytes of an event

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Verdict:
    """The answer to an event.

    Attributes:
        allowed: whether the session goes on as it wanted to.
        reason: what the agent is told otherwise.
    """

    allowed: bool = True
    reason: str = ""


@dataclass(slots=True)
class Decision:
    """One prompt of a session: what was chosen, and what came of it.

    Attributes:
        decision_id: of the selection.
        prompt: the user's text.
        skills: ids of the chosen skills, best first.
        loaded: ids of those that the agent loaded.
        refused: names that it wanted to load and that were not chosen.
        policy_digest: SHA-256 of the policy that chose.
        log_propensity: see :class:`letta_gym.selection.runtime.Selection`.
        at: seconds since 1970.
        stop_reason: why the turn ended; None where it did not.
    """

    decision_id: str
    prompt: str
    skills: list[str]
    policy_digest: str
    log_propensity: float
    at: float
    loaded: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    stop_reason: str | None = None

    def outcome(self) -> Outcome:
        """What is known of the turn when it is over: everything but its success."""
        return Outcome(
            None,
            tuple(self.loaded),
            evidence=False,
            source="session",
            stop_reason=self.stop_reason or "interrupted",
        )


def rated(success: float, loaded: Sequence[str]) -> Outcome:
    """The outcome of a prompt that a person rated in [0, 1].

    Raises:
        ConfigError: the rating is out of range.
    """
    return Outcome(success, tuple(loaded), source="human")


class Narrowing:
    """Answers the events of the sessions in one project.

    Where the selector has a log, each prompt gets an outcome there, which nobody graded: it says
    what was loaded. A person's word on a prompt grades it.

    Args:
        selector: chooses among the whole library. Its log must not make anyone wait; see
            :class:`letta_gym.letta.hook_record.Recorder`.
        folder: the project's folder of skills.
        decisions: file that gets one JSON line for each prompt.
        k: most skills for a prompt; None is the policy's most.
        token_budget: most tokens that they may cost together; None is no limit.
        explore: sample the choice, so that a policy can be trained on it.
    """

    def __init__(
        self,
        selector: SkillSelector,
        folder: Path,
        decisions: Path,
        k: int | None = None,
        token_budget: float | None = None,
        *,
        explore: bool = False,
    ) -> None:
        self.selector, self.folder, self.decisions = selector, folder, decisions
        self.k = selector.policy.max_skills if k is None else k
        self.token_budget, self.explore = token_budget, explore
        self._ids = names_of(list(selector.shelf.library))
        self._open: Decision | None = None
        ours(folder)  # what is read now need not be read while somebody waits

    def handle(self, event: Mapping[str, Any]) -> Verdict:
        """Answer one event, as Letta Code gives it to a hook."""
        match event.get("event_type"), event.get("tool_name"):
            case "UserPromptSubmit", _ if not event.get("is_command"):
                self._narrow(str(event.get("prompt") or ""))
            case "PreToolUse", str(tool) if tool == SKILL_TOOL:
                return self._may_load(_skill_of(event))
            case "PostToolUse", str(tool) if tool == SKILL_TOOL:
                if (event.get("tool_result") or {}).get("status") == "success":
                    self._note(_skill_of(event))
            case "Stop", _ if self._open is not None:
                self._open.stop_reason = str(event.get("stop_reason"))
                self.close()
            case str(kind), _ if kind == RATING:
                outcome = rated(float(event["success"]), event["loaded"])
                self.selector.record(str(event["decision_id"]), outcome)
                return Verdict(reason=DONE)
        return Verdict()

    def _narrow(self, prompt: str) -> None:
        self.close()
        selection = self.selector.select(prompt, self.k, self.token_budget, self.explore)
        chosen = names_of(selection.skills)
        withdraw(self.folder, [name for name in self._ids if name not in chosen])
        for reason in deliver(selection.skills, self.folder).refused.values():
            log.info("left as it is: %s", reason)
        self._open = Decision(
            decision_id=selection.decision_id,
            prompt=prompt,
            skills=[skill.id for skill in selection.skills],
            policy_digest=selection.policy_digest,
            log_propensity=selection.log_propensity,
            at=time.time(),
        )

    def _may_load(self, name: str) -> Verdict:
        """Only our own skills that were not chosen are refused; others are the user's business."""
        id = self._ids.get(name)
        if self._open is None or id is None or id in self._open.skills:
            return Verdict()
        if (self.folder / name).exists():  # the project has one of that name
            return Verdict()
        self._open.refused.append(name)
        chosen = ", ".join(self._open.skills) or "none"
        return Verdict(False, f"Refused. Skills chosen for this prompt: {chosen}.")

    def _note(self, name: str) -> None:
        id = self._ids.get(name)
        if self._open is not None and id in self._open.skills and id not in self._open.loaded:
            self._open.loaded.append(id)

    def close(self) -> None:
        """Record the prompt whose turn is still open."""
        if self._open is not None:
            self.decisions.parent.mkdir(parents=True, exist_ok=True)
            with self.decisions.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(self._open), ensure_ascii=False) + "\n")
            if self.selector.log is not None:
                self.selector.log.recorded(self._open.decision_id, self._open.outcome())
            self._open = None


def lock_of(address: Path) -> Path:
    """The file that the server at ``address`` holds locked."""
    return address.with_suffix(".lock")


def serve(narrowing: Narrowing, address: Path, idle: float) -> bool:
    """Answer clients at the Unix socket ``address`` until told to stop, or idle for that long.

    Args:
        narrowing: answers their events.
        address: path of the socket.
        idle: seconds without an event after which it ends.

    Returns:
        False if another server has the address.
    """
    with lock_of(address).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        address.unlink(missing_ok=True)  # of a server that was killed
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(address))
            os.chmod(address, 0o600)
            listener.listen(16)
            listener.settimeout(idle)
            try:
                while _serve_one(listener, narrowing):
                    pass
            except TimeoutError:
                log.info("nobody came for %g s", idle)
            finally:
                address.unlink(missing_ok=True)
                narrowing.close()
    return True


def _serve_one(listener: socket.socket, narrowing: Narrowing) -> bool:
    """Answer the next client; False when it says stop."""
    connection, _ = listener.accept()
    with connection:
        connection.settimeout(_REQUEST_TIMEOUT)
        try:
            message = _read(connection)
            if message == STOP:
                return False
            verdict = narrowing.handle(json.loads(message))
        except Exception:  # one bad event must not end the session's server
            log.exception("an event could not be answered")
            verdict = Verdict()
        with contextlib.suppress(OSError):  # it gave up waiting
            connection.sendall((b"0" if verdict.allowed else b"2") + verdict.reason.encode())
    return True


def _read(connection: socket.socket) -> bytes:
    message = b""
    while part := connection.recv(1 << 16):
        message += part
        if len(message) > _MOST:
            raise ValueError(f"an event of more than {_MOST} bytes")
    return message


def _skill_of(event: Mapping[str, Any]) -> str:
    return str((event.get("tool_input") or {}).get("skill"))
