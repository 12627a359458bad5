"""The outcome memory against brute force."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from letta_gym.errors import ConfigError, MemoryFileError
from letta_gym.feedback import memory_file
from letta_gym.feedback.evidence import Evidence, EvidenceConfig
from letta_gym.feedback.memory import ALONE, OutcomeMemory
from letta_gym.library.vectors import snap
from letta_gym.sealed import seal

Float = NDArray[np.float32]
CONFIG = EvidenceConfig(bandwidth=0.2)
KEYS = ("a", "b", "c", ALONE)


@dataclass(frozen=True)
class Past:
    """One outcome, as it is added."""

    key: str
    vector: Float
    success: float
    fit: float


def vectors(count: int, dimension: int = 6, seed: int = 0) -> Float:
    rng = np.random.default_rng(seed)
    return snap(rng.standard_normal((count, dimension)) + rng.standard_normal(dimension))


def random_past(count: int, seed: int = 0) -> list[Past]:
    """Outcomes on the grids of graded success and of fit."""
    rng = np.random.default_rng(seed)
    return [
        Past(KEYS[rng.integers(4)], v, float(rng.integers(5) / 4), float(rng.integers(4097) / 4096))
        for v in vectors(count, seed=seed)
    ]


def remember(past: Sequence[Past], capacity: int = 50_000) -> OutcomeMemory:
    memory = OutcomeMemory(6, CONFIG, capacity)
    for one in past:
        memory.add(one.key, one.vector, one.success, one.fit)
    return memory


def brute_force(past: Sequence[Past], task: Float, key: str) -> list[float]:
    """The seven numbers of the module's table, one outcome at a time, in double precision."""
    found = [0.0] * 7
    for one in past:
        if one.key != key:
            continue
        cosine = math.fsum(float(a) * float(b) for a, b in zip(task, one.vector, strict=True))
        weight = round(math.exp((cosine - 1) / CONFIG.bandwidth) * 4096) / 4096
        well = one.success >= 0.5
        found[0 if well else 1] = max(found[0 if well else 1], cosine)
        found[2] += weight * one.success
        found[3] += weight * (1 - one.success)
        found[4] += well
        found[5] += one.fit * one.success
        found[6] += one.fit * (1 - one.success)
    return found


def assert_same(expected: Evidence, came: Evidence) -> None:
    for name in Evidence.NAMES:
        a, b = getattr(expected, name), getattr(came, name)
        assert a.dtype == b.dtype == np.float32
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_evidence_equals_brute_force() -> None:
    past, tasks = random_past(400), vectors(5, seed=9)
    evidence = remember(past).evidence(tasks, KEYS)
    for row, task in enumerate(tasks):
        for column, key in enumerate(KEYS):
            came = [float(getattr(evidence, name)[row, column]) for name in Evidence.NAMES]
            # One kernel weight may round to the next step of the grid in float32.
            np.testing.assert_allclose(came, brute_force(past, task, key), atol=3 * 2**-12)


def test_unknown_keys_and_an_empty_memory_have_no_evidence() -> None:
    tasks = vectors(2)
    assert_same(Evidence.none((2, 4)), remember([]).evidence(tasks, KEYS))
    past = [one for one in random_past(50) if one.key != "b"]
    evidence = remember(past).evidence(tasks, ("b", "a", "nobody"))
    for name in Evidence.NAMES:
        array = getattr(evidence, name)
        assert (array[:, [0, 2]] == 0).all()
    assert evidence.fit_successes[:, 1].any()


def test_a_new_outcome_counts_at_once_also_for_a_key_asked_before() -> None:
    memory, task = remember(random_past(20)), vectors(1, seed=3)
    assert memory.evidence(task, ("new",)).wins[0, 0] == 0
    asked = ("new", "a")
    memory.evidence(task, asked)
    memory.add("new", task[0], 1.0)
    evidence = memory.evidence(task, asked)
    assert evidence.wins[0, 0] == 1
    assert evidence.success_similarity[0, 0] == pytest.approx(1, abs=2e-3)
    assert len(memory) == 21


@pytest.mark.parametrize("capacity", [1, 7, 256, 300])
def test_a_full_memory_forgets_the_oldest(capacity: int) -> None:
    past, tasks = random_past(700), vectors(3, seed=5)
    memory = OutcomeMemory(6, CONFIG, capacity)
    for count, one in enumerate(past, 1):
        memory.add(one.key, one.vector, one.success, one.fit)
        assert len(memory) == min(count, capacity)
        if count % 100 == 0:
            kept = remember(past[max(0, count - capacity) : count])
            assert_same(kept.evidence(tasks, KEYS), memory.evidence(tasks, KEYS))


def test_the_order_of_outcomes_does_not_matter() -> None:
    past, tasks = random_past(800), vectors(4, seed=6)
    shuffled = [past[i] for i in np.random.default_rng(0).permutation(len(past))]
    assert_same(remember(past).evidence(tasks, KEYS), remember(shuffled).evidence(tasks, KEYS))


