"""The runtime: it observes what the environment observes, and learns at once from outcomes."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import gymnasium
import numpy as np
import pytest
from numpy.typing import NDArray

from letta_gym.envs.history import Past
from letta_gym.envs.ledger import Ledger
from letta_gym.envs.single import SkillSelectionEnv
from letta_gym.errors import (
    ConfigError,
    DecisionError,
    EmbeddingError,
    LettaGymError,
    PolicyFileError,
    SkillError,
)
from letta_gym.feedback.evidence import EvidenceConfig
from letta_gym.feedback.memory import ALONE, OutcomeMemory
from letta_gym.feedback.outcome import Outcome
from letta_gym.library.embeddings import PROBES
from letta_gym.library.frontmatter import format_skill
from letta_gym.library.skills import Skill, SkillLibrary
from letta_gym.library.vectors import EmbedderIdentity, Float, snap
from letta_gym.selection import network, runtime, shelf, subset
from letta_gym.selection.candidates import RetrievalConfig
from letta_gym.selection.choice import Selection
from letta_gym.selection.exploration import ExplorationConfig, Explorer
from letta_gym.selection.observation import (
    CONTEXT,
    FEATURES,
    Column,
    alike_columns,
    alike_slots,
    context,
    features,
    look_alikes,
)
from letta_gym.selection.policy import Policy
from letta_gym.selection.runtime import SkillSelector
from letta_gym.selection.session import Query
from letta_gym.selection.shelf import Shelf
from letta_gym.selection.weighing import Case

TEXT = "chart the quarterly figures"
D = 64


class BagEmbedder:
    """Embeds a text by the words in it, each a fixed random direction."""

    def __init__(self, dimension: int = D, model: int = 0) -> None:
        self.dimension, self.model, self.calls = dimension, model, 0

    @property
    def identity(self) -> EmbedderIdentity:
        """Named after its seed."""
        return EmbedderIdentity(f"bag-{self.model}", f"{self.model:064x}", self.dimension)

    def encode(self, texts: Any) -> Float:
        """Snapped sums of the directions of the words."""
        self.calls += 1
        return snap([np.sum([self._word(w) for w in text.split()], 0) for text in texts])

    def _word(self, word: str) -> NDArray[np.float64]:
        seed = [self.model, *word.encode()]
        return np.random.default_rng(seed).standard_normal(self.dimension)


EMBEDDER = BagEmbedder()
TOPICS = ("chart the figures", "translate a letter", "mend a test", "draw a map", "sort the mail")


def skill(name: str, description: str = "", tokens: int = 500) -> Skill:
    return Skill(name, name, description or f"{name} things", f"Steps of {name}.", tokens)


def library(count: int = 5) -> SkillLibrary:
    return SkillLibrary(
        skill(f"skill-{i}", TOPICS[i % len(TOPICS)], 200 + 100 * i) for i in range(count)
    )


def policy(*, noise: float = 0.0, **changes: Any) -> Policy:
    """An untrained policy that chooses eagerly, its weights moved by ``noise``."""
    rng = np.random.default_rng(1)
    weights = network.initial(rng, 8, sharpness=30.0, threshold=0.0)
    moved = {n: (w + noise * rng.standard_normal(w.shape)) for n, w in weights.items()}
    made = Policy(
        weights={name: w.astype(np.float32) for name, w in moved.items()},
        evidence=EvidenceConfig(),
        retrieval=RetrievalConfig(),
        token_price=1e-5,
        max_skills=3,
        slots=12,
        embedder=EMBEDDER.identity,
        probes=EMBEDDER.encode(PROBES),
        digest="d" * 64,
    )
    return replace(made, **changes)


def selector(skills: SkillLibrary | None = None, **keywords: Any) -> SkillSelector:
    return SkillSelector.load(
        keywords.pop("policy", None) or policy(),
        library() if skills is None else skills,
        embedder=EMBEDDER,
        rng=np.random.default_rng(0),
        **keywords,
    )


def scores(selection: Selection) -> dict[str, float]:
    return {c.skill: c.score for c in selection.explain().candidates}


def ids(selection: Selection) -> list[str]:
    return [skill.id for skill in selection.skills]


# --- the same observation and the same choice as the environment ----------------------------------


class Twin:
    """An environment, and beside it a selector with the same library, history and session."""

    def __init__(self, seed: int, noise: float, monkeypatch: pytest.MonkeyPatch, **keywords: Any):
        made = gymnasium.make("letta_gym/MockSkillSelection-v0", obs="compact", **keywords)
        self.env = cast(SkillSelectionEnv, made.unwrapped)
        config, self.pool = self.env.config, self.env.driver.pool
        vectors = self.pool.suite.vectors
        assert vectors is not None
        self.policy = policy(
            noise=noise,
            evidence=config.evidence,
            retrieval=config.retrieval,
            token_price=config.token_price / 1000,
            max_skills=config.max_skills,
            slots=config.candidates,
            embedder=vectors.identity,
            probes=vectors.probes,
        )
        self.past: list[tuple[Any, ...]] = []
        load = Ledger.load

        def spy(ledger: Ledger, past: Past, stream: Any) -> None:
            cells = np.arange(len(past.count)).repeat(past.count)
            slot, task, meant = past.slot[cells], past.tasks[0, past.at[cells]], past.meant[cells]
            self.past.extend(zip(slot, task, past.success, meant, strict=True))
            load(ledger, past, stream)

        monkeypatch.setattr(Ledger, "load", spy)
        self.observation, _ = self.env.reset(seed=seed)
        shelf = Shelf(self.pool.suite.library, self.policy, vectors.skills)
        self.selector = SkillSelector(self.policy, shelf, self._memory())
        self.session = self.selector.session(config.token_budget, config.horizon)
        s = self.env.driver.sessions
        self.available = [self.pool.ids[i] for i in s.skills[0][s.present[0]]]

    def _memory(self) -> OutcomeMemory:
        memory = OutcomeMemory(self.policy.dimension, self.policy.evidence)
        installed = self.env.driver.sessions.skills[0]
        skills = list(self.pool.suite.library)
        for slot, task, success, meant in self.past:
            alone = slot == len(installed)
            key = ALONE if alone else skills[installed[slot]].content_hash
            memory.add(key, self.pool.task_vectors[task], float(success), float(meant))
        return memory

    def observe(self) -> tuple[str, Float, dict[str, NDArray[Any]]]:
        """The task's text and vector, and what the runtime observes of it."""
        task = int(self.env.driver.sessions.task[0])
        text, vector = self.pool.suite.tasks[task].text, self.pool.task_vectors[task]
        case = Case(text, vector, self.session, self.available)
        situation = self.selector.weigh([case]).situation
        p = self.policy
        f = features(situation, p.evidence, p.token_price)
        seen = {"features": f[0], "context": context(situation, f)[0]}
        return text, vector, seen | {"action_mask": situation.mask[0].astype(np.int8)}

    def step(self) -> tuple[list[str], list[str], bool, dict[str, Any]]:
        """Choose on both sides, carry out; what each chose, and whether the session is over."""
        text, vector, seen = self.observe()
        for name, array in seen.items():
            np.testing.assert_array_equal(array, self.observation[name], strict=True, err_msg=name)
        selection = self.session.select(
            text, self.policy.max_skills, embedding=vector, available=self.available
        )
        o = {name: array[None] for name, array in self.observation.items()}
        mask = o["action_mask"].astype(bool)
        logits, _, _ = network.forward(self.policy.weights, o["features"], o["context"], mask)
        picks = subset.greedy(logits, self.policy.max_skills)
        action = subset.to_mask(picks, mask.shape[1])[0]
        self.observation, _, terminated, truncated, info = self.env.step(action)
        done = info["outcome"]
        self.selector.record(
            selection.decision_id,
            Outcome(done["success"], tuple(done["loaded"]), done["tokens"], done["evidence"]),
        )
        return info["skills"], ids(selection), terminated or truncated, info


