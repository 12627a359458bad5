"""The quality tracker finds what skills add, says how sure it is, and never acts."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from letta_gym.errors import ConfigError
from letta_gym.feedback.beta import Beta, difference
from letta_gym.feedback.quality import QualityConfig, QualityTracker, Trial, Verdict

DAY = 86_400.0
NOW = 1_000 * DAY


def trial(success: float, *loaded: str, age: float = 1.0, **changes: Any) -> Trial:
    made = Trial(NOW - age * DAY, "ada", "text", loaded, loaded, success, tokens=100.0)
    return replace(made, **changes)


def tracker(
    *trials: Trial, priors: dict[str, float] | None = None, **config: Any
) -> QualityTracker:
    made = QualityTracker(QualityConfig(**config), priors)
    made.add(trials)
    return made


def randomised(
    n: int, seed: int, with_it: float, without: float, rate: float = 0.2, loads: float = 1.0
) -> list[Trial]:
    """Decisions for the skills a and b, of which one is held out at random; a decides success."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(n):
        held = rng.choice(["a", "b"]) if rng.random() < rate else None
        offered = tuple(key for key in ("a", "b") if key != held)
        loaded = tuple(key for key in offered if rng.random() < loads)
        success = float(rng.random() < (with_it if "a" in offered else without))
        made.append(trial(success, *loaded, chosen=("a", "b"), hold_rate=rate, held_out=held))
    return made


# --- Beta -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("a", [0.2, 1.0, 3.0, 400.0])
def test_credible_intervals_are_those_of_the_closed_forms(a: float) -> None:
    of_power, mirrored = Beta(a, 1).interval(0.9), Beta(1, a).interval(0.9)

    # Summed over the log-odds, small ends are right in proportion.
    assert of_power.low == pytest.approx(0.05 ** (1 / a), rel=5e-3)
    assert of_power.high == pytest.approx(0.95 ** (1 / a), rel=5e-3)
    assert mirrored.low == pytest.approx(1 - 0.95 ** (1 / a), rel=5e-3)
    assert mirrored.high == pytest.approx(1 - 0.05 ** (1 / a), rel=5e-3)


def test_an_interval_of_many_outcomes_is_the_normal_one() -> None:
    many = Beta(3_000, 7_000).interval(0.95)
    radius = 1.96 * math.sqrt(0.3 * 0.7 / 10_000)
    assert many.low == pytest.approx(0.3 - radius, abs=2e-4)
    assert many.high == pytest.approx(0.3 + radius, abs=2e-4)


def test_the_interval_of_a_difference_covers_it() -> None:
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        x, y = rng.binomial(40, 0.8), rng.binomial(15, 0.5)
        found = difference(Beta(0.5 + x, 40.5 - x), Beta(0.5 + y, 15.5 - y), 0.95)
        covered += found.low <= 0.3 <= found.high

    assert 0.92 <= covered / 400 <= 0.985


# --- counts and rates -----------------------------------------------------------------------------


def test_a_skill_is_counted_where_it_was_loaded() -> None:
    made = tracker(
        trial(1.0, "a", "b", reward=0.9, tokens=300),
        trial(0.5, "a", age=3, reward=None),
        trial(0.0, "b", chosen=("a", "b")),
    )
    found = made.quality("a", NOW)

    assert (found.uses, found.tokens, found.reward) == (2, 200, 0.9)
    assert found.idle_days == pytest.approx(1)
    assert found.success.value == pytest.approx((2 * 0.45 + 1.5) / 4)
    assert found.success.low < found.success.value < found.success.high


def test_only_the_agent_and_the_kind_that_are_asked_for_count() -> None:
    made = tracker(
        *[trial(1.0, "a")] * 3,
        *[trial(0.0, "a", agent="bob")] * 4,
        *[trial(0.0, "a", kind="code")] * 5,
    )

    assert made.quality("a", NOW).uses == 12
    assert made.quality("a", NOW, agent="ada", kind="text").uses == 3
    assert made.quality("a", NOW, agent="bob").uses == 4
    assert made.quality("a", NOW, kind="code").uses == 5
    of_text = made.quality("a", NOW, agent="ada", kind="text").success
    assert of_text.value > 0.7 > made.quality("a", NOW).success.value


def test_a_changed_skill_starts_anew_from_its_prior() -> None:
    made = tracker(*[trial(1.0, "old")] * 50, priors={"new": 0.6})
    old, new = made.quality("old", NOW), made.quality("new", NOW)

    assert old.success.value > 0.95
    assert new.uses == 0
    assert new.success.value == pytest.approx(0.6)
    assert new.success.high - new.success.low > 0.8
    assert (new.verdict, new.reason) == (Verdict.UNKNOWN, "0 uses count, 20 are needed")
    assert (new.idle_days, new.uplift, new.tokens) == (None, None, None)


def test_old_outcomes_fade_by_configuration() -> None:
    trials = [trial(0.0, "a", age=100)] * 20 + [trial(1.0, "a", age=0)] * 20
    even = tracker(*trials).quality("a", NOW)
    fading = tracker(*trials, half_life_days=10).quality("a", NOW)

    assert even.success.value == pytest.approx(0.5, abs=0.01)
    assert fading.success.value > 0.9
    assert even.uses == fading.uses == 40
    forgotten = tracker(*[trial(1.0, "a", age=100)] * 100, half_life_days=10).quality("a", NOW)
    assert forgotten.verdict is Verdict.UNKNOWN
    assert forgotten.reason.startswith("0 uses count")


