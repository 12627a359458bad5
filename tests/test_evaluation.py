"""The comparison: metrics by their definitions, fair opponents, honest intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

import evaluate
from agents import baselines, evaluation
from agents.actor_critic import Observation
from agents.baselines import Agent, Choice, Oracle, Scene, Threshold
from agents.config import RunConfig
from agents.evaluation import (
    TUNED,
    Comparison,
    Interval,
    begin,
    compare,
    earn,
    play,
    student_t,
    tune,
)
from letta_gym.config import dump
from letta_gym.envs.glue import Driver, Step
from letta_gym.errors import ConfigError, SuiteError
from letta_gym.library.suite import bundled_suite
from letta_gym.selection import network, subset
from letta_gym.selection.policy import Policy

METRICS = {
    *("return", "success", "utility", "tokens", "skills_per_task", "none_recall"),
    *("none_precision", "hit_at_1", "recall_at_5", "regret"),
}
GROUPED = {f"{m}/{g}" for m in ("utility", "success", "hit_at_1") for g in ("seen", "new", "pairs")}


def config(**changes: Any) -> RunConfig:
    """Small sessions on the test split; ``changes`` by section."""
    sections: dict[str, dict[str, Any]] = {
        "env": {"installed": 10, "candidates": 6, "horizon": 8, "history": [20, 90]},
        "mock": {"strong_share": 0.5, "mild_share": 0.2, "harmful_share": 0.2},
        "policy": {"hidden": 4},
        "evaluate": {"seeds": 2, "sessions": 12, "tune_sessions": 12},
    }
    for section, values in changes.items():
        sections[section] = sections.get(section, {}) | values
    return RunConfig.model_validate(sections)


def weights() -> dict[str, NDArray[Any]]:
    return network.initial(np.random.default_rng(0), 4, sharpness=30.0, threshold=0.0)


# --- intervals ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("freedom", "quantile"),
    [
        (1, 12.706205),
        (2, 4.302653),
        (3, 3.182446),
        (4, 2.776445),
        (5, 2.570582),
        (7, 2.364624),
        (9, 2.262157),
        (10, 2.228139),
        (30, 2.042272),
        (99, 1.984217),
        (120, 1.979930),
        (1000, 1.962339),
    ],
)
def test_quantiles_of_student_t_are_those_of_the_tables(freedom: int, quantile: float) -> None:
    assert student_t(freedom) == pytest.approx(quantile, abs=1e-6)


def test_the_interval_of_a_mean_is_that_of_student() -> None:
    interval = Interval.of([1.0, 2.0, 3.0, 4.0])
    half = 3.182446 * math.sqrt(5 / 3) / 2  # variance 5/3, four values
    assert interval.mean == 2.5
    assert interval.low == pytest.approx(2.5 - half, abs=1e-6)
    assert interval.high == pytest.approx(2.5 + half, abs=1e-6)


def test_the_interval_holds_the_mean_in_95_of_100_samples() -> None:
    samples = np.random.default_rng(0).normal(3, 2, (2000, 5))
    intervals = [Interval.of(row.tolist()) for row in samples]
    covered = np.mean([i.low <= 3 <= i.high for i in intervals])
    assert covered == pytest.approx(0.95, abs=0.015)


def test_an_interval_leaves_out_what_is_not_known() -> None:
    assert Interval.of([1.0, math.nan, 3.0]) == Interval.of([1.0, 3.0])
    alone = Interval.of([2.0, math.nan])
    assert alone.mean == 2
    assert math.isnan(alone.low)
    assert math.isnan(alone.high)
    assert math.isnan(Interval.of([math.nan]).mean)


# --- metrics --------------------------------------------------------------------------------------


class Scripted:
    """Loads a random set whether it makes sense or not, and remembers what it saw."""

    name, slots = "scripted", "retrieval"

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.log: list[tuple[Choice, Choice, dict[str, NDArray[Any]]]] = []
        self.driver: Driver | None = None

    def act(self, obs: Any, driver: Driver) -> Choice:
        draw = self.rng.random(obs["action_mask"].shape)
        levels = np.where(self.rng.random((len(draw), 3)) < 0.5, 0.7, np.inf)
        choice = baselines.cut(draw, np.sort(levels, 1), 3)
        state = {k: v.copy() for k, v in driver.sessions.arrays().items()}
        state |= {"task": driver.sessions.task.copy(), "mask": obs["action_mask"].copy()}
        self.log.append((choice, Oracle().act(obs, driver), state))
        self.driver = driver
        return choice


def value(driver: Driver, state: dict[str, NDArray[Any]], b: int, slots: list[int]) -> float:
    """Expected reward of a set, from the formula of the mock."""
    mock, task = driver.config.mock, state["task"][b]
    chance = mock.load_probability * mock.load_decay ** max(len(slots) - 1, 0)
    failing, harmless, cost = 1 - float(state["world.base"][b, task]), 1.0, 0.0
    for skill in state["skills"][b, state["slots"][b, slots]].tolist():
        if driver.pool.relevant[task, skill]:
            gain = state["world.gain"][b, skill] * state["world.per_task"][b, task]
            failing *= 1 - float(gain) * chance
            harmless *= 1 - float(state["world.harm"][b, skill]) * chance
        else:
            harmless *= 1 - float(state["world.mismatch"][b, skill]) * chance
        cost += driver.config.token_price / 1000 * chance * float(driver.pool.tokens[skill])
    return (1 - failing) * harmless - cost


def carried_out(
    driver: Driver, state: dict[str, NDArray[Any]], b: int, choice: Choice
) -> list[int]:
    """Slots of a choice that mask and budget allow, in slot order."""
    kept, left = [], float(state["tokens_left"][b])
    for slot in sorted(choice.picks[b][choice.picks[b] >= 0].tolist()):
        if state["mask"][b, slot]:
            left -= float(driver.pool.tokens[state["skills"][b, state["slots"][b, slot]]])
            kept += [slot] * (left >= 0)
    return kept


def tasks_of(agent: Scripted) -> Iterator[dict[str, float]]:
    """One row for each task served, computed one by one from what the agent saw."""
    driver = agent.driver
    assert driver is not None
    suite = bundled_suite()
    needs = {task.id: set(task.relevant) for task in suite.tasks}
    trained = set().union(*(needs[t.id] for t in suite.tasks if t.split == "train"))
    after = [state for _, _, state in agent.log[1:]]
    after.append(dict(driver.sessions.arrays()))
    over = np.zeros(driver.sessions.count, bool)
    for (choice, best, state), following in zip(agent.log, after, strict=True):
        for b in np.flatnonzero(~over).tolist():
            need = needs[suite.tasks[state["task"][b]].id]
            skills = state["skills"][b, state["slots"][b]]
            there = state["present"][b, state["slots"][b]]
            names = [
                driver.pool.ids[skill].removesuffix("~twin") if present else ""
                for skill, present in zip(skills, there, strict=True)
            ]
            ranked = [names[slot] for slot in choice.ranking[b]]
            slots = carried_out(driver, state, b, choice)
            ideal = best.picks[b][best.picks[b] >= 0].tolist()
            yield {
                "tokens": float(state["tokens_left"][b] - following["tokens_left"][b]),
                "skills": len(slots),
                "needed": len(need),
                "new": bool(need - trained),
                "empty": not slots,
                "ideal_empty": not ideal,
                "hit": ranked[0] in need,
                "recall": len(need & set(ranked[:5])) / max(len(need), 1),
                "regret": value(driver, state, b, ideal) - value(driver, state, b, slots),
            }
        over |= following["tokens_left"] < state["cheapest"]


@pytest.mark.parametrize("budget", [100_000, 4_000])
def test_metrics_are_those_of_a_count_by_hand(budget: int, monkeypatch: pytest.MonkeyPatch) -> None:
    sessions, horizon = 25, 8
    env = config(env={"token_budget": budget, "pair_share": 0.3}).environment(split="test")
    steps = []
    step = Driver.step

    def noted(self: Driver, action: NDArray[Any]) -> Any:
        steps.append(step(self, action))
        return steps[-1]

    monkeypatch.setattr(Driver, "step", noted)
    agent = Scripted(0)
    metrics = play(agent, env, 5, sessions)

    rows = list(tasks_of(agent))
    over, rewards, successes = np.zeros(sessions, bool), [], []
    for s in steps:
        rewards += s.reward[~over].tolist()
        successes += s.outcomes.success[~over].tolist()
        over |= s.terminated | s.truncated
    assert len(rows) == len(rewards)
    assert (len(rows) < sessions * horizon) == (budget < 10_000)
    column = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    needed, empty, new = column["needed"] > 0, column["empty"] == 1, column["new"] == 1
    pair = column["needed"] > 1
    reward, success = np.array(rewards), np.array(successes)
    price = env.token_price / 1000
    np.testing.assert_allclose(reward, success - price * column["tokens"], atol=1e-5)
    expected = {
        "return": reward.sum() / (sessions * horizon),
        "success": success.mean(),
        "utility": reward.mean(),
        "tokens": column["tokens"].mean(),
        "skills_per_task": column["skills"].mean(),
        "none_recall": empty[~needed].mean(),
        "none_precision": column["ideal_empty"][empty].mean(),
        "hit_at_1": column["hit"][needed].mean(),
        "recall_at_5": column["recall"][needed].mean(),
        "regret": column["regret"].mean(),
        "utility/seen": reward[needed & ~new].mean(),
        "utility/new": reward[new].mean(),
        "success/seen": success[needed & ~new].mean(),
        "success/new": success[new].mean(),
        "hit_at_1/seen": column["hit"][needed & ~new].mean(),
        "hit_at_1/new": column["hit"][new].mean(),
        "utility/pairs": reward[pair].mean(),
        "success/pairs": success[pair].mean(),
        "hit_at_1/pairs": column["hit"][pair].mean(),
    }
    assert metrics == pytest.approx(expected, abs=1e-5)
    assert 0 < new.sum() < needed.sum() < len(rows)
    assert metrics["regret"] > 0.01


def test_a_task_counts_as_new_if_any_of_its_skills_was_never_trained_on() -> None:
    suite = bundled_suite()
    trained = {s for t in suite.tasks if t.split == "train" for s in t.relevant}
    mixed = [
        i
        for i, task in enumerate(suite.tasks)
        if {s in trained for s in task.relevant} == {True, False}
    ]
    assert mixed
    driver = begin(Oracle(), config().environment(split="test"), 0, 2)
    driver.observe()
    ranking = np.arange(6) * np.ones((2, 1), np.int64)
    for task in mixed:
        driver.sessions.stream[:, 0] = task
        about = evaluation._about(driver, ranking)
        assert about["new"].all()
        assert about["needed"].all()


def test_what_does_not_occur_is_not_known() -> None:
    env = config(env={"none_share": 0.0, "pair_share": 0.0}).environment(split="train")
    metrics = play(baselines.NoSkills(), env, 1, 4)
    unknown = {name for name, number in metrics.items() if math.isnan(number)}
    groups = {f"{m}/{g}" for m in ("utility", "success", "hit_at_1") for g in ("new", "pairs")}
    assert unknown == {"none_recall", *groups}


def test_the_quick_return_is_that_of_the_metrics() -> None:
    env = config(env={"token_budget": 3000}).environment(split="test")
    for agent in (Threshold("x", "retrieval", baselines.hybrid, 0.3, 2), Oracle()):
        assert earn(agent, env, 3, 10) == pytest.approx(play(agent, env, 3, 10)["return"])


def test_every_agent_meets_the_same_worlds() -> None:
    env = config().environment(split="test")
    agents: list[Agent[Driver]] = [Threshold("x", "retrieval", baselines.cosine, 0.2, 1), Oracle()]
    one, other = (begin(agent, env, 7, 5) for agent in agents)
    for agent, driver in zip(agents, (one, other), strict=True):
        for _ in range(3):
            picks = agent.act(driver.observe(), driver).picks
            driver.step(subset.to_mask(picks, 6))
    a, b = one.sessions.arrays(), other.sessions.arrays()
    own = {"slots", "tokens_left", "outcomes"}
    for name in a:
        if not name.startswith("ledger.") and name not in own:
            np.testing.assert_array_equal(a[name], b[name], name)
    assert (a["tokens_left"] != b["tokens_left"]).any()
    again = begin(agents[0], env, 8, 5).sessions.arrays()
    assert (again["world.base"] != a["world.base"]).any()


class Curious(Threshold):
    """Loads what it likes, and notes what it is told."""

    def __init__(self) -> None:
        super().__init__("curious", "retrieval", baselines.hybrid, 0.2, 2)
        self.told: list[tuple[Observation, Step, NDArray[np.int64]]] = []

    def observe(self, obs: Observation, step: Step, driver: Scene) -> None:
        self.told.append((obs, step, driver.slot_skills()))


@pytest.mark.parametrize("how", [earn, play])
def test_an_agent_that_learns_is_told_what_each_step_led_to(how: Callable[..., Any]) -> None:
    env, agent = config().environment(split="test"), Curious()
    how(agent, env, 3, 10)
    assert len(agent.told) == env.horizon
    driver = begin(agent, env, 3, 10)
    for obs, step, skills in agent.told:
        expected = driver.observe()
        np.testing.assert_array_equal(expected["features"], obs["features"])
        np.testing.assert_array_equal(driver.slot_skills(), skills)
        picks = agent.act(expected, driver).picks
        again = driver.step(subset.to_mask(picks, 6))
        np.testing.assert_array_equal(again.picks, step.picks)
        np.testing.assert_array_equal(again.reward, step.reward)


# --- opponents ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(TUNED))
def test_a_tuned_baseline_earns_at_least_what_others_of_its_kind_earn(name: str) -> None:
    run = config()
    tuned = tune(name, run)
    assert isinstance(tuned, Threshold)
    assert (tuned.name, tuned.slots) == (name, TUNED[name][0])
    env, seed = run.environment(split="train"), run.evaluate.first_seed - 1

    def earned(level: float, k: int) -> float:
        other = Threshold(name, tuned.slots, tuned.score, level, k)
        return earn(other, env, seed, run.evaluate.tune_sessions)

    best = earned(tuned.level, tuned.k)
    for k in (1, 2, 3):
        assert best >= earned(tuned.level, k)
    everything, nothing = earned(-9.0, 3), earned(9.0, 3)
    assert best > everything
    assert best > nothing


def test_tuning_never_looks_at_the_split_of_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    splits = set()

    def noted(agent: Agent[Driver], env: Any, seed: int, sessions: int) -> float:
        splits.add((env.split, seed < config().evaluate.first_seed))
        return 0.0

    monkeypatch.setattr(evaluation, "earn", noted)
    tune("hybrid", config())
    assert splits == {("train", True)}


# --- the comparison -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def comparison() -> Comparison:
    return compare(config(), weights())


def test_nobody_expects_more_than_the_oracle(comparison: Comparison) -> None:
    names = ["none", "random", "cosine", "hybrid", "evidence", "learned", "informed", "oracle"]
    assert list(comparison.runs) == names
    for name, runs in comparison.runs.items():
        for metrics in runs:
            assert (metrics["regret"] == 0) == (name == "oracle")
            assert metrics["regret"] >= 0
    regret = {name: comparison.interval(name, "regret").mean for name in names}
    assert regret["random"] == max(regret.values())


def test_the_json_has_the_shape_of_the_contract(comparison: Comparison) -> None:
    text = json.dumps(comparison.to_json(), allow_nan=False)
    result = json.loads(text)
    assert {"suite", "split", "episodes", "agents"} <= set(result)
    assert (result["suite"], result["split"], result["episodes"]) == ("bundled", "test", 24)
    for metrics in result["agents"].values():
        assert set(metrics) == METRICS | GROUPED
        for interval in metrics.values():
            assert list(interval) == ["mean", "low", "high"]
            assert interval["mean"] is None or interval["low"] <= interval["mean"]
    assert result["gap_closed"]["oracle"] == 1
    assert result["gap_closed"][result["best_baseline"]] == 0


def made(**returns: list[float]) -> Comparison:
    """A comparison in which only the returns are known."""
    runs = {name: [{"return": value} for value in values] for name, values in returns.items()}
    return Comparison("x", "test", 2, runs)


def test_the_gap_is_that_between_the_best_baseline_without_evidence_and_the_oracle() -> None:
    result = made(
        none=[0.1, 0.3],
        cosine=[0.3, 0.3],
        hybrid=[0.2, 0.3],
        evidence=[0.5, 0.5],
        learned=[0.6, 0.5],
        oracle=[0.7, 0.7],
    )
    assert result.best_baseline() == "cosine"
    assert result.closed("evidence") == pytest.approx(0.5)
    assert result.closed("learned") == pytest.approx(0.625)
    assert result.closed("none") == pytest.approx(-0.25)
    lead = result.lead("learned", "evidence")
    assert lead.mean == pytest.approx(0.05)
    assert lead.high - lead.mean == pytest.approx(12.706205 * 0.05, rel=1e-6)


def test_without_a_gap_no_share_of_it_is_told() -> None:
    flat = [0.4, 0.4]
    result = made(none=flat, cosine=flat, hybrid=flat, oracle=flat)
    assert math.isnan(result.closed("hybrid"))
    assert json.loads(json.dumps(result.to_json(), allow_nan=False))["gap_closed"]["oracle"] is None


def test_the_table_shows_every_agent(comparison: Comparison) -> None:
    header, *lines = comparison.table().splitlines()
    assert [line.split()[0] for line in lines] == list(comparison.runs)
    assert {len(line) for line in lines} == {len(header)}
    mean = comparison.interval("oracle", "return").mean
    assert f"{mean:.3f} ±" in lines[-1]
    assert lines[-1].endswith("100%")


@pytest.mark.parametrize(
    ("split", "error", "message"),
    [
        ("train", ConfigError, "the train split is for training"),
        ("tset", SuiteError, "no split 'tset'; it has: "),
    ],
)
def test_a_split_that_is_not_for_evaluation_is_refused_before_any_work(
    split: str, error: type[Exception], message: str
) -> None:
    agents: list[str] = []
    with pytest.raises(error, match=message):
        compare(config(), None, split, progress=agents.append)
    assert agents == []


# --- the command ----------------------------------------------------------------------------------


def saved_policy(folder: Path, run: RunConfig) -> str:
    vectors = bundled_suite().vectors
    assert vectors is not None
    policy = Policy(
        weights=weights(),
        evidence=run.evidence,
        retrieval=run.retrieval,
        token_price=run.env.token_price / 1000,
        max_skills=run.env.max_skills,
        slots=run.env.candidates,
        embedder=vectors.identity,
        probes=vectors.probes,
    )
    policy.to_file().save(folder / "policy.safetensors")
    return str(folder / "policy.safetensors")


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Arguments of ``evaluate.py`` for a small comparison of an untrained policy."""
    run = config(evaluate={"sessions": 2, "tune_sessions": 2}, env={"horizon": 4})
    path = tmp_path / "small.yaml"
    path.write_text(dump(run), encoding="utf-8")
    return ["--config", str(path), "--policy", saved_policy(tmp_path, run)]