@pytest.mark.parametrize("seed", [1, 2, 3])
@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_a_session_of_the_runtime_is_one_of_the_environment_bit_for_bit(
    seed: int, noise: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    twin = Twin(seed, noise, monkeypatch, token_budget=400_000.0, horizon=40)
    sets: Counter[tuple[str, ...]] = Counter()
    ended = False
    while not ended:
        by_env, by_runtime, ended, info = twin.step()
        assert sorted(by_env) == sorted(by_runtime)
        assert info["dropped"] == 0
        sets[tuple(sorted(by_env))] += 1
    assert sets.total() == 40
    assert len(sets) > 3
    assert twin.past


def test_a_binding_token_budget_cuts_both_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    dropped = masked = steps = 0
    for seed in range(4):
        twin = Twin(seed, 0.3, monkeypatch, token_budget=9_000.0, horizon=64)
        ended = False
        while not ended:
            masked += int((twin.observation["action_mask"] == 0).any())
            by_env, by_runtime, ended, info = twin.step()
            assert sorted(by_env) == sorted(by_runtime)
            dropped, steps = dropped + info["dropped"], steps + 1
        assert twin.session.tokens_left == twin.env.driver.sessions.tokens_left[0]
    assert dropped > 0
    assert masked > 0
    assert steps < 4 * 64


def test_look_alikes_with_one_text_keep_their_own_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    twin = Twin(1, 0.0, monkeypatch)
    np.testing.assert_array_equal(twin.selector.shelf.vectors, twin.pool.skill_vectors)
    assert twin.selector.shelf.ids == twin.pool.ids


# --- outcomes -------------------------------------------------------------------------------------


def test_the_next_choice_knows_the_outcome() -> None:
    runtime = selector()
    first = runtime.select(TEXT, k=1)
    assert ids(first) == ["skill-0"]
    runtime.record(first.decision_id, Outcome(1.0))
    after_success = runtime.select(TEXT, k=1)
    assert scores(after_success)["skill-0"] > scores(first)["skill-0"]
    assert len(runtime.memory) == 1
    for _ in range(3):
        again = runtime.select(TEXT, k=1)
        runtime.record(again.decision_id, Outcome(0.0, loaded=("skill-0",)))
    after_failures = runtime.select(TEXT, k=1)
    assert scores(after_failures)["skill-0"] < scores(first)["skill-0"]


def test_an_outcome_without_a_loaded_skill_is_the_agent_alone() -> None:
    runtime = selector()
    first = runtime.select(TEXT)
    runtime.record(first.decision_id, Outcome(0.0, loaded=()))
    vector = EMBEDDER.encode([TEXT])
    alone, chosen = (
        runtime.memory.evidence(vector, [key])
        for key in (ALONE, runtime.shelf.skills[0].content_hash)
    )
    assert alone.fit_failures[0, 0] == 1
    assert chosen.fit_failures[0, 0] == 0


def test_skills_that_were_chosen_but_not_loaded_learn_nothing() -> None:
    runtime = selector()
    choice = runtime.select(TEXT, k=3)
    assert len(choice.skills) > 1
    loaded = choice.skills[-1]
    runtime.record(choice.decision_id, Outcome(1.0, loaded=(loaded.id, loaded.id)))
    keys = [skill.content_hash for skill in choice.skills]
    wins = runtime.memory.evidence(EMBEDDER.encode([TEXT]), keys).wins[0]
    assert wins.tolist() == [0.0] * (len(keys) - 1) + [1.0]


def test_a_decision_is_settled_once() -> None:
    runtime = selector()
    choice = runtime.select(TEXT)
    runtime.record(choice.decision_id, Outcome(1.0))
    known = len(runtime.memory)
    with pytest.raises(DecisionError, match=r"no decision '.*' waits .* recorded before"):
        runtime.record(choice.decision_id, Outcome(1.0))
    with pytest.raises(DecisionError, match="no decision 'nothing'"):
        runtime.record("nothing", Outcome(1.0))
    assert len(runtime.memory) == known


def test_an_outcome_that_names_another_skill_is_refused_and_can_be_recorded_again() -> None:
    runtime = selector()
    choice = runtime.select(TEXT, k=1)
    with pytest.raises(ConfigError, match=r"\['other'\] were loaded; chosen were \['skill-0'\]"):
        runtime.record(choice.decision_id, Outcome(1.0, loaded=("skill-0", "other")))
    assert len(runtime.memory) == 0
    runtime.record(choice.decision_id, Outcome(1.0, loaded=("skill-0",)))
    assert len(runtime.memory) == 1


def test_an_infrastructure_failure_settles_the_decision_and_teaches_nothing() -> None:
    runtime = selector()
    session = runtime.session(10_000, 5)
    choice = session.select(TEXT)
    assert choice.skills
    runtime.record(choice.decision_id, Outcome(0.0, evidence=False))
    assert len(runtime.memory) == 0
    assert session.tokens_left == 10_000
    with pytest.raises(DecisionError):
        runtime.record(choice.decision_id, Outcome(1.0))


def test_the_oldest_decisions_are_forgotten() -> None:
    runtime = selector()
    runtime.max_pending = 2
    first, second, third = (runtime.select(TEXT) for _ in range(3))
    with pytest.raises(DecisionError, match="not among the last 2"):
        runtime.record(first.decision_id, Outcome(1.0))
    runtime.record(second.decision_id, Outcome(1.0))
    runtime.record(third.decision_id, Outcome(1.0))


def test_a_memory_that_is_handed_in_is_used_even_when_it_is_empty() -> None:
    made = policy()
    memory = OutcomeMemory(made.dimension, made.evidence)
    runtime = selector(policy=made, memory=memory)
    choice = runtime.select(TEXT)
    runtime.record(choice.decision_id, Outcome(1.0))
    assert runtime.memory is memory
    assert len(memory) > 0


def test_a_memory_of_other_constants_is_refused() -> None:
    other = EvidenceConfig(bandwidth=0.5)
    for memory in (OutcomeMemory(D, other), OutcomeMemory(7, EvidenceConfig())):
        with pytest.raises(ConfigError, match="memory was made for other"):
            selector(memory=memory)


# --- sessions -------------------------------------------------------------------------------------


def test_a_session_pays_for_what_was_loaded() -> None:
    runtime = selector()
    session = runtime.session(2_000, 3)
    first = session.select(TEXT, k=2)
    assert first.tokens == sum(skill.tokens for skill in first.skills) > 0
    runtime.record(first.decision_id, Outcome(1.0, loaded=(first.skills[0].id,)))
    assert session.tokens_left == 2_000 - first.skills[0].tokens
    second = session.select(TEXT, k=2)
    runtime.record(second.decision_id, Outcome(1.0, tokens=123.0))
    assert session.tokens_left == 2_000 - first.skills[0].tokens - 123
    assert session.tasks_left == 1
    third = session.select(TEXT, k=2)
    runtime.record(third.decision_id, Outcome(1.0, tokens=1e6))
    assert session.tokens_left == 0
    assert session.select(TEXT).skills == ()


@pytest.mark.parametrize(("budget", "horizon"), [(0, 1), (-5, 1), (math.nan, 1), (100, 0)])
def test_a_session_needs_a_budget_and_a_horizon(budget: float, horizon: int) -> None:
    with pytest.raises(ConfigError, match="token budget above 0 and a horizon of at least 1"):
        selector().session(budget, horizon)


def test_an_infinite_budget_is_no_budget() -> None:
    assert scores(selector().select(TEXT, token_budget=math.inf)) == scores(selector().select(TEXT))


@pytest.mark.parametrize("explore", [False, True])
def test_the_token_budget_is_respected_always(explore: bool) -> None:
    runtime = selector(library(9))
    spent = []
    for budget in (150, 250, 350, 550, 900, 1_400) * 40:
        choice = runtime.select(TEXT, token_budget=budget, explore=explore)
        assert choice.tokens <= budget
        assert choice.tokens == sum(skill.tokens for skill in choice.skills)
        spent.append(choice.tokens)
    assert max(spent) > 400


# --- exploration ----------------------------------------------------------------------------------


@pytest.mark.parametrize("budget", [None, 550])
def test_sets_are_explored_as_often_as_their_propensity_says(budget: int | None) -> None:
    gentle = policy()
    weights = {name: w / np.float32(10) for name, w in gentle.weights.items()}
    runtime = selector(library(4), policy=replace(gentle, weights=weights))
    vector = EMBEDDER.encode([TEXT])[0]
    n = 4_000
    seen: Counter[tuple[str, ...]] = Counter()
    propensity: dict[tuple[str, ...], float] = {}
    for _ in range(n):
        choice = runtime.select(TEXT, 2, budget, explore=True, embedding=vector)
        chosen = tuple(sorted(ids(choice)))
        seen[chosen] += 1
        previous = propensity.setdefault(chosen, choice.log_propensity)
        assert choice.log_propensity == pytest.approx(previous, abs=1e-12)
        assert choice.explored
    probability = {chosen: math.exp(log) for chosen, log in propensity.items()}
    assert sum(probability.values()) == pytest.approx(1, abs=1e-9)
    assert len(seen) > 3
    for chosen, p in probability.items():
        assert abs(seen[chosen] - n * p) < 4 * math.sqrt(n * p * (1 - p))


def test_without_exploration_the_propensity_is_one_and_nothing_is_drawn() -> None:
    runtime = selector()
    choices = [runtime.select(TEXT) for _ in range(2)]
    assert [choice.log_propensity for choice in choices] == [0, 0]
    assert not any(choice.explored for choice in choices)
    assert ids(choices[0]) == ids(choices[1])
    assert choices[0].decision_id != choices[1].decision_id
    assert runtime.rng.bit_generator.state == np.random.default_rng(0).bit_generator.state


# --- the library changes --------------------------------------------------------------------------


def test_the_very_next_choice_sees_what_was_added_and_removed() -> None:
    runtime = selector()
    assert ids(runtime.select(TEXT, k=1)) == ["skill-0"]
    runtime.shelf.library.add(skill("better", TEXT))
    assert ids(runtime.select(TEXT, k=1)) == ["better"]
    runtime.shelf.library.remove("better")
    assert ids(runtime.select(TEXT, k=1)) == ["skill-0"]


def test_a_replaced_skill_starts_anew_and_the_others_keep_their_evidence() -> None:
    runtime = selector()
    tasks = {"skill-0": TOPICS[0], "skill-3": TOPICS[3]}
    fresh = {name: scores(runtime.select(task))[name] for name, task in tasks.items()}
    for name, task in tasks.items():
        choice = runtime.select(task, available=[name])
        assert ids(choice) == [name]
        runtime.record(choice.decision_id, Outcome(0.0))
        assert scores(runtime.select(task))[name] < fresh[name]
    old = runtime.shelf.library["skill-0"]
    runtime.shelf.library.replace(replace(old, body=old.body + " Look twice."))
    reasons = {}
    for name, task in tasks.items():
        (shown,) = runtime.select(task, available=[name]).explain().candidates
        reasons[name] = shown.reasons
    assert "not tried yet" in reasons["skill-0"]
    assert "not tried yet" not in reasons["skill-3"]


def test_an_outcome_counts_for_the_skill_as_it_was_when_it_was_chosen() -> None:
    runtime = selector()
    choice = runtime.select(TEXT, k=1)
    old = choice.skills[0]
    runtime.shelf.library.replace(replace(old, body="Other steps."))
    runtime.record(choice.decision_id, Outcome(1.0))
    new = runtime.shelf.library[old.id]
    keys = [old.content_hash, new.content_hash]
    wins = runtime.memory.evidence(EMBEDDER.encode([TEXT]), keys).wins[0]
    assert wins.tolist() == [1, 0]


def test_an_emptied_library_is_a_typed_error() -> None:
    runtime = selector(library(1))
    runtime.shelf.library.remove("skill-0")
    with pytest.raises(SkillError, match="no skill to choose from; add one"):
        runtime.select(TEXT)
    runtime.shelf.library.add(skill("next"))
    assert set(scores(runtime.select(TEXT))) == {"next"}


def test_only_new_texts_are_embedded() -> None:
    embedder = BagEmbedder()
    runtime = SkillSelector.load(policy(), library(), embedder=embedder)
    calls = embedder.calls
    runtime.select(TEXT, embedding=EMBEDDER.encode([TEXT])[0])
    assert embedder.calls == calls
    runtime.shelf.library.add(replace(skill("new"), body=""))
    runtime.select(TEXT, embedding=EMBEDDER.encode([TEXT])[0])
    assert embedder.calls == calls + 1


# --- bounds ---------------------------------------------------------------------------------------


def assert_within(columns: tuple[Column, ...], values: Float) -> None:
    for i, column in enumerate(columns):
        assert column.low <= values[..., i].min(), column.name
        assert values[..., i].max() <= column.high, column.name


def test_no_number_of_an_observation_leaves_its_bounds() -> None:
    extreme = EvidenceConfig(prior_strength=1e-3, nearest_weight=1, fit_level=-1, prior_uplift=1)
    made = policy(evidence=extreme, token_price=10.0)
    runtime = selector(policy=made)
    vector = EMBEDDER.encode(["chart the figures"])[0]
    for key in runtime.shelf.keys:
        for _ in range(300):
            runtime.memory.add(key, vector, float(key != ALONE))
    session = runtime.session(1e9, 1)
    situation = runtime.weigh([Case("chart the figures", vector, session)]).situation
    f = features(situation, extreme, made.token_price)
    assert 8 * situation.judgement.closed_form.max() > 8
    assert 8 * made.token_price * situation.tokens.max() > 80
    assert session.tokens_left / 1000 > 8
    assert_within(FEATURES, f)
    assert_within(CONTEXT, context(situation, f))


def test_three_look_alikes_and_a_masked_one_are_compared_as_the_table_says() -> None:
    rng = np.random.default_rng(0)
    merit, certainty = rng.random((2, 3, 6), dtype=np.float32)
    mask = rng.random((3, 6)) < 0.7
    groups = np.array([0, 0, 0, 0, 1, 2])  # of the skills; two of the eight are in no slot
    skills = np.stack([rng.permutation(8)[:6] for _ in range(3)])
    group = np.append(groups, [1, 0])
    table = look_alikes(np.eye(3, dtype=np.float32)[group])
    barrier = np.where(mask, np.float32(0), np.float32(-1e3))
    lead, rival, sure, some = out = np.empty((4, 3, 6), np.float32)
    alike_columns(merit, certainty, alike_slots(table, skills), barrier, out)
    for row, slot in np.ndindex(3, 6):
        others = [
            other
            for other in range(6)
            if other != slot and mask[row, other]
            if group[skills[row, other]] == group[skills[row, slot]]
        ]
        assert some[row, slot] == bool(others)
        if others:
            mean = merit[row, others].mean()
            assert lead[row, slot] == pytest.approx(merit[row, slot] - mean, abs=1e-6)
            assert rival[row, slot] == merit[row, others].max()
            assert sure[row, slot] == pytest.approx(certainty[row, others].mean(), abs=1e-6)
        else:
            assert lead[row, slot] == rival[row, slot] == sure[row, slot] == 0


# --- order and slots ------------------------------------------------------------------------------


def test_neither_the_order_of_the_library_nor_spare_slots_change_anything() -> None:
    skills = list(library(9))
    expected = None
    for seed, slots in ((0, 12), (1, 12), (2, 9), (3, 40)):
        order = np.random.default_rng(seed).permutation(len(skills))
        made = policy(noise=0.2, slots=slots)
        runtime = selector(SkillLibrary(skills[i] for i in order), policy=made)
        first = runtime.select(TEXT)
        runtime.record(first.decision_id, Outcome(0.5))
        second = runtime.select(TEXT)
        found = [(ids(c), c.scores, c.stop_score, c.explain()) for c in (first, second)]
        expected = expected or found
        assert found == expected


def test_an_embedding_is_used_as_the_embedder_gave_it() -> None:
    vector = EMBEDDER.encode([TEXT])[0]
    texted, given = selector().select(TEXT), selector().select(TEXT, embedding=vector)
    scaled = selector().select(TEXT, embedding=vector.astype(np.float64) * 7)
    assert scores(texted) == scores(given)
    assert scores(scaled) == pytest.approx(scores(given), abs=0.05)


# --- what does not fit ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "error", "words"),
    [
        ({"k": 0}, ConfigError, r"k must lie in 1\.\.3; got 0"),
        ({"k": 4}, ConfigError, r"k must lie in 1\.\.3; got 4"),
        ({"token_budget": 0}, ConfigError, "token budget above 0"),
        ({"available": []}, ConfigError, "no skill is available; pass at least one id, or None"),
        ({"available": ["skil-1"]}, ConfigError, "no skill 'skil-1'; did you mean 'skill-1'"),
        ({"embedding": np.ones(D - 1)}, EmbeddingError, r"has the shape \(64,\); got \(63,\)"),
        ({"embedding": np.ones((1, D))}, EmbeddingError, r"got \(1, 64\)"),
        ({"embedding": np.zeros(D)}, EmbeddingError, "zero or not finite"),
        ({"embedding": np.full(D, np.nan, np.float32)}, EmbeddingError, "zero or not finite"),
    ],
)
def test_arguments_that_do_not_fit_are_typed_errors_and_nothing_is_lost(
    keywords: dict[str, Any], error: type[LettaGymError], words: str
) -> None:
    runtime = selector()
    session = runtime.session(1_000, 2)
    with pytest.raises(error, match=words):
        runtime.select(TEXT, **keywords)
    keywords.pop("token_budget", None)
    if keywords:
        with pytest.raises(error, match=words):
            session.select(TEXT, **keywords)
    assert session.tasks_left == 2
    assert ids(runtime.select(TEXT, k=1)) == ["skill-0"]


