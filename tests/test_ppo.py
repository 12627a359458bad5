"""The PPO loss, its gradient, one whole update, and what the learner asks of its environment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray
from pydantic import ValidationError

from agents.mlp import MLPActorCritic
from agents.ppo import PPO, PPOConfig, explained_variance, loss_and_grad, value_error
from agents.rollout import Batch, final_observations, sample_weights
from letta_gym.config import resolve
from letta_gym.errors import BackendError, CheckpointError, ConfigError, LettaGymError

OBS, ACTIONS, N = 4, 3, 48


def model(seed: int = 0, dtype: Any = np.float64, num_actions: int = ACTIONS) -> MLPActorCritic:
    rng = np.random.default_rng(seed)
    network = MLPActorCritic(OBS, num_actions, rng, hidden=(6, 5), dtype=dtype)
    network.parameters.flat += (0.3 * rng.normal(size=network.parameters.flat.size)).astype(dtype)
    return network


def batch(network: MLPActorCritic, seed: int = 1, weights: bool = False) -> Batch:
    """Samples whose ratios and values lie inside and outside the clipping range, on both sides."""
    rng = np.random.default_rng(seed)
    obs = {"obs": rng.normal(size=(N, OBS))}
    action = network.act(obs, rng)
    return Batch(
        obs,
        action.action,
        log_probs=action.log_prob + 0.3 * rng.normal(size=N),
        values=action.value + 0.3 * rng.normal(size=N),
        advantages=rng.normal(size=N),
        returns=action.value + rng.normal(size=N),
        weights=rng.integers(0, 3, size=N).astype(float) if weights else None,
    )


def make_cartpole(num_envs: int = 4, **kwargs: Any) -> VectorEnv[Any, Any, Any]:
    mode = kwargs.pop("autoreset_mode", AutoresetMode.SAME_STEP)
    return gymnasium.make_vec(
        "CartPole-v1",
        num_envs=num_envs,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": mode},
        **kwargs,
    )


SMALL = PPOConfig(num_envs=4, num_steps=12, num_minibatches=3, update_epochs=3)


def learner(config: PPOConfig = SMALL, dtype: Any = np.float64, **kwargs: Any) -> PPO:
    env = make_cartpole(config.num_envs, max_episode_steps=kwargs.pop("max_episode_steps", 7))
    rng = np.random.default_rng(kwargs.pop("seed", 5))
    network = model(dtype=dtype, num_actions=2)
    return PPO(env, network, config, rng, total_steps=kwargs.pop("total_steps", 480), **kwargs)


# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("weights", [False, True])
@pytest.mark.parametrize("norm_adv", [False, True])
@pytest.mark.parametrize("clip_vloss", [False, True])
def test_every_gradient_agrees_with_central_differences(
    clip_vloss: bool, norm_adv: bool, weights: bool
) -> None:
    network = model()
    samples = batch(network, weights=weights)
    config = PPOConfig(clip_vloss=clip_vloss, norm_adv=norm_adv, ent_coef=0.1)
    evaluation = network.evaluate(samples.obs, samples.actions)
    ratio = np.exp(evaluation.log_prob - samples.log_probs)
    assert len(set(zip(ratio > 1.2, ratio < 0.8, samples.advantages > 0, strict=True))) == 6
    assert len(set(np.abs(evaluation.value - samples.values) > 0.2)) == 2

    loss_and_grad(network, samples, config)
    gradient = network.parameters.grad.copy()
    numeric = np.empty_like(gradient)
    step = 1e-5
    for i, weight in enumerate(network.parameters.flat.copy()):
        around = []
        for moved in (weight + step, weight - step):
            network.parameters.flat[i] = moved
            around.append(loss_and_grad(network, samples, config).loss)
        network.parameters.flat[i] = weight
        numeric[i] = (around[0] - around[1]) / (2 * step)
    error = np.abs(gradient - numeric) / np.maximum(np.abs(gradient), 1e-3)
    assert (gradient != 0).all()
    assert error.max() < 1e-6


def test_the_report_has_the_means_of_the_definitions() -> None:
    network = model()
    samples = batch(network)
    config = PPOConfig(norm_adv=False, ent_coef=0.1, vf_coef=0.7)
    report = loss_and_grad(network, samples, config)
    evaluation = network.evaluate(samples.obs, samples.actions)
    ratio = np.exp(evaluation.log_prob - samples.log_probs)
    surrogate = np.minimum(
        ratio * samples.advantages, np.clip(ratio, 0.8, 1.2) * samples.advantages
    )
    assert report.pg_loss == pytest.approx(-surrogate.mean())
    assert report.v_loss == pytest.approx(0.5 * ((evaluation.value - samples.returns) ** 2).mean())
    assert report.entropy == pytest.approx(evaluation.entropy.mean())
    assert report.old_approx_kl == pytest.approx(-np.log(ratio).mean())
    assert report.approx_kl == pytest.approx((ratio - 1 - np.log(ratio)).mean())
    assert report.clipfrac == pytest.approx((np.abs(ratio - 1) > 0.2).mean())
    assert report.ratio == pytest.approx(ratio.mean())
    assert report.loss == pytest.approx(report.pg_loss - 0.1 * report.entropy + 0.7 * report.v_loss)


def test_a_value_within_the_clipping_range_always_has_its_gradient() -> None:
    rng = np.random.default_rng(0)
    old, value = rng.uniform(-0.09, 0.09, size=(2, 10_000))
    target = rng.normal(size=10_000)
    assert (old + (value - old) != value).any()  # rounding must not look like clipping
    samples = Batch({}, np.zeros(10_000, dtype=int), old, old, old, target)
    _, derror = value_error(value, samples, PPOConfig(clip_vloss=True))
    np.testing.assert_array_equal(derror, value - target)


@pytest.mark.parametrize("clip_vloss", [False, True])
def test_a_sample_of_weight_zero_has_no_influence_whatever_it_holds(clip_vloss: bool) -> None:
    network = model()
    samples = batch(network)
    config = PPOConfig(clip_vloss=clip_vloss)
    expected = loss_and_grad(network, samples.take(slice(0, N - 10)), config)
    gradient = network.parameters.grad.copy()

    weights = np.ones(N)
    weights[-10:] = 0
    for column in (samples.log_probs, samples.values, samples.advantages, samples.returns):
        column[-10:] = np.nan
    samples.obs["obs"][-10:] = np.inf
    assert loss_and_grad(network, replace(samples, weights=weights), config) == expected
    np.testing.assert_array_equal(network.parameters.grad, gradient)


def test_a_sample_of_weight_two_counts_as_two_samples() -> None:
    network = model()
    samples = batch(network)
    once = loss_and_grad(network, replace(samples, weights=1.0 + (np.arange(N) < 5)), PPOConfig())
    gradient = network.parameters.grad.copy()
    twice = loss_and_grad(network, samples.take(np.r_[np.arange(N), np.arange(5)]), PPOConfig())
    assert once.loss == pytest.approx(twice.loss, rel=1e-12)
    np.testing.assert_allclose(gradient, network.parameters.grad, rtol=1e-10, atol=1e-14)


def test_samples_that_all_weigh_nothing_are_an_error() -> None:
    network = model()
    with pytest.raises(BackendError, match="each of the 48 samples has weight 0"):
        loss_and_grad(network, replace(batch(network), weights=np.zeros(N)), PPOConfig())


# --- one whole update, against autograd -----------------------------------------------------------


class TorchTwin:
    """The same network and the same algorithm, with autograd and torch's own optimiser."""

    def __init__(self, network: MLPActorCritic, config: PPOConfig) -> None:
        self.config = config
        self.weights = {
            name: torch.tensor(view, requires_grad=True)
            for name, view in network.parameters.items()
        }
        self.optimizer = torch.optim.Adam(
            list(self.weights.values()), lr=config.learning_rate, eps=config.adam_eps
        )

    def network(self, name: str, x: torch.Tensor) -> torch.Tensor:
        for i in range(2):
            x = torch.tanh(x @ self.weights[f"{name}.w{i}"] + self.weights[f"{name}.b{i}"])
        return x @ self.weights[f"{name}.w2"] + self.weights[f"{name}.b2"]

    def step(self, samples: Batch) -> None:
        config = self.config
        dtype = self.weights["actor.b0"].dtype
        old_log_prob, old_value, advantage, target = (
            torch.tensor(column, dtype=dtype)
            for column in (samples.log_probs, samples.values, samples.advantages, samples.returns)
        )
        obs = torch.tensor(samples.obs["obs"], dtype=dtype)
        log_probs = torch.log_softmax(self.network("actor", obs), dim=1)
        log_prob = log_probs.gather(1, torch.tensor(samples.actions)[:, None])[:, 0]
        value = self.network("critic", obs)[:, 0]
        ratio = (log_prob - old_log_prob).exp()
        advantage = (advantage - advantage.mean()) / (advantage.std(unbiased=False) + 1e-8)
        low, high = 1 - config.clip_coef, 1 + config.clip_coef
        pg_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(low, high)).mean()
        clipped = old_value + (value - old_value).clamp(-config.clip_coef, config.clip_coef)
        v_loss = 0.5 * torch.max((value - target) ** 2, (clipped - target) ** 2).mean()
        entropy = -(log_probs.exp() * log_probs).sum(dim=1).mean()
        loss = pg_loss - config.ent_coef * entropy + config.vf_coef * v_loss
        self.optimizer.zero_grad()
        torch.autograd.backward([loss])
        torch.nn.utils.clip_grad_norm_(list(self.weights.values()), config.max_grad_norm)
        self.optimizer.step()

    def flat(self) -> NDArray[Any]:
        return np.concatenate([w.detach().numpy().ravel() for w in self.weights.values()])


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-11), (np.float32, 1e-5)])
def test_one_update_agrees_with_torch(dtype: Any, tolerance: float) -> None:
    config = PPOConfig(
        num_envs=4,
        num_steps=32,
        num_minibatches=4,
        update_epochs=4,
        learning_rate=1e-2,
        anneal_lr=False,
        clip_vloss=True,
        ent_coef=0.02,
        max_grad_norm=0.5,
    )
    ppo = learner(config, dtype)
    ppo.collect()
    start = ppo.model.parameters.flat.copy()
    samples = ppo.rollout.batch(config.gamma, config.gae_lambda)
    twin = TorchTwin(ppo.model, config)  # type: ignore[arg-type]
    rng = np.random.default_rng()
    rng.bit_generator.state = ppo.rng.bit_generator.state
    metrics = ppo.update()
    for _ in range(config.update_epochs):
        order = rng.permutation(config.batch_size)
        for rows in np.split(order, config.num_minibatches):
            twin.step(samples.take(rows))

    assert metrics["losses/clipfrac"] > 0
    assert metrics["losses/grad_norm"] > config.max_grad_norm
    end = ppo.model.parameters.flat
    assert end.dtype == dtype
    difference = np.linalg.norm(end - twin.flat())
    assert difference < tolerance * np.linalg.norm(end - start)


