"""Explanations: every candidate, best first, with reasons that its features bear out."""

from __future__ import annotations

import json

import numpy as np
import pytest

from letta_gym.selection.explanation import Explanation, Trace, explain
from letta_gym.selection.observation import FEATURE, FEATURES


def trace(outcomes: float = 0.0, **features: float) -> Trace:
    """Four slots, the last masked, the second picked; ``features`` are those of the first."""
    values = np.zeros((4, len(FEATURES)), np.float32)
    for name, value in features.items():
        values[0, FEATURE[name]] = value
    return Trace(
        ids=("a", "b", "c", "d", "e"),
        rows=np.array([4, 0, 2, 1]),
        picks=np.array([1]),
        logits=np.array([1.0, 3.0, -2.0, -np.inf, 0.5], np.float32),
        features=values,
        tokens=np.array([100, 200, 300, 400], np.float32),
        outcomes=np.array([outcomes, 0, 0, 0], np.float32),
    )


def reasons(outcomes: float = 0.0, **features: float) -> tuple[str, ...]:
    """Reasons of the first slot."""
    return {c.skill: c.reasons for c in explain(trace(outcomes, **features)).candidates}["e"]


def test_candidates_come_best_first_with_their_score_above_stopping() -> None:
    shown = explain(trace()).candidates
    assert [(c.skill, c.chosen, c.score, c.tokens) for c in shown] == [
        ("a", True, 2.5, 200),
        ("e", False, 0.5, 100),
        ("c", False, -2.5, 300),
    ]


def test_a_skill_without_outcomes_was_not_tried_yet() -> None:
    assert reasons(outcomes=0.0, fit=0.8) == ("fit 0.80", "not tried yet")


def test_a_skill_with_outcomes_has_what_it_adds() -> None:
    assert reasons(outcomes=7.2, fit=0.5, uplift=4 * 0.25) == (
        "fit 0.50",
        "adds +0.25 where it fits (7 outcomes)",
    )


@pytest.mark.parametrize(
    ("feature", "value", "words"),
    [
        ("local_gain", -0.2, "did badly on tasks like this"),
        ("local_gain", 0.2, "did well on tasks like this"),
        ("alike_lead", -1.0, "a look-alike does better"),
    ],
)
def test_each_reason_follows_its_feature(feature: str, value: float, words: str) -> None:
    assert words in reasons(**{feature: value})
    assert words not in reasons(**{feature: 0.0})
    assert words not in reasons(**{feature: -value})


def test_the_table_marks_what_was_chosen_and_lines_up() -> None:
    lines = str(explain(trace())).splitlines()
    assert [line[:3] for line in lines] == ["  s", "* a", "  e", "  c"]
    assert len({line.index("fit") for line in lines[1:]}) == 1
    assert lines[0].index("why") == lines[1].index("fit")


def test_the_json_is_json() -> None:
    explanation = explain(trace())
    shown = json.loads(json.dumps(explanation.to_json()))
    assert shown[0] == {
        "skill": "a",
        "chosen": True,
        "score": 2.5,
        "tokens": 200,
        "reasons": ["fit 0.00", "not tried yet"],
    }
    assert len(shown) == len(explanation.candidates)


def test_no_candidate_is_an_empty_table() -> None:
    assert str(Explanation(())).splitlines() == ["  skill   score  tokens  why"]