# --- several at once ------------------------------------------------------------------------------


def queries(count: int, *, explore: bool = False) -> list[Query]:
    """Tasks with other limits each, some with their vectors."""
    rng, made = np.random.default_rng(5), []
    for i in range(count):
        text = f"{TOPICS[rng.integers(len(TOPICS))]} and {TOPICS[rng.integers(len(TOPICS))]} {i}"
        known = EMBEDDER.encode([text])[0] if rng.random() < 0.5 else None
        some = rng.choice(30, 6, replace=False)
        available = [f"skill-{j}" for j in some] if rng.random() < 0.3 else None
        budget = float(rng.integers(300, 2_000)) if rng.random() < 0.5 else None
        made.append(Query(text, int(rng.integers(1, 4)), budget, explore, known, available))
    return made


def experienced(**keywords: Any) -> SkillSelector:
    """A selector of 30 skills, with outcomes of all of them and of none."""
    made = selector(library(30), policy=policy(noise=0.3), **keywords)
    rng = np.random.default_rng(6)
    for i in range(200):
        vector = EMBEDDER.encode([f"{TOPICS[i % len(TOPICS)]} {i}"])[0]
        key = made.shelf.keys[rng.integers(31)]
        made.memory.add(key, vector, float(rng.integers(5)) / 4, float(rng.integers(5)) / 4)
    return made