# --- the learner ----------------------------------------------------------------------------------


def test_probabilities_at_the_update_are_those_under_which_actions_were_drawn() -> None:
    ppo = learner()
    ppo.collect()
    report = loss_and_grad(ppo.model, ppo.rollout.batch(0.99, 0.95), ppo.config)
    assert report.ratio == pytest.approx(1, abs=1e-12)
    assert abs(report.approx_kl) < 1e-12
    assert report.clipfrac == 0


def test_truncated_episodes_are_bootstrapped_from_their_own_last_observation() -> None:
    seen: list[tuple[Mapping[str, Any], NDArray[np.bool_], NDArray[np.bool_]]] = []
    ppo = learner(
        on_step=lambda infos, rewards, terminated, cut: seen.append((infos, terminated, cut))
    )
    ppo.collect()
    rollout = ppo.rollout
    expected = np.vstack([rollout.values[1:], ppo.model.value(ppo.obs)])
    truncations = 0
    for t, (infos, _, truncated) in enumerate(seen):
        for b in np.flatnonzero(truncated):
            expected[t, b] = ppo.model.value({"obs": infos["final_obs"][b][None]})[0]
            truncations += 1
    assert len(seen) == SMALL.num_steps
    assert truncations >= SMALL.num_envs
    follows = ~rollout.terminated
    np.testing.assert_allclose(rollout.next_values[follows], expected[follows], rtol=1e-12)


