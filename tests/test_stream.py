"""Training on a stream, trials over draws of new skills, and both as a run."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import evaluate
import train
from agents import baselines, trial
from agents.actor_critic import Observation
from agents.baselines import Choice, Learned, Scene, Threshold
from agents.best_weights import best_of, earned, parts
from agents.kinds import read_run
from agents.opponents import Sampled
from agents.replay_config import ReplayRunConfig
from agents.stop_level import with_stop_level
from agents.stream import StreamTrainer
from agents.stream_run import StreamRun
from agents.suite_comparison import compare_on_suite, deployment, played
from letta_gym.errors import ConfigError
from letta_gym.selection import network
from letta_gym.selection.observation import FEATURE
from letta_gym.selection.policy import Policy
from tests.small_suite import make_suite, write_suite

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs/replay.yaml"
METRICS = {
    *("hit_at_1", "recall_at_2", "recall_at_5", "success", "utility", "skills_per_task"),
    *("tokens", "none_recall", "none_precision", "regret"),
}
SMALL = [
    *("train.slots=0", "train.ppo.num_envs=32", "train.rehearsal.batch=16", "policy.hidden=4"),
    *("evaluate.splits=2", "evaluate.levels=[3, 8]", "evaluate.batch=10", "train.curve_points=3"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    suite = make_suite(700, shift=1.6, noise=0.8, pair_share=0.1)
    return str(write_suite(tmp_path_factory.mktemp("stream") / "small", suite))


def config(folder: str, *changes: str) -> ReplayRunConfig:
    made = read_run(CONFIG, [f"suite.path={folder}", *SMALL, *changes])
    assert isinstance(made, ReplayRunConfig)
    return made


def bits(trainer: StreamTrainer) -> bytes:
    """All that the next update would depend on."""
    ppo, s = trainer.ppo, trainer.driver.sessions
    assert ppo.ema is not None
    arrays: list[NDArray[Any]] = [ppo.model.parameters.flat, ppo.ema.parameters.flat]
    arrays += [
        ppo.optimizer.m,
        ppo.optimizer.v,
        *s.journal(),
        s.memory.entries().vectors,
        s.memory.entries().note,
        s.task,
    ]
    arrays += [ppo.obs["features"]]
    generators = [trainer.rng.bit_generator.state, s.rng.bit_generator.state]
    return b"".join(a.tobytes() for a in arrays) + json.dumps(generators, default=str).encode()


# --- training -------------------------------------------------------------------------------------


def test_one_pass_asks_every_train_task_of_the_skills_that_exist_at_most_once(folder: str) -> None:
    trainer = StreamTrainer(config(folder), 0)
    trainer.train()
    tasks, skills, _ = trainer.driver.sessions.journal()
    s = trainer.driver.sessions
    assert len(tasks) == len(set(tasks.tolist())) == trainer.steps == trainer.ppo.global_step
    assert len(s.stream) - 32 < trainer.steps <= len(s.stream)
    assert not s.new_skills[skills[skills >= 0]].any()
    assert len(s.memory) == trainer.steps
    assert trainer.rehearsing is not None
    assert trainer.rehearsing.num_updates > trainer.ppo.num_updates / 2


def test_training_is_better_than_the_weights_it_began_with(folder: str) -> None:
    """From a poor start, so that there is something to learn."""
    poor = config(folder, "policy.sharpness=4", "train.passes=4", "train.ppo.learning_rate=0.01")
    trainer = StreamTrainer(poor, 0)
    untrained = Learned({k: w.copy() for k, w in trainer.ppo.parameters.as_dict().items()})
    trainer.train()
    driver = deployment(poor, 0)
    driver.sessions.set_state(trainer.driver.sessions.get_state())
    tasks = driver.sessions.tasks("test", new=False)
    learned = Learned(trainer.ppo.parameters.as_dict())
    before, after = (trial.metrics(trial.look(a, driver, tasks)) for a in (untrained, learned))
    assert after["utility"] > before["utility"] + 0.02


def test_rehearsal_learns_the_same_weights_with_the_same_optimiser(folder: str) -> None:
    trainer = StreamTrainer(config(folder), 0)
    while trainer.rehearsing is None:
        trainer.learn()
    assert trainer.rehearsing.model is trainer.model
    assert trainer.rehearsing.optimizer is trainer.ppo.optimizer
    assert trainer.rehearsing.ema is trainer.ppo.ema
    steps, weights = trainer.ppo.optimizer.steps, trainer.model.parameters.flat.copy()
    shown = trainer.learn()
    assert trainer.ppo.optimizer.steps > steps + trainer.config.train.ppo.update_epochs
    assert (trainer.model.parameters.flat != weights).any()
    assert {"rehearsal/reward", "rehearsal/entropy", "losses/entropy"} <= set(shown)


def test_without_rehearsal_there_is_none(folder: str) -> None:
    trainer = StreamTrainer(config(folder, "train.rehearsal.every=0"), 0)
    trainer.train()
    assert trainer.rehearsing is None


def test_a_pass_that_is_less_than_a_rollout_is_refused(folder: str) -> None:
    with pytest.raises(ConfigError, match="less than one rollout of 1024"):
        StreamTrainer(config(folder, "train.ppo.num_envs=1024"), 0)


@pytest.mark.parametrize("updates", [1, 6])
def test_a_trainer_that_was_stopped_goes_on_with_the_same_bits(folder: str, updates: int) -> None:
    whole, part, rest = (StreamTrainer(config(folder), 0) for _ in range(3))
    whole.train()
    for _ in range(updates):
        part.learn()
    rest.restore(part.state())
    rest.train()
    assert bits(rest) == bits(whole)


def test_the_level_of_stop_earns_most_on_the_validation_tasks(folder: str) -> None:
    trainer = StreamTrainer(config(folder, "policy.threshold=-3"), 0)
    trainer.train()
    raw = trainer.ppo.parameters.as_dict()
    tasks = trainer.driver.sessions.tasks("validation", new=False)

    def earned(shift: float) -> float:
        weights = {**raw, "stop_level": raw["stop_level"] + np.float32(shift)}
        return trial.metrics(trial.look(Learned(weights), trainer.copied(), tasks))["utility"]

    levelled = with_stop_level(raw, trainer.copied())
    chosen = float(levelled["stop_level"][0] - raw["stop_level"][0])
    assert earned(chosen) > earned(0)
    assert earned(chosen) >= max(earned(chosen + by) for by in (-200, -20, -3, 3, 20, 200)) - 1e-9
    assert levelled["score_linear"] is not trainer.model.parameters["score_linear"]


def test_without_a_task_that_needs_nothing_the_level_of_stop_stays(tmp_path: Path) -> None:
    path = str(write_suite(tmp_path, make_suite(200, none_share=0.0)))
    trainer = StreamTrainer(config(path), 0)
    raw = trainer.ppo.parameters.as_dict()
    assert with_stop_level(raw, trainer.copied())["stop_level"] == raw["stop_level"]


def test_training_that_did_harm_is_not_used(folder: str) -> None:
    trainer = StreamTrainer(config(folder), 0)
    trainer.train()
    assert trainer.ppo.ema is not None
    linear = trainer.ppo.ema.parameters["score_linear"]
    linear[:] = -linear
    weights, improved = trainer.chosen()
    assert not improved
    np.testing.assert_array_equal(weights["score_linear"], trainer.untrained["score_linear"])
    trainer.untrained, worse = trainer.ppo.parameters.as_dict(), trainer.untrained
    linear[:] = worse["score_linear"]
    assert trainer.chosen()[1]


def test_weights_that_forget_new_skills_are_not_the_best(folder: str) -> None:
    """What shuns skills without outcomes is as good on known skills, and useless on hidden ones."""
    trainer = StreamTrainer(config(folder), 0)
    trainer.train()
    shy = {name: weight.copy() for name, weight in trainer.untrained.items()}
    shy["score_linear"][FEATURE["certainty"]] = 50.0
    driver, rng = trainer.copied(), np.random.default_rng(0)
    entries, part = driver.sessions.memory.entries(), parts(driver, rng)
    assert set(part.tolist()) == set(range(5))
    nothing = np.zeros(0, np.int64)
    lost = [earned(w, driver, part) - earned(w, driver, nothing) for w in (trainer.untrained, shy)]
    assert lost[0] > lost[1] + 0.2
    assert best_of([shy, trainer.untrained], driver, rng) == 1
    np.testing.assert_array_equal(entries.note, driver.sessions.memory.entries().note)


def test_while_it_explores_a_skill_without_outcomes_looks_better(folder: str) -> None:
    trainer = StreamTrainer(config(folder), 0)
    driver = trainer.copied()
    agent = Sampled(trainer.untrained, np.random.default_rng(0), optimism=0.5)
    keys = driver.pool.keys[1:]
    for _ in range(8):
        driver.sessions.memory.add(keys[0], driver.pool.task_vectors[0], 1.0)
    driver.observe()
    bonus = agent._bonus(driver)
    slots = driver.slot_skills()
    per_gain = 8 * float(trainer.untrained["score_linear"][FEATURE["closed_form"]])
    np.testing.assert_allclose(bonus[slots == 0], 0.5 * per_gain / 3, rtol=1e-6)
    np.testing.assert_allclose(bonus[slots != 0], 0.5 * per_gain, rtol=1e-6)
    assert driver.sessions.memory.tried(keys)[:2].tolist() == [8, 0]


# --- trials ---------------------------------------------------------------------------------------


class Noting(Threshold):
    """A baseline that notes what it is asked and told."""

    def __init__(self) -> None:
        super().__init__("noting", "evidence", baselines.evidence, -math.inf, 1)
        self.asked: list[NDArray[np.int64]] = []
        self.told: list[NDArray[np.int64]] = []

    def act(self, obs: Observation, driver: Scene) -> Choice:
        self.asked.append(driver.sessions.task)  # type: ignore[attr-defined]
        return super().act(obs, driver)

    def observe(self, obs: Observation, step: Any, driver: Scene) -> None:
        self.told.append(driver.sessions.done)  # type: ignore[attr-defined]


def test_a_trial_teaches_each_new_skill_the_tasks_that_it_says_and_never_a_test_task(
    folder: str,
) -> None:
    c, agent = config(folder), Noting()
    driver = played(agent, c, 1)
    s = driver.sessions
    streamed = np.concatenate(agent.told)
    assert set(s.split[streamed]) == {"train"}
    assert not s.labels.relevant[streamed][:, s.new_skills].any()
    agent.told.clear()
    known = len(s.memory)
    found = trial.trial(agent, driver, c)
    taught = np.concatenate(agent.told)
    assert set(s.split[taught]) == {"train"}
    assert len(set(taught.tolist())) == len(taught)
    counts = s.labels.relevant[taught][:, s.new_skills].sum(0)
    assert s.new_skills.sum() == 2
    assert (counts >= 8).all()
    assert len(taught) <= 2 * 8
    assert len(s.memory) == known + len(taught)
    groups = {"seen", "new@0", "new@3", "new@8"}
    assert set(found) == METRICS | {f"{m}/{g}" for m in METRICS for g in groups}


def test_metrics_are_what_they_are_defined_as() -> None:
    rows = {
        "needed": np.array([True, True, False, False]),
        "hit": np.array([True, False, False, False]),
        "top": np.array([[1, 1, 1], [0, 0.5, 1], [0, 0, 0], [0, 0, 0]]),
        "success": np.array([1.0, 0.0, 1.0, 0.0]),
        "utility": np.array([0.9, -0.1, 1.0, -0.2]),
        "tokens": np.array([10, 10, 0, 20]),
        "skills": np.array([1, 0, 0, 2]),
        "regret": np.array([0.0, 1.0, 0.0, 1.2]),
    }
    found = trial.metrics(rows)
    expected = {
        "hit_at_1": 0.5,
        "recall_at_2": 0.75,
        "recall_at_5": 1.0,
        "success": 0.5,
        "utility": 0.4,
        "skills_per_task": 0.75,
        "tokens": 10.0,
        "none_recall": 0.5,
        "none_precision": 0.5,
        "regret": 0.55,
    }
    assert found == pytest.approx(expected)


def test_a_tuned_level_earns_most_on_the_validation_tasks(folder: str) -> None:
    c = config(folder)
    agent = Threshold("cosine", "retrieval", baselines.cosine, 0, 1)
    driver = played(agent, c, 0)
    tasks = driver.sessions.tasks("validation", new=False)
    trial.tune(agent, driver)

    def earned(level: float) -> float:
        other = Threshold("cosine", "retrieval", baselines.cosine, level, 1)
        return trial.metrics(trial.look(other, driver, tasks))["utility"]

    best = earned(agent.level)
    assert best > earned(math.inf)
    assert best >= max(earned(level) for level in (-math.inf, 0.2, 0.4, 0.6, 0.8))


def test_looking_teaches_nothing(folder: str) -> None:
    c = config(folder)
    agent = Threshold("evidence", "evidence", baselines.evidence, -math.inf, 1)
    driver = played(agent, c, 0)
    before = driver.sessions.memory.entries()
    first = trial.look(agent, driver, driver.sessions.tasks("test"))
    again = trial.look(agent, driver, driver.sessions.tasks("test"))
    np.testing.assert_array_equal(before.note, driver.sessions.memory.entries().note)
    for name in first:
        np.testing.assert_array_equal(first[name], again[name])


def test_the_train_split_is_no_split_to_evaluate_on(folder: str) -> None:
    with pytest.raises(ConfigError, match="the train split is for training"):
        compare_on_suite(config(folder), split="train")


# --- runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(folder: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that was trained and evaluated by the documented command."""
    path = tmp_path_factory.mktemp("stream") / "run"
    changes = [f"--set={change}" for change in (f"suite.path={folder}", *SMALL)]
    assert train.main([f"--config={CONFIG}", f"--run-dir={path}", *changes]) == 0
    return path


