"""Checkpoints: nothing is lost, every damage is noticed, and a resumed run is the same run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

import agents.checkpoint
from agents.checkpoint import load_checkpoint, save_checkpoint
from agents.mlp import MLPActorCritic
from agents.ppo import PPO, PPOConfig
from letta_gym.errors import CheckpointError


class Drift(VectorEnv[Any, Any, Any]):
    """Walkers that drift at random and are pushed left or right; leaving [-1, 1] ends an episode.

    Every number of its state can be saved, so a run over it can be continued exactly.
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP}  # noqa: RUF012
    horizon = 9

    def __init__(self, num_envs: int) -> None:
        self.num_envs = num_envs
        self.single_observation_space = spaces.Dict({"obs": spaces.Box(-9, 9, (2,), np.float32)})
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.single_action_space = spaces.Discrete(2)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.random = np.random.default_rng()
        self.position = np.zeros(num_envs)
        self.age = np.zeros(num_envs, dtype=np.int64)

    def reset(self, *, seed: Any = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.random = np.random.default_rng(seed)
        self.position = self.random.uniform(-0.5, 0.5, self.num_envs)
        self.age = np.arange(self.num_envs) % self.horizon  # so that episodes end out of step
        return self._observe(), {}

    def step(self, actions: Any) -> tuple[Any, Any, Any, Any, dict[str, Any]]:
        self.position += 0.2 * (2 * actions - 1) + 0.2 * self.random.normal(size=self.num_envs)
        self.age += 1
        rewards = 1 - self.position**2
        terminated = np.abs(self.position) > 1
        truncated = self.age >= self.horizon
        ended = terminated | truncated
        infos = {"final_obs": self._observe()}
        self.position[ended] = self.random.uniform(-0.5, 0.5, int(ended.sum()))
        self.age[ended] = 0
        return self._observe(), rewards, terminated, truncated, infos

    def _observe(self) -> dict[str, NDArray[np.float32]]:
        return {"obs": np.stack([self.position, self.age / self.horizon], axis=1, dtype=np.float32)}

    def get_state(self) -> dict[str, Any]:
        return {
            "position": self.position.copy(),
            "age": self.age.copy(),
            "random": self.random.bit_generator.state,
        }

    def set_state(self, state: Mapping[str, Any]) -> None:
        self.position, self.age = state["position"], state["age"]
        self.random.bit_generator.state = state["random"]


CONFIG = PPOConfig(
    num_envs=6, num_steps=8, num_minibatches=3, update_epochs=2, ema_decay=0.9, learning_rate=0.01
)
UPDATES = 6


def learner(seed: int = 1) -> PPO:
    rng = np.random.default_rng(seed)
    model = MLPActorCritic(2, 2, rng, hidden=(8,))
    total = UPDATES * CONFIG.batch_size
    return PPO(Drift(CONFIG.num_envs), model, CONFIG, rng, total_steps=total)


def run(ppo: PPO, updates: int) -> list[dict[str, float]]:
    """Return the metrics of the updates, without the wall clock's."""
    history: list[dict[str, float]] = []
    ppo.train(updates * CONFIG.batch_size, history.append)
    return [{k: v for k, v in metrics.items() if k != "charts/SPS"} for metrics in history]


def assert_equal(left: Any, right: Any) -> None:
    if isinstance(left, Mapping):
        assert list(left) == list(right)
        for key in left:
            assert_equal(left[key], right[key])
    elif isinstance(left, list):
        assert len(left) == len(right)
        for one, other in zip(left, right, strict=True):
            assert_equal(one, other)
    elif isinstance(left, np.ndarray):
        assert (left.dtype, left.shape) == (right.dtype, right.shape)
        np.testing.assert_array_equal(left, right)
    else:
        assert type(left) is type(right)
        assert left == right


STATE: dict[str, Any] = {
    "weights": {"w": np.arange(6, dtype=np.float32).reshape(2, 3).T, "scalar": np.array(2.5)},
    "mask": np.array([True, False]),
    "empty": np.zeros((0, 3), dtype=np.int8),
    "numbers": [1, 2.5, None, True, "sha256:" + "0" * 64, 2**127 + 1, float("inf"), {"a": []}],
    "listed": [np.array([1, 2]), {"inner": np.array([3], dtype=np.uint64)}],
}


@pytest.mark.parametrize("stop", range(UPDATES))
def test_a_run_stopped_at_any_update_and_resumed_is_bit_equal_to_one_not_stopped(
    stop: int, tmp_path: Path
) -> None:
    whole = learner()
    history = run(whole, UPDATES)

    first = learner()
    begun = run(first, stop)
    save_checkpoint(tmp_path / "run.safetensors", first.state())
    second = learner(seed=99)  # other weights, another environment, another generator
    second.restore(load_checkpoint(tmp_path / "run.safetensors"))
    ended = run(second, UPDATES)

    assert begun + ended == history
    assert_equal(second.state(), whole.state())
    assert (whole.parameters.flat != whole.model.parameters.flat).any()


def test_taking_the_state_changes_nothing_and_shares_nothing() -> None:
    watched, alone = learner(), learner()
    run(watched, 2)
    run(alone, 2)
    before = watched.state()
    run(watched, 4)
    run(alone, 4)
    assert_equal(watched.state(), alone.state())
    assert before["optimizer"]["steps"] == 12
    assert (before["optimizer"]["m"] != watched.optimizer.m).any()


def test_without_the_environments_state_the_weights_and_the_schedule_continue() -> None:
    def cartpole() -> PPO:
        env = gymnasium.make_vec(
            "CartPole-v1",
            num_envs=CONFIG.num_envs,
            vectorization_mode="sync",
            vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        )
        rng = np.random.default_rng(0)
        return PPO(env, MLPActorCritic(4, 2, rng), CONFIG, rng, total_steps=1000)

    first, second = cartpole(), cartpole()
    run(first, 2)
    second.restore(first.state())
    assert "env" not in first.state()
    assert second.num_updates == 2
    np.testing.assert_array_equal(second.model.parameters.flat, first.model.parameters.flat)
    assert run(second, 3)[0]["charts/learning_rate"] == pytest.approx(0.01 * (1 - 96 / 1000))


def test_everything_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "state", STATE)
    loaded = load_checkpoint(tmp_path / "state")
    assert_equal(loaded, STATE)
    loaded["weights"]["w"][0, 0] = 9  # writable, unlike a view of the file