def test_a_batch_of_tasks_equals_one_task_at_a_time() -> None:
    memory, tasks = remember(random_past(300)), vectors(6, seed=7)
    every = memory.evidence(tasks, KEYS)
    for row in range(6):
        one = memory.evidence(tasks[row : row + 1], KEYS)
        same = Evidence(every.table[:, row : row + 1])
        assert_same(same, one)


def test_the_memory_keeps_copies() -> None:
    memory, vector = remember([]), vectors(1)[0].copy()
    memory.add("a", vector, 1.0)
    before = memory.evidence(vectors(1), ("a",))
    vector[...] = 0
    assert_same(before, memory.evidence(vectors(1), ("a",)))


@pytest.mark.parametrize(
    ("vector", "success", "meant", "message"),
    [
        (np.zeros(5, np.float32), 1.0, 1.0, r"shape \(6,\); got \(5,\)"),
        (np.zeros((1, 6), np.float32), 1.0, 1.0, r"shape \(6,\); got \(1, 6\)"),
        (vectors(1)[0], 1.5, 1.0, "got 1.5 and 1.0"),
        (vectors(1)[0], math.nan, 1.0, "got nan and 1.0"),
        (vectors(1)[0], 0.5, -0.1, "got 0.5 and -0.1"),
    ],
)
def test_a_wrong_outcome_is_refused_and_changes_nothing(
    vector: Float, success: float, meant: float, message: str
) -> None:
    memory, tasks = remember(random_past(30)), vectors(2, seed=1)
    before = memory.evidence(tasks, (*KEYS, "d"))
    with pytest.raises(ConfigError, match=message):
        memory.add("d", vector, success, meant)
    assert len(memory) == 30
    assert_same(before, memory.evidence(tasks, (*KEYS, "d")))


@pytest.mark.parametrize("shape", [(5,), (6,), (1, 5), (1, 1, 6)])
@pytest.mark.parametrize("count", [0, 30])
def test_evidence_for_vectors_of_another_shape_is_refused(
    shape: tuple[int, ...], count: int
) -> None:
    memory = remember(random_past(count))
    with pytest.raises(ConfigError, match=r"shape \(B, 6\); got \("):
        memory.evidence(np.zeros(shape, np.float32), KEYS)


def test_keys_are_forgotten_with_their_last_outcome_and_start_anew() -> None:
    memory, rows = OutcomeMemory(6, CONFIG, capacity=10), vectors(500, seed=4)
    asked = ("skill-0", "skill-499")
    for i, row in enumerate(rows):
        memory.add(f"skill-{i}", row, 1.0, 0.5)
        assert len(memory._columns) <= 11
        assert memory._totals.shape[1] < 32
        if i in (0, 20):
            wins = memory.evidence(rows[:1], asked).wins[0]
            assert wins.tolist() == [float(i == 0), 0]
    wins = memory.evidence(rows[:1], asked).wins[0]
    assert wins.tolist() == [0, 1]
    memory.add("skill-0", rows[0], 0.0)
    evidence = memory.evidence(rows[:1], asked)
    assert evidence.wins[0].tolist() == [0, 1]
    assert evidence.fit_failures[0].tolist() == [1, 0]


def test_a_memory_holds_at_least_one_outcome() -> None:
    with pytest.raises(ConfigError, match="at least 1; got 0"):
        OutcomeMemory(6, CONFIG, capacity=0)


# -- bounds of a skill, discount, copies and the file -------------------------------------------


def test_of_a_skill_the_newest_are_kept_and_a_sample_of_those_before() -> None:
    rows = vectors(400, seed=8)
    kept = np.zeros(400)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        memory = OutcomeMemory(6, CONFIG, newest=20, reservoir=30, rng=rng)
        for i, row in enumerate(rows):
            memory.add("a", row, 1.0, note=i)
            assert len(memory) == min(i + 1, 50)
        notes = memory.entries().note
        assert len(set(notes)) == 50
        assert set(range(380, 400)) <= set(notes)
        kept[notes] += 1
    early, late = kept[:190].mean() / 60, kept[190:380].mean() / 60
    assert early == pytest.approx(30 / 380, rel=0.12)
    assert late == pytest.approx(30 / 380, rel=0.12)
    assert kept[:380].max() < 60 * 0.35


def test_a_skill_over_its_bound_says_what_its_kept_outcomes_say() -> None:
    past, tasks = random_past(900), vectors(3, seed=5)
    memory = OutcomeMemory(6, CONFIG, capacity=90, newest=17, reservoir=12)
    for note, one in enumerate(past):
        memory.add(one.key, one.vector, one.success, one.fit, note)
    notes = memory.entries().note
    assert len(notes) == len(memory) == 90
    kept = remember([past[note] for note in notes])
    assert_same(kept.evidence(tasks, KEYS), memory.evidence(tasks, KEYS))


@pytest.mark.parametrize("asked", [("a",), ("c", "nobody", "a"), ("b", "b", ALONE), KEYS])
def test_a_few_keys_are_read_as_they_are_read_among_all(asked: tuple[str, ...]) -> None:
    memory, tasks = remember(random_past(3000)), vectors(70, seed=3)
    every, some = memory.tables(tasks, (*KEYS, "nobody")), memory.tables(tasks, asked)
    where = [(*KEYS, "nobody").index(key) for key in asked]
    np.testing.assert_array_equal(every[:, :, where], some)