def test_a_run_keeps_its_comparison_in_the_common_form(run: Path) -> None:
    evaluation = json.loads((run / "summary.json").read_text("utf-8"))["evaluation"]
    assert {"suite", "split", "episodes", "agents"} <= set(evaluation)
    opponents = {"none", "random", "cosine", "lexical", "hybrid", "evidence", "linucb", "knn"}
    assert set(evaluation["agents"]) == opponents | {"labelled_knn", "learned"}
    for found in evaluation["agents"].values():
        assert set(found["hit_at_1/new@8"]) == {"mean", "low", "high"}
        assert 0 <= found["success"]["mean"] <= 1
    agents = evaluation["agents"]
    assert agents["none"]["none_recall"]["mean"] == 1
    assert agents["learned"]["trained"]["mean"] in {0, 0.5, 1}
    assert agents["none"]["utility"]["mean"] < agents["learned"]["utility"]["mean"]


def test_a_run_writes_its_learning_curve(run: Path) -> None:
    events = EventAccumulator(str(run)).Reload()
    points = events.Scalars("validation/hit_at_1")
    assert len(points) == 3
    assert points[-1].step == json.loads((run / "summary.json").read_text("utf-8"))["steps"]
    assert "validation/curve" in events.Tags()["images"]


def test_a_policy_is_evaluated_without_training_it(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "figures.json"
    policy = run / "policy.safetensors"
    config = run / "config.yaml"
    arguments = [f"--config={config}", f"--policy={policy}", f"--json={out}"]
    assert evaluate.main(arguments) == 0
    assert "learned" in capsys.readouterr().out
    figures = json.loads(out.read_text("utf-8"))
    assert figures["agents"]["learned"]["hit_at_1/seen"]["mean"] > 0.5
    loaded = Policy.load(policy)
    assert (loaded.max_skills, loaded.slots) == (1, 12)


def test_a_policy_of_other_constants_is_refused(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, changed = run / "policy.safetensors", "evidence.bandwidth=0.3"
    arguments = [f"--config={run / 'config.yaml'}", f"--policy={policy}", f"--set={changed}"]
    assert evaluate.main(arguments) == 2
    assert "evidence.bandwidth: the policy has 0.08" in capsys.readouterr().err


def test_a_run_that_was_stopped_is_resumed(folder: str, tmp_path: Path) -> None:
    c = config(folder, "train.evaluate=false")
    whole = StreamRun(c, tmp_path / "whole")
    whole.train()
    part = StreamRun(c, tmp_path / "part")
    for _ in range(4):
        part.learn()
    part.save_checkpoint()
    rest = StreamRun(c, tmp_path / "part", resume=True)
    assert rest.ppo.global_step == 128
    rest.train()
    assert bits(rest.trainer) == bits(whole.trainer)
    assert rest.policy().weights.keys() == network.shapes(4).keys()


def test_both_kinds_of_configuration_are_read_by_their_kind(tmp_path: Path) -> None:
    assert read_run(ROOT / "configs/mock.yaml", []).kind == "mock"
    assert read_run(CONFIG, []).kind == "replay"
    with pytest.raises(ConfigError, match="did you mean 'linucb_alpha'"):
        read_run(CONFIG, ["evaluate.linucb_alfa=1"])
