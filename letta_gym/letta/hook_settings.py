"""Hooks in a project's ``.letta/settings.local.json``: put there, taken away without a trace."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import os
import re
import shlex
import socket
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from letta_gym.errors import ConfigError
from letta_gym.files import write_atomically
from letta_gym.letta import hook_client
from letta_gym.letta.folders import Delivery, deliver, withdraw
from letta_gym.letta.hook_server import DONE, RATING, STOP, lock_of
from letta_gym.letta.run_folder import names_of
from letta_gym.letta.turn import SKILL_TOOL
from letta_gym.library.skills import Skill

_TIMEOUT = 300  # ms, after which Letta Code goes on without the hook
_LONGEST_ADDRESS = 100  # bytes of a Unix socket's path; the system's limit is a little higher
_EVENTS = {
    "UserPromptSubmit": None,
    "PreToolUse": SKILL_TOOL,
    "PostToolUse": SKILL_TOOL,
    "Stop": None,
}
"""Event -> the tool it is about."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where the hooks of one project keep what they need.

    Attributes:
        project: the project's folder.
        state: folder of this user for the decisions, the log and the command of the server.
        socket: address of the server.
    """

    project: Path
    state: Path
    socket: Path

    @classmethod
    def of(cls, project: Path | str) -> Place:
        """The place of a project; folders that only this user can read are made.

        Raises:
            ConfigError: there is no such project, or a folder belongs to somebody else.
        """
        project = Path(project).resolve()
        if not project.is_dir():
            raise ConfigError(f"there is no project folder {project}")
        name = hashlib.sha256(os.fsencode(project)).hexdigest()[:16]
        base = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
        state = base / "letta-gym" / name
        state.mkdir(parents=True, exist_ok=True, mode=0o700)
        sockets = Path(tempfile.gettempdir()) / f"letta-gym-hooks-{os.getuid()}"
        sockets.mkdir(exist_ok=True, mode=0o700)
        status = sockets.lstat()
        if status.st_uid != os.getuid() or status.st_mode & 0o077 or sockets.is_symlink():
            raise ConfigError(f"{sockets} must be a folder that only you can use; remove it")
        address = sockets / f"{name}.sock"
        if len(os.fsencode(address)) > _LONGEST_ADDRESS:
            raise ConfigError(f"{address} is too long for a socket; set TMPDIR to a shorter folder")
        return cls(project, state, address)

    @property
    def settings(self) -> Path:
        """The file with the hooks."""
        return self.project / ".letta" / "settings.local.json"

    @property
    def skills(self) -> Path:
        """The project's folder of skills."""
        return self.project / ".agents" / "skills"

    @property
    def decisions(self) -> Path:
        """One JSON line for each prompt."""
        return self.state / "decisions.jsonl"

    @property
    def command(self) -> Path:
        """File with the command that starts the server."""
        return self.state / "serve"

    @property
    def lock(self) -> Path:
        """File that the one running server holds."""
        return lock_of(self.socket)

    @property
    def log(self) -> Path:
        """What the server says."""
        return self.state / "log"

    @property
    def notes(self) -> Path:
        """What :func:`install` did, so that :func:`uninstall` can undo it."""
        return self.state / "installed.json"


def install(place: Place, serve: Sequence[str], skills: Sequence[Skill]) -> Delivery:
    """Add the hooks to the project's settings, and show all skills until the first prompt.

    Hooks of ours that stand there already are replaced.

    Args:
        place: the project.
        serve: command that starts the server, an absolute path first.
        skills: the whole library.

    Raises:
        ConfigError: the settings are not what Letta Code writes; they stay as they are.
    """
    old, notes = _text(place), _notes(place)
    settings = _without(_parse(place, old))
    client = [sys.executable, "-I", "-S", hook_client.__file__, str(place.socket)]
    hook = {
        "type": "command",
        "command": f"exec {shlex.join([*client, str(place.command)])}",
        "timeout": _TIMEOUT,
        "quiet": True,
    }
    hooks = settings.setdefault("hooks", {})
    for event, tool in _EVENTS.items():
        entry: dict[str, Any] = {} if tool is None else {"matcher": tool}
        hooks.setdefault(event, []).append(entry | {"hooks": [dict(hook)]})
    new = json.dumps(settings, indent=_indent(old), ensure_ascii=False) + "\n"
    folders = (place.settings.parent, place.skills.parent, place.skills)
    noted = {
        "before": notes["before"] if notes and old == notes["after"] else old,
        "after": new,
        "made": notes.get("made") or [str(path) for path in folders if not path.exists()],
        "names": sorted({*notes.get("names", ()), *names_of(skills)}),
    }
    stop_server(place)  # it may serve another policy or library
    write_atomically(place.command, "\0".join(serve).encode())
    write_atomically(place.notes, json.dumps(noted).encode())
    write_atomically(place.settings, new.encode())
    return deliver(skills, place.skills)


