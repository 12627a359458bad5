"""The environment of a real Letta, against the small server in memory."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from letta_gym.envs.live import LiveDriver, LiveEnv
from letta_gym.errors import BackendError, ConfigError
from letta_gym.letta.blocks import PREFIX
from tests.fake_letta import HANDLE, FakeLetta
from tests.faults import Fault, FaultyProxy
from tests.look_alikes import make_look_alikes
from tests.small_suite import write_suite

ID = "letta_gym/SkillSelection-v0"
QUICK = {"retries": {"attempts": 1}, "deadline": 10.0}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    suite = make_look_alikes(families=3, alike=2, tasks=60)
    return str(write_suite(tmp_path_factory.mktemp("live") / "look-alikes", suite))


@pytest.fixture
def fake() -> Iterator[FakeLetta]:
    with FakeLetta() as server:
        yield server


def keywords(folder: str, url: str, **fields: Any) -> dict[str, Any]:
    rest = {"base_url": url, "model": HANDLE, **QUICK, **fields.pop("rest", {})}
    return {"suite": folder, "horizon": 4, "max_skills": 1, "rest": rest, **fields}


def only(slot: int, slots: int = 6) -> np.ndarray[Any, np.dtype[np.int8]]:
    action = np.zeros(slots, np.int8)
    action[slot] = 1
    return action


class SameEachTime(LiveEnv):
    """Leaves out what differs from run to run whatever the seed: latency, run and step ids."""

    def _info(self, step: Any) -> dict[str, Any]:
        return {name: value for name, value in super()._info(step).items() if name != "outcome"}


def test_it_is_a_gymnasium_environment(folder: str, fake: FakeLetta) -> None:
    env = SameEachTime(**keywords(folder, fake.url))

    check_env(env, skip_render_check=True)
    env.close()

    assert fake.agents == {}
    assert fake.blocks == {}


def test_the_reward_is_what_letta_achieved_with_the_chosen_skills(
    folder: str, fake: FakeLetta
) -> None:
    env = gymnasium.make(ID, disable_env_checker=True, **keywords(folder, fake.url))
    driver: LiveDriver = env.unwrapped.driver  # type: ignore[attr-defined]
    suite = driver.pool.suite
    env.reset(seed=3)
    seen = set()
    for slot in range(4):
        task = suite.tasks[int(driver.sessions.task[0])]
        skill = driver.pool.ids[driver.slot_skills()[0, slot]]
        _, reward, terminated, truncated, info = env.step(only(slot))
        success = float(skill in task.relevant)
        seen.add(success)

        assert fake.messages[-1][1] == task.text
        assert info["outcome"]["success"] == success
        assert info["outcome"]["loaded"] == [skill]
        assert info["outcome"]["stop_reason"] == "end_turn"
        assert info["reward_parts"] == pytest.approx({"success": success, "tokens": -0.004})
        assert reward == pytest.approx(success - 0.004)
        assert info["weight"] == 1
        assert (terminated, truncated) == (False, slot == 3)
    env.close()

    assert seen == {0, 1}
    assert len(driver.sessions.memory) == 4


def test_a_batch_is_carried_out_side_by_side(folder: str, fake: FakeLetta) -> None:
    envs = gymnasium.make_vec(ID, num_envs=6, **keywords(folder, fake.url))
    envs.reset(seed=3)
    _, rewards, _, _, infos = envs.step(np.stack([only(0)] * 6))
    envs.close()

    assert len(fake.messages) == 6
    assert infos["weight"].tolist() == [1] * 6
    assert rewards == pytest.approx(sum(infos["reward_parts"][k] for k in ("success", "tokens")))
    assert all(response.startswith("ANSWER ") for response in infos["outcome"]["response"])
    assert [b for b in fake.blocks.values() if b["label"].startswith(PREFIX)] == []


def failing(share: int) -> Any:
    """Every ``share``-th message fails."""
    count = iter(range(10_000))

    def plan(method: str, path: str) -> Fault | None:
        message = method == "POST" and path.endswith("/messages")
        return Fault.ERROR if message and next(count) % share == 0 else None

    return plan


def test_an_infrastructure_failure_is_raised_by_step_and_teaches_nothing(
    folder: str, fake: FakeLetta
) -> None:
    with FaultyProxy(fake.url, failing(2)) as proxy:
        env = LiveEnv(**keywords(folder, proxy.url))
        first, _ = env.reset(seed=3)
        with pytest.raises(BackendError, match=r"1 of 1 tasks.*HTTP 500.*masking=True"):
            env.step(only(0))
        again = env.driver.observe()
        assert len(env.driver.sessions.memory) == 0
        env.step(only(0))
        assert len(env.driver.sessions.memory) == 1
        env.close()

    for name, array in first.items():
        np.testing.assert_array_equal(again[name][0], array)


def test_with_masking_a_failure_is_marked_with_weight_0_and_teaches_nothing(
    folder: str, fake: FakeLetta
) -> None:
    with FaultyProxy(fake.url, failing(3)) as proxy:
        made = keywords(folder, proxy.url, masking=True)
        envs = gymnasium.make_vec(ID, num_envs=6, **made)
        sessions = envs.unwrapped.driver.sessions  # type: ignore[attr-defined]
        envs.reset(seed=3)
        _, rewards, _, _, infos = envs.step(np.stack([only(0)] * 6))
        envs.close()

    failed = infos["weight"] == 0
    assert failed.sum() == 2
    assert not rewards[failed].any()
    assert [error is not None for error in infos["outcome"]["error"]] == failed.tolist()
    assert (len(sessions.memory), sessions.failures) == (4, 2)


def test_a_task_that_nobody_can_grade_is_named(tmp_path: Path, fake: FakeLetta) -> None:
    suite = make_look_alikes(families=2, alike=2, tasks=20)
    for task in suite.tasks:
        task.metadata.pop("grader")  # type: ignore[attr-defined]
    folder = str(write_suite(tmp_path / "ungraded", suite))
    env = LiveEnv(**keywords(folder, fake.url))
    env.reset(seed=3)

    with pytest.raises(BackendError, match="give the task a grader"):
        env.step(only(0, 4))
    env.close()


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"rest": None}, "needs the section 'rest'"),
        ({"backend": "rset"}, "backend"),
        ({"token_price": 0.1}, "rest.reward"),
    ],
)
def test_keywords_that_do_not_fit_are_named(folder: str, fields: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        LiveEnv(**(keywords(folder, "http://127.0.0.1:9") | fields))
