"""The policy network: what it means untrained, its symmetries, its gradient, one whole update."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from agents.adam import Adam, clip_grad_norm
from agents.ppo import PPOConfig, loss_and_grad
from agents.rollout import Batch
from agents.skill_policy import SkillPolicy
from letta_gym.selection import network, subset
from letta_gym.selection.observation import CONTEXT, FEATURE, FEATURES

N, M, K, HIDDEN = 48, 6, 3, 7


def observations(seed: int = 0, n: int = N) -> dict[str, NDArray[Any]]:
    """Random observations as the environment lays them out, a row with every slot masked."""
    rng = np.random.default_rng(seed)
    mask = rng.random((n, M)) < 0.8
    mask[0], mask[1] = False, True
    return {
        "features": rng.standard_normal((n, M, len(FEATURES))) * mask[..., None],
        "context": rng.standard_normal((n, len(CONTEXT))),
        "action_mask": mask.astype(np.int8),
    }


def model(dtype: Any = np.float64) -> SkillPolicy:
    """A policy away from its start, so that every weight matters."""
    rng = np.random.default_rng(3)
    made = SkillPolicy(rng, K, hidden=HIDDEN, sharpness=2.0, threshold=0.1, dtype=dtype)
    made.parameters.flat += (0.2 * rng.standard_normal(made.parameters.flat.size)).astype(dtype)
    return made


def batch(policy: SkillPolicy, seed: int = 1) -> Batch:
    """Samples whose ratios lie inside and outside of the clipping range, on both sides."""
    rng = np.random.default_rng(seed)
    obs = observations(seed)
    action = policy.act(obs, rng)
    return Batch(
        obs,
        action.action,
        log_probs=(action.log_prob + 0.3 * rng.standard_normal(N)).astype(action.log_prob.dtype),
        values=(action.value + 0.3 * rng.standard_normal(N)).astype(action.value.dtype),
        advantages=rng.standard_normal(N).astype(action.value.dtype),
        returns=(action.value + rng.standard_normal(N)).astype(action.value.dtype),
    )


def forward(policy: SkillPolicy, obs: dict[str, NDArray[Any]]) -> tuple[Any, Any]:
    """Logits and values."""
    logits, value, _ = network.forward(
        policy.parameters, obs["features"], obs["context"], obs["action_mask"].astype(bool)
    )
    return logits, value


# --- forward --------------------------------------------------------------------------------------


def test_scores_follow_their_slots_and_stop_and_value_stay() -> None:
    policy, obs = model(), observations()
    logits, value = forward(policy, obs)
    order = np.random.default_rng(5).permutation(M)
    moved = {
        **obs,
        "features": obs["features"][:, order],
        "action_mask": obs["action_mask"][:, order],
    }
    moved_logits, moved_value = forward(policy, moved)
    np.testing.assert_allclose(moved_logits[:, :-1], logits[:, :-1][:, order], rtol=1e-12)
    np.testing.assert_allclose(moved_logits[:, -1], logits[:, -1], rtol=1e-12)
    np.testing.assert_allclose(moved_value, value, rtol=1e-12)


def test_masked_slots_are_impossible_and_change_nothing() -> None:
    policy, obs = model(), observations()
    logits, value = forward(policy, obs)
    mask = obs["action_mask"].astype(bool)
    np.testing.assert_array_equal(np.isneginf(logits[:, :-1]), ~mask)
    assert np.isfinite(logits[:, -1]).all()
    assert np.isfinite(value).all()
    wider = {
        "features": np.concatenate([obs["features"], np.zeros((N, 2, len(FEATURES)))], 1),
        "context": obs["context"],
        "action_mask": np.concatenate([obs["action_mask"], np.zeros((N, 2), np.int8)], 1),
    }
    wide_logits, wide_value = forward(policy, wider)
    np.testing.assert_allclose(wide_logits[:, [*range(M), -1]], logits, rtol=1e-12)
    np.testing.assert_allclose(wide_value, value, rtol=1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_serving_computes_the_logits_of_training_bit_for_bit(dtype: Any) -> None:
    policy, obs = model(dtype), observations()
    f, c = obs["features"].astype(dtype), obs["context"].astype(dtype)
    mask = obs["action_mask"].astype(bool)
    logits, _, _ = network.forward(policy.parameters, f, c, mask)
    np.testing.assert_array_equal(
        network.logits(policy.parameters, f, c, mask), logits, strict=True
    )
    weights = {n: w for n, w in policy.parameters.items() if not n.startswith("value")}
    np.testing.assert_array_equal(network.logits(weights, f, c, mask), logits)


def test_the_untrained_policy_is_the_closed_form_less_cost_with_a_threshold() -> None:
    sharpness, threshold = 20.0, 0.05
    rng = np.random.default_rng(0)
    policy = SkillPolicy(
        rng, K, hidden=HIDDEN, sharpness=sharpness, threshold=threshold, dtype=np.float64
    )
    obs = observations()
    scaled = obs["features"]
    gain = (scaled[..., FEATURE["closed_form"]] - scaled[..., FEATURE["cost"]]) / 8
    gain = np.where(obs["action_mask"], gain, -np.inf)
    logits, value = forward(policy, obs)
    np.testing.assert_allclose(logits[:, :-1], sharpness * gain, rtol=1e-12)
    np.testing.assert_allclose(logits[:, -1], sharpness * threshold, rtol=1e-12)
    np.testing.assert_array_equal(value, 0)
    picks = subset.greedy(logits, K)
    for row in range(N):
        best = [slot for slot in np.argsort(-gain[row]) if gain[row, slot] > threshold][:K]
        assert picks[row][picks[row] >= 0].tolist() == best
    assert len(set((picks >= 0).sum(1))) > 2


# --- backward -------------------------------------------------------------------------------------


@pytest.mark.parametrize("clip_vloss", [False, True])
def test_the_gradient_of_every_weight_agrees_with_central_differences(clip_vloss: bool) -> None:
    policy = model()
    samples = batch(policy)
    config = PPOConfig(clip_vloss=clip_vloss, ent_coef=0.1)
    evaluation = policy.evaluate(samples.obs, samples.actions)
    ratio = np.exp(evaluation.log_prob - samples.log_probs)
    assert len(set(zip(ratio > 1.2, ratio < 0.8, samples.advantages > 0, strict=True))) == 6

    loss_and_grad(policy, samples, config)
    gradients = {name: g.copy() for name, g in policy.parameters.gradients.items()}
    assert set(gradients) == set(network.shapes(HIDDEN))
    step = 1e-5
    for name, gradient in gradients.items():
        weights = policy.parameters[name].reshape(-1)
        numeric = np.empty(weights.size)
        for i, weight in enumerate(weights.copy()):
            around = []
            for moved in (weight + step, weight - step):
                weights[i] = moved
                around.append(loss_and_grad(policy, samples, config).loss)
            weights[i] = weight
            numeric[i] = (around[0] - around[1]) / (2 * step)
        exact = gradient.reshape(-1)
        error = np.abs(exact - numeric) / np.maximum(np.abs(exact), 1e-3)
        assert (exact != 0).all(), name
        assert error.max() < 1e-6, name


# --- one whole update, against autograd -----------------------------------------------------------


class TorchTwin:
    """The network, Plackett-Luce with STOP, the loss and Adam, written anew with autograd."""

    def __init__(self, policy: SkillPolicy, config: PPOConfig) -> None:
        self.config = config
        self.w = {
            name: torch.tensor(view, dtype=torch.float64, requires_grad=True)
            for name, view in policy.parameters.items()
        }
        self.optimizer = torch.optim.Adam(
            list(self.w.values()), lr=config.learning_rate, eps=config.adam_eps
        )

    def forward(self, obs: dict[str, NDArray[Any]]) -> tuple[torch.Tensor, torch.Tensor]:
        w = self.w
        f, c = (torch.tensor(obs[n], dtype=torch.float64) for n in ("features", "context"))
        mask = torch.tensor(obs["action_mask"]).bool()
        hidden = torch.tanh(
            torch.einsum("nmf,fh->nmh", f, w["score_features"])
            + (c @ w["score_context"])[:, None]
            + w["score_bias"]
        )
        scores = f @ w["score_linear"] + hidden @ w["score_out"]
        rows = []
        for row in range(len(f)):
            free = f[row][mask[row]]
            some = len(free) > 0
            empty = torch.zeros(f.shape[2], dtype=torch.float64)
            largest, mean = (free.amax(0), free.mean(0)) if some else (empty, empty)
            rows.append(torch.cat([c[row], largest, mean]))
        z = torch.stack(rows)
        stop = (
            z @ w["stop_linear"]
            + torch.tanh(z @ w["stop_hidden"] + w["stop_bias"]) @ w["stop_out"]
            + w["stop_level"]
        )
        value = (
            torch.tanh(z @ w["value_hidden"] + w["value_bias"]) @ w["value_out"] + w["value_level"]
        )
        scores = scores.masked_fill(~mask, -torch.inf)
        return torch.cat([scores, stop[:, None]], 1), value

    def evaluate(self, logits: torch.Tensor, picks: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy, decision by decision and step by step."""
        log_probs, entropies = [], []
        for row, chosen in zip(logits, picks, strict=True):
            left = [i for i in range(len(row)) if torch.isfinite(row[i])]
            log_prob = entropy = torch.zeros((), dtype=torch.float64)
            for pick in chosen:
                p = torch.log_softmax(row[left], 0)
                at = len(row) - 1 if pick < 0 else int(pick)
                log_prob = log_prob + p[left.index(at)]
                entropy = entropy - (p.exp() * p).sum()
                if pick < 0:
                    break
                left.remove(at)
            log_probs.append(log_prob)
            entropies.append(entropy)
        return torch.stack(log_probs), torch.stack(entropies)

    def step(self, samples: Batch) -> None:
        config = self.config
        old_log_prob, old_value, advantage, target = (
            torch.tensor(column, dtype=torch.float64)
            for column in (samples.log_probs, samples.values, samples.advantages, samples.returns)
        )
        logits, value = self.forward(dict(samples.obs))
        log_prob, entropy = self.evaluate(logits, samples.actions)
        ratio = (log_prob - old_log_prob).exp()
        advantage = (advantage - advantage.mean()) / (advantage.std(unbiased=False) + 1e-8)
        low, high = 1 - config.clip_coef, 1 + config.clip_coef
        pg_loss = torch.max(-advantage * ratio, -advantage * ratio.clamp(low, high)).mean()
        clipped = old_value + (value - old_value).clamp(-config.clip_coef, config.clip_coef)
        v_loss = 0.5 * torch.max((value - target) ** 2, (clipped - target) ** 2).mean()
        loss = pg_loss - config.ent_coef * entropy.mean() + config.vf_coef * v_loss
        self.optimizer.zero_grad()
        torch.autograd.backward([loss])
        torch.nn.utils.clip_grad_norm_(list(self.w.values()), config.max_grad_norm)
        self.optimizer.step()

    def flat(self) -> NDArray[Any]:
        return np.concatenate([w.detach().numpy().ravel() for w in self.w.values()])