def one_by_one(of: SkillSelector, asked: list[Query]) -> list[Selection]:
    return [of.select(**query._asdict()) for query in asked]


@pytest.mark.parametrize("explore", [False, True])
@pytest.mark.parametrize(("at_once", "small"), [(1 << 17, 1024), (150, 1024), (1 << 17, 10)])
def test_many_at_once_are_chosen_as_one_after_the_other(
    at_once: int, small: int, explore: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime, "_AT_ONCE", at_once)  # so few that they go in parts
    monkeypatch.setattr(shelf, "_SMALL", small)  # the way of a large library
    asked = queries(40, explore=explore)
    many, single = experienced().select_many(asked), one_by_one(experienced(), asked)
    assert len(many) == 40
    for a, b in zip(many, single, strict=True):
        assert ids(a) == ids(b)
        assert (a.tokens, a.explored) == (b.tokens, b.explored) == (a.tokens, explore)
        np.testing.assert_allclose(a.scores, b.scores, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(a.log_propensity, b.log_propensity, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(a._choice.trace().features, b._choice.trace().features)
        skills = [[c.skill for c in s.explain().candidates] for s in (a, b)]
        assert skills[0] == skills[1]
    assert len({tuple(ids(a)) for a in many}) > 10


def test_outcomes_of_many_are_recorded_like_others() -> None:
    made = experienced()
    asked = queries(6)
    before = len(made.memory)
    chosen = made.select_many(asked)
    for selection in chosen:
        made.record(selection.decision_id, Outcome(1.0))
    assert len(made.memory) == before + sum(len(s.skills) or 1 for s in chosen)


def test_when_one_of_many_is_wrong_nothing_is_chosen() -> None:
    made = experienced()
    for wrong in (Query(TEXT, 9), Query(TEXT, available=["nobody"]), Query(TEXT, token_budget=0)):
        with pytest.raises(ConfigError):
            made.select_many([*queries(3), wrong])
    assert not made._pending
    assert made.select_many([]) == []


def test_where_one_of_many_is_wrong_no_exploration_is_spent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(runtime, "_AT_ONCE", 30)  # each task is a part of its own
    explorer = Explorer(ExplorationConfig(epsilon=0.9, daily_budget=100))
    made = experienced(explorer=explorer)
    before = made.rng.bit_generator.state
    with pytest.raises(ConfigError):
        made.select_many([*queries(20, explore=True), Query(TEXT, available=["nobody"])])
    assert made.rng.bit_generator.state == before
    made.select_many(queries(20, explore=True))
    assert explorer.budget.left < 100


def test_only_available_skills_are_candidates() -> None:
    choice = selector().select(TEXT, available={"skill-3", "skill-1"})
    assert set(scores(choice)) == {"skill-3", "skill-1"}


def test_another_embedder_is_refused_on_loading() -> None:
    with pytest.raises(EmbeddingError, match=r"bag-0.*bag-1.*disagree"):
        SkillSelector.load(policy(), library(), embedder=BagEmbedder(model=1))


def test_a_default_embedder_of_another_model_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("letta_gym.selection.shelf.default_embedder", lambda: BagEmbedder(model=1))
    with pytest.raises(EmbeddingError, match=r"bag-0.*bag-1.*disagree"):
        SkillSelector.load(policy(), library())


def test_an_embedder_is_checked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    build = BagEmbedder()
    renamed = EmbedderIdentity("bag-0-other-build", "f" * 64, D)
    monkeypatch.setattr(BagEmbedder, "identity", property(lambda _: renamed))
    runtime = SkillSelector.load(policy(), library(), embedder=build)
    calls = build.calls
    for _ in range(3):
        runtime.select(TEXT)
    assert build.calls == calls + 3


def test_vectors_of_another_length_are_refused() -> None:
    class Short(BagEmbedder):
        def encode(self, texts: Any) -> Float:
            return BagEmbedder.encode(self, texts)[:, :20]

    with pytest.raises(EmbeddingError, match=r"64 dimensions.*embed them anew"):
        SkillSelector.load(policy(), library(), embedder=Short())


# --- files ----------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for one in library(3):
        path = tmp_path / "skills" / one.name / "SKILL.md"
        path.parent.mkdir(parents=True)
        path.write_text(format_skill(one), encoding="utf-8")
    return tmp_path / "skills"


def test_a_policy_file_and_a_folder_choose_as_what_they_were_made_of(
    folder: Path, tmp_path: Path
) -> None:
    file = policy().to_file()
    file.save(tmp_path / "policy.safetensors")
    runtime = SkillSelector.load(tmp_path / "policy.safetensors", folder, embedder=EMBEDDER)
    choice = runtime.select(TEXT)
    assert choice.policy_digest == file.digest
    direct = selector(SkillLibrary.from_folder(folder)).select(TEXT)
    assert scores(choice) == scores(direct)
    with pytest.raises(PolicyFileError, match="cannot read the policy"):
        SkillSelector.load(tmp_path / "none.safetensors", folder)
