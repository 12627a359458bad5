"""The store keeps what it acknowledged, once, for whom it belongs to, on SQLite and PostgreSQL."""

from __future__ import annotations

import json
import math
import multiprocessing
import sqlite3
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import delete, func, inspect, select, text, update
from sqlalchemy.exc import IntegrityError

from letta_gym import cli
from letta_gym.errors import ConfigError, DecisionError, StoreError
from letta_gym.feedback.evidence import EvidenceConfig
from letta_gym.feedback.memory import ALONE, OutcomeMemory
from letta_gym.feedback.outcome import Outcome
from letta_gym.feedback.quality import QualityTracker, Trial
from letta_gym.selection.runtime import SkillSelector
from letta_gym.store.engine import alembic_config
from letta_gym.store.history import Logged
from letta_gym.store.log import LogConfig, StoreLog
from letta_gym.store.models import (
    Base,
    DecisionRow,
    FeedbackRow,
    OutcomeRow,
    PickRow,
    TransferRow,
)
from letta_gym.store.store import Store
from tests.stores import DAY, POSTGRES, Clock, decision, new_database, skill, vector
from tests.test_runtime import EMBEDDER, TEXT, library, policy

FULL = Outcome(
    0.75,
    loaded=("b",),
    tokens=90.0,
    reward_parts={"success": 0.75, "tokens": -0.05},
    source="human",
    steps=4,
    tool_errors=1,
    latency=2.5,
    stop_reason="end_turn",
    error="a tool failed",
    response="Here it is.",
    run_id="run-1",
    step_ids=("step-1", "step-2"),
)


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with new_database(tmp_path) as made:
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(url: str, clock: Clock) -> Iterator[Store]:
    with Store(url, clock) as opened:
        yield opened


@pytest.fixture
def log(store: Store) -> StoreLog:
    return store.log(store.agents.ensure("ada"))


def only(store: Store) -> Logged:
    (one,) = store.history().decisions()
    return one


def ids(store: Store, agent: str) -> set[str]:
    return {one.decision.id for one in store.history(store.agents.get(agent)).decisions()}


# --- a decision and its outcome -------------------------------------------------------------------


def test_a_decision_is_read_back_as_it_was_made(store: Store, log: StoreLog) -> None:
    made = decision(1)
    log.decided(made)
    kept = only(store)

    row = kept.decision
    for name in ("vector", "context", "scores"):
        np.testing.assert_array_equal(getattr(row, name), getattr(made, name))
    np.testing.assert_array_equal(row.features.reshape(3, 4), made.features)
    for name in ("policy_digest", "k", "log_propensity", "explored", "hold_rate"):
        assert getattr(row, name) == getattr(made, name)
    assert [(p.slot, p.skill, p.key, p.fit, p.tokens, p.loaded) for p in kept.picks] == [
        (pick.slot, pick.skill, pick.key, pick.fit, pick.tokens, None) for pick in made.picks
    ]
    assert row.held_out is None
    assert (kept.agent, kept.outcome, kept.tokens) == ("ada", None, None)


def test_a_skill_that_was_held_out_is_kept_with_its_chance(store: Store, log: StoreLog) -> None:
    made = decision(1, slots=(1, 0))
    first, second = made.picks
    log.decided(replace(made, picks=(second,), held_out=first, hold_rate=0.02))

    row = only(store).decision
    assert (row.held_out, row.hold_rate) == (first.slot, 0.02)
    assert [pick.skill for pick in only(store).picks] == [second.skill]


def test_an_outcome_is_read_back_as_it_was_recorded(store: Store, clock: Clock) -> None:
    log = store.log(store.agents.ensure("ada"), LogConfig(keep_text=True))
    log.decided(decision(1))
    clock.now += 60
    assert log.recorded("decision-1", FULL)
    kept = only(store)

    row = kept.outcome
    assert row is not None
    names = ("success", "evidence", "reward", "source", "tokens", "steps", "tool_errors")
    for name in (*names, "latency", "stop_reason", "error", "response", "run_id"):
        assert getattr(row, name) == getattr(FULL, name), name
    assert row.reward_parts == FULL.reward_parts
    assert row.step_ids == ["step-1", "step-2"]
    assert (row.delay, row.recorded_at) == (60, clock.now)
    assert {pick.skill: pick.loaded for pick in kept.picks} == {"b": True, "a": False}


