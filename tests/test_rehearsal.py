"""Rehearsal: solved decisions, without their own outcomes, over a memory with scarce skills."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from letta_gym.envs.checks import run_checks
from letta_gym.envs.deployment import Deployment
from letta_gym.envs.rehearsal import Rehearsal, RehearsalVectorEnv
from letta_gym.envs.replay import ReplayVectorEnv
from letta_gym.errors import ConfigError
from tests.small_suite import make_suite, write_suite

ID = "letta_gym/RehearsalSkillSelection-v0"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_suite(tmp_path_factory.mktemp("rehearsal") / "small", make_suite(600)))


@pytest.fixture(scope="module")
def source(folder: str) -> Deployment:
    """A deployment that chose at random for two passes."""
    env = ReplayVectorEnv(20, suite=folder, new_skills=0.0, max_skills=2, candidates=6)
    env.reset(seed=0)
    rng = np.random.default_rng(0)
    for _ in range(36):
        env.step((rng.random((20, 6)) < 0.3).astype(np.int8))
    return env.driver.sessions


def rehearsal(folder: str, source: Deployment, count: int = 30, **options: Any) -> Rehearsal:
    """A rehearsal that has just begun."""
    env = RehearsalVectorEnv(
        count, suite=folder, new_skills=0.0, max_skills=2, horizon=3, rehearsal=options
    )
    env.driver.sessions.source = source
    env.reset(seed=1)
    return env.driver.sessions


def counts(s: Deployment) -> dict[str, int]:
    """Outcomes in the memory of each skill, by key."""
    entries = s.memory.entries()
    found = np.bincount(entries.key, minlength=len(entries.keys))
    return dict(zip(entries.keys, found.tolist(), strict=True))


@pytest.mark.parametrize("keywords", [{}, {"horizon": 1}, {"token_budget": 90.0, "candidates": 4}])
def test_the_environment_passes_every_check(folder: str, keywords: dict[str, Any]) -> None:
    run_checks(ID, num_envs=1, suite=folder, obs="compact", **keywords)


def test_only_solved_decisions_are_replayed_with_what_solved_them(
    folder: str, source: Deployment
) -> None:
    s = rehearsal(folder, source)
    tasks, loaded, success = source.journal()
    solved = {
        (int(t), tuple(row)) for t, row, r in zip(tasks, loaded.tolist(), success, strict=True) if r
    }
    seen = set()
    for _ in range(3):
        for task, solution in zip(s.task, s.solution.tolist(), strict=True):
            assert (int(task), tuple(solution)) in solved
            seen.add(min(solution) < 0 and max(solution) < 0)
        s.situation()
        s.step(np.full((30, 2), -1))
    assert seen == {True, False}


def test_the_outcomes_of_the_decisions_at_hand_are_not_in_the_memory(
    folder: str, source: Deployment
) -> None:
    s = rehearsal(folder, source, hidden=0.0, cut=0.0)
    tasks = source.journal()[0]
    replayed = set(s._order.tolist())
    kept = tasks[s.memory.entries().note]
    assert not replayed & set(kept.tolist())
    others = tasks[source.memory.entries().note]
    assert len(kept) == sum(task not in replayed for task in others.tolist())


def test_skills_are_hidden_cut_or_left_alone_in_the_shares_asked_for(
    folder: str, source: Deployment
) -> None:
    full = counts(rehearsal(folder, source, hidden=0.0, cut=0.0))
    skills = source.catalogue.keys[1:]
    gone, few, whole = 0, 0, 0
    env = RehearsalVectorEnv(
        2,
        suite=folder,
        new_skills=0.0,
        max_skills=2,
        horizon=1,
        rehearsal={"hidden": 0.25, "cut": 0.4, "cut_to": 5},
    )
    s = env.driver.sessions
    s.source = source
    for seed in range(120):
        env.reset(seed=seed)
        now = counts(s)
        for key in skills:
            left = now.get(key, 0)
            gone += left == 0
            few += 0 < left <= 5
            whole += left > max(5, full[key] - 10)
    total = 120 * len(skills)
    assert gone / total == pytest.approx(0.25, abs=0.04)
    assert few / total == pytest.approx(0.75 * 0.4, abs=0.04)
    assert gone + few + whole == total


def test_the_focus_is_on_decisions_that_scarce_skills_solved(
    folder: str, source: Deployment
) -> None:
    shares = []
    for focus in (0.0, 0.9):
        s = rehearsal(folder, source, hidden=0.5, cut=1.0, cut_to=2, focus=focus)
        left = counts(s)
        scarce = [left.get(key, 0) <= 2 for key in source.catalogue.keys[1:]]
        by = [any(scarce[j] for j in row if j >= 0) for row in s._solutions.tolist()]
        shares.append(float(np.mean(by)))
    assert shares[1] > max(0.75, shares[0])


def test_a_hidden_skill_is_found_again_within_a_rehearsal(folder: str, source: Deployment) -> None:
    s = rehearsal(folder, source, hidden=0.5, cut=1.0, cut_to=1)
    before = len(s.memory)
    s.situation()
    where = (s.slots[:, :, None] == s.solution[:, None, :]).any(2)
    picks = np.where(where.any(1), where.argmax(1), -1)[:, None]
    out = s.step(np.pad(picks, ((0, 0), (0, 1)), constant_values=-1))
    assert (out.success == 1).all()
    assert len(s.memory) == before + 30
    assert len(source.memory) > len(s.memory)


def test_the_source_is_left_as_it_is(folder: str, source: Deployment) -> None:
    before, journal = source.get_state(), source.journal()
    s = rehearsal(folder, source)
    for _ in range(3):
        s.situation()
        s.step(np.full((30, 2), -1))
    after = source.get_state()
    assert before["rng"] == after["rng"]
    assert before["memory"] == after["memory"]
    np.testing.assert_array_equal(before["entries"]["note"], after["entries"]["note"])
    np.testing.assert_array_equal(journal[0], source.journal()[0])


def test_a_choice_beside_the_solution_counts_as_wrong(folder: str, source: Deployment) -> None:
    s = rehearsal(folder, source)
    s.situation()
    where = (s.slots[:, :, None] == s.solution[:, None, :]).any(2)
    beside = (~where).argmax(1)[:, None]
    out = s.step(np.pad(beside, ((0, 0), (0, 1)), constant_values=-1))
    assert not out.success.any()
    assert (out.tokens > 0).all()


def test_nothing_can_be_rehearsed_where_nothing_was_solved(tmp_path: Path) -> None:
    suite = make_suite(60, none_share=1.0)
    env = RehearsalVectorEnv(2, suite=str(write_suite(tmp_path, suite)), new_skills=0.0)
    with pytest.raises(ConfigError, match="nothing to rehearse"):
        env.reset(seed=0)