def uninstall(place: Place) -> bool:
    """Remove the hooks and the skills that they put there; returns whether there were any hooks.

    Settings that nobody changed since become what they were, byte for byte; otherwise only our
    hooks are taken out of them.
    """
    notes, found = _notes(place), is_installed(place)
    if found:
        _restore(place, notes)
    stop_server(place)
    withdraw(place.skills, notes.get("names", ()))
    for folder in map(Path, reversed(notes.get("made", ()))):
        with contextlib.suppress(OSError):  # something else lies in it by now
            folder.rmdir()
    for file in (place.notes, place.command, place.lock):
        file.unlink(missing_ok=True)
    return found


def _restore(place: Place, notes: Mapping[str, Any]) -> None:
    text = _text(place)
    if notes and text == notes["after"]:
        text = notes["before"]
    if text is not None and (settings := _parse(place, text)) != (rest := _without(settings)):
        text = json.dumps(rest, indent=_indent(text), ensure_ascii=False) + "\n" if rest else None
    if text is None:
        place.settings.unlink()
    else:
        write_atomically(place.settings, text.encode())


def is_installed(place: Place) -> bool:
    """Whether our hooks stand in the project's settings."""
    settings = _parse(place, _text(place))
    return _without(settings) != settings


def stop_server(place: Place) -> bool:
    """End the project's server; returns whether one ran."""
    return _told(place, STOP) is not None


def rate(place: Place, decision_id: str, success: float, loaded: Sequence[str]) -> bool:
    """Tell the project's server what a person says of a prompt; returns whether it learned it."""
    event = {
        "event_type": RATING,
        "decision_id": decision_id,
        "success": success,
        "loaded": list(loaded),
    }
    return _told(place, json.dumps(event).encode()) == b"0" + DONE.encode()


def decided(place: Place, decision_id: str | None = None) -> dict[str, Any]:
    """A prompt as it stands in the project's decisions; by default the latest.

    Raises:
        ConfigError: there is none.
    """
    with contextlib.suppress(FileNotFoundError):
        for line in reversed(place.decisions.read_text(encoding="utf-8").splitlines()):
            found: dict[str, Any] = json.loads(line)
            if decision_id in (None, found["decision_id"]):
                return found
    wanted = "no prompt" if decision_id is None else f"no prompt with the decision {decision_id!r}"
    raise ConfigError(f"{wanted} stands in {place.decisions}; it is written when its turn is over")


def _told(place: Place, message: bytes) -> bytes | None:
    """What the project's server answers; None where none runs."""
    reply = b""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(2.0)
        try:
            connection.connect(str(place.socket))
            connection.sendall(message)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(4096):
                reply += part
        except OSError:
            return None
    return reply


def _notes(place: Place) -> dict[str, Any]:
    """What the latest :func:`install` noted; empty without."""
    return dict(json.loads(place.notes.read_bytes())) if place.notes.is_file() else {}


def _text(place: Place) -> str | None:
    try:
        return place.settings.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None


def _parse(place: Place, text: str | None) -> dict[str, Any]:
    if text is None or not text.strip():
        return {}
    try:
        settings = json.loads(text)
        fits = isinstance(settings, dict) and all(
            isinstance(entries, list)
            for event, entries in settings.get("hooks", {}).items()
            if event in _EVENTS
        )
    except (ValueError, AttributeError) as error:
        raise ConfigError(
            f"{place.settings} cannot be read: {error}; put it right first"
        ) from error
    if not fits:
        raise ConfigError(f"{place.settings} does not hold the settings of Letta Code")
    return dict(settings)


def _without(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings without our hooks, and without what is empty only since they are gone."""
    if "hooks" not in settings:
        return copy.deepcopy(settings)
    rest = copy.deepcopy(settings)
    for event in [event for event in rest["hooks"] if event in _EVENTS]:
        kept = [entry for entry in rest["hooks"][event] if not _is_ours(entry)]
        if len(kept) < len(rest["hooks"][event]):
            rest["hooks"][event] = kept
            if not kept:
                del rest["hooks"][event]
                if not rest["hooks"]:
                    del rest["hooks"]
                    break
    return rest


def _is_ours(entry: Any) -> bool:
    hooks = entry.get("hooks", []) if isinstance(entry, dict) else []
    return any("hook_client.py" in str(hook.get("command")) for hook in hooks if hook)


def _indent(text: str | None) -> int | str:
    """The indentation that the file has."""
    found = re.search(r"\n([ \t]+)\S", text or "")
    return found[1] if found else 2