def test_the_command_prints_the_table_and_writes_the_same_as_json(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "deep" / "figures.json"
    assert evaluate.main([*command, "--json", str(out), "--split", "validation"]) == 0
    result = json.loads(out.read_text(encoding="utf-8"))
    assert (result["split"], result["episodes"]) == ("validation", 4)
    printed = capsys.readouterr().out
    assert "validation split, 4 sessions" in printed
    for name, metrics in result["agents"].items():
        (line,) = (line for line in printed.splitlines() if line.startswith(f"{name} "))
        assert f"{metrics['return']['mean']:.3f} ±" in line


def test_without_a_policy_only_the_baselines_play(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate.main(command[:2]) == 0
    printed = capsys.readouterr().out
    assert "learned" not in printed
    assert "oracle" in printed


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--split", "tset"], "has no split 'tset'"),
        (["--split", "train"], "the train split is for training"),
        (["--set", "evidence.bandwidth=0.77"], "evidence.bandwidth: the policy has"),
        (["--set", "retrieval.lexical_weight=0.77"], "the configuration 0.77"),
        (["--set", "env.token_price=0.77"], "env.token_price (per token): the policy has"),
        (["--policy", "{config}"], "small.yaml"),
        (["--policy", "/nowhere/policy"], "/nowhere/policy"),
        (["--config", "/nowhere/config"], "cannot read the configuration"),
    ],
)
def test_the_command_says_what_does_not_fit(
    command: list[str], capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    assert evaluate.main([*command, *(text.format(config=command[1]) for text in extra)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("evaluate.py: ")
    assert message in error
