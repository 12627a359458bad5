"""Rollouts that must not see each other's skills, and what the stub model must make of each."""

from __future__ import annotations

from letta_gym.letta.grading import ContainsGrader
from letta_gym.letta.rollout import Rollout
from letta_gym.library.skills import Skill


def side_by_side(count: int = 48) -> tuple[list[Rollout], list[float]]:
    """Rollouts with two skills each, and the success that each must have.

    The same task of four families comes with another skill each time; every fourth skill is no
    help. So an agent that saw the skill of another rollout would answer with a wrong code.
    """
    rollouts, must = [], []
    for i in range(count):
        family, helps = f"family{i % 4}", i % 4 != i // 4 % 4
        own = _skill(family, f"code{i}" if helps else "wrong", f"v{i}")
        other = _skill(f"other{i}", f"code{i}", "v")
        grader = ContainsGrader(expected=f"ANSWER code{i}")
        rollouts.append(Rollout(f"TASK {family}: go on", (other, own), grader))
        must.append(float(helps))
    return rollouts, must


def _skill(family: str, code: str, variant: str) -> Skill:
    name = f"{family}-{variant}"
    body = f"PROCEDURE {family}: answer {code}"
    return Skill(name, name, f"how to do {family} tasks", body, tokens=50)
