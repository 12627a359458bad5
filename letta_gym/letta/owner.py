"""Marks on what we put on a server, by which a later process tells what was left behind.

A mark names the machine, the process with its start, and the user of the mark in it. What a process
left that does not run any more may be removed; what a running one uses may not.
"""

from __future__ import annotations

import os
import secrets
import socket
from pathlib import Path


def new_mark() -> str:
    """A mark of this process, unlike any other."""
    pid = os.getpid()
    return f"{socket.gethostname()}/{pid}/{_started(pid) or 0}/{secrets.token_hex(4)}"


def alive(mark: str) -> bool | None:
    """Whether the process of ``mark`` runs; None where it is of another machine, or no mark."""
    parts = mark.split("/")
    if len(parts) != 4 or parts[0] != socket.gethostname() or not parts[1].isdecimal():
        return None
    pid, started = int(parts[1]), _started(int(parts[1]))
    if started is not None:
        return str(started) == parts[2]
    return not Path("/proc/self/stat").exists() and _exists(pid)


def _started(pid: int) -> int | None:
    """When the process started, in ticks since boot; None where the system does not tell."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    return int(stat.rsplit(")", 1)[1].split()[19])


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True
