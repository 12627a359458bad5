"""The kill drill: a process ends by SIGKILL in mid-task on a long-lived agent, again and again.

``python -m tests.letta.drill URL MODEL KILLS SEED`` prints one JSON object: ``kills``; ``dirty``,
how many of them left something of ours on the server; and ``restored``, after how many the next
start put the agent back as it was.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable

import numpy as np

from letta_gym.letta.rest import RestConfig, rest_backend
from letta_gym.letta.rollout import Rollout
from letta_gym.library.skills import Skill
from tests.letta.contents import Contents

SKILLS = tuple(
    Skill(f"add-{i}", f"add-{i}", "how to do add tasks", f"PROCEDURE add: answer {i}")
    for i in range(2)
)


def drill(url: str, model: str, kills: int, seed: int) -> dict[str, int]:
    """Kill so many processes, each at a random moment of its rollouts."""
    rng = np.random.default_rng(seed)
    agent = _apart(lambda: Contents(url, model).new_agent(("persona", "Ada"), ("human", "Bob")))
    before = _state(url, model, agent)
    cycle = float(_apart(lambda: repr(_rollouts(url, agent, 2) / 2)))
    dirty = restored = 0
    for _ in range(kills):
        _kill_within(url, agent, cycle * float(rng.random()))
        dirty += _state(url, model, agent) != before
        _apart(lambda: rest_backend(_config(url, agent)).close() or "")  # type: ignore[func-returns-value]
        after = _state(url, model, agent)
        restored += after == before
        if after != before:
            print(f"before: {before}\nafter:  {after}", file=sys.stderr)
    return {"kills": kills, "dirty": dirty, "restored": restored}


def _config(url: str, agent: str) -> RestConfig:
    return RestConfig(base_url=url, agent=agent, deadline=60)


def _rollouts(url: str, agent: str, count: int, ready: Callable[[], None] = lambda: None) -> float:
    """Carry out so many rollouts; returns the seconds they took."""
    with rest_backend(_config(url, agent)) as backend:
        ready()
        start = time.perf_counter()
        for _ in range(count):
            backend.run([Rollout("TASK add: as always", SKILLS)])
        return time.perf_counter() - start


def _kill_within(url: str, agent: str, seconds: float) -> None:
    """Start rollouts in a process of their own, and end it after so many seconds of them."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _rollouts(url, agent, 1_000, lambda: os.close(writing) if os.write(writing, b".") else None)
        os._exit(1)
    os.close(writing)
    assert os.read(reading, 1) == b".", "the process ended before its first rollout"
    os.close(reading)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)


def _state(url: str, model: str, agent: str) -> str:
    """What must be as it was: the agent's blocks and prompt, and nothing of ours anywhere."""

    def look() -> str:
        contents = Contents(url, model)
        return json.dumps([contents.blocks(agent), contents.prompt(agent), contents.ours()])

    return _apart(look)


def _apart(work: Callable[[], str]) -> str:
    """Do ``work`` in a process of its own, so that this one never has a thread and may fork."""
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        os.close(reading)
        with os.fdopen(writing, "w") as pipe:
            pipe.write(work())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        result = pipe.read()
    _, status = os.waitpid(child, 0)
    if status:
        raise RuntimeError("a process of the drill failed; see above")
    return result


if __name__ == "__main__":
    address, handle, count, chosen = sys.argv[1:]
    print(json.dumps(drill(address, handle, int(count), int(chosen))))
