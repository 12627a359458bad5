"""What one agent learned reaches another: within its scope, once, discounted, and by choice."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from letta_gym.errors import BundleError, EmbeddingError, StoreError
from letta_gym.feedback.evidence import EvidenceConfig
from letta_gym.feedback.memory import OutcomeMemory
from letta_gym.feedback.outcome import Outcome
from letta_gym.feedback.transfer import (
    AgentEvidence,
    Bundle,
    TransferConfig,
    pool,
    recommend,
)
from letta_gym.library.embeddings import VectorSpace
from letta_gym.library.skills import Skill
from letta_gym.library.vectors import EmbedderIdentity, snap
from letta_gym.store.store import Store
from letta_gym.store.transfers import Conflict, Transfers, learn
from tests.stores import Clock, decision, new_database, skill

CONFIG = TransferConfig()
TASKS = snap(np.eye(4, 8))


# --- the pool -------------------------------------------------------------------------------------


def counts(rates: Any, n: int, seed: int = 0) -> tuple[list[float], list[float]]:
    rng = np.random.default_rng(seed)
    good = [float(rng.binomial(n, rate)) for rate in rates]
    return good, [n - x for x in good]


def test_agents_that_differ_make_a_wide_pool() -> None:
    alike = pool(*counts([0.6] * 40, 50), CONFIG)
    rng = np.random.default_rng(1)
    apart = pool(*counts(rng.beta(3, 2, 40), 50), CONFIG)

    assert alike.mean == pytest.approx(0.6, abs=0.04)
    assert apart.mean == pytest.approx(0.6, abs=0.1)
    assert alike.spread > 50
    assert 2.5 < apart.spread < 10  # 5 in truth


def test_a_new_agent_is_believed_to_be_like_the_others_as_surely_as_they_are_alike() -> None:
    rng, covered = np.random.default_rng(2), 0
    for seed in range(200):
        made = pool(*counts(rng.beta(6, 4, 12), 40, seed), CONFIG).predicted().interval(0.9)
        covered += made.low <= rng.beta(6, 4) <= made.high

    assert 0.8 <= covered / 200 <= 0.97


def test_own_outcomes_outweigh_the_pool_as_they_grow() -> None:
    made = pool(*counts([0.8] * 10, 50), CONFIG)
    few, many = made.shrunk(0, 3).mean, made.shrunk(0, 3_000).mean

    assert few > 0.6
    assert many < 0.25


def test_one_agent_alone_says_no_more_than_the_prior_spread_allows() -> None:
    made = pool([900.0], [100.0], CONFIG)
    assert made.spread == pytest.approx(CONFIG.prior_spread)
    assert made.predicted().interval().low < 0.75


# --- recommendations ------------------------------------------------------------------------------


def evidence(agent: str, key: str, success: float, task: int = 0, n: int = 20) -> AgentEvidence:
    return AgentEvidence(agent, key, TASKS[[task] * n], np.full(n, success, np.float32))


def test_what_did_well_on_like_tasks_is_recommended_first() -> None:
    found = recommend(
        [
            evidence("ada", "good", 1.0),
            evidence("bob", "good", 0.5),
            evidence("ada", "bad", 0.0),
            evidence("ada", "elsewhere", 1.0, task=3),
        ],
        TASKS[:2],
    )

    assert [one.key for one in found] == ["good", "bad"]
    assert found[0].agents == ("ada", "bob")
    assert found[0].outcomes == pytest.approx(40, abs=0.5)
    assert found[0].expected.low > found[1].expected.value


def test_little_evidence_recommends_nothing() -> None:
    assert recommend([evidence("ada", "good", 1.0, n=4)], TASKS) == []
    assert recommend([evidence("ada", "good", 1.0)], TASKS[:0]) == []
    assert recommend([], TASKS) == []


# --- bundles --------------------------------------------------------------------------------------


def bundle(**changes: Any) -> Bundle:
    made = Bundle(
        "ada",
        (skill("a"), skill("b")),
        np.array([0, 1, 0, 0]),
        TASKS,
        np.array([1.0, 0.5, 0.0, 0.75], np.float32),
        np.array([1.0, 0.5, 0.25, 0.75], np.float32),
    )
    return replace(made, **changes)


def test_a_bundle_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    bundle().save(tmp_path / "a.bundle")
    read = Bundle.load(tmp_path / "a.bundle")

    assert (read.source, read.skills) == ("ada", (skill("a"), skill("b")))
    for name in ("skill", "vectors", "success", "fit"):
        np.testing.assert_array_equal(getattr(read, name), getattr(bundle(), name))
    assert read.digest == bundle().digest
    assert read.digest != bundle(source="bob").digest


def test_no_byte_of_a_bundle_can_change_unnoticed() -> None:
    data = bundle().to_bytes()
    for at in range(0, len(data), 7):
        broken = bytearray(data)
        broken[at] ^= 1
        with pytest.raises(BundleError):
            Bundle.from_bytes(bytes(broken))


def test_what_is_no_bundle_is_told(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="cannot read the bundle"):
        Bundle.load(tmp_path / "none")
    with pytest.raises(BundleError, match="no bundle, or a damaged one"):
        Bundle.from_bytes(b"something else")
    with pytest.raises(BundleError, match="of a skill that the bundle lacks"):
        Bundle.from_bytes(bundle(skill=np.array([0, 1, 0, 2])).to_bytes())


@pytest.mark.parametrize(("share", "kept"), [(1.0, [0, 1, 2, 3]), (0.67, [1, 2, 3]), (0.3, [3])])
def test_the_newest_share_of_each_skill_is_kept(share: float, kept: list[int]) -> None:
    assert bundle().thinned(share).tolist() == kept


# --- from agent to agent --------------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with new_database(tmp_path) as url, Store(url, Clock()) as opened:
        yield opened


def worked(store: Store, name: str, *skills: Skill, n: int = 10, **agent: str) -> None:
    """Let an agent use the skills n times each, with success."""
    log = store.log(store.agents.ensure(name, **agent))
    for number in range(n):
        for slot in range(len(skills)):
            made = decision(f"{name}-{number}-{slot}", skills, (slot,))
            log.decided(made)
            log.recorded(made.id, Outcome(1.0))


def shared(store: Store, name: str, *skills: str) -> None:
    for one in skills:
        store.catalogue(store.agents.get(name)).share(one, "shared")


def test_a_new_agent_takes_in_what_another_learned(store: Store) -> None:
    worked(store, "ada", skill("a"), skill("b"), scope="shared")
    shared(store, "ada", "a", "b")
    bob = store.agents.ensure("bob")
    transfers = Transfers(store)
    packed = transfers.pack("ada", "bob")
    row = transfers.take_in(packed, "bob", actor="eve")
    memory = OutcomeMemory(8, EvidenceConfig())

    assert row.content["skills"] == {"a": "new", "b": "new"}
    assert store.restore(memory, bob) == 10  # half of the outcomes of each
    vectors = packed.vectors[packed.skill == 0]
    found = memory.evidence(vectors[-1:], (skill("a").content_hash,))
    assert found.wins[0, 0] == 5
    assert found.success_similarity[0, 0] > 0.99
    mine = [r.skill for r, _ in store.catalogue(bob).versions() if r.agent_id == bob.id]
    assert mine == ["a", "b"]
    audit = store.policies.audit()[-1]
    assert (audit.actor, audit.action, audit.subject) == ("eve", "transfer", "bob")


def test_the_same_bundle_twice_changes_nothing(store: Store, tmp_path: Path) -> None:
    bob = store.agents.ensure("bob")
    bundle().save(tmp_path / "a.bundle")
    transfers = Transfers(store)
    first = transfers.take_in(tmp_path / "a.bundle", "bob", actor="eve")
    again = transfers.take_in(tmp_path / "a.bundle", "bob", actor="eve")
    memory = OutcomeMemory(8, EvidenceConfig())

    assert first.id == again.id
    assert store.restore(memory, bob) == 2
    assert [row.action for row in store.policies.audit()] == ["transfer"]


def test_a_transfer_to_a_ghost_or_to_oneself_is_an_error(store: Store) -> None:
    worked(store, "ada", skill("a"), scope="shared")
    transfers = Transfers(store)
    with pytest.raises(StoreError, match="no agent 'ghost'"):
        transfers.take_in(bundle(), "ghost", actor="eve")
    with pytest.raises(StoreError, match="no agent 'ghost'"):
        transfers.pack("ghost", None)
    with pytest.raises(StoreError, match="is of 'ada' itself"):
        transfers.take_in(bundle(), "ada", actor="eve")
    with pytest.raises(StoreError, match="to itself changes nothing"):
        transfers.pack("ada", "ada")


@pytest.mark.parametrize(
    ("agent", "skills", "seen_by_bob", "seen_by_strangers"),
    [
        ("private", "shared", False, False),
        ("team", "team", True, False),
        ("shared", "team", True, False),
        ("shared", "private", False, False),
        ("shared", "shared", True, True),
    ],
)
def test_only_what_the_recipient_may_see_is_packed(
    store: Store, agent: str, skills: str, seen_by_bob: bool, seen_by_strangers: bool
) -> None:
    worked(store, "ada", skill("a"), team="red", scope=agent)
    store.catalogue(store.agents.get("ada")).share("a", skills)
    store.agents.ensure("bob", team="red")
    for recipient, seen in (("bob", seen_by_bob), (None, seen_by_strangers)):
        if seen:
            packed = Transfers(store).pack("ada", recipient)
            assert ([s.id for s in packed.skills], len(packed.success)) == (["a"], 10)
        else:
            with pytest.raises(BundleError, match="may see no such skill of 'ada'"):
                Transfers(store).pack("ada", recipient)


def test_conflicts_are_resolved_by_explicit_choice(store: Store) -> None:
    own = replace(skill("a"), body="Bob's own steps.")
    worked(store, "bob", own, skill("c"))
    bob = store.agents.get("bob")
    transfers = Transfers(store, TransferConfig(discount=1.0))
    with pytest.raises(BundleError, match=r"other contents of \['a'\]; say for each"):
        transfers.take_in(bundle(), "bob", actor="eve")
    assert store.policies.audit() == []
    kept = transfers.take_in(bundle(), "bob", conflicts={"a": Conflict.KEEP}, actor="eve")
    assert kept.content["skills"] == {"a": "kept", "b": "new"}
    assert learn(OutcomeMemory(8, EvidenceConfig()), kept) == 1

    other = bundle(source="una")
    taken = transfers.take_in(other, "bob", conflicts=Conflict.TAKE, actor="eve")
    assert taken.content["skills"] == {"a": "taken", "b": "same"}
    assert learn(OutcomeMemory(8, EvidenceConfig()), taken) == 4
    versions = [v.body for r, v in store.catalogue(bob).versions() if r.skill == "a"]
    assert versions == ["Bob's own steps.", "Steps of a."]


def test_vectors_of_another_length_are_refused(store: Store) -> None:
    store.agents.ensure("bob")
    row = Transfers(store).take_in(bundle(), "bob", actor="eve")
    with pytest.raises(BundleError, match=r"of 8 dimensions.*have 9"):
        learn(OutcomeMemory(9, EvidenceConfig()), row)


def space(name: str = "one", dimension: int = 8, turn: float = 0.0) -> VectorSpace:
    """Another build of a model has other weights; its vectors are ``turn`` away."""
    probes = np.eye(2, dimension) + turn * np.eye(2, dimension, 2)
    return VectorSpace(EmbedderIdentity(name, name * 8, dimension), snap(probes))


def test_a_bundle_says_whose_vectors_it_holds(store: Store) -> None:
    worked(store, "ada", skill("a"), scope="shared")
    shared(store, "ada", "a")
    store.agents.settle("ada", space())
    store.agents.ensure("bob")
    packed = Transfers(store).pack("ada", "bob")
    read = Bundle.from_bytes(packed.to_bytes())
    assert read.space is not None
    assert read.space.identity == space().identity
    np.testing.assert_array_equal(read.space.probes, space().probes)
    Transfers(store).take_in(packed, "bob", actor="eve")
    of_bob = store.agents.space("bob")
    assert of_bob is not None
    assert of_bob.identity == space().identity
    with pytest.raises(EmbeddingError, match=r"agent 'bob' cannot use.*from two .*begin anew"):
        store.log(store.agents.get("bob")).begin(space("two", turn=1.0))


def test_vectors_of_another_model_are_refused_and_of_another_build_taken(store: Store) -> None:
    for name in ("bob", "una"):
        store.agents.ensure(name)
        store.log(store.agents.get(name)).begin(space())
    transfers = Transfers(store)
    with pytest.raises(BundleError, match=r"from two .*do not agree to a cosine of 0.98"):
        transfers.take_in(bundle(space=space("two", turn=1.0)), "bob", actor="eve")
    assert store.policies.audit() == []
    assert store.catalogue(store.agents.get("bob")).versions() == []
    transfers.take_in(bundle(space=space("two", turn=0.05)), "bob", actor="eve")
    assert store.policies.audit()[-1].action == "transfer"


def test_nothing_is_recommended_by_vectors_of_another_model(store: Store) -> None:
    worked(store, "ada", skill("a"), scope="shared")
    worked(store, "bob", skill("b"), n=1)
    tasks = np.stack([one.decision.vector for one in store.history().decisions(agent="ada")])
    assert len(Transfers(store).recommend("bob", tasks)) == 1
    store.agents.settle("ada", space())
    store.agents.settle("bob", space("two", turn=1.0))
    assert Transfers(store).recommend("bob", tasks) == []


def test_an_agent_is_recommended_what_it_may_see_and_lacks(store: Store) -> None:
    worked(store, "ada", skill("a"), skill("b"), scope="shared")
    worked(store, "eve", skill("secret"))
    worked(store, "bob", skill("b"), n=1)
    tasks = np.stack([one.decision.vector for one in store.history().decisions(agent="ada")])
    found = Transfers(store).recommend("bob", tasks)

    assert [one.key for one in found] == [skill("a").content_hash]
    assert found[0].agents == ("ada",)
