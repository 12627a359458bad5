"""The bilinear term: right gradients, nothing at the start, the same in training and serving."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from agents.baselines import Learned
from agents.config import RunConfig
from agents.training import Run
from letta_gym.config import resolve
from letta_gym.envs.glue import Driver
from letta_gym.errors import PolicyFileError
from letta_gym.feedback.evidence import EvidenceConfig
from letta_gym.library.suite import Suite, bundled_suite
from letta_gym.selection import bilinear, network, subset
from letta_gym.selection.candidates import RetrievalConfig
from letta_gym.selection.policy import Policy
from letta_gym.selection.policy_file import PolicyFile
from letta_gym.selection.runtime import SkillSelector
from letta_gym.selection.shelf import Shelf

Floats = NDArray[np.float64]
B, M, D, R = 5, 4, 6, 3


def case(seed: int = 0) -> tuple[dict[str, Floats], Floats, bilinear.Vectors]:
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(size=shape) for name, shape in bilinear.shapes(R, D).items()}
    logits = rng.normal(size=(B, M + 1))
    logits[1, 2] = -np.inf
    return weights, logits, (rng.normal(size=(B, D)), rng.normal(size=(B, M, D)))


def test_the_term_is_the_product_of_the_projections_and_leaves_stop_and_masked_slots() -> None:
    weights, logits, (x, s) = case()
    before = logits.copy()
    bilinear.add(weights, logits, (x, s))
    for b in range(B):
        assert logits[b, -1] == before[b, -1]
        for m in range(M):
            term = (x[b] @ weights[bilinear.TASK]) @ (s[b, m] @ weights[bilinear.SKILL])
            assert logits[b, m] == pytest.approx(before[b, m] + term, abs=1e-12)
    assert logits[1, 2] == -np.inf


def test_gradients_agree_with_central_differences() -> None:
    weights, logits, vectors = case()
    picks = subset.greedy(logits, 2)

    def value() -> float:
        moved = logits.copy()
        bilinear.add(weights, moved, vectors)
        return float(subset.log_prob(moved, picks).sum())

    moved = logits.copy()
    cache = bilinear.add(weights, moved, vectors)
    dlogits = subset.backward(subset.evaluate(moved, picks), np.ones(B), np.zeros(B))
    for name, gradient in bilinear.backward(cache, dlogits).items():
        for at in np.ndindex(gradient.shape):
            kept, step = weights[name][at], 1e-5
            weights[name][at] = kept + step
            above = value()
            weights[name][at] = kept - step
            below = value()
            weights[name][at] = kept
            assert (above - below) / (2 * step) == pytest.approx(gradient[at], rel=1e-6, abs=1e-8)


def test_an_untrained_term_adds_nothing_and_rank_zero_has_no_weights() -> None:
    _, logits, vectors = case()
    weights = bilinear.initial(np.random.default_rng(1), R, D)
    before = logits.copy()
    bilinear.add(weights, logits, vectors)
    np.testing.assert_array_equal(logits, before)
    assert bilinear.rank(weights) == R
    assert bilinear.initial(np.random.default_rng(1), 0, D) == {}
    assert bilinear.rank({}) == 0


def test_a_policy_with_the_term_trains_is_exported_and_serves_as_it_was_trained(
    tmp_path: Path,
) -> None:
    ppo = {"num_envs": 8, "num_steps": 8, "num_minibatches": 1, "learning_rate": 0.05}
    config = resolve(
        RunConfig,
        {
            "env": {"horizon": 8, "history": [10, 20], "token_budget": 1e9},
            "policy": {"hidden": 4, "bilinear": 2},
            "train": {"steps": 512, "evaluate": False, "ppo": ppo},
        },
    )
    run = Run(config, tmp_path)
    run.train()
    run.finish(0.0, None)
    # Without its opening, whose STOP depends on the best score.
    policy = replace(Policy.load(tmp_path / "policy.safetensors"), opening=None)
    assert bilinear.rank(policy.weights) == 2
    assert np.abs(policy.weights[bilinear.SKILL]).max() > 0

    driver = Driver(config.environment(split="test"), 1)
    driver.sessions.reset(np.zeros(1, np.int64), [np.random.default_rng(3)])
    obs = driver.observe()
    choice = Learned(policy.weights).act(obs, driver)
    without = {k: v for k, v in policy.weights.items() if not k.startswith("bilinear")}
    assert not np.array_equal(choice.ranking, Learned(without).act(obs, driver).ranking)

    pool = driver.pool
    selector = SkillSelector(policy, shelf_of(policy, pool.suite))
    task = int(driver.sessions.task[0])
    vector = pool.task_vectors[task]
    chosen = selector.select(pool.suite.tasks[task].text, embedding=vector)
    scores = {c.skill: c.score for c in chosen.explain().candidates}
    plain = SkillSelector(replace(policy, weights=without), shelf_of(policy, pool.suite))
    unmoved = plain.select(pool.suite.tasks[task].text, embedding=vector).explain()
    x = vector @ policy.weights[bilinear.TASK]
    for candidate in unmoved.candidates:
        skill = pool.skill_vectors[pool.ids.index(candidate.skill)]
        term = float(x @ (skill @ policy.weights[bilinear.SKILL]))
        assert scores[candidate.skill] == pytest.approx(candidate.score + term, abs=1e-4)


def shelf_of(policy: Policy, suite: Suite) -> Shelf:
    assert suite.vectors is not None
    return Shelf(suite.library, policy, suite.vectors.skills)


def test_a_file_whose_rank_does_not_fit_its_tensors_is_refused() -> None:
    vectors = bundled_suite().vectors
    assert vectors is not None
    rng = np.random.default_rng(0)
    weights = network.initial(rng, 4, 30.0, 0.0) | bilinear.initial(rng, R, 384)
    policy = Policy(
        weights={name: w.astype(np.float32) for name, w in weights.items()},
        evidence=EvidenceConfig(),
        retrieval=RetrievalConfig(),
        token_price=4e-5,
        max_skills=3,
        slots=12,
        embedder=vectors.identity,
        probes=vectors.probes,
    )
    file = policy.to_file()
    assert bilinear.rank(Policy.from_file(file).weights) == R
    dimensions = file.header.dimensions | {"bilinear": R + 1}
    other = file.header.model_copy(update={"dimensions": dimensions})
    with pytest.raises(PolicyFileError, match="shapes"):
        Policy.from_file(PolicyFile(other, file.tensors, file.probes))
