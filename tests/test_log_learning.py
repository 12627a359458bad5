"""Learning from a log: gradients of sets are right, rewards join, and the policy gets better."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import evaluate
import train
from agents.adam import Floats
from agents.log_config import LogLearningConfig
from agents.log_learning import read_samples, reward_of
from agents.set_learning import batches_of
from agents.set_policy import SetPolicy, all_orders
from letta_gym.feedback.outcome import Outcome
from letta_gym.selection import network, subset
from letta_gym.selection.exploration import ExplorationConfig, Explorer
from letta_gym.selection.observation import CONTEXT, FEATURES
from letta_gym.selection.policy import Policy
from letta_gym.selection.runtime import SkillSelector
from letta_gym.store.log import StoreLog
from letta_gym.store.store import Store
from tests.stores import Clock, decision
from tests.test_runtime import EMBEDDER, library, policy

CONFIG = Path(__file__).parent.parent / "configs" / "from-log.yaml"
SETS = np.array([[2, 0, 3], [1, 3, -1], [2, -1, -1], [-1, -1, -1]])


def observed(batch: int, slots: int, seed: int = 0) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    mask = np.ones((batch, slots), bool)
    mask[:, -1] = False
    return {
        "features": rng.standard_normal((batch, slots, len(FEATURES))),
        "context": rng.standard_normal((batch, len(CONTEXT))),
        "action_mask": mask,
    }


def model(hidden: int = 4) -> SetPolicy:
    rng = np.random.default_rng(3)
    weights = network.initial(rng, hidden, 1.0, 0.1)
    moved = {n: w + 0.3 * rng.standard_normal(w.shape) for n, w in weights.items()}
    return SetPolicy(moved, 3, np.float64)


# --- sets -----------------------------------------------------------------------------------------


def test_all_orders_of_a_set_are_its_permutations() -> None:
    orders, real = all_orders(SETS)
    for row, each, which in zip(SETS, orders, real, strict=True):
        members = [slot for slot in row.tolist() if slot >= 0]
        expected = {(*p, *[-1] * (3 - len(members))) for p in itertools.permutations(members)}
        found = [tuple(order) for order in each[which].tolist()]
        assert set(found) == expected
        assert len(found) == len(expected)


def test_the_log_probability_is_that_of_the_set() -> None:
    made, obs = model(), observed(4, 5)
    found = made.evaluate(obs, SETS)
    logits = network.logits(made.parameters, obs["features"], obs["context"], obs["action_mask"])

    np.testing.assert_allclose(found.log_prob, subset.set_log_prob(logits, SETS), rtol=1e-10)


def test_the_gradient_is_that_of_the_set() -> None:
    made, obs = model(), observed(4, 5)
    rng = np.random.default_rng(0)
    up, dvalue = rng.standard_normal((2, 4))
    made.backward(made.evaluate(obs, SETS), up, np.zeros(4), dvalue)
    gradient = made.parameters.grad.copy()
    flat: Floats = made.parameters.flat

    def loss() -> float:
        found = made.evaluate(obs, SETS)
        return float(up @ found.log_prob + dvalue @ found.value)

    for at in rng.choice(len(flat), 60, replace=False):
        old = flat[at]
        flat[at] = old + 1e-6
        above = loss()
        flat[at] = old - 1e-6
        below = loss()
        flat[at] = old
        assert gradient[at] == pytest.approx((above - below) / 2e-6, rel=1e-4, abs=1e-7)


# --- what is learned from -------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with Store(tmp_path / "store.sqlite", Clock()) as opened:
        yield opened


@pytest.fixture
def log(store: Store) -> StoreLog:
    return store.log(store.agents.ensure("ada"))


@pytest.mark.parametrize(
    ("outcome", "feedback", "expected"),
    [
        (Outcome(0.5), [], 0.5),
        (Outcome(0.5, reward_parts={"success": 0.5, "tokens": -0.1}), [], 0.4),
        (Outcome(0.5), [1.0], 0.75 * 0.5 + 0.25 * 1.0),
        (Outcome(0.5), [1.0, 0.0], 0.5),
        (Outcome(None, evidence=False), [1.0], 1.0),
        (Outcome(None, evidence=False), [], None),
        (Outcome(None, evidence=False, error="away"), [1.0], None),
        (None, [0.25], 0.25),
        (None, [], None),
    ],
)
def test_delayed_rewards_join_and_failures_are_left_out(
    store: Store, log: StoreLog, outcome: Outcome | None, feedback: list[float], expected: float
) -> None:
    log.decided(decision(1))
    if outcome is not None:
        log.recorded("decision-1", outcome)
    for number, value in enumerate(feedback):
        log.feedback("decision-1", f"key-{number}", "human", value)
    (logged,) = store.history().decisions()

    found = reward_of(logged, 0.25)
    assert found == (None if expected is None else pytest.approx(expected))


def test_only_explored_decisions_that_were_carried_out_count(store: Store, log: StoreLog) -> None:
    shadow = store.log(log.agent, mode="shadow")
    log.decided(decision(1))
    log.decided(replace(decision(2), explored=False))
    shadow.decided(decision(3))
    log.decided(decision(4, slots=()))
    for number in (1, 2, 3, 4):
        log.feedback(f"decision-{number}", "k", "human", 0.5)
    samples = read_samples(store.history().decisions(), LogLearningConfig(min_decisions=2))
    (batch,) = batches_of(samples)

    assert batch.actions.tolist() == [[1, 0, -1], [-1, -1, -1]]
    assert batch.log_probs.tolist() == [-0.5, -0.5]
    assert batch.obs["action_mask"].tolist() == [[True, True, False]] * 2


# --- a run ----------------------------------------------------------------------------------------


def explored(store: Store, file: Path, n: int) -> SkillSelector:
    """Let a selector explore; the skill of the task helps, every other one does harm."""
    log = store.log(store.agents.ensure("ada"))
    explorer = Explorer(ExplorationConfig(epsilon=0.3, daily_budget=10**9))
    runtime = SkillSelector.load(
        file,
        library(),
        embedder=EMBEDDER,
        rng=np.random.default_rng(0),
        log=log,
        explorer=explorer,
    )
    for _ in range(n):
        choice = runtime.select("draw a map", k=2, explore=True)
        chosen = [one.id for one in choice.skills]
        success = 0.4 + 0.5 * ("skill-3" in chosen) - 0.15 * len(chosen)
        log.recorded(choice.decision_id, Outcome(success))
    return runtime


def chance(made: Policy, runtime: SkillSelector) -> float:
    """Probability with which a policy chooses just the skill that helps."""
    selector = SkillSelector(made, runtime.shelf, rng=np.random.default_rng(0))
    count = sum(
        [one.id for one in selector.select("draw a map", k=2, explore=True).skills] == ["skill-3"]
        for _ in range(200)
    )
    return count / 200


def test_a_policy_learns_from_the_log_what_its_reward_says(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = policy()
    loose = {name: w * np.float32(0.05) for name, w in start.weights.items()}
    file = tmp_path / "start.safetensors"
    replace(start, weights=loose).to_file().save(file)
    runtime = explored(store, file, 400)
    url = tmp_path / "store.sqlite"
    arguments = [
        f"--config={CONFIG}",
        f"--run-dir={tmp_path / 'run'}",
        f"--set=store={url}",
        f"--set=policy={file}",
        "--set=train.learning_rate=0.01",
        "--set=train.rounds=15",
    ]
    assert train.main(arguments) == 0
    assert "learned from 400 logged decisions" in capsys.readouterr().out
    learned = Policy.load(tmp_path / "run" / "policy.safetensors")

    before, after = chance(Policy.load(file), runtime), chance(learned, runtime)
    assert before < 0.3
    assert after > before + 0.3
    (run,) = store.runs.all()
    assert (run.status, run.policy_digest) == ("finished", learned.digest)
    curve = [value for _, value in store.runs.curve(run.id, "log/snips")]
    assert len(curve) == 15
    assert curve[-1] > curve[0]

    assert train.main(arguments) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert train.main([*arguments, "--resume"]) == 2
    assert evaluate.main([f"--config={CONFIG}"]) == 2
    assert "letta-gym policy compare" in capsys.readouterr().err


def test_a_short_log_is_refused_and_the_run_says_why(
    store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "start.safetensors"
    policy().to_file().save(file)
    code = train.main(
        [
            f"--config={CONFIG}",
            f"--run-dir={tmp_path / 'run'}",
            f"--set=store={tmp_path / 'store.sqlite'}",
            f"--set=policy={file}",
        ]
    )
    assert code == 2
    assert "holds 0 explored decisions" in capsys.readouterr().err
    (run,) = store.runs.all()
    assert run.status == "failed"
    assert "0 explored decisions" in (run.error or "")
    assert not (tmp_path / "run").exists()
