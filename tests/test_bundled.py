"""The bundled library and its tasks keep what the documentation says of them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from skills_ref import validate

from letta_gym.library.lexical import terms
from letta_gym.library.suite import Suite, bundled_suite

SKILLS = Path(__file__).parent.parent / "skills"
NAMED = (
    "pdf-generation api-integration text-processing file-operations web-scraping debugging testing "
    "data-processing database-operations git-operations error-handling"
)


@pytest.fixture(scope="module")
def suite() -> Suite:
    return bundled_suite()


def test_the_library_holds_at_least_forty_skills_and_none_is_broken(suite: Suite) -> None:
    assert len(suite.library) >= 40
    assert suite.library.problems == ()
    assert set(NAMED.split()) <= set(suite.library.ids)


@pytest.mark.parametrize("folder", sorted(p.parent for p in SKILLS.glob("*/SKILL.md")), ids=str)
def test_every_skill_follows_the_agent_skills_standard(folder: Path) -> None:
    assert validate(folder) == []


def test_bodies_vary_in_length_as_real_ones_do(suite: Suite) -> None:
    tokens = np.array([skill.tokens for skill in suite.library])
    assert 150 <= tokens.min() <= 350
    assert 2000 <= tokens.max() <= 2800
    assert np.quantile(tokens, 0.9) > 3 * np.quantile(tokens, 0.1)


def test_there_are_enough_tasks_of_each_kind_and_no_text_twice(suite: Suite) -> None:
    kinds = Counter(min(len(task.relevant), 2) for task in suite.tasks)
    assert len(suite.tasks) >= 480
    assert kinds[1] >= 320
    assert kinds[2] >= 80
    assert kinds[0] >= 80
    assert len({task.text.casefold() for task in suite.tasks}) == len(suite.tasks)


def test_every_split_has_every_kind_and_every_skill_a_task(suite: Suite) -> None:
    assert set(suite.splits) == {"train", "validation", "test"}
    for split in suite.splits:
        kinds = {len(suite.tasks[i].relevant) for i in suite.split(split)}
        assert kinds == {0, 1, 2}
    used = Counter(skill for task in suite.tasks for skill in task.relevant)
    assert set(used) == set(suite.library.ids)


def test_eight_skills_occur_in_the_test_split_only(suite: Suite) -> None:
    elsewhere = {s for t in suite.tasks if t.split != "test" for s in t.relevant}
    only_test = {s for t in suite.tasks if t.split == "test" for s in t.relevant} - elsewhere
    assert len(only_test) == 8


def test_tasks_do_not_lean_on_the_words_of_their_skills(suite: Suite) -> None:
    words = {s.id: set(terms(f"{s.name.replace('-', ' ')} {s.description}")) for s in suite.library}
    shares = []
    for task in suite.tasks:
        own = set(terms(task.text))
        shares += [len(own & words[skill]) / max(len(own), 1) for skill in task.relevant]
    assert 0.005 < np.mean(shares) <= 0.15


def test_no_two_tasks_are_made_from_one_template(suite: Suite) -> None:
    starts = Counter(" ".join(task.text.lower().split()[:4]) for task in suite.tasks)
    assert starts.most_common(1)[0][1] <= 4


def test_the_stored_vectors_are_those_of_the_texts(suite: Suite) -> None:
    assert suite.vectors is not None
    assert suite.vectors.skills.ids == suite.library.ids
    assert suite.vectors.tasks.matrix.shape == (len(suite.tasks), 384)