def test_final_observations_are_read_from_objects_and_from_batches() -> None:
    full = {"a": np.arange(12.0).reshape(4, 3), "mask": np.eye(4, dtype=np.int8)}
    objects = np.full(4, None, dtype=object)
    rows = np.array([1, 3])
    for row in rows:
        objects[row] = {name: array[row] for name, array in full.items()}
    for final in (full, objects):
        found = final_observations({"final_obs": final}, rows)
        assert set(found) == set(full)
        for name, array in full.items():
            np.testing.assert_array_equal(found[name], array[rows])
            assert found[name].dtype == array.dtype
    plain = final_observations({"final_obs": full["a"]}, rows)
    np.testing.assert_array_equal(plain["obs"], full["a"][rows])


def test_a_truncation_without_a_final_observation_is_an_error() -> None:
    with pytest.raises(ConfigError, match=r"no 'final_obs'.*\['other'\]"):
        final_observations({"other": 1}, np.array([0]))


def test_weights_come_from_the_infos_of_the_step_that_was_taken() -> None:
    ended = np.array([False, True, False, True])
    np.testing.assert_array_equal(sample_weights({}, ended), 1)
    infos = {  # the plain entries of the ended ones belong to the episodes that began
        "weight": np.array([0.0, 0.0, 0.0, 0.0]),
        "_weight": np.array([True, True, False, True]),
        "final_info": {
            "weight": np.array([9.0, 0.5, 9.0, 0.0]),
            "_weight": np.array([False, True, False, False]),
        },
    }
    np.testing.assert_array_equal(sample_weights(infos, ended), [0, 0.5, 1, 1])


