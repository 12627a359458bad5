"""Agents at work in the mock's world, and what a transfer from one to another is worth.

Each agent serves random tasks of the bundled suite with a selector whose network is untrained, so
that only evidence teaches it, and explores by sampling. Six of ten skills have a look-alike, and
one of the two is broken, as in the mock's sessions. How good an agent is, is the expected success
of its best choices on a fixed sample of tasks.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure
from benchmarks.runtime import untrained
from letta_gym.feedback.outcome import Outcome
from letta_gym.feedback.transfer import Bundle, TransferConfig
from letta_gym.letta.backend import Requests
from letta_gym.letta.mock import MockConfig, MockWorld
from letta_gym.library.passages import described
from letta_gym.library.skills import Skill, SkillLibrary
from letta_gym.library.suite import Suite, bundled_suite
from letta_gym.library.vectors import VectorTable, snap, text_hash
from letta_gym.selection.choice import Selection
from letta_gym.selection.exploration import Explorer
from letta_gym.selection.policy import Policy
from letta_gym.selection.runtime import SkillSelector
from letta_gym.selection.shelf import Shelf
from letta_gym.store.models import TransferRow
from letta_gym.store.transfers import learn

SEEDS, DONOR_TASKS, SAMPLE, NEAR = 20, 1_600, 120, 0.01
LOOKS = (0, 25, 50, 100, 200, 400, 800, 1_600)
TWIN_SHARE, TWIN_DISTANCE = 0.6, 0.25  # cosine 0.97, as configs/mock.yaml has it
FIRST = 100  # tasks in which a bundle from elsewhere must not cost much

Int = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Shop:
    """The bundled skills with their look-alikes, and the tasks.

    ``origin`` is for each skill the number of the one it looks like, or its own; ``relevant`` says
    which skills each task is made for, shape (T, N).
    """

    suite: Suite
    policy: Policy
    skills: tuple[Skill, ...]
    table: VectorTable
    origin: Int
    relevant: NDArray[np.bool_]

    @classmethod
    def open(cls) -> Shop:
        suite, rng = bundled_suite(), np.random.default_rng(0)
        assert suite.vectors is not None
        own = list(suite.library)
        with_twin = np.flatnonzero(rng.random(len(own)) < TWIN_SHARE)
        twins = [replace(own[n], id=f"{own[n].id}-2", name=f"{own[n].name}-2") for n in with_twin]
        matrix = suite.vectors.skills.matrix
        away = rng.standard_normal((len(twins), matrix.shape[1]))
        away *= TWIN_DISTANCE / np.linalg.norm(away, axis=1, keepdims=True)
        skills = (*own, *twins)
        origin = np.concatenate([np.arange(len(own)), with_twin])
        relevant = np.array([[s.id in task.relevant for s in own] for task in suite.tasks])
        table = VectorTable(
            tuple(skill.id for skill in skills),
            np.concatenate([matrix, snap(matrix[with_twin] + away)]),
            tuple(text_hash(described(skill)) for skill in skills),
        )
        policy = untrained(suite.vectors, slots=12)
        return cls(suite, policy, skills, table, origin, relevant[:, origin])

    def world(self, rng: np.random.Generator) -> MockWorld:
        """One hidden world."""
        topic = np.where(self.relevant.any(axis=1), self.relevant.argmax(axis=1), -1)
        tokens = np.array([skill.tokens for skill in self.skills], np.float32)
        made = MockWorld(
            MockConfig(), self.relevant, topic, self.origin, tokens, 1, horizon=1, max_skills=3
        )
        draws = {
            name: rng.standard_normal((1, n)) if name.endswith("normal") else rng.random((1, n))
            for name, n in (made.world_sizes() | made.step_sizes()).items()
        }
        broken = np.zeros((1, len(self.skills)), bool)
        for twin in np.flatnonzero(self.origin != np.arange(len(self.skills))):
            broken[0, twin if rng.random() < 0.5 else self.origin[twin]] = True
        made.reset(np.zeros(1, np.int64), draws, broken)
        return made


@dataclass(frozen=True, slots=True)
class Past:
    """One outcome of one loaded skill, as a bundle carries it."""

    skill: str
    task: int
    success: float
    fit: float


class Agent:
    """A selector at work in a world of its own, or in that of another agent."""

    def __init__(
        self, shop: Shop, world: MockWorld, seed: int, explorer: Explorer | None = None
    ) -> None:
        assert shop.suite.vectors is not None
        self.suite, self.world = shop.suite, world
        self.rng = np.random.default_rng(seed)
        self.ids = [skill.id for skill in shop.skills]
        self.vectors = shop.suite.vectors.tasks.matrix
        shelf = Shelf(SkillLibrary(shop.skills), shop.policy, shop.table)
        self.selector = SkillSelector(shop.policy, shelf, rng=self.rng, explorer=explorer)
        self.past: list[Past] = []

    def choose(self, task: int, *, explore: bool) -> tuple[Selection, Int]:
        """A choice, and the numbers of its skills, -1 padded, shape (1, 3)."""
        text, vector = self.suite.tasks[task].text, self.vectors[task]
        choice = self.selector.select(text, explore=explore, embedding=vector)
        numbers = np.full((1, 3), -1)
        numbers[0, : len(choice.skills)] = [self.ids.index(one.id) for one in choice.skills]
        return choice, numbers

    def serve(self, task: int, *, explore: bool = True) -> tuple[Selection, float, list[str]]:
        """Serve one task and learn; returns the choice, its expected success, what was loaded."""
        choice, numbers = self.choose(task, explore=explore)
        request = Requests(np.zeros(1, np.int64), np.array([task]), numbers)
        self.world.step[:] = 0
        self.world.load_draw[:] = self.rng.random(self.world.load_draw.shape)
        self.world.check_draw[:] = self.rng.random(self.world.check_draw.shape)
        result = self.world.execute(request)
        loaded = [one.id for one, was in zip(choice.skills, result.loaded[0], strict=False) if was]
        success = float(result.success[0])
        pending = self.selector._pending[choice.decision_id].chosen
        self.past += [Past(id, task, success, pending[id].fit) for id in loaded]
        self.selector.record(choice.decision_id, Outcome(success, tuple(loaded)))
        return choice, float(result.expected[0]), loaded

    def skill(self, sample: Int) -> float:
        """Expected success of the best choices on a sample of tasks."""
        rows = np.concatenate([self.choose(int(task), explore=False)[1] for task in sample])
        nobody = np.zeros(len(sample), np.int64)
        chance = self.world.load_probability(rows >= 0)
        return float(self.world.success_probability(nobody, sample, rows, chance).mean())

    def bundle(self) -> Bundle:
        """What it learned, as a file would hold it."""
        limit = TransferConfig().newest
        of = {id: [one for one in self.past if one.skill == id][-limit:] for id in self.ids}
        known = [id for id in self.ids if of[id]]
        flat = [(n, one) for n, id in enumerate(known) for one in of[id]]
        return Bundle(
            "donor",
            tuple(self.selector.shelf.library[id] for id in known),
            np.array([n for n, _ in flat]),
            np.stack([self.vectors[one.task] for _, one in flat]),
            np.array([one.success for _, one in flat], np.float32),
            np.array([one.fit for _, one in flat], np.float32),
        )

    def take_in(self, bundle: Bundle) -> None:
        """Learn from a bundle at the default discount."""
        transfer = TransferRow(
            bundle=bundle.to_bytes(),
            discount=TransferConfig().discount,
            content={"skills": {skill.id: "new" for skill in bundle.skills}},
        )
        learn(self.selector.memory, transfer)


def figures() -> dict[str, Figure]:
    """All of this part."""
    shop = Shop.open()
    ratios, costs, levels = [], [], []
    for seed in range(SEEDS):
        rng = np.random.default_rng(seed)
        world, other = shop.world(rng), shop.world(rng)
        tasks = len(shop.suite.tasks)
        sample = rng.choice(tasks, SAMPLE, replace=False)
        stream = rng.integers(tasks, size=LOOKS[-1])
        donor, elsewhere = (Agent(shop, w, seed) for w in (world, other))
        for task in rng.integers(tasks, size=DONOR_TASKS):
            donor.serve(int(task))
            elsewhere.serve(int(task))
        wanted = donor.skill(sample) - NEAR
        needed, first = {}, {}
        for name, bundle in (("fresh", None), ("same", donor), ("other", elsewhere)):
            agent = Agent(shop, world, seed + 1_000)
            if bundle is not None:
                agent.take_in(bundle.bundle())
            needed[name], first[name] = _until(agent, stream, sample, wanted, name != "other")
        if needed["fresh"]:  # else there was nothing to learn
            ratios.append(needed["same"] / needed["fresh"])
        costs.append(first["fresh"] - first["other"])
        levels.append(first["same"] - first["fresh"])
    low, high = interval(ratios)
    cost_low, cost_high = interval(costs)
    ratio, cost = float(np.mean(ratios)), float(np.mean(costs))
    return {
        "transfer_seeds_with_something_to_learn": Figure(len(ratios)),
        "transfer_outcomes_needed_share": Figure(ratio, "<= 0.25", ratio <= 0.25),
        "transfer_outcomes_needed_share_low": Figure(low),
        "transfer_outcomes_needed_share_high": Figure(high),
        "transfer_gain_in_first_100": Figure(float(np.mean(levels))),
        "transfer_from_elsewhere_cost": Figure(cost, "<= 0.02", cost <= 0.02),
        "transfer_from_elsewhere_cost_low": Figure(cost_low),
        "transfer_from_elsewhere_cost_high": Figure(cost_high),
    }


def _until(
    agent: Agent, stream: Int, sample: Int, wanted: float, to_the_end: bool
) -> tuple[int, float]:
    """Outcomes until the agent is as good as wanted (at the looks), and its first 100 tasks."""
    expected: list[float] = []
    needed: int | None = None
    for look in LOOKS:
        while len(expected) < look:
            expected.append(agent.serve(int(stream[len(expected)]))[1])
        if needed is None and agent.skill(sample) >= wanted:
            needed = look
        if len(expected) >= FIRST and (needed is not None or not to_the_end):
            break
    return (LOOKS[-1] if needed is None else needed), float(np.mean(expected[:FIRST]))


def interval(values: list[float]) -> tuple[float, float]:
    """95 % interval of the mean over seeds."""
    spread = 1.96 * np.std(values, ddof=1) / np.sqrt(len(values))
    return float(np.mean(values) - spread), float(np.mean(values) + spread)
