"""The executor: choose, carry out, learn; offline with the mock, and by Letta's protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import pytest

from letta_gym.errors import BackendError, ConfigError, DecisionError, LearnerError
from letta_gym.feedback.evidence import EvidenceConfig
from letta_gym.feedback.learner import Experience
from letta_gym.feedback.outcome import Outcome
from letta_gym.letta.executor import TaskExecutor
from letta_gym.letta.live import LiveBackend
from letta_gym.letta.mock_letta import MockLetta
from letta_gym.letta.rest import RestConfig, rest_backend
from letta_gym.letta.rollout import Rollout
from letta_gym.library.skills import SkillLibrary
from letta_gym.selection import network
from letta_gym.selection.candidates import RetrievalConfig
from letta_gym.selection.policy import Policy
from letta_gym.selection.runtime import SkillSelector
from letta_gym.selection.shelf import Shelf
from tests.fake_letta import HANDLE, FakeLetta
from tests.look_alikes import FamilyEmbedder, make_look_alikes

SUITE = make_look_alikes(families=3, alike=2, tasks=60, seed=3)
EMBEDDER = FamilyEmbedder(SUITE)
TEXT = "TASK family1: something new"
RIGHT = next(task for task in SUITE.tasks if "family1" in task.text)


def policy() -> Policy:
    assert SUITE.vectors is not None
    weights = network.initial(np.random.default_rng(1), 8, sharpness=30.0, threshold=0.0)
    return Policy(
        weights={name: array.astype(np.float32) for name, array in weights.items()},
        evidence=EvidenceConfig(),
        retrieval=RetrievalConfig(),
        token_price=0.04 / 1000,
        max_skills=1,
        slots=6,
        embedder=SUITE.vectors.identity,
        probes=SUITE.vectors.probes,
    )


def selector() -> SkillSelector:
    assert SUITE.vectors is not None
    shelf = Shelf(SUITE.library, policy(), SUITE.vectors.skills, EMBEDDER)
    return SkillSelector(policy(), shelf)


@pytest.fixture
def fake() -> Iterator[FakeLetta]:
    with FakeLetta() as server:
        yield server


@pytest.fixture
def backend(fake: FakeLetta) -> Iterator[LiveBackend]:
    config = RestConfig.model_validate(
        {"base_url": fake.url, "model": HANDLE, "retries": {"attempts": 1}}
    )
    with rest_backend(config) as live:
        yield live


class Remembering:
    """A learner that notes what it is given."""

    def __init__(self, result: object = None) -> None:
        self.result = result
        self.lessons: list[list[Experience]] = []

    def learn(self, experiences: Sequence[Experience]) -> object:
        self.lessons.append(list(experiences))
        return self.result


def test_it_finds_out_by_itself_which_skill_works(backend: LiveBackend) -> None:
    executor = TaskExecutor(selector(), backend, SUITE.library)

    done = [executor.execute(TEXT, metadata=RIGHT.metadata) for _ in range(4)]

    assert [one.success for one in done][-2:] == [1, 1]
    last = done[-1]
    assert [skill.id for skill in last.skills] == list(RIGHT.relevant)
    assert last.response == "ANSWER right1"
    assert last.reward == pytest.approx(1 - 0.004)
    assert last.tokens == 100
    assert last.latency > 0
    assert last.outcome.run_id is not None
    assert len({one.decision_id for one in done}) == 4


def test_it_works_the_same_from_an_event_loop(backend: LiveBackend) -> None:
    executor = TaskExecutor(selector(), backend)

    async def main() -> list[float | None]:
        tasks = [executor.execute_async(TEXT, metadata=RIGHT.metadata) for _ in range(3)]
        return [one.success for one in await asyncio.gather(*tasks)]

    assert len(asyncio.run(main())) == 3
    assert len(executor.selector.memory) == 3


def test_an_infrastructure_failure_is_raised_and_teaches_nothing(
    backend: LiveBackend, fake: FakeLetta
) -> None:
    executor = TaskExecutor(selector(), backend, learner=Remembering())
    fake.key = "changed"

    with pytest.raises(BackendError, match="HTTP 401"):
        executor.execute(TEXT, metadata=RIGHT.metadata)

    assert len(executor.selector.memory) == 0
    executor.train()
    assert executor.learner.lessons == [[]]  # type: ignore[union-attr]


def test_what_nobody_graded_waits_for_a_persons_feedback(backend: LiveBackend) -> None:
    executor = TaskExecutor(selector(), backend, learner=Remembering())

    done = executor.execute(TEXT)
    assert (done.success, done.reward) == (None, None)
    assert len(executor.selector.memory) == 0
    outcome = executor.feedback(done.decision_id, 1.0)

    assert (outcome.success, outcome.source) == (1, "human")
    assert len(executor.selector.memory) == 1
    with pytest.raises(ConfigError, match=r"\[-1, 1\]"):
        executor.feedback(done.decision_id, 2.0)
    with pytest.raises(DecisionError, match="'unknown'"):
        executor.feedback("unknown", 1.0)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_later_word_reaches_the_step_on_letta_where_that_is_wanted(
    fake: FakeLetta, wanted: bool
) -> None:
    settings = {"base_url": fake.url, "agent": fake.add_agent(), "feedback": wanted}
    with rest_backend(RestConfig.model_validate(settings)) as backend:
        executor = TaskExecutor(selector(), backend)
        done = executor.execute(TEXT)
        assert fake.feedback == {}  # nobody graded it
        executor.feedback(done.decision_id, 1.0)
        first = {step: said["feedback"] for step, said in fake.feedback.items()}
        asyncio.run(executor.feedback_async(done.decision_id, -1.0))
        second = {step: said["feedback"] for step, said in fake.feedback.items()}

    steps = done.outcome.step_ids if wanted else ()
    assert first == dict.fromkeys(steps, "positive")
    assert second == dict.fromkeys(steps, "negative")


def test_the_learner_gets_each_decision_with_its_outcome_and_may_give_a_policy() -> None:
    better = replace(policy(), digest="better")
    learner = Remembering(better)
    executor = TaskExecutor(selector(), MockLetta(SUITE, embedder=EMBEDDER), learner=learner)
    done = [executor.execute(TEXT) for _ in range(3)]

    assert executor.train() is better
    executor.train()

    first, second = learner.lessons
    assert [one.decision.id for one in first] == [one.decision_id for one in done]
    assert [one.outcome for one in first] == [one.outcome for one in done]
    assert first[0].decision.features.shape[0] == 6
    assert second == []
    assert executor.execute(TEXT).decision_id not in {one.decision_id for one in done}
    assert executor.selector.policy is better
    executor.feedback(done[0].decision_id, -1.0)
    executor.train()
    human = [one.outcome.reward_parts.get("human") for one in learner.lessons[2]]
    assert human == [None, -1.0]  # the fourth task, and the first once more, with the feedback


def test_training_without_a_learner_is_a_typed_error() -> None:
    executor = TaskExecutor(selector(), MockLetta(SUITE, embedder=EMBEDDER))

    with pytest.raises(LearnerError, match="pass learner="):
        executor.train()


def test_a_library_that_the_selector_does_not_choose_from_is_refused() -> None:
    with pytest.raises(ConfigError, match="the one that the selector chooses from"):
        TaskExecutor(selector(), MockLetta(SUITE), SkillLibrary(SUITE.library))


def test_the_mock_judges_any_text_and_says_that_it_simulates() -> None:
    executor = TaskExecutor(selector(), MockLetta(SUITE, embedder=EMBEDDER, seed=4))

    done = executor.execute(TEXT)

    assert done.outcome.source == "simulation"
    assert done.success is not None
    assert done.reward is not None
    assert len(executor.selector.memory) == 1


def test_the_mock_judges_a_text_as_the_tasks_that_are_nearest() -> None:
    right = SUITE.library[RIGHT.relevant[0]]
    mine = [t for t in SUITE.tasks if "family1" in t.text]

    def mean(text: str, seed: int) -> float:
        letta = MockLetta(SUITE, embedder=EMBEDDER, seed=seed)
        outcomes = letta.run([Rollout(text, (right,)) for _ in range(400)])
        return float(np.mean([one.success for one in outcomes if one.success is not None]))

    for seed in range(3):
        near = MockLetta(SUITE, embedder=EMBEDDER, seed=seed)._nearest(TEXT)
        assert {SUITE.tasks[i].text.split(":")[0] for i in near[0]} == {"TASK family1"}
        assert float(near[1].sum()) == pytest.approx(1)
        known = [mean(SUITE.tasks[i].text, seed) for i in near[0]]
        assert mean(TEXT, seed) == pytest.approx(float(near[1] @ known), abs=0.06)
    assert len(mine) > 5


def test_the_mock_takes_several_skills_at_once_and_a_vector_that_is_known() -> None:
    letta = MockLetta(SUITE, seed=2)
    skills = tuple(SUITE.library)[:3]
    vector = EMBEDDER.encode([TEXT])[0]
    known = [letta.carry_out(Rollout(TEXT, skills), vector) for _ in range(40)]
    assert {len(outcome.loaded or ()) for outcome in known} >= {1, 2, 3}
    embedded = MockLetta(SUITE, embedder=EMBEDDER, seed=2).carry_out(Rollout(TEXT, skills))
    assert embedded.success == known[0].success
    assert embedded.response == known[0].response
    with pytest.raises(ConfigError, match="at most 64 skills; got 65"):
        letta.carry_out(Rollout(TEXT, skills[:1] * 65), vector)


def test_the_mock_repeats_itself_by_its_seed_alone() -> None:
    def outcomes(seed: int) -> list[Outcome]:
        letta = MockLetta(SUITE, embedder=EMBEDDER, seed=seed)
        came = letta.run([Rollout(t.text, (SUITE.library["family1-a"],)) for t in SUITE.tasks])
        return [replace(one, latency=None) for one in came]

    assert outcomes(1) == outcomes(1)
    assert outcomes(1) != outcomes(2)