def test_steps_of_weight_zero_are_left_out_of_the_update() -> None:
    untouched, marked = learner(), learner()
    for ppo in (untouched, marked):
        ppo.collect()
    marked.rollout.weights[:6] = 0
    for column in (marked.rollout.log_probs, marked.rollout.values, marked.rollout.rewards):
        column[:6] = np.nan
    metrics = marked.update()
    untouched.update()
    assert np.isfinite([metrics[tag] for tag in metrics if tag.startswith("losses/")]).all()
    assert (marked.model.parameters.flat != untouched.model.parameters.flat).any()


def test_an_update_is_skipped_and_counted_where_every_step_has_weight_zero(
    caplog: pytest.LogCaptureFixture,
) -> None:
    ppo = learner()
    ppo.collect()
    ppo.rollout.weights[:] = 0
    before = ppo.model.parameters.flat.copy()

    metrics = ppo.update()

    np.testing.assert_array_equal(ppo.model.parameters.flat, before)
    assert (ppo.num_updates, ppo.num_skipped) == (1, 1)
    assert not [tag for tag in metrics if tag.startswith("losses/")]
    assert "charts/learning_rate" in metrics
    assert "update 1 is skipped" in caplog.text

    resumed = learner()
    resumed.restore(ppo.state())
    assert resumed.num_skipped == 1
    ppo.collect()
    ppo.update()
    assert (ppo.num_updates, ppo.num_skipped) == (2, 1)
    assert (ppo.model.parameters.flat != before).any()


def test_the_learning_rate_falls_linearly_to_its_last_step() -> None:
    rates: list[float] = []
    ppo = learner(total_steps=4 * SMALL.batch_size)
    ppo.train(callback=lambda metrics: rates.append(metrics["charts/learning_rate"]))
    np.testing.assert_allclose(rates, 3e-4 * np.array([1, 0.75, 0.5, 0.25]))
    assert ppo.global_step == ppo.total_steps
    assert ppo.num_updates == 4


def test_training_in_two_parts_is_training_in_one() -> None:
    whole, parts = learner(), learner()
    whole.train()
    parts.train(100)
    assert parts.num_updates == 3
    parts.train()
    np.testing.assert_array_equal(whole.model.parameters.flat, parts.model.parameters.flat)


def test_the_same_seed_gives_the_same_bits_and_another_does_not() -> None:
    weights = []
    for seed in (5, 5, 6):
        ppo = learner(dtype=np.float32, seed=seed)
        ppo.train(200)
        weights.append(ppo.model.parameters.flat)
    np.testing.assert_array_equal(weights[0], weights[1])
    assert (weights[0] != weights[2]).any()