@pytest.mark.parametrize(
    ("loaded", "tokens", "expected"), [(None, None, 200), (("a",), None, 100), ((), None, 0)]
)
def test_without_recorded_tokens_the_loaded_skills_cost_what_is_listed(
    store: Store, log: StoreLog, loaded: tuple[str, ...] | None, tokens: None, expected: float
) -> None:
    log.decided(decision(1))
    log.recorded("decision-1", Outcome(1.0, loaded, tokens))

    assert only(store).tokens == expected


def test_texts_are_kept_only_by_choice(store: Store, log: StoreLog) -> None:
    log.decided(decision(1, task="my secret"))
    log.recorded("decision-1", FULL)
    kept = only(store)
    assert kept.outcome is not None
    assert (kept.decision.task_text, kept.outcome.response) == (None, None)
    assert len(kept.decision.task_hash) == 64

    open_log = store.log(log.agent, LogConfig(keep_text=True))
    open_log.decided(decision(2, task="no secret"))
    texts = [one.decision.task_text for one in store.history().decisions()]
    assert texts == [None, "no secret"]


def test_the_same_outcome_twice_counts_once(store: Store, log: StoreLog) -> None:
    log.decided(decision(1))

    assert [log.recorded("decision-1", FULL) for _ in range(3)] == [True, False, False]
    with store.database.read(None) as session:
        assert session.scalar(select(func.count()).select_from(OutcomeRow)) == 1


def test_another_outcome_for_a_settled_decision_is_refused(store: Store, log: StoreLog) -> None:
    log.decided(decision(1))
    log.recorded("decision-1", FULL)
    with pytest.raises(DecisionError, match=r"another outcome already.*feedback\(\)"):
        log.recorded("decision-1", replace(FULL, success=0.5))
    assert only(store).outcome is not None
    assert only(store).outcome.success == 0.75  # type: ignore[union-attr]


def test_an_outcome_that_nobody_graded_may_be_graded_once(
    store: Store, log: StoreLog, clock: Clock
) -> None:
    log.decided(decision(1))
    ungraded = Outcome(None, ("b",), evidence=False, source="session", stop_reason="end_turn")
    graded = Outcome(0.5, ("b",), source="human")

    assert log.recorded("decision-1", ungraded)
    clock.pass_days(1)
    assert [log.recorded("decision-1", graded) for _ in range(2)] == [True, False]
    with pytest.raises(DecisionError, match="another outcome already"):
        log.recorded("decision-1", ungraded)

    outcome = only(store).outcome
    assert outcome is not None
    assert (outcome.success, outcome.evidence, outcome.source) == (0.5, True, "human")
    assert (outcome.stop_reason, outcome.delay) == ("end_turn", DAY)
    assert len(list(store.trials())) == 1


def test_a_failure_is_not_graded_later(log: StoreLog) -> None:
    log.decided(decision(1))
    log.recorded("decision-1", Outcome(None, evidence=False, error="timeout"))

    with pytest.raises(DecisionError, match="another outcome already"):
        log.recorded("decision-1", Outcome(1.0))


def test_an_outcome_without_a_decision_is_refused(log: StoreLog) -> None:
    with pytest.raises(DecisionError, match="'ada' has no decision 'decision-7' in the store"):
        log.recorded("decision-7", FULL)
    with pytest.raises(DecisionError, match="has no decision"):
        log.waiting("decision-7")
    with pytest.raises(DecisionError, match="has no decision"):
        log.feedback("decision-7", "k", "human", 1.0)


def test_an_outcome_for_an_expired_decision_is_refused(log: StoreLog, clock: Clock) -> None:
    for number in (1, 2):
        log.decided(decision(number))
    clock.pass_days(30)
    assert log.recorded("decision-1", FULL)
    clock.pass_days(1)
    with pytest.raises(DecisionError, match=r"expired 1\.0 days ago; raise expire_days"):
        log.recorded("decision-2", FULL)
    assert not log.recorded("decision-1", FULL), "a repeated one is no error, however late"


def test_an_outcome_for_another_agents_decision_is_refused(store: Store, log: StoreLog) -> None:
    log.decided(decision(1))
    store.agents.change("ada", team=None, scope="shared")
    other = store.log(store.agents.ensure("bob"))

    for act in (
        lambda: other.recorded("decision-1", FULL),
        lambda: other.waiting("decision-1"),
        lambda: other.feedback("decision-1", "k", "human", 1.0),
    ):
        with pytest.raises(DecisionError, match="'bob' has no decision 'decision-1'"):
            act()
    assert only(store).outcome is None


