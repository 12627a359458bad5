"""The peers of the benchmarks are what they are called: the same learner, the same environment."""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import pytest
import torch
from sb3_contrib.common.maskable.utils import get_action_masks
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.config import RunConfig
from agents.evaluation import earn
from agents.ppo import PPO
from benchmarks.contenders import CONTENDERS, world
from benchmarks.peers import BatchedVecEnv, PickVecEnv, TorchPolicy, TorchPPO, batched_sb3
from benchmarks.speed import learner
from letta_gym.envs.single import SkillSelectionEnv
from letta_gym.envs.vector import SkillSelectionVectorEnv
from letta_gym.envs.wrappers import PickActions


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def ours(token_budget: float = 3000.0) -> PPO:
    ppo = {"num_envs": 8, "num_steps": 16, "learning_rate": 0.01, "gamma": 0.9, "ent_coef": 0.1}
    return learner(
        RunConfig.model_validate(
            {"env": {"token_budget": token_budget, "horizon": 12}, "train": {"ppo": ppo}}
        )
    )


def test_the_network_in_torch_says_what_ours_says() -> None:
    ppo = ours()
    ppo.collect()
    ppo.update()  # output layers start at zero
    ppo.collect()
    batch = ppo.rollout.batch(0.9, 0.95)
    expected = ppo.model.evaluate(batch.obs, batch.actions)
    policy = TorchPolicy(ppo.model)  # type: ignore[arg-type]
    logits, value = policy.forward(batch.obs)
    log_prob, entropy = policy.likelihood(logits, torch.from_numpy(batch.actions))

    assert (batch.obs["action_mask"] == 0).any()
    np.testing.assert_allclose(log_prob.detach(), expected.log_prob, atol=2e-5)
    np.testing.assert_allclose(entropy.detach(), expected.entropy, atol=2e-5)
    np.testing.assert_allclose(value.detach(), expected.value, atol=2e-5)


def test_an_update_in_torch_moves_the_weights_as_ours_does() -> None:
    numpy, peer = ours(), TorchPPO(ours())
    numpy.collect()
    peer.rollout = numpy.rollout
    peer.rng = np.random.default_rng(5)
    numpy.rng = np.random.default_rng(5)
    before = numpy.model.parameters.flat.copy()
    numpy.update()
    peer.update()

    moved = np.abs(numpy.model.parameters.flat - before).max()
    np.testing.assert_allclose(
        peer.model.parameters.flat, numpy.model.parameters.flat, atol=0.02 * moved
    )


def test_the_batch_is_for_stable_baselines_what_single_environments_are() -> None:
    keywords: dict[str, Any] = {"obs": "compact", "horizon": 5}
    batch = BatchedVecEnv(SkillSelectionVectorEnv(2, **keywords))
    singles = DummyVecEnv([lambda: SkillSelectionEnv(**keywords)] * 2)
    singles.seed(0)
    batch.seed(0)
    shown, expected = batch.reset(), cast(dict[str, Any], singles.reset())
    rng = np.random.default_rng(0)
    for _ in range(12):
        action = (rng.random((2, 12)) < 0.2).astype(np.int8)
        for name, part in expected.items():
            np.testing.assert_array_equal(shown[name], part)
        shown, reward, ended, told = batch.step(action)
        stepped: Any = singles.step(action)
        expected, wanted, over, infos = stepped
        np.testing.assert_array_equal(reward, wanted)
        np.testing.assert_array_equal(ended, over)
        for mine, theirs in zip(told, infos, strict=True):
            if "terminal_observation" in theirs:
                last = theirs["terminal_observation"]["features"]
                np.testing.assert_array_equal(mine["terminal_observation"]["features"], last)
                assert mine["TimeLimit.truncated"] == theirs["TimeLimit.truncated"]


def test_picks_in_a_batch_are_those_of_the_wrapper() -> None:
    keywords: dict[str, Any] = {"obs": "compact", "horizon": 5, "token_budget": 3000.0}
    batch = PickVecEnv(SkillSelectionVectorEnv(2, **keywords))
    singles = DummyVecEnv([lambda: PickActions(SkillSelectionEnv(**keywords))] * 2)
    assert batch.action_space == singles.action_space
    for envs in (batch, singles):
        envs.seed(3)
        envs.reset()
    rng, masked = np.random.default_rng(0), 0
    for _ in range(12):
        np.testing.assert_array_equal(get_action_masks(batch), get_action_masks(singles))
        masked += int((~get_action_masks(batch)).sum())
        picks = rng.integers(0, 13, (2, 3))
        shown, reward, ended, _ = batch.step(picks)
        wanted: Any = singles.step(picks)
        np.testing.assert_array_equal(cast(Any, shown)["features"], wanted[0]["features"])
        np.testing.assert_array_equal(reward, wanted[1])
        np.testing.assert_array_equal(ended, wanted[2])
    assert masked


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", CONTENDERS)
def test_every_contender_learns_from_mark_to_mark(name: str) -> None:
    config = world().environment(split="train")

    def earned(seed: int) -> list[float]:
        agents = CONTENDERS[name].learn(0.01, seed, [512, 2560])
        return [earn(agent, config, 5, 16) for agent in agents]

    first, other = earned(1), earned(2)

    assert len(set(first)) == 2
    assert first != other


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_stable_baselines_learns_on_the_batched_environment() -> None:
    model = batched_sb3(4, 64)
    before = [p.detach().clone() for p in model.policy.parameters()]
    model.learn(256)
    after = list(model.policy.parameters())

    assert any((a != b).any() for a, b in zip(after, before, strict=True))
