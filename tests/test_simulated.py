"""The mock carries out any text: by the nearest task of its suite, and marked as simulated."""

from __future__ import annotations

import numpy as np
import pytest

from letta_gym.errors import SuiteError
from letta_gym.letta.mock import MockConfig
from letta_gym.letta.simulated import SimulatedLetta
from letta_gym.library.skills import Skill
from letta_gym.library.suite import Suite, bundled_suite
from letta_gym.library.vectors import Float


@pytest.fixture(scope="module")
def suite() -> Suite:
    return bundled_suite()


def task_with(suite: Suite, skill_id: str) -> Float:
    """Vector of a task that is made for one skill."""
    task = next(task for task in suite.tasks if task.relevant == (skill_id,))
    assert suite.vectors is not None
    return suite.vectors.tasks[task.id]


def chosen(suite: Suite, *ids: str) -> list[tuple[Skill, Float]]:
    assert suite.vectors is not None
    return [(suite.library[skill_id], suite.vectors.skills[skill_id]) for skill_id in ids]


def success(letta: SimulatedLetta, vector: Float, skills: list[tuple[Skill, Float]]) -> float:
    outcomes = [letta.carry_out(vector, skills) for _ in range(400)]
    return float(np.mean([one.success for one in outcomes if one.success is not None]))


STRONG = MockConfig(strong_share=1.0, mild_share=0.0, harmful_share=0.0, load_probability=1.0)


def test_an_outcome_is_marked_and_says_what_was_loaded(suite: Suite) -> None:
    letta = SimulatedLetta(suite, STRONG, seed=3)
    skills = chosen(suite, "translation")
    outcome = letta.carry_out(task_with(suite, "translation"), skills)
    assert (outcome.source, outcome.loaded, outcome.evidence) == (
        "simulation",
        ("translation",),
        True,
    )
    assert outcome.tokens == skills[0][0].tokens
    assert outcome.response is not None
    assert outcome.response.startswith("Simulated: nothing was done.")


def test_a_skill_that_is_made_for_the_task_helps(suite: Suite) -> None:
    letta = SimulatedLetta(suite, STRONG, seed=3)
    vector = task_with(suite, "translation")
    alone = success(letta, vector, [])
    helped = success(letta, vector, chosen(suite, "translation"))
    beside = success(letta, vector, chosen(suite, "sql-tuning"))
    assert helped > 0.5 > alone
    assert beside <= alone + 0.1


def test_a_skill_that_the_suite_lacks_is_judged_as_its_nearest(suite: Suite) -> None:
    letta = SimulatedLetta(suite, STRONG, seed=3)
    ((known, vector),) = chosen(suite, "translation")
    mine = Skill("my-own", "my-own", known.description, known.body)
    task = task_with(suite, "translation")
    assert success(letta, task, [(mine, vector)]) > success(letta, task, []) + 0.3


def test_a_world_is_its_seeds(suite: Suite) -> None:
    def twenty(seed: int) -> list[float | None]:
        letta = SimulatedLetta(suite, MockConfig(), seed)
        vectors = [task_with(suite, one) for one in ("translation", "sql-tuning")] * 10
        return [letta.carry_out(v, chosen(suite, "translation")).success for v in vectors]

    assert twenty(1) == twenty(1) != twenty(2)


def test_a_suite_without_vectors_is_refused(suite: Suite) -> None:
    bare = Suite(suite.name, suite.library, suite.tasks)
    with pytest.raises(SuiteError, match="has no vectors"):
        SimulatedLetta(bare, MockConfig(), seed=1)
