"""Flat parameters, Adam, clipping and averaging."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from agents.adam import Adam, Ema, Parameters, clip_grad_norm
from letta_gym.errors import CheckpointError, ConfigError

SHAPES: dict[str, tuple[int, ...]] = {"w": (3, 4), "b": (4,), "scale": ()}


def parameters(seed: int = 0, dtype: Any = np.float64) -> Parameters:
    rng = np.random.default_rng(seed)
    return Parameters.from_arrays({k: rng.normal(size=s) for k, s in SHAPES.items()}, dtype)


def test_names_are_views_into_one_buffer() -> None:
    mine = parameters()
    assert mine.flat.shape == mine.grad.shape == (17,)
    mine.flat[:] = np.arange(17)
    np.testing.assert_array_equal(mine["w"], np.arange(12).reshape(3, 4))
    mine["b"][...] = 7
    np.testing.assert_array_equal(mine.flat[12:16], 7)
    mine.gradients["scale"][...] = 5
    assert mine.grad[16] == 5
    assert {name: view.shape for name, view in mine.gradients.items()} == SHAPES


def test_copies_share_nothing() -> None:
    mine = parameters()
    twin, arrays = mine.copy(), mine.as_dict()
    mine.flat += 1
    np.testing.assert_array_equal(twin["w"], arrays["w"])
    np.testing.assert_array_equal(twin["w"] + 1, mine["w"])


@pytest.mark.parametrize("change", [{"w": np.zeros((4, 3))}, {"extra": np.zeros(1)}])
def test_arrays_of_another_network_are_refused_and_change_nothing(change: dict[str, Any]) -> None:
    mine = parameters()
    before = mine.flat.copy()
    with pytest.raises(CheckpointError, match="do not fit the network"):
        mine.load({**parameters(1).as_dict(), **change})
    np.testing.assert_array_equal(mine.flat, before)


def test_parameters_of_whole_numbers_are_refused() -> None:
    with pytest.raises(ConfigError, match="floating-point"):
        Parameters(SHAPES, np.int64)


def test_a_hundred_steps_agree_with_torch() -> None:
    mine = parameters()
    theirs = torch.tensor(mine.flat, requires_grad=True)
    adam = Adam(mine, 1e-2, eps=1e-5)
    reference = torch.optim.Adam([theirs], lr=1e-2, eps=1e-5)
    rng = np.random.default_rng(1)
    for step in range(100):
        adam.learning_rate = reference.param_groups[0]["lr"] = 1e-2 * (1 - step / 100)
        mine.grad[:] = rng.normal(size=17) * 10.0 ** rng.integers(-6, 2, size=17)
        theirs.grad = torch.tensor(mine.grad)
        adam.step()
        reference.step()
    assert np.abs(mine.flat - theirs.detach().numpy()).max() < 1e-12


def test_single_precision_stays_single_precision() -> None:
    mine = parameters(dtype=np.float32)
    flat = mine.flat
    adam, ema = Adam(mine, 1e-3), Ema(mine, 0.99)
    mine.grad[:] = 1
    clip_grad_norm(mine.grad, 0.5)
    adam.step()
    ema.update(mine)
    assert mine.flat is flat
    arrays = [mine.flat, mine.grad, adam.m, adam.v, ema.parameters.flat]
    assert {array.dtype for array in arrays} == {np.dtype(np.float32)}


@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_clipping_agrees_with_torch(scale: float) -> None:
    grad = scale * np.random.default_rng(0).normal(size=17)
    tensor = torch.zeros(17, dtype=torch.float64, requires_grad=True)
    tensor.grad = torch.tensor(grad)
    expected_norm = torch.nn.utils.clip_grad_norm_([tensor], 0.5).item()
    assert clip_grad_norm(grad, 0.5) == pytest.approx(expected_norm, rel=1e-14)
    np.testing.assert_allclose(grad, tensor.grad.numpy(), rtol=1e-14)


def test_adam_continues_from_its_state() -> None:
    mine, other = parameters(), parameters()
    adam, twin = Adam(mine, 1e-2), Adam(other, 1e-2)
    mine.grad[:] = np.arange(17)
    adam.step()
    other.load(mine)
    twin.restore(adam.state())
    for network in (mine, other):
        network.grad[:] = np.arange(17)[::-1]
    adam.step()
    twin.step()
    np.testing.assert_array_equal(mine.flat, other.flat)


def test_the_average_follows_its_formula() -> None:
    mine = parameters()
    ema = Ema(mine, 0.5)
    expected = mine.flat.copy()
    for n in range(1, 31):
        mine.flat += np.sin(n)
        decay = min(0.5, (1 + n) / (10 + n))
        expected = decay * expected + (1 - decay) * mine.flat
        ema.update(mine)
    np.testing.assert_allclose(ema.parameters.flat, expected, rtol=1e-12, atol=1e-12)
    assert ema.updates == 30


def test_the_average_continues_from_its_state() -> None:
    mine = parameters()
    ema, twin = Ema(mine, 0.9), Ema(parameters(1), 0.9)
    ema.update(parameters(2))
    twin.restore(ema.state())
    ema.update(mine)
    twin.update(mine)
    np.testing.assert_array_equal(ema.parameters.flat, twin.parameters.flat)
