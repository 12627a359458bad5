"""Analytics say what happened, when, by whose choice, and at what cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from letta_gym import cli
from letta_gym.feedback.analytics import Period, compare_policies, summarise, trend
from letta_gym.feedback.beta import Rate
from letta_gym.feedback.outcome import Outcome
from letta_gym.feedback.quality import QualityConfig, QualityTracker, Trial
from letta_gym.store.figures import Mean
from letta_gym.store.store import Store
from tests.stores import Clock, decision, new_database, skill

HOUR, DAY = 3_600.0, 86_400.0
START = 20_000 * DAY


def trial(hours: float, success: float, *loaded: str, tokens: float = 100.0) -> Trial:
    return Trial(
        START + hours * HOUR,
        "ada",
        "text",
        loaded,
        loaded,
        success,
        success - 0.1,
        tokens if loaded else 0.0,
        policy="one",
        allowed_tokens=300.0,
    )


def test_a_trend_has_a_point_for_each_period_in_order() -> None:
    trials = [trial(30, 1.0, "a"), trial(0.5, 0.0, "a"), trial(1.5, 1.0), trial(0.9, 1.0, "b")]
    hours, days = trend(trials, Period.HOUR), trend(trials, Period.DAY)

    assert [(p.start - START) / HOUR for p in hours] == [0, 1, 30]
    assert [p.decisions for p in hours] == [2, 1, 1]
    assert [(p.start - START) / DAY for p in days] == [0, 1]
    first = days[0]
    assert first.reward == pytest.approx((0.0 + 1.0 + 1.0) / 3 - 0.1)
    assert first.tokens == pytest.approx(200 / 3)
    assert first.tokens_saved == 700
    assert first.success.low < 2 / 3 < first.success.high


def test_policies_are_held_to_the_most_used_or_the_named_one() -> None:
    old = [trial(i, float(i % 2), "a") for i in range(60)]
    new = [replace(trial(i, 1.0, "a"), policy="two") for i in range(30)]
    most_used, other = compare_policies(old + new)

    assert (most_used.policy, most_used.decisions, most_used.lead) == ("one", 60, None)
    assert (other.policy, other.decisions) == ("two", 30)
    assert other.lead is not None
    assert other.lead.low > 0.2
    named = compare_policies(old + new, "two")
    assert [one.policy for one in named] == ["two", "one"]
    assert named[1].lead is not None
    assert named[1].lead.high < -0.2


def test_a_summary_names_the_best_the_worst_and_the_unused() -> None:
    trials = [
        *[trial(i, 1.0, "good") for i in range(6)],
        *[trial(i, 0.0, "bad") for i in range(6)],
        *[trial(i, 1.0, "rare") for i in range(2)],
        *[trial(i, 1.0) for i in range(2)],
    ]
    found = summarise(trials, ["good", "bad", "rare", "never"], START + DAY, price=0.01, most=1)

    assert [one.key for one in found.top] == ["good"]
    assert [one.key for one in found.bottom] == ["bad"]
    assert found.unused == ("never",)
    assert found.used == 0.75
    assert found.coverage == pytest.approx(14 / 16)
    assert found.cost == pytest.approx(14.0)
    assert found.saved == pytest.approx(0.01 * (16 * 300 - 1_400))


def test_nothing_settled_is_no_error() -> None:
    found = summarise([], ["a"], START)
    assert (found.whole, found.coverage, found.unused) == (None, 0.0, ("a",))
    assert trend([], Period.DAY) == []
    assert compare_policies([]) == []


def test_the_command_line_reports_and_transfers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with new_database(tmp_path) as url, Store(url, Clock()) as store:

        def run(*arguments: str) -> str:
            assert cli.main([*arguments, "--store", url]) == 0
            return capsys.readouterr().out

        log = store.log(store.agents.ensure("ada", scope="shared"))
        assert "no settled decision" in run("data", "report")
        for number in range(6):
            log.decided(decision(number))
            log.recorded(f"decision-{number}", Outcome(1.0))
        text = run("data", "report", "--period", "hour", "--price", "0.001")
        said = json.loads(run("data", "report", "--json", "--agent", "ada"))

        assert "6 settled decisions" in text
        assert "2023-11-14 22:00" in text
        assert text.split("by chance)\n")[1].startswith("\n"), "the two come always, alone or not"
        assert "not used for" in text.split("proposed for pruning")[1]
        calm = run("data", "report", "--set", "stale_days=100000")
        assert "not used for" not in calm
        assert said["trend"][0]["decisions"] == 6
        assert said["skills"][skill("a").content_hash] == "a"

        store.agents.ensure("bob")
        for one in ("a", "b", "c"):
            log.catalogue.share(one, "shared")
        file = str(tmp_path / "a.bundle")
        assert "2 skills, 12 outcomes" in run("transfer", "pack", "--source", "ada", "--out", file)
        assert "new" in run("transfer", "take", file, "--to", "bob", "--conflicts", "keep")


def test_a_summary_tells_what_is_used_together_and_proposes_what_to_prune() -> None:
    trials = [trial(n, 1.0, "a", "b") for n in range(6)] + [trial(n, 1.0, "c") for n in range(6)]
    now = START + 70 * DAY
    said = summarise(trials, ["a", "b", "c"], now)

    (pair,) = said.together
    assert (pair.one, pair.other, pair.lift) == ("a", "b", 2.0)
    assert [one.key for one in said.prune] == ["a", "b", "c"]
    assert "not used for 70 days" in said.prune[0].reason
    assert summarise(trials, ["a"], now, quality=QualityConfig(stale_days=71)).prune == ()


def test_the_database_and_the_log_give_the_same_figures(tmp_path: Path) -> None:
    clock = Clock(START)
    with new_database(tmp_path) as url, Store(url, clock) as store:
        log = store.log(store.agents.ensure("ada"))
        rng = np.random.default_rng(0)
        for number in range(60):
            clock.now += rng.exponential(HOUR)
            made = decision(number, slots=((1, 0), (2,), ())[number % 3], policy="pq"[number % 2])
            log.decided(made)
            clock.now += 60  # the outcome comes in another hour now and then
            if number % 5:
                log.recorded(
                    made.id,
                    Outcome(float(rng.integers(5)) / 4, reward_parts={"success": number / 100}),
                )
        trials, figures = list(store.trials()), store.figures()
        whole, hours = figures.summary(), figures.trend(0.0, HOUR)
        by_policy = {one.digest: one for one in figures.policies()}
        by_skill = {one.skill: one for one in figures.skills()}
        versions = store.history().versions().values()

    def same(one: Mean, other: Rate, count: int) -> None:
        assert one.count == count
        assert one.mean is not None
        assert (one.low, one.high) == pytest.approx((other.low, other.high), abs=0.02)
        assert one.mean == pytest.approx(other.value, abs=0.5 / count)  # the belief before it

    said = summarise(trials, [], clock.now).whole
    assert said is not None
    same(whole.success, said.success, said.decisions)
    assert whole.reward == pytest.approx(said.reward)
    points = trend(trials, Period.HOUR)
    assert [point.at for point in hours] == [point.start for point in points]
    for mine, other in zip(hours, points, strict=True):
        assert mine.success.count == other.decisions
        assert mine.reward == pytest.approx(other.reward)
    for record in compare_policies(trials):
        same(by_policy[record.policy].success, record.success, record.decisions)
        assert by_policy[record.policy].reward == pytest.approx(record.reward)
    tracker = QualityTracker(QualityConfig(prior_strength=1e-6))
    tracker.add(trials)
    for version in versions:
        if version.skill in by_skill:
            uses = tracker.quality(version.key, clock.now).uses
            assert by_skill[version.skill].success.count == uses
