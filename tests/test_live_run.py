"""Training on a real Letta, against the small server in memory."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from agents.kinds import read_run
from agents.live_config import LiveRunConfig
from agents.live_run import MEMORY, LiveRun
from agents.run import CHECKPOINT, POLICY, SUMMARY
from letta_gym.config import resolve
from letta_gym.errors import ConfigError
from letta_gym.feedback import memory_file
from letta_gym.letta.live import LiveConfig
from letta_gym.library.suite import Suite
from letta_gym.selection.policy import Policy
from letta_gym.selection.runtime import SkillSelector
from letta_gym.selection.shelf import Shelf
from tests.fake_letta import HANDLE, FakeLetta
from tests.faults import Fault, FaultyProxy
from tests.look_alikes import make_look_alikes
from tests.small_suite import write_suite

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    suite = make_look_alikes(families=2, alike=3, tasks=60, seed=3)
    return str(write_suite(tmp_path_factory.mktemp("run") / "look-alikes", suite))


@pytest.fixture
def fake() -> Iterator[FakeLetta]:
    with FakeLetta() as server:
        yield server


def settings(folder: str, url: str, **train: Any) -> dict[str, Any]:
    ppo = {"num_envs": 8, "num_steps": 4, "gamma": 0.0}
    quick = {"attempts": 1, "wait": 0.01}
    return {
        "kind": "letta",
        "suite": {"path": folder},
        "env": {"max_skills": 1, "candidates": 0},
        "rest": {"base_url": url, "model": HANDLE, "concurrency": 8, "retries": quick},
        "policy": {"hidden": 4},
        "train": {"steps": 96, "ppo": ppo, **train},
        "evaluate": {"tasks": 16},
    }


def write(path: Path, data: dict[str, Any]) -> str:
    path.write_text(yaml.safe_dump(data), encoding="utf-8")
    return str(path)


def test_a_run_learns_from_outcomes_which_look_alike_works_and_keeps_what_it_learned(
    folder: str, fake: FakeLetta, tmp_path: Path
) -> None:
    config = write(tmp_path / "letta.yaml", settings(folder, fake.url))
    out = tmp_path / "run"

    assert train.main([f"--config={config}", f"--run-dir={out}"]) == 0

    evaluation = json.loads((out / SUMMARY).read_text(encoding="utf-8"))["evaluation"]
    success = {name: each["success"]["mean"] for name, each in evaluation["agents"].items()}
    assert success["oracle"] == 1
    assert success["learned"] >= 0.9
    assert success["retrieval"] <= 0.6
    assert (len(fake.messages), fake.agents, fake.blocks) == (96 + 4 * 16, {}, {})

    # The runtime goes on from there: policy and memory together choose what worked.
    policy, suite = Policy.load(out / POLICY), Suite.load(folder)
    memory = memory_file.load(out / MEMORY, policy.evidence)
    assert len(memory) == 96
    assert suite.vectors is not None
    shelf = Shelf(suite.library, policy, suite.vectors.skills)
    selector = SkillSelector(policy, shelf, memory)
    task = suite.tasks[0]
    chosen = selector.select(task.text, 1, embedding=suite.vectors.tasks.matrix[0])
    assert [skill.id for skill in chosen.skills] == list(task.relevant)


def test_a_run_starts_from_a_policy_and_continues_from_its_checkpoint(
    folder: str, fake: FakeLetta, tmp_path: Path
) -> None:
    first = resolve(LiveRunConfig, settings(folder, fake.url, steps=32, evaluate=False))
    run = LiveRun(first, tmp_path / "first")
    run.finish(run.train(), None)
    run.close()
    start = str(tmp_path / "first" / POLICY)

    config = resolve(
        LiveRunConfig, settings(folder, fake.url, steps=64, start=start, evaluate=False)
    )
    second = LiveRun(config, tmp_path / "second")
    trained = Policy.load(start).weights
    for name, array in second.model.parameters.items():
        np.testing.assert_array_equal(array, trained[name])
    second.steps = 32  # as if it had been stopped
    second.train()
    second.close()
    sent = len(fake.messages)

    third = LiveRun(config, tmp_path / "second", resume=True)
    assert len(third.driver.sessions.memory) == 32
    third.train()
    third.close()
    assert len(fake.messages) == sent + 32
    assert (tmp_path / "second" / CHECKPOINT).exists()


def test_failed_rollouts_enter_neither_memory_nor_update(
    folder: str, fake: FakeLetta, tmp_path: Path
) -> None:
    rng, drawn = np.random.default_rng(5), list[bool]()

    def plan(method: str, path: str) -> Fault | None:
        if not (method == "POST" and path.endswith("/messages")):
            return None
        drawn.append(bool(rng.random() < 0.3))
        return Fault.ERROR if drawn[-1] else None

    with FaultyProxy(fake.url, plan) as proxy:
        data = settings(folder, proxy.url, steps=64, evaluate=False)
        data["rest"]["breaker"] = {"failures": 50}
        run = LiveRun(resolve(LiveRunConfig, data), tmp_path / "run")
        run.train()
        run.close()
    sessions, failed = run.driver.sessions, len(proxy.faults)

    assert 5 < failed < 40
    assert sessions.failures == failed
    assert len(sessions.memory) == 64 - failed
    # One message a decision: those of the last rollout are the last 32.
    assert (run.ppo.rollout.weights == 0).sum() == sum(drawn[-32:]) > 0


def test_a_run_ends_though_letta_is_gone_for_a_whole_batch_and_says_so(
    folder: str,
    fake: FakeLetta,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gone = False

    def plan(method: str, path: str) -> Fault | None:
        return Fault.ERROR if gone else None

    with FaultyProxy(fake.url, plan) as proxy:
        data = settings(folder, proxy.url, steps=96, evaluate=False)
        data["rest"] |= {"breaker": {"failures": 4, "pause": 0.05}, "deadline": 5.0}
        run = LiveRun(resolve(LiveRunConfig, data), tmp_path / "run")
        collect = run.ppo.collect

        def collected() -> None:
            nonlocal gone
            gone = run.ppo.num_updates == 1
            collect()
            gone = False

        monkeypatch.setattr(run.ppo, "collect", collected)
        summary = run.finish(run.train(), None)
        run.close()

    assert run.ppo.global_step == 96
    assert len(run.driver.sessions.memory) == 64
    lost = summary["no_evidence"]
    assert (lost["failed"], lost["ungraded"], lost["skipped_updates"]) == (32, 0, 1)
    assert lost["paused"] >= 1
    assert "update 2 is skipped" in caplog.text
    assert "the rest backend failed 4 times in a row" in caplog.text
    shown = EventAccumulator(str(tmp_path / "run")).Reload()
    failed = [event.value for event in shown.Scalars("backend/failed")]
    assert failed == [0, 32, 32]
    assert len(shown.Scalars("losses/policy_loss")) == 2


def test_a_policy_of_another_shape_is_refused_at_the_start(
    folder: str, fake: FakeLetta, tmp_path: Path
) -> None:
    data = settings(folder, fake.url, steps=32, evaluate=False)
    run = LiveRun(resolve(LiveRunConfig, data), tmp_path / "first")
    run.finish(0.0, None)
    run.close()
    data["policy"]["hidden"] = 8
    data["train"]["start"] = str(tmp_path / "first" / POLICY)

    with pytest.raises(ConfigError, match="another network"):
        LiveRun(resolve(LiveRunConfig, data), tmp_path / "second")


@pytest.mark.parametrize("backend", ["rest", "code"])
def test_the_configurations_of_the_checkout_are_complete(backend: str) -> None:
    config = read_run(ROOT / f"configs/letta-{backend}.yaml", [])

    assert isinstance(config, LiveRunConfig)
    section = config.environment().section
    assert section is not None
    assert section == getattr(config, backend)
    written = yaml.safe_load((ROOT / f"configs/letta-{backend}.yaml").read_text(encoding="utf-8"))
    own = set(type(section).model_fields) - set(LiveConfig.model_fields)
    left_out = {"rest": {"agent", "system", "tools"}, "code": set()}[backend]
    assert own - set(written[backend]) == left_out


def test_every_key_of_the_configuration_is_documented() -> None:
    page = (ROOT / "docs/letta.md").read_text(encoding="utf-8")
    written = yaml.safe_load((ROOT / "configs/letta-rest.yaml").read_text(encoding="utf-8"))
    own = {f"{part}.{key}" for part in ("env", "train", "evaluate") for key in written[part]}
    rest = {
        *written["rest"],
        *(k for v in written["rest"].values() if isinstance(v, dict) for k in v),
    }
    missing = [key for key in own | rest if f"`{key}`" not in page]

    assert {"env.masking", "train.start"} <= own
    assert missing == []
