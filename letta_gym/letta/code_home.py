"""Throw-away homes of Letta Code, and the sweep that removes those of killed processes."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

PROVIDER = "openai-compatible"
"""Name under which Letta Code knows an OpenAI-compatible address."""

_ROOT = re.compile(r"letta-gym-code-(\d+)-\w+")
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


def new_root() -> Path:
    """A folder for the homes of this process, which only its user can read."""
    return Path(tempfile.mkdtemp(prefix=f"letta-gym-code-{os.getpid()}-"))


def sweep() -> list[Path]:
    """Remove the roots of processes that were killed; returns what is gone."""
    gone = []
    for path in Path(tempfile.gettempdir()).glob("letta-gym-code-*"):
        found = _ROOT.fullmatch(path.name)
        if found and path.is_dir() and not path.is_symlink() and not _lives(int(found[1])):
            shutil.rmtree(path, ignore_errors=True)
            if not path.exists():
                gone.append(path)
    return gone


def _lives(pid: int) -> bool:
    with contextlib.suppress(PermissionError):  # it lives, and belongs to another user
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return False
    return True