def test_the_same_state_is_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        save_checkpoint(tmp_path / name, STATE)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_every_flipped_bit_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_checkpoint(path, {"w": np.arange(5.0), "n": 3})
    good = path.read_bytes()
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        path.write_bytes(bad)
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_every_cut_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "state"
    save_checkpoint(path, {"w": np.arange(5.0), "n": 3})
    good = path.read_bytes()
    for end in range(len(good)):
        path.write_bytes(good[:end])
        with pytest.raises(CheckpointError):
            load_checkpoint(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"nowhere: No such file"):
        load_checkpoint(tmp_path / "nowhere")


def test_another_format_version_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agents.checkpoint, "FORMAT_VERSION", 2)
    save_checkpoint(tmp_path / "state", {"n": 1})
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match="has format version 2; expected 1"):
        load_checkpoint(tmp_path / "state")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"a": {"b/c": 1}}, "'b/c' cannot be a checkpoint's key"),
        ({"a": {1: 2}}, "1 cannot be a checkpoint's key"),
        ({"a": {"$array": "x"}}, "cannot be a checkpoint's key"),
        ({"a": [object()]}, "a/0: expected an array or a JSON value; got object"),
        ({"a": np.array([None])}, "a: no checkpoint holds arrays of type object"),
    ],
)
def test_what_a_checkpoint_cannot_hold_is_refused_and_the_old_file_stays(
    state: dict[str, Any], words: str, tmp_path: Path
) -> None:
    save_checkpoint(tmp_path / "state", {"n": 1})
    with pytest.raises(CheckpointError, match=words.replace("$", r"\$")):
        save_checkpoint(tmp_path / "state", state)
    assert load_checkpoint(tmp_path / "state") == {"n": 1}