def test_a_shadow_decision_takes_no_outcome(store: Store) -> None:
    log = store.log(store.agents.ensure("ada"), mode="shadow")
    log.decided(decision(1))
    assert only(store).decision.mode == "shadow"
    with pytest.raises(DecisionError, match="made in the shadow and not carried out"):
        log.recorded("decision-1", FULL)
    with pytest.raises(ConfigError, match="active, shadow, canary; got 'dark'"):
        store.log(log.agent, mode="dark")


def test_an_outcome_that_names_another_skill_changes_nothing(store: Store, log: StoreLog) -> None:
    log.decided(decision(1))
    with pytest.raises(ConfigError, match=r"\['c'\] were loaded; chosen were \['b', 'a'\]"):
        log.recorded("decision-1", Outcome(1.0, ("b", "c")))
    kept = only(store)
    assert kept.outcome is None
    assert {pick.loaded for pick in kept.picks} == {None}


def test_a_decision_of_no_skill_has_an_outcome_too(store: Store, log: StoreLog) -> None:
    log.decided(decision(1, slots=()))
    assert log.recorded("decision-1", Outcome(0.5))
    assert (only(store).picks, only(store).tokens) == ((), 0)


def test_feedback_joins_its_decision_once_for_each_key(store: Store, log: StoreLog) -> None:
    log.decided(decision(1))
    assert log.feedback("decision-1", "thumb", "human", 1.0, "good")
    assert not log.feedback("decision-1", "thumb", "human", 1.0, "good")
    assert log.feedback("decision-1", "return", "delayed", 0.25)
    with pytest.raises(DecisionError, match="another feedback under the key 'thumb'"):
        log.feedback("decision-1", "thumb", "human", 0.0, "bad")
    with pytest.raises(ConfigError, match=r"lies in \[0, 1\]; got 1.5"):
        log.feedback("decision-1", "more", "human", 1.5)

    assert {(row.key, row.source, row.value) for row in only(store).feedback} == {
        ("thumb", "human", 1.0),
        ("return", "delayed", 0.25),
    }


# --- reading --------------------------------------------------------------------------------------


def test_decisions_are_read_in_order_and_filtered(
    store: Store, log: StoreLog, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letta_gym.store.history._PAGE", 3)
    start = clock.now
    for number in range(10):
        log.decided(decision(number, policy=f"policy-{number % 2}"))
        clock.now += number % 2  # two at the same time
    log.recorded("decision-4", FULL)
    store.log(store.agents.ensure("bob")).decided(decision("of-bob"))

    def numbers(**filters: object) -> list[str]:
        found = store.history().decisions(**filters)  # type: ignore[arg-type]
        return [one.decision.id.removeprefix("decision-") for one in found]

    assert numbers(agent="ada") == [str(n) for n in range(10)]
    assert numbers(agent="bob") == ["of-bob"]
    assert numbers(policy="policy-1") == ["1", "3", "5", "7", "9"]
    assert numbers(since=start + 1, until=start + 3) == ["2", "3", "4", "5"]
    assert numbers(settled=True) == ["4"]


def test_a_changed_skill_is_a_new_version(store: Store, log: StoreLog) -> None:
    before, after = skill("a"), skill("a", "Other steps.")
    log.decided(decision(1, (before, skill("b")), (0,)))
    log.decided(decision(2, (after, skill("b")), (0,)))
    versions = log.catalogue.versions()
    keys = [one.picks[0].key for one in store.history().decisions()]

    assert keys == [before.content_hash, after.content_hash]
    assert [(row.skill, version.body) for row, version in versions] == [
        ("a", "Steps of a."),
        ("b", "Steps of b."),
        ("a", "Other steps."),
    ]


def test_skills_are_registered_with_their_vectors(store: Store) -> None:
    catalogue = store.catalogue(store.agents.ensure("ada"))
    rng = np.random.default_rng(3)
    vectors = np.stack([vector(rng), vector(rng)])
    tagged = replace(skill("b"), metadata={"category": "text", "tags": ["x", "y"]})
    catalogue.register([skill("a"), tagged])
    catalogue.register([skill("a"), tagged], vectors, EMBEDDER.identity)
    first, second = (version for _, version in catalogue.versions())

    np.testing.assert_array_equal(first.vector, vectors[0])
    np.testing.assert_array_equal(second.vector, vectors[1])
    assert second.embedder == EMBEDDER.identity.key
    assert (second.category, second.tags) == ("text", ["x", "y"])
    assert (first.category, first.tags) == (None, [])
    with pytest.raises(ConfigError, match="one for each of the 1 skills"):
        catalogue.register([skill("a")], vectors, EMBEDDER.identity)


# --- who may see what -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scope", "seen_by"),
    [("private", {"ada"}), ("team", {"ada", "bob"}), ("shared", {"ada", "bob", "eve", "una"})],
)
def test_what_an_agent_did_is_seen_in_its_scope(
    store: Store, scope: str, seen_by: set[str]
) -> None:
    ada = store.agents.ensure("ada", team="red", scope=scope)
    store.agents.ensure("bob", team="red")
    store.agents.ensure("eve", team="blue")
    store.agents.ensure("una")
    log = store.log(ada)
    log.decided(decision(1))
    log.recorded("decision-1", FULL)
    log.feedback("decision-1", "thumb", "human", 1.0)

    models = (DecisionRow, PickRow, OutcomeRow, FeedbackRow)
    for name in ("ada", "bob", "eve", "una"):
        assert (ids(store, name) == {"decision-1"}) == (name in seen_by), name
        for model in models:
            with store.database.read(store.agents.get(name)) as session:
                whole = session.scalars(select(model)).all()
                counted = session.scalar(select(func.count()).select_from(model))
                assert (len(whole) > 0, counted) == (name in seen_by, len(whole)), model
        seen = {agent.name for agent in store.agents.all(store.agents.get(name))}
        assert ("ada" in seen) == (name in seen_by)