def test_a_kl_beyond_the_target_ends_the_epochs() -> None:
    free = learner(SMALL.model_copy(update={"learning_rate": 0.1}))
    held = learner(SMALL.model_copy(update={"learning_rate": 0.1, "target_kl": 1e-9}))
    for ppo in (free, held):
        ppo.collect()
        ppo.update()
    assert free.optimizer.steps == 9
    assert held.optimizer.steps == 3


def test_averaged_weights_are_the_ones_to_use() -> None:
    ppo = learner(SMALL.model_copy(update={"ema_decay": 0.99, "learning_rate": 0.01}))
    start = ppo.model.parameters.flat.copy()
    ppo.collect()
    ppo.update()
    expected = start + (1 - 2 / 11) * (ppo.model.parameters.flat - start)
    np.testing.assert_allclose(ppo.parameters.flat, expected, rtol=1e-12)
    assert learner().parameters is not ppo.parameters
    plain = learner()
    assert plain.parameters is plain.model.parameters


def test_metrics_carry_the_customary_tags() -> None:
    ppo = learner()
    ppo.collect()
    metrics = ppo.update()
    assert set(metrics) == {
        "losses/policy_loss",
        "losses/value_loss",
        "losses/entropy",
        "losses/old_approx_kl",
        "losses/approx_kl",
        "losses/clipfrac",
        "losses/explained_variance",
        "losses/grad_norm",
        "charts/learning_rate",
        "charts/SPS",
        "charts/episodic_return",
        "charts/episodic_length",
    }
    assert metrics["charts/episodic_return"] == metrics["charts/episodic_length"] == 7


def test_explained_variance_is_one_for_perfect_and_zero_for_constant_values() -> None:
    returns = np.array([1.0, 2.0, 4.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(np.full(3, 9.0), returns) == 0
    assert np.isnan(explained_variance(returns, np.ones(3)))


@pytest.mark.parametrize("column", ["rewards", "values", "log_probs"])
def test_a_number_that_is_not_finite_stops_the_run_before_it_spoils_the_weights(
    column: str,
) -> None:
    ppo = learner(SMALL.model_copy(update={"num_minibatches": 1}))
    ppo.collect()
    getattr(ppo.rollout, column)[3, 2] = np.nan
    before = ppo.model.parameters.flat.copy()
    with pytest.raises(LettaGymError, match="update 1 has the loss nan"):
        ppo.update()
    np.testing.assert_array_equal(ppo.model.parameters.flat, before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_minibatches": 5}, "must be a multiple of num_minibatches; got 5"),
        ({"num_minibatches": 48}, "norm_adv"),
        ({"gamma": 1.1}, "gamma"),
        ({"learning_rate": float("nan")}, "learning_rate"),
        ({"clip_range": 0.2}, "clip_range: unknown key; did you mean"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve(PPOConfig, {**SMALL.model_dump(), **change})
    with pytest.raises(ValidationError):
        PPOConfig(**{**SMALL.model_dump(), **change})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: make_cartpole(autoreset_mode=AutoresetMode.NEXT_STEP), "SAME_STEP"),
        (lambda: make_cartpole(num_envs=3), "num_envs is 4, but the vector environment has 3"),
    ],
)
def test_an_environment_that_does_not_fit_is_refused(
    make: Callable[[], VectorEnv[Any, Any, Any]], words: str
) -> None:
    network = model(num_actions=2)
    with pytest.raises(ConfigError, match=words):
        PPO(make(), network, SMALL, np.random.default_rng(0), total_steps=1)


def test_a_run_of_no_steps_is_refused() -> None:
    with pytest.raises(ConfigError, match="total_steps must be at least 1; got 0"):
        learner(total_steps=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"config": {**SMALL.model_dump(mode="json"), "gamma": 0.5}}, "gamma is 0.99, was 0.5"),
        ({"config": None}, "no state of a PPO learner"),
        ({"rng": {"bit_generator": "MT19937"}}, "another random generator"),
        ({"parameters": {"w": np.zeros(3)}}, "do not fit the network"),
        ({"env": {}}, "has no set_state"),
    ],
)
def test_a_state_that_does_not_fit_is_refused(change: dict[str, Any], words: str) -> None:
    ppo = learner()
    with pytest.raises(CheckpointError, match=words):
        ppo.restore({**ppo.state(), **change})
