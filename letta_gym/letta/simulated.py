"""The offline mock for any task in words, one at a time: a hidden world over a whole suite.

A task is judged as the task of the suite that is nearest to it, and a skill that the suite lacks as
the nearest one that it has. So outcomes differ from skill to skill and are the same in the mean
whenever it is asked, which is enough to try a deployment out; they say nothing about the text.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from letta_gym.errors import SuiteError
from letta_gym.feedback.outcome import Outcome
from letta_gym.letta.draws import Layout
from letta_gym.letta.mock import MockConfig, MockWorld
from letta_gym.library.skills import Skill
from letta_gym.library.suite import Suite
from letta_gym.library.vectors import Float

_ONE = np.zeros(1, np.int64)


class SimulatedLetta:
    """Carries tasks out in the mock's world; every outcome has the source "simulation".

    Args:
        suite: the world's tasks and skills, with vectors.
        config: constants of the world.
        seed: of the world, and of what chance decides in it.

    Raises:
        SuiteError: the suite has no vectors.
    """

    def __init__(self, suite: Suite, config: MockConfig, seed: int) -> None:
        if suite.vectors is None:
            raise SuiteError(f"the suite {suite.name!r} has no vectors; embed it first")
        self._vectors, self._suite = suite.vectors, suite
        self._row = {skill_id: row for row, skill_id in enumerate(suite.library.ids)}
        relevant = np.zeros((len(suite.tasks), len(suite.library)), bool)
        topic = np.full(len(suite.tasks), -1)
        for t, task in enumerate(suite.tasks):
            rows = [self._row[skill_id] for skill_id in task.relevant]
            relevant[t, rows] = True
            if rows:
                topic[t] = rows[0]
        tokens = np.array([skill.tokens for skill in suite.library], np.float32)
        origin = np.arange(len(suite.library))
        self._world = MockWorld(config, relevant, topic, origin, tokens, 1, 1, 1)
        self._rng = np.random.default_rng(seed)
        sizes = self._world.world_sizes() | self._world.step_sizes()
        draws = Layout(sizes).draw([np.random.default_rng(seed)])
        self._world.reset(_ONE, draws, np.zeros((1, len(suite.library)), bool))

    def carry_out(self, vector: Float, skills: Sequence[tuple[Skill, Float]]) -> Outcome:
        """What comes of a task.

        Args:
            vector: of the task, shape (D,).
            skills: the chosen skills with their vectors, shape (D,) each.
        """
        nearest = self._vectors.tasks.matrix @ vector
        task = np.array([nearest.argmax()])
        rows = np.array([[self._stand_in(*one) for one in skills]], np.int64)
        chance = self._world.load_probability(np.ones(rows.shape, bool))
        loaded = self._rng.random(rows.shape) < chance
        p = self._world.success_probability(_ONE, task, rows, loaded.astype(np.float32))
        success = float(self._world.graded(p, self._rng.random(1))[0])
        kept = [skill for (skill, _), yes in zip(skills, loaded[0], strict=True) if yes]
        said = self._suite.tasks[int(task[0])].text
        return Outcome(
            success,
            loaded=tuple(skill.id for skill in kept),
            tokens=float(sum(skill.tokens for skill in kept)),
            source="simulation",
            latency=0.0,
            stop_reason="end_turn",
            response=f"Simulated: nothing was done. Judged as the task: {said}",
        )

    def _stand_in(self, skill: Skill, vector: Float) -> int:
        row = self._row.get(skill.id)
        return int((self._vectors.skills.matrix @ vector).argmax()) if row is None else row