@pytest.mark.parametrize(("dtype", "tolerance"), [(np.float64, 1e-8), (np.float32, 1e-5)])
def test_one_update_agrees_with_torch(dtype: Any, tolerance: float) -> None:
    config = PPOConfig(learning_rate=1e-2, clip_vloss=True, ent_coef=0.02, max_grad_norm=0.5)
    policy = model(dtype)
    samples = batch(policy)
    twin = TorchTwin(policy, config)
    optimizer = Adam(policy.parameters, config.learning_rate, eps=config.adam_eps)
    start = policy.parameters.flat.copy()
    order = np.random.default_rng(2)
    norms = []
    for _ in range(3):
        for rows in np.split(order.permutation(N), 2):
            loss_and_grad(policy, samples.take(rows), config)
            norms.append(clip_grad_norm(policy.parameters.grad, config.max_grad_norm))
            optimizer.step()
            twin.step(samples.take(rows))

    assert max(norms) > config.max_grad_norm
    end = policy.parameters.flat
    assert end.dtype == dtype
    difference = (
        np.abs(end - twin.flat()) if dtype == np.float64 else np.linalg.norm(end - twin.flat())
    )
    scale = 1.0 if dtype == np.float64 else np.linalg.norm(end - start)
    assert np.max(difference) < tolerance * scale