def test_two_agents_without_a_team_are_not_one_team(store: Store) -> None:
    store.log(store.agents.ensure("ada", scope="team")).decided(decision(1))
    store.agents.ensure("bob", scope="team")

    assert ids(store, "bob") == set()


def test_a_changed_scope_counts_at_once_and_for_the_past(store: Store, log: StoreLog) -> None:
    log.decided(decision(1))
    store.agents.ensure("eve")
    assert ids(store, "eve") == set()
    store.agents.change("ada", team=None, scope="shared")
    assert ids(store, "eve") == {"decision-1"}
    store.agents.change("ada", team=None, scope="private")
    assert ids(store, "eve") == set()


def test_a_skill_has_a_scope_of_its_own(store: Store) -> None:
    ada = store.catalogue(store.agents.ensure("ada", team="red"))
    bob = store.catalogue(store.agents.ensure("bob", team="red"))
    eve = store.catalogue(store.agents.ensure("eve", team="blue"))
    ada.register([skill("a"), skill("b"), skill("c")])
    ada.share("b", "team")
    ada.share("c", "shared")

    def seen(catalogue: object) -> list[str]:
        return [row.skill for row, _ in catalogue.versions()]  # type: ignore[attr-defined]

    assert (seen(ada), seen(bob), seen(eve)) == (["a", "b", "c"], ["b", "c"], ["c"])
    with pytest.raises(StoreError, match="'bob' has no skill 'b'"):
        bob.share("b", "shared")
    with pytest.raises(ConfigError, match="private, team, shared; got 'all'"):
        ada.share("a", "all")


def test_who_sees_a_decision_sees_what_its_skills_are_called_and_not_what_is_in_them(
    store: Store,
) -> None:
    ada = store.agents.ensure("ada", scope="shared")
    store.log(ada).decided(decision(1))
    bob = store.agents.ensure("bob")

    (seen,) = store.history(bob).decisions()
    assert [pick.skill for pick in seen.picks] == ["b", "a"]
    assert store.catalogue(bob).versions() == []


def test_the_scope_holds_for_changes_too(store: Store, log: StoreLog) -> None:
    log.decided(decision(1))
    eve = store.agents.ensure("eve")
    with store.database.read(eve) as session:
        session.execute(update(DecisionRow).values(mode="canary"))
        session.execute(delete(PickRow))
        session.commit()

    assert only(store).decision.mode == "active"
    assert len(only(store).picks) == 2


def test_a_transfer_is_seen_from_both_ends_only(store: Store) -> None:
    ada, bob, eve = (store.agents.ensure(name) for name in ("ada", "bob", "eve"))
    with store.database.write() as session:
        session.add(
            TransferRow(
                source_id=ada.id,
                target_id=bob.id,
                bundle_sha256="f" * 64,
                content={},
                bundle=b"",
                discount=0.5,
                imported_at=0.0,
            )
        )
    seen = []
    for agent in (ada, bob, eve):
        with store.database.read(agent) as session:
            seen.append(len(session.scalars(select(TransferRow)).all()))

    assert seen == [1, 1, 0]