def test_the_trend_compares_the_last_window_with_the_one_before() -> None:
    falling = [trial(1.0, "a", age=20)] * 20 + [trial(0.0, "a", age=2)] * 20
    found = tracker(*falling).quality("a", NOW).trend

    assert found is not None
    assert found.value == pytest.approx(-1, abs=0.06)
    assert found.high < 0
    assert tracker(*falling[16:]).quality("a", NOW).trend is None


def test_skills_used_together_more_than_by_chance_have_a_lift_above_one() -> None:
    made = tracker(
        *[trial(1.0, "a", "b")] * 10,
        *[trial(1.0, "b", "c")] * 2,
        *[trial(1.0, "c")] * 8,
        *[trial(1.0)] * 50,
    )
    (pair,) = made.co_use(min_uses=3)

    assert (pair.one, pair.other, pair.uses) == ("a", "b", 10)
    assert pair.lift == pytest.approx((10 / 20) / ((10 / 20) * (12 / 20)))
    assert [p.lift < 1 for p in made.co_use(min_uses=2)] == [False, True]


# --- what a skill adds ----------------------------------------------------------------------------


def test_hold_outs_find_the_uplift() -> None:
    found = tracker(*randomised(2_000, 0, with_it=0.8, without=0.4)).quality("a", NOW)

    assert found.uplift is not None
    assert found.randomised
    assert found.held_out > 100
    assert found.uplift.low < 0.4 < found.uplift.high
    assert found.verdict is Verdict.PROVEN
    assert "tasks in which it was held out" in found.reason


def test_hold_outs_are_not_fooled_by_harder_tasks() -> None:
    """The skill is chosen for hard tasks and helps there; alone the agent has the easy ones."""
    easy = [trial(1.0)] * 500
    hard = randomised(3_000, 1, with_it=0.5, without=0.2)
    hint = [replace(one, hold_rate=0.0) for one in hard if one.held_out is None]
    fooled, told = tracker(*easy, *hint), tracker(*easy, *hard)

    assert fooled.quality("a", NOW).verdict is Verdict.HARMFUL
    assert "tasks that may differ" in fooled.quality("a", NOW).reason
    assert told.quality("a", NOW).verdict is Verdict.PROVEN


def test_what_counts_is_the_offer_not_the_loading() -> None:
    """Where the agent loads the skill half of the time, hold-outs see the effect of offering."""
    found = tracker(*randomised(2_000, 2, 0.7, 0.5, loads=0.5)).quality("a", NOW)
    assert found.uplift is not None
    assert found.uplift.low < 0.2 < found.uplift.high


def test_intervals_of_the_uplift_cover_it() -> None:
    covered = 0
    for seed in range(100):
        found = tracker(*randomised(300, seed, 0.7, 0.5)).quality("a", NOW).uplift
        assert found is not None
        covered += found.low <= 0.2 <= found.high

    assert covered >= 89  # 95 expected, standard deviation 2.2


def test_a_skill_that_does_nothing_is_rarely_called_proven_or_harmful() -> None:
    verdicts = [
        tracker(*randomised(300, seed, 0.6, 0.6)).quality("b", NOW).verdict for seed in range(100)
    ]
    assert sum(v in (Verdict.PROVEN, Verdict.HARMFUL) for v in verdicts) <= 11


def test_few_hold_outs_say_nothing() -> None:
    some = [t for t in randomised(400, 0, 1.0, 0.0) if t.held_out == "a"]
    offered = [t for t in randomised(400, 0, 1.0, 0.0) if t.held_out is None]
    enough = tracker(*offered, *some[:8]).quality("a", NOW)
    few = tracker(*offered, *some[:7]).quality("a", NOW)

    assert (enough.randomised, enough.held_out) == (True, 8)
    assert (few.randomised, few.held_out) == (False, 7)


@pytest.mark.parametrize(
    ("used", "alone", "verdict"),
    [
        ([1.0] * 19, [0.0] * 50, Verdict.UNKNOWN),
        ([1.0] * 30, [0.0] * 50, Verdict.PROMISING),
        ([0.0] * 30, [1.0] * 50, Verdict.HARMFUL),
        ([0.0, 1.0] * 20, [1.0, 0.0, 1.0] * 9, Verdict.UNKNOWN),
    ],
)
def test_without_hold_outs_no_skill_is_proven(
    used: list[float], alone: list[float], verdict: Verdict
) -> None:
    made = tracker(*(trial(s, "a") for s in used), *(trial(s) for s in alone))
    assert made.quality("a", NOW).verdict is verdict


def test_pruning_is_proposed_with_its_reason_and_changes_nothing() -> None:
    made = tracker(
        *randomised(1_000, 3, with_it=0.2, without=0.8),
        *[trial(1.0, "old", age=90)] * 30,
        *[trial(1.0, "good")] * 30,
        *[trial(0.5)] * 30,
    )
    keys = ["a", "old", "good", "never"]
    proposals = {one.key: one.reason for one in made.prune(keys, NOW)}

    assert list(proposals) == ["a", "old"]
    assert "held out" in proposals["a"]
    assert proposals["old"] == "not used for 90 days"
    assert made.quality("old", NOW).uses == 30
    table = made.table(keys, NOW)
    assert {one.key for one in table} == set(keys)
    assert all(x.success.value >= y.success.value for x, y in itertools.pairwise(table))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"loaded": ("c",)}, r"chosen and not held out can be loaded, \['a', 'b'\]; got \['c'\]"),
        ({"held_out": "a", "loaded": ("a",)}, "not held out"),
        ({"success": 1.5}, r"success lies in \[0, 1\]"),
        ({"hold_rate": 1.0}, "hold_rate"),
    ],
)
def test_a_trial_that_cannot_be_is_told(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(trial(1.0), **({"chosen": ("a", "b")} | changes))