def test_columns_that_the_network_does_not_get_change_nothing() -> None:
    policy = SkillPolicy(np.random.default_rng(0), 2, hidden=5, without=("dense", "cost"))
    rng = np.random.default_rng(1)
    obs: dict[str, NDArray[Any]] = {
        "features": rng.standard_normal((7, 4, len(FEATURES))).astype(np.float32),
        "context": rng.standard_normal((7, len(CONTEXT))).astype(np.float32),
        "action_mask": np.ones((7, 4), np.int8),
    }
    other = obs | {"features": obs["features"].copy()}
    for name in ("dense", "cost"):
        other["features"][..., FEATURE[name]] += 5
    picks = policy.act(obs, rng).action
    evaluation = policy.evaluate(obs, picks)
    ones = np.ones(7, np.float32)
    policy.backward(evaluation, ones, ones, ones)
    gone = [FEATURE["dense"], FEATURE["cost"]]
    assert all(not rows.any() for rows in network.rows_of(policy.parameters.gradients, gone))
    read = np.flatnonzero(policy.parameters.gradients["score_linear"]).tolist()
    assert read == [at for at in range(len(FEATURES)) if at not in gone]
    optimizer = Adam(policy.parameters, 0.1)
    optimizer.step()
    a, b = (policy.evaluate(seen, picks) for seen in (obs, other))
    np.testing.assert_array_equal(a.log_prob, b.log_prob)
    np.testing.assert_array_equal(a.value, b.value)