def test_an_agent_that_does_not_exist_is_told(store: Store) -> None:
    store.agents.ensure("ada")
    with pytest.raises(StoreError, match="no agent 'adda'; did you mean 'ada'"):
        store.agents.get("adda")
    with pytest.raises(StoreError, match=r"no agent 'x'; add it with agents\.ensure"):
        store.agents.change("x", team=None, scope="private")
    with pytest.raises(ConfigError, match="private, team, shared; got 'public'"):
        store.agents.ensure("bob", scope="public")
    assert store.agents.ensure("ada", scope="shared") == store.agents.get("ada")
    assert [agent.scope for agent in store.agents.all()] == ["private"]


# --- the selector and its log ---------------------------------------------------------------------


def selector(log: StoreLog, seed: int = 0) -> SkillSelector:
    rng = np.random.default_rng(seed)
    return SkillSelector.load(policy(), library(), embedder=EMBEDDER, rng=rng, log=log)


def test_a_selector_logs_before_it_answers_and_what_it_saw(store: Store, log: StoreLog) -> None:
    runtime = selector(log)
    choice = runtime.select(TEXT, k=2, explore=True)
    kept = only(store)

    assert kept.decision.id == choice.decision_id
    assert [pick.skill for pick in kept.picks] == [one.id for one in choice.skills]
    assert [kept.decision.scores[p.slot] for p in kept.picks] == pytest.approx(choice.scores)
    assert kept.decision.log_propensity == choice.log_propensity
    assert kept.decision.policy_digest == choice.policy_digest
    assert kept.decision.k == 2
    assert len(kept.decision.candidates) == len(library())


def test_a_selector_records_into_the_log_and_learns_once(store: Store, log: StoreLog) -> None:
    runtime = selector(log)
    choice = runtime.select(TEXT, k=1)
    for _ in range(3):
        runtime.record(choice.decision_id, Outcome(1.0))

    assert len(runtime.memory) == 1
    assert only(store).outcome is not None
    with pytest.raises(DecisionError, match="another outcome already"):
        runtime.record(choice.decision_id, Outcome(0.0))
    with pytest.raises(DecisionError, match="has no decision 'none'"):
        runtime.record("none", Outcome(1.0))


def test_an_outcome_finds_its_decision_in_another_process(store: Store, log: StoreLog) -> None:
    choice = selector(log).select(TEXT, k=2)
    other = selector(log)
    other.record(choice.decision_id, Outcome(1.0, loaded=(choice.skills[0].id,)))

    assert len(other.memory) == 1
    with pytest.raises(ConfigError, match="were loaded; chosen were"):
        selector(log).record(choice.decision_id, Outcome(1.0, loaded=("skill-9",)))


def test_a_restored_memory_is_the_one_that_was_lost(store: Store, log: StoreLog) -> None:
    runtime = selector(log)
    texts = ("chart the figures", "mend a test", "draw a map", "sort the mail now")
    for number in range(40):
        choice = runtime.select(texts[number % 4], k=2, explore=True)
        loaded = tuple(one.id for one in choice.skills)[: number % 3]
        outcome = Outcome((number % 5) / 4, loaded)
        if number % 7 == 0:
            outcome = Outcome(None, evidence=False, error="the server was away")
        if number % 11:
            runtime.record(choice.decision_id, outcome)
    restored = selector(log)
    read = store.restore(restored.memory, log.agent)

    assert read == sum(1 for n in range(40) if n % 7 and n % 11)
    assert len(restored.memory) == len(runtime.memory) > 30
    vectors = EMBEDDER.encode(texts)
    np.testing.assert_array_equal(
        restored.memory.tables(vectors, restored.shelf.keys),
        runtime.memory.tables(vectors, runtime.shelf.keys),
    )
    for one in texts:
        assert restored.select(one).explain() == runtime.select(one).explain()
    with pytest.raises(ConfigError, match="restore into an empty one"):
        store.restore(restored.memory, log.agent)


def test_a_small_memory_is_restored_with_the_newest(store: Store, log: StoreLog) -> None:
    for number in range(6):
        log.decided(decision(number, slots=()))
        log.recorded(f"decision-{number}", Outcome(float(number >= 4)))
    memory = OutcomeMemory(8, EvidenceConfig(), capacity=2)

    assert store.restore(memory, log.agent) == 2
    evidence = memory.evidence(vector(np.random.default_rng(0))[None], (ALONE,))
    assert evidence.wins[0, 0] == 2


