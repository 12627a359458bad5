"""Throw-away homes of Letta Code, and the sweep that removes those of killed processes."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROVIDER = "openai-compatible"
"""Name under which Letta Code knows an OpenAI-compatible address."""

MEMORY = Path("/dev/shm")
"""A file system in memory, where the system has one."""

_ROOM = 512 << 20  # bytes; a container may have as little as 64 MB there
_PREFIX, _LOCK = "letta-gym-code-", "lock"
_HANDED_ON = (
    *("PATH", "LANG", "LC_ALL", "TZ", "TMPDIR", "SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS"),
    *("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "http_proxy", "https_proxy", "no_proxy"),
)


@dataclass(frozen=True, slots=True)
class Home:
    """A home of Letta Code: settings, model address, conversations, folders of rollouts.

    Attributes:
        folder: holds all of it.
        environment: variables of a Letta Code that lives there; secrets of this process are not
            among them, for the agent can run commands.
    """

    folder: Path
    environment: Mapping[str, str]

    @property
    def runs(self) -> Path:
        """Where the folders of rollouts go."""
        return self.folder / "runs"

    @classmethod
    def make(cls, folder: Path, providers: bytes, handed_on: Sequence[str] = ()) -> Home:
        """Make a home.

        Args:
            folder: a new folder.
            providers: content of Letta Code's ``providers/auth.json``.
            handed_on: names of further environment variables that the agent may see.
        """
        settings, store = folder / "home" / ".letta" / "settings.json", folder / "store"
        for path, content in (
            (settings, b'{"preferredBackendMode": "local"}'),
            (store / "providers" / "auth.json", providers),
        ):
            path.parent.mkdir(parents=True)
            path.touch(0o600)
            path.write_bytes(content)
        (folder / "runs").mkdir()
        environment = {
            name: os.environ[name] for name in (*_HANDED_ON, *handed_on) if name in os.environ
        }
        environment |= {
            "HOME": str(folder / "home"),
            "LETTA_LOCAL_BACKEND_DIR": str(store),
            "LETTA_CODE_TELEM": "0",
            "DISABLE_AUTOUPDATER": "1",
            "LETTA_DISABLE_CRON_SCHEDULER": "1",
        }
        return cls(folder, environment)

    def remove(self) -> None:
        """Remove the folder with all that was written there."""
        shutil.rmtree(self.folder, ignore_errors=True)


def openai_compatible(base_url: str, key: str) -> bytes:
    """Content of ``providers/auth.json`` for one OpenAI-compatible address."""
    provider = {
        "id": f"local-provider-{PROVIDER}",
        "name": PROVIDER,
        "provider_type": PROVIDER,
        "provider_category": "byok",
        "auth": {"type": "api", "key": key},
        "base_url": base_url,
    }
    return json.dumps({"version": 1, "providers": {PROVIDER: provider}}).encode()


class Root:
    """A folder for the homes of this process, which only its user can read.

    It lies in memory where there is room: Letta Code forces every step of a conversation to the
    disk, which takes longer than all it computes, and these conversations are thrown away. A lock
    tells for how long it is in use.

    Attributes:
        folder: where it is.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=_scratch()))
        self._lock = (self.folder / _LOCK).open("w")
        fcntl.flock(self._lock, fcntl.LOCK_EX)

    def remove(self) -> None:
        """Remove the folder with all that lies in it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        self._lock.close()


def sweep() -> list[Path]:
    """Remove the roots of processes that were killed; returns what is gone."""
    gone = []
    for folder in {MEMORY, Path(tempfile.gettempdir())}:
        for path in folder.glob(f"{_PREFIX}*"):
            if not path.is_symlink() and _is_abandoned(path):
                shutil.rmtree(path, ignore_errors=True)
                gone.append(path)
    return gone


def _is_abandoned(root: Path) -> bool:
    try:
        with (root / _LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # in use, being made or removed, or somebody else's
        return False
    return True


def _scratch() -> Path:
    with contextlib.suppress(OSError):
        if os.access(MEMORY, os.W_OK) and shutil.disk_usage(MEMORY).free >= _ROOM:
            return MEMORY
    return Path(tempfile.gettempdir())
