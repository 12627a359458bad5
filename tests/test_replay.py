"""Replay of labelled suites: outcomes by the labels, one deployment, feedback of a bandit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from letta_gym.envs.catalogue import build, new_skills, with_validation
from letta_gym.envs.checks import run_checks
from letta_gym.envs.deployment import ReplayConfig
from letta_gym.envs.replay import ReplayDriver, ReplayEnv, ReplayVectorEnv
from letta_gym.errors import ConfigError, SuiteError
from letta_gym.feedback.evidence import fit
from letta_gym.feedback.memory import OutcomeMemory
from letta_gym.feedback.outcome import Outcome
from letta_gym.letta.backend import Outcomes, Requests
from letta_gym.letta.replay import Labels
from letta_gym.library.tasks import Task
from letta_gym.selection import network, subset
from letta_gym.selection.candidates import RetrievalConfig
from letta_gym.selection.observation import context, features
from letta_gym.selection.policy import Policy
from letta_gym.selection.runtime import SkillSelector
from letta_gym.selection.shelf import Shelf
from letta_gym.selection.weighing import Case
from tests.small_suite import make_suite, write_suite

ID = "letta_gym/ReplaySkillSelection-v0"
ROW = {"a": 0, "b": 1, "c": 2, "d": 3}
TOKENS = np.array([10, 20, 40, 80], np.float32)
TASKS = (
    Task("one", "one", ("b",)),
    Task("two", "two", ("a", "c")),
    Task("none", "none"),
    Task("measured", "measured", ("a",), outcomes={"a": 0.5, "b": 1.0, "c": 0.0}),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_suite(tmp_path_factory.mktemp("replay") / "small", make_suite()))


def outcome(rule: Any, task: str, *skills: str) -> tuple[float, set[str], float]:
    """Success, the skills that were loaded, and tokens of choosing ``skills``."""
    labels = Labels(TASKS, ROW, TOKENS, rule)
    names = [t.id for t in TASKS]
    row = [ROW[s] for s in skills] + [-1] * (3 - len(skills))
    came = labels.execute(
        Requests(np.zeros(1, int), np.array([names.index(task)]), np.array([row]))
    )
    loaded = {s for s, on in zip(skills, came.loaded[0], strict=False) if on}
    return float(came.success[0]), loaded, float(came.tokens[0])


# --- labels ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "task", "skills", "success", "loaded"),
    [
        ("any", "one", "b", 1, "b"),
        ("any", "one", "a", 0, "a"),
        ("any", "one", "ab", 1, "b"),
        ("any", "one", "ad", 0, "ad"),
        ("any", "one", "", 0, ""),
        ("any", "two", "c", 1, "c"),
        ("any", "two", "acd", 1, "ac"),
        ("all", "two", "a", 0, "a"),
        ("all", "two", "cda", 1, "ca"),
        ("fraction", "two", "a", 0.5, "a"),
        ("fraction", "two", "ac", 1, "ac"),
        ("fraction", "two", "bd", 0, "bd"),
        ("any", "none", "", 1, ""),
        ("all", "none", "", 1, ""),
        ("fraction", "none", "a", 0, "a"),
        ("any", "measured", "a", 0.5, "a"),
        ("any", "measured", "acb", 1, "b"),
        ("any", "measured", "c", 0, "c"),
        ("any", "measured", "d", 0, "d"),
        ("any", "measured", "", 0, ""),
    ],
)
def test_the_outcome_is_read_from_the_labels(
    rule: str, task: str, skills: str, success: float, loaded: str
) -> None:
    tokens = float(sum(TOKENS[ROW[s]] for s in skills))
    assert outcome(rule, task, *skills) == (success, set(loaded), tokens)


@pytest.mark.parametrize("rule", ["any", "all", "fraction"])
@pytest.mark.parametrize("allowed", ["abcd", "bcd", "d"])
@pytest.mark.parametrize("k", [1, 2, 3])
@pytest.mark.parametrize("price", [0.0, 0.004, 0.03])
def test_the_best_choice_is_the_best_of_all(rule: Any, allowed: str, k: int, price: float) -> None:
    labels = Labels(TASKS, ROW, TOKENS, rule)
    mask = np.array([[s in allowed for s in ROW]] * len(TASKS))
    best = labels.best(np.arange(len(TASKS)), mask, k, price)
    for t, task in enumerate(TASKS):
        values = []
        for size in range(k + 1):
            for members in combinations(allowed, size):
                success, _, tokens = outcome(rule, task.id, *members)
                values.append(success - price * tokens)
        assert best[t] == pytest.approx(max(values)), task.id


def test_measured_outcomes_outside_0_and_1_are_refused() -> None:
    tasks = [Task("t", "t", ("a",), outcomes={"a": 1.5})]
    with pytest.raises(SuiteError, match=r"lies in \[0, 1\]; that of 'a' is 1.5"):
        Labels(tasks, ROW, TOKENS)


# --- who is new, and what is for validation -------------------------------------------------------


def test_new_skills_are_a_share_of_the_library_drawn_by_their_seed() -> None:
    draws = [new_skills(199, 0.2, seed) for seed in range(5)]
    assert [draw.sum() for draw in draws] == [40] * 5
    assert len({draw.tobytes() for draw in draws}) == 5
    np.testing.assert_array_equal(draws[3], new_skills(199, 0.2, 3))


def test_validation_is_taken_out_of_train_alone_and_only_where_there_is_none() -> None:
    split = np.array(["train", "test"] * 50)
    with_some = with_validation(split, 0.2)
    assert (with_some == "validation").sum() == 10
    assert (with_some[split == "test"] == "test").all()
    np.testing.assert_array_equal(with_some, with_validation(split, 0.2))
    np.testing.assert_array_equal(with_some, with_validation(with_some, 0.5))
    np.testing.assert_array_equal(split, with_validation(split, 0.0))


def test_new_skills_and_their_tasks_do_not_exist_in_training(folder: str) -> None:
    env = ReplayVectorEnv(8, suite=folder, new_skills=0.3, obs="compact")
    s, tasks = env.driver.sessions, env.driver.pool.suite.tasks
    new = {env.driver.pool.ids[i] for i in np.flatnonzero(s.new_skills)}
    shown, _ = env.reset(seed=1)
    for _ in range(60):
        mask = shown["action_mask"].astype(bool)
        on_offer = {env.driver.pool.ids[i] for i in s.slot_skills()[mask]}
        assert not on_offer & new
        for task in s.task:
            assert not new & set(tasks[task].relevant)
            assert s.split[task] == "train"
        shown, *_ = env.step(mask.astype(np.int8))
    everything = ReplayEnv(suite=folder, new_skills=0.3, library="all", split="test")
    assert everything.reset(seed=0)[0]["action_mask"].all()
    assert {tasks[t].split for t in everything.driver.sessions.stream} == {"test"}


# --- the environment ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "keywords",
    [
        {"horizon": 1, "obs": "compact"},
        {"horizon": 5, "token_budget": 90.0, "candidates": 4},
        {"horizon": 3, "slots": "retrieval", "library": "all", "split": "test", "max_skills": 1},
    ],
)
def test_the_environment_passes_every_check(folder: str, keywords: dict[str, Any]) -> None:
    run_checks(ID, num_envs=1, suite=folder, **keywords)


def test_own_candidates_are_all_that_may_be_chosen(tmp_path: Path) -> None:
    suite = make_suite(60, candidates=4)
    env = gymnasium.make(ID, suite=str(write_suite(tmp_path, suite)), new_skills=0.0, horizon=40)
    shown, _ = env.reset(seed=2)
    driver: ReplayDriver = env.unwrapped.driver  # type: ignore[attr-defined]
    for _ in range(39):
        task = driver.pool.suite.tasks[int(driver.sessions.task[0])]
        mask = shown["action_mask"].astype(bool)
        assert {driver.pool.ids[i] for i in driver.slot_skills()[0][mask]} == set(
            task.candidates or ()
        )
        shown, *_ = env.step(mask.astype(np.int8))


def test_a_stream_asks_every_task_once_before_it_asks_one_again(folder: str) -> None:
    env = ReplayVectorEnv(7, suite=folder, obs="compact")
    env.reset(seed=3)
    s = env.driver.sessions
    asked: list[int] = []
    for _ in range(2 * len(s.stream) // 7):
        asked += s.task.tolist()
        env.step(np.zeros((7, s.config.candidates), np.int8))
    first, second = asked[: len(s.stream)], asked[len(s.stream) :]
    assert sorted(first) == s.stream.tolist()
    assert len(set(second)) == len(second)
    assert first[: len(second)] != second


def test_simultaneous_decisions_know_what_was_before_and_enter_one_memory(folder: str) -> None:
    env = ReplayVectorEnv(5, suite=folder, obs="compact", max_skills=1)
    env.reset(seed=0)
    driver = env.driver
    memory = OutcomeMemory(driver.dimension, driver.config.evidence)
    for _ in range(12):
        s = driver.sessions
        expected = memory.tables(driver.pool.task_vectors[s.task], driver.pool.keys)
        came = s.memory.tables(driver.pool.task_vectors[s.task], driver.pool.keys)
        np.testing.assert_array_equal(expected, came)
        tasks = s.task.copy()
        action = np.zeros((5, s.config.candidates), np.int8)
        action[1:, 0] = 1
        shown, _, _, _, infos = env.step(action)
        assert shown["context"][:, 3] == pytest.approx(np.log1p(len(s.memory)) / 8)
        journal = s.journal()
        for i, task in enumerate(tasks):
            skill = int(journal[1][-5 + i, 0])
            key = driver.pool.keys[skill + 1]
            best = driver.pool.scores.retrieval[task][s.present].max()
            meant = 1.0 if skill < 0 else float(fit_of(driver, int(task), skill, best))
            memory.add(key, driver.pool.task_vectors[task], float(infos["success"][i]), meant)
    assert len(memory) == 60


def fit_of(driver: ReplayDriver, task: int, skill: int, best: Any) -> Any:
    return fit(driver.pool.scores.retrieval[task, skill], best, driver.config.evidence)


def test_a_seed_begins_the_deployment_anew_and_a_plain_reset_goes_on(folder: str) -> None:
    env = ReplayEnv(suite=folder, horizon=4)
    first, _ = env.reset(seed=4)
    for _ in range(4):
        after, *_ = env.step(np.ones(env.config.candidates, np.int8))
    known = len(env.driver.sessions.memory)
    assert known >= 4
    again, _ = env.reset()
    np.testing.assert_array_equal(after["features"], again["features"])
    assert len(env.driver.sessions.memory) == known
    anew, _ = env.reset(seed=4)
    np.testing.assert_array_equal(first["features"], anew["features"])
    assert len(env.driver.sessions.memory) == 0


def test_some_sessions_of_a_deployment_cannot_be_seeded(folder: str) -> None:
    env = ReplayVectorEnv(3, suite=folder)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match="leave out either the seed or reset_mask"):
        env.reset(seed=1, options={"reset_mask": np.array([True, False, False])})
    env.reset(options={"reset_mask": np.array([True, False, False])})


def test_a_batch_can_be_stopped_and_continued(folder: str) -> None:
    keywords: dict[str, Any] = {"suite": folder, "horizon": 3, "memory": {"capacity": 40}}
    env, other = (ReplayVectorEnv(6, **keywords) for _ in range(2))
    env.reset(seed=5)
    rng = np.random.default_rng(0)
    actions = (rng.random((70, 6, env.config.candidates)) < 0.2).astype(np.int8)
    for action in actions[:30]:
        env.step(action)
    other.set_state(env.get_state())
    for action in actions[30:]:
        a, b = env.step(action), other.step(action)
        np.testing.assert_array_equal(a[0]["features"], b[0]["features"])
        np.testing.assert_array_equal(a[1], b[1])
    for mine, theirs in zip(
        env.driver.sessions.journal(), other.driver.sessions.journal(), strict=True
    ):
        np.testing.assert_array_equal(mine, theirs)


def test_nothing_is_learned_while_learning_is_off(folder: str) -> None:
    driver = ReplayDriver(ReplayConfig.from_keywords({"suite": folder, "library": "all"}), 1)
    driver.sessions.learning = False
    tasks = driver.sessions.tasks("test")
    driver.sessions.show(tasks)
    assert driver.observe()["features"].shape[0] == len(tasks)
    driver.step(np.ones((len(tasks), driver.config.candidates), np.int8))
    assert len(driver.sessions.memory) == 0
    np.testing.assert_array_equal(driver.sessions.task, tasks)


def test_labels_reach_no_observation(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = ReplayVectorEnv(4, suite=folder)
    first, _ = env.reset(seed=6)
    observed = [first]
    rewards = []

    def none_is_right(self: Labels, requests: Requests) -> Outcomes:
        count = len(requests.tasks)
        zero = np.zeros(count, np.float32)
        return Outcomes(zero, requests.skills >= 0, zero, zero, np.ones(count, bool))

    monkeypatch.setattr(Labels, "execute", none_is_right)
    for labels in ("as they are", "turned over"):
        env.reset(seed=6)
        if labels == "turned over":
            env.driver.sessions.labels.relevant ^= True
        for _ in range(5):
            shown, reward, *_ = env.step(np.ones((4, env.config.candidates), np.int8))
            observed.append(shown)
            rewards.append(reward)
    for a, b in zip(observed[1:6], observed[6:], strict=True):
        for name in a:
            np.testing.assert_array_equal(a[name], b[name])


# --- the runtime ----------------------------------------------------------------------------------


@pytest.mark.parametrize("slots", [12, 5])
def test_the_runtime_sees_and_chooses_what_the_environment_does(slots: int, tmp_path: Path) -> None:
    suite = make_suite(90, pair_share=0.2)
    path = str(write_suite(tmp_path, suite))
    assert suite.vectors is not None
    env = ReplayEnv(
        suite=path, new_skills=0.0, candidates=slots, horizon=60, obs="compact", max_skills=2
    )
    config = env.config
    weights = network.initial(np.random.default_rng(1), 4, sharpness=20.0, threshold=0.1)
    policy = Policy(
        weights={name: w.astype(np.float32) for name, w in weights.items()},
        evidence=config.evidence,
        retrieval=config.retrieval,
        token_price=config.token_price / 1000,
        max_skills=2,
        slots=slots,
        embedder=suite.vectors.identity,
        probes=suite.vectors.probes,
    )
    selector = SkillSelector(policy, Shelf(suite.library, policy, suite.vectors.skills))
    session = selector.session(token_budget=config.token_budget, horizon=60)
    shown, _ = env.reset(seed=8)
    driver = env.driver
    for _ in range(59):
        task = int(driver.sessions.task[0])
        vector, text = driver.pool.task_vectors[task], driver.pool.suite.tasks[task].text
        situation = selector.weigh([Case(text, vector, session)]).situation
        f = features(situation, policy.evidence, policy.token_price)
        np.testing.assert_array_equal(shown["features"], f[0])
        np.testing.assert_array_equal(shown["context"], context(situation, f)[0])
        selection = session.select(text, 2, embedding=vector)
        logits = network.logits(
            policy.weights,
            shown["features"][None],
            shown["context"][None],
            shown["action_mask"][None].astype(bool),
        )
        shown, _, _, _, info = env.step(subset.to_mask(subset.greedy(logits, 2), slots)[0])
        assert {skill.id for skill in selection.skills} == set(info["skills"])
        told = info["outcome"]
        outcome = Outcome(told["success"], tuple(told["loaded"]), told["tokens"])
        selector.record(selection.decision_id, outcome)


# --- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda path: ReplayEnv(suite=path, candidates=13), ConfigError, "at most 12"),
        (lambda path: ReplayEnv(suite=path, split="tset"), SuiteError, "no task of the split"),
        (lambda path: ReplayEnv(suite=path, sucess="any"), ConfigError, "did you mean 'success'"),
        (lambda path: ReplayEnv(suite=path + "x"), SuiteError, "does not exist"),
    ],
)
def test_a_wrong_configuration_is_refused(
    folder: str, make: Callable[[str], Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        make(folder)


def test_a_suite_without_vectors_is_refused() -> None:
    suite = make_suite(20)
    object.__setattr__(suite, "vectors", None)
    with pytest.raises(SuiteError, match="letta-gym embed"):
        build(suite, RetrievalConfig())


def test_the_tables_of_a_suite_are_sorted_by_skill_id() -> None:
    suite = make_suite(30)
    tables = build(suite, RetrievalConfig(lexical_weight=0.25))
    assert list(tables.ids) == sorted(suite.library.ids)
    assert suite.vectors is not None
    place = {skill_id: i for i, skill_id in enumerate(suite.library.ids)}
    rows: NDArray[np.int64] = np.array([place[i] for i in tables.ids])
    dense = suite.vectors.tasks.matrix @ suite.vectors.skills.matrix[rows].T
    np.testing.assert_array_equal(tables.scores.dense, dense)
    fused = (dense + np.float32(0.25) * tables.scores.lexical).astype(np.float32)
    np.testing.assert_array_equal(tables.scores.retrieval, fused)
    assert tables.own is None