def test_a_failing_log_fails_the_choice(store: Store, log: StoreLog) -> None:
    runtime = selector(log)
    with store.database.write() as session:
        session.execute(text("DROP TABLE picks"))
    with pytest.raises(Exception, match="picks"):
        runtime.select(TEXT)
    with store.database.read(None) as session:
        assert session.scalar(select(func.count()).select_from(DecisionRow)) == 0


# --- policies and runs ----------------------------------------------------------------------------


def test_one_policy_is_active_and_every_switch_is_audited(store: Store, clock: Clock) -> None:
    for digest in ("one", "two"):
        store.policies.add(digest, actor="ada", path=f"{digest}.safetensors")
        clock.now += 1
    store.policies.add("one", actor="bob", path="elsewhere")
    store.policies.switch("one", "active", actor="ada")
    store.policies.switch("two", "canary", actor="ada", share=0.1)
    store.policies.switch("two", "active", actor="ada", detail={"reason": "better"})

    assert {p.digest: (p.status, p.share, p.path) for p in store.policies.all()} == {
        "two": ("active", 0.0, "two.safetensors"),
        "one": ("retired", 0.0, "one.safetensors"),
    }
    assert [p.digest for p in store.policies.with_status("active")] == ["two"]
    audit = store.policies.audit()
    assert [(row.action, row.subject) for row in audit] == [
        *(("add", "one"), ("add", "two"), ("switch", "one")),
        *(("switch", "two"), ("switch", "two")),
    ]
    assert audit[-1].detail == {
        "from": "canary",
        "to": "active",
        "share": 0.0,
        "reason": "better",
        "retired": "one",
    }
    with pytest.raises(StoreError, match="no policy 'three'; add it first"):
        store.policies.switch("three", "active", actor="ada")
    with pytest.raises(ConfigError, match="got 'best' and 0"):
        store.policies.switch("one", "best", actor="ada")


def test_two_active_policies_are_impossible(store: Store) -> None:
    for digest in ("one", "two"):
        store.policies.add(digest, actor="ada")
    with pytest.raises(IntegrityError), store.database.write() as session:
        session.execute(text("UPDATE policies SET status = 'active'"))


def test_a_training_run_keeps_its_metrics(store: Store) -> None:
    run = store.runs.start("runs/mock", {"seed": 1})
    for step in (1, 2):
        store.runs.metrics(run, step, {"return": step / 2, "loss": 1 / step})
    store.runs.finish(run, policy_digest="one")
    failed = store.runs.start("runs/other", {})
    store.runs.finish(failed, error="no disk")

    assert store.runs.curve(run, "return") == [(1, 0.5), (2, 1.0)]
    assert [(r.folder, r.status, r.policy_digest, r.error) for r in store.runs.all()] == [
        ("runs/other", "failed", None, "no disk"),
        ("runs/mock", "finished", "one", None),
    ]
    with pytest.raises(StoreError, match="no training run 99"):
        store.runs.metrics(99, 1, {"return": 1.0})


# --- quality --------------------------------------------------------------------------------------


def test_settled_decisions_become_trials(store: Store, log: StoreLog, clock: Clock) -> None:
    skills = (replace(skill("a"), metadata={"category": "text"}), skill("b"), skill("c"))
    log.decided(decision(1, skills))
    made = decision(2, skills)
    first, second = made.picks
    log.decided(replace(made, picks=(second,), held_out=first, hold_rate=0.5))
    log.decided(decision(3, skills))
    log.decided(decision(4, skills))
    log.recorded("decision-1", Outcome(0.75, ("a",), 60.0, reward_parts={"success": 0.5}))
    log.recorded("decision-2", Outcome(1.0))
    log.recorded("decision-3", Outcome(None, evidence=False, error="away"))
    a, b = (skills[slot].content_hash for slot in (0, 1))

    found = list(store.trials())
    assert found == [
        Trial(clock.now, "ada", "text", (b, a), (a,), 0.75, 0.5, 60.0, 0.0, None, "p" * 64, 300.0),
        Trial(clock.now, "ada", "text", (a, b), (a,), 1.0, None, 100.0, 0.5, b, "p" * 64, 300.0),
    ]
    tracker = QualityTracker()
    tracker.add(found)
    assert tracker.quality(a, clock.now).uses == 2
    assert list(store.trials(store.agents.ensure("bob"))) == []


# --- export and retention -------------------------------------------------------------------------