@pytest.mark.parametrize("capacity", [40, 5000])
def test_an_outcome_counts_half_after_its_half_life(capacity: int) -> None:
    past, tasks = random_past(150), vectors(2, seed=2)
    memory = OutcomeMemory(6, CONFIG, capacity, newest=30, reservoir=5, half_life=25.0)
    for note, one in enumerate(past):
        memory.add(one.key, one.vector, one.success, one.fit, note)
    evidence, notes = memory.evidence(tasks, KEYS), set(memory.entries().note.tolist())
    for row, task in enumerate(tasks):
        for column, key in enumerate(KEYS):
            expected = np.zeros(7)
            for note, one in enumerate(past):
                if note in notes and one.key == key:
                    alone = np.array(brute_force([one], task, key))
                    left = 2 ** (-(149 - note) / 25)
                    expected[:2] = np.maximum(expected[:2], alone[:2])
                    expected[2:] += left * alone[2:]
            came = evidence.table[:, row, column]
            np.testing.assert_allclose(came, expected, atol=2e-3)


def test_a_part_of_a_memory_is_the_memory_of_that_part() -> None:
    past, tasks = random_past(300), vectors(3, seed=4)
    memory = remember(past)
    entries = memory.entries()
    np.testing.assert_array_equal(entries.vectors, [one.vector for one in past])
    which = np.random.default_rng(1).random(300) < 0.4
    part = memory.kept(entries, which)
    few = remember([one for one, chosen in zip(past, which, strict=True) if chosen])
    assert len(part) == len(few)
    assert_same(few.evidence(tasks, KEYS), part.evidence(tasks, KEYS))
    for one in past[:50]:
        for each in (part, few):
            each.add(one.key, one.vector, one.success, one.fit)
    assert_same(few.evidence(tasks, KEYS), part.evidence(tasks, KEYS))
    assert len(memory) == 300


@pytest.mark.parametrize("half_life", [None, 40.0])
def test_a_memory_that_was_saved_goes_on_as_if_nothing_had_happened(
    tmp_path: Path, half_life: float | None
) -> None:
    past, tasks = random_past(500), vectors(3, seed=6)
    bounds = {"newest": 20, "reservoir": 15, "half_life": half_life}
    memory = OutcomeMemory(6, CONFIG, 120, **bounds)  # type: ignore[arg-type]
    for note, one in enumerate(past[:300]):
        memory.add(one.key, one.vector, one.success, one.fit, note)
    memory_file.save(memory, tmp_path / "outcomes.safetensors")
    again = memory_file.load(tmp_path / "outcomes.safetensors", CONFIG, dimension=6)
    for note, one in enumerate(past[300:], 300):
        for each in (memory, again):
            each.add(one.key, one.vector, one.success, one.fit, note)
    np.testing.assert_array_equal(memory.entries().note, again.entries().note)
    a, b = memory.tables(tasks, KEYS), again.tables(tasks, KEYS)
    np.testing.assert_allclose(a, b, rtol=1e-6)
    if half_life is None:
        np.testing.assert_array_equal(a, b)


def test_an_empty_memory_can_be_saved(tmp_path: Path) -> None:
    memory_file.save(OutcomeMemory(6, CONFIG, 9), tmp_path / "outcomes")
    again = memory_file.load(tmp_path / "outcomes", CONFIG)
    assert (len(again), again.limits.capacity) == (0, 9)


def test_a_damaged_file_of_outcomes_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "outcomes"
    memory_file.save(remember(random_past(20)), path)
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    for at in [*rng.integers(len(data), size=60).tolist(), len(data) - 1]:
        broken = bytearray(data)
        broken[at] ^= 1 << rng.integers(8)
        path.write_bytes(broken)
        with pytest.raises(MemoryFileError, match="damaged"):
            memory_file.load(path, CONFIG)
    path.write_bytes(data)
    with pytest.raises(MemoryFileError, match="of 6 dimensions; expected 384"):
        memory_file.load(path, CONFIG, dimension=384)
    with pytest.raises(MemoryFileError, match="cannot read"):
        memory_file.load(tmp_path / "nowhere", CONFIG)
    path.write_bytes(seal({}, {"format": "other"}))
    with pytest.raises(MemoryFileError, match="must have the format"):
        memory_file.load(path, CONFIG)
    path.write_bytes(seal({}, {"format": memory_file.FORMAT}))
    with pytest.raises(MemoryFileError, match="lacks or misstates"):
        memory_file.load(path, CONFIG)


@pytest.mark.parametrize(("newest", "reservoir"), [(0, 5), (5, -1), (1000, 25)])
def test_bounds_of_a_skill_that_make_no_sense_are_refused(newest: int, reservoir: int) -> None:
    with pytest.raises(ConfigError, match=f"newest={newest} and reservoir={reservoir}"):
        OutcomeMemory(6, CONFIG, newest=newest, reservoir=reservoir)