def test_both_exports_hold_the_same(store: Store, tmp_path: Path) -> None:
    log = store.log(store.agents.ensure("ada"), LogConfig(keep_text=True))
    for number in range(4):
        log.decided(decision(number))
    log.recorded("decision-2", FULL)
    log.feedback("decision-2", "thumb", "human", 1.0, "good")
    for form in ("jsonl", "parquet"):
        assert store.export(tmp_path / f"log.{form}", form) == 4
    lines = (tmp_path / "log.jsonl").read_text(encoding="utf-8").splitlines()
    from_lines = [json.loads(line) for line in lines]
    from_table = pq.read_table(tmp_path / "log.parquet").to_pylist()
    for one in from_table:
        one["scores"] = [x if math.isfinite(x) else None for x in one["scores"]]
        if one["outcome"] is not None:
            one["outcome"]["reward_parts"] = dict(one["outcome"]["reward_parts"])

    assert from_table == from_lines
    assert from_lines[2]["outcome"]["reward_parts"] == FULL.reward_parts
    assert from_lines[2]["candidates"] == ["a", "b", "c"]
    assert from_lines[2]["candidate_keys"][0] == skill("a").content_hash
    assert from_lines[2]["feedback"][0]["comment"] == "good"
    assert from_lines[0]["outcome"] is None


def test_an_empty_store_is_exported_with_its_columns(store: Store, tmp_path: Path) -> None:
    assert store.export(tmp_path / "log.parquet", "parquet") == 0
    assert "log_propensity" in pq.read_table(tmp_path / "log.parquet").column_names
    with pytest.raises(ConfigError, match="jsonl or parquet; got 'csv'"):
        store.export(tmp_path / "log.csv", "csv")
    with pytest.raises(StoreError, match="no agent 'ada'"):
        store.export(tmp_path / "log.jsonl", "jsonl", agent="ada")
    assert not (tmp_path / "log.jsonl").exists()


def test_old_decisions_go_with_all_that_hangs_on_them(
    store: Store, log: StoreLog, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("letta_gym.store.store._BATCH", 2)
    for number in range(6):
        log.decided(decision(number))
        log.recorded(f"decision-{number}", FULL)
        log.feedback(f"decision-{number}", "thumb", "human", 1.0)
        clock.pass_days(1)

    assert store.purge(1.5, actor="ada") == 5
    with store.database.read(None) as session:
        for model in (DecisionRow, OutcomeRow, FeedbackRow):
            assert session.scalar(select(func.count()).select_from(model)) == 1
        assert session.scalar(select(func.count()).select_from(PickRow)) == 2
    assert only(store).decision.id == "decision-5"
    assert store.policies.audit()[-1].detail["decisions"] == 5
    with pytest.raises(DecisionError, match="removed by the retention"):
        log.recorded("decision-0", FULL)


def test_the_command_line_exports_and_purges(
    store: Store, log: StoreLog, url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    log.decided(decision(1))
    out = tmp_path / "log.jsonl"
    arguments = ["data", "export", "--store", url, "--out", str(out), "--agent", "ada"]
    assert cli.main(arguments) == 0
    assert "1 decisions" in capsys.readouterr().out
    assert len(out.read_text(encoding="utf-8").splitlines()) == 1

    assert cli.main(["data", "purge", "--store", url, "--older-than", "0"]) == 0
    assert list(store.history().decisions()) == []
    missing = str(tmp_path / "none.sqlite")
    assert cli.main(["data", "purge", "--store", missing, "--older-than", "1"]) == 2
    assert "there is no store at" in capsys.readouterr().err
    assert not Path(missing).exists()


# --- the database ---------------------------------------------------------------------------------


def test_the_migrations_make_the_tables_of_the_models(store: Store) -> None:
    with store.database.engine.connect() as connection:
        context = MigrationContext.configure(connection)
        assert compare_metadata(context, Base.metadata) == []
        tables = set(inspect(connection).get_table_names())

    assert tables == {*Base.metadata.tables, "alembic_version"}


def test_the_migrations_can_be_taken_back(store: Store) -> None:
    config = alembic_config()
    with store.database.engine.begin() as connection:
        config.attributes["connection"] = connection
        command.downgrade(config, "base")
        assert inspect(connection).get_table_names() == ["alembic_version"]
    store.database.migrate()
    store.agents.ensure("ada")


def test_a_store_of_a_later_version_is_refused(store: Store, url: str) -> None:
    with store.database.write() as session:
        session.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(StoreError, match=r"tables of a later version \(9999\)"):
        Store(url)


def test_many_may_open_a_new_store_at_once(url: str) -> None:
    with ThreadPoolExecutor(8) as pool:
        stores = list(pool.map(Store, [url] * 8))
        agents = set(pool.map(lambda one: one.agents.ensure("ada").id, stores))
    for one in stores:
        one.close()

    assert len(agents) == 1


@pytest.mark.parametrize(
    ("bad", "words"),
    [
        ("mysql://host/db", "knows SQLite and PostgreSQL; got 'mysql'"),
        ("sqlite://", "needs a file"),
        ("what is this://", "is not the URL of a database"),
        ("postgresql://nobody:secret@127.0.0.1:1/none", "cannot be used"),
        ("/dev/null/store.sqlite", "cannot be opened"),
    ],
)
def test_a_url_that_cannot_be_used_is_told_without_its_password(bad: str, words: str) -> None:
    with pytest.raises(StoreError, match=words) as told:
        Store(bad)
    assert "secret" not in str(told.value)


@pytest.mark.skipif(POSTGRES is not None, reason="about SQLite")
def test_sqlite_is_opened_with_a_write_ahead_log_and_foreign_keys(
    store: Store, log: StoreLog, tmp_path: Path
) -> None:
    log.decided(decision(1))
    with store.database.engine.connect() as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "foreign_keys", "busy_timeout", "synchronous")
        }
    assert pragmas == {
        "journal_mode": "wal",
        "foreign_keys": 1,
        "busy_timeout": 60_000,
        "synchronous": 1,
    }
    with pytest.raises(IntegrityError), store.database.write() as session:
        session.execute(update(DecisionRow).values(agent_id=99))
    # What is acknowledged is on the file, whoever reads it.
    with sqlite3.connect(tmp_path / "store.sqlite") as other:
        assert other.execute("SELECT count(*) FROM decisions").fetchone() == (1,)


# --- many at once ---------------------------------------------------------------------------------


def drill(url: str, process: int, decisions: int, repeat: int) -> list[str]:
    """Decide and record from 16 threads, each outcome ``repeat`` times; what was acknowledged."""
    with Store(url) as store:
        log = store.log(store.agents.ensure(f"agent-{process % 2}"))

        def one(number: int) -> str:
            made = decision(f"{process}-{number}", slots=(number % 2,))
            log.decided(made)
            outcome = Outcome((number % 5) / 4, run_id=made.id)
            new = [log.recorded(made.id, outcome) for _ in range(repeat)]
            assert new == [True] + [False] * (repeat - 1)
            return made.id

        with ThreadPoolExecutor(16) as pool:
            return list(pool.map(one, range(decisions)))


def test_what_many_threads_and_processes_record_is_there_once_and_in_its_place(url: str) -> None:
    Store(url).close()
    processes, decisions = 4, 40
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        work = [(url, process, decisions, 2) for process in range(processes)]
        acknowledged = [id for ids in pool.starmap(drill, work) for id in ids]
    with Store(url) as store:
        kept = list(store.history().decisions())

    assert len(acknowledged) == processes * decisions
    assert Counter(one.decision.id for one in kept) == Counter(acknowledged)
    for one in kept:
        process, number = (int(part) for part in one.decision.id.split("-")[1:])
        assert one.agent == f"agent-{process % 2}"
        assert one.outcome is not None
        assert one.outcome.run_id == one.decision.id
        assert one.outcome.success == (number % 5) / 4
        assert [pick.slot for pick in one.picks] == [number % 2]


def test_skills_that_many_register_at_once_are_there_once(store: Store) -> None:
    agent = store.agents.ensure("ada")
    skills = [skill(f"skill-{number}") for number in range(12)]

    def work(start: int) -> None:
        catalogue = store.catalogue(agent)
        for number in range(12):
            catalogue.register([skills[(start + number + i) % 12] for i in range(3)])

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(work, range(12)))

    kept = Counter(row.skill for row, _ in store.catalogue(agent).versions())
    assert kept == Counter(one.id for one in skills)


def test_an_outcome_recorded_by_many_at_once_counts_once(store: Store, log: StoreLog) -> None:
    for number in range(10):
        log.decided(decision(number))
    with ThreadPoolExecutor(16) as pool:
        names = [f"decision-{number}" for number in range(10) for _ in range(8)]
        new = Counter(
            name
            for name, first in zip(
                names, pool.map(lambda name: log.recorded(name, FULL), names), strict=True
            )
            if first
        )

    assert new == Counter(f"decision-{number}" for number in range(10))
