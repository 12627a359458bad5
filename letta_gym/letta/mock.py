"""The offline mock of Letta: what a skill does to a task, calibrated on published measurements.

Success of task x with skills j loaded (l_j in {0, 1}; probabilities stand for them in expectation):

    p = (1 - (1 - b) prod_j (1 - g_j l_j)) prod_j (1 - h_j l_j)

b is how far the agent gets alone, g_j the gain of a matching skill, h_j the harm it does. Most
skills do nothing, some help, some hurt, and a skill beside the task hurts a little. The constants
and their sources stand in ``configs/mock.yaml``.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Annotated, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, Field, model_validator

from letta_gym.config import Section
from letta_gym.letta.backend import Bool, Float, Int, Outcomes, Requests
from letta_gym.letta.draws import Draws, between


def _ordered(bounds: tuple[float, float]) -> tuple[float, float]:
    if not 0 <= bounds[0] <= bounds[1] <= 1:
        raise ValueError("must be (low, high) with 0 <= low <= high <= 1")
    return bounds


_WIDEST, _CELLS = 6, 4096
"""Largest |z| of the table of quantiles, and its cells."""

Interval = Annotated[tuple[float, float], AfterValidator(_ordered)]


class MockConfig(Section):
    """Hidden world of the mock; defaults are the calibrated constants."""

    mild_share: float = Field(default=0.17, ge=0, le=1)
    strong_share: float = Field(default=0.28, ge=0, le=1)
    harmful_share: float = Field(default=0.22, ge=0, le=1)
    mild_gain: Interval = (0.02, 0.25)
    strong_gain: Interval = (0.7, 1.0)
    harm: Interval = (0.03, 0.2)
    gain_per_task: Interval = (0.8, 1.0)
    broken_harm: Interval = (0.0, 0.25)
    mismatch_harm: Interval = (0.0, 0.06)
    load_probability: float = Field(default=0.85, gt=0, le=1)
    load_decay: float = Field(default=0.9, gt=0, le=1)
    base_alpha: float = Field(default=0.45, gt=0)
    base_beta: float = Field(default=0.836, gt=0)
    base_topic_share: float = Field(default=0.4, ge=0, le=1)
    checks: int = Field(default=4, ge=1)

    @model_validator(mode="after")
    def _leave_room_for_skills_that_do_nothing(self) -> Self:
        total = self.mild_share + self.strong_share + self.harmful_share
        if total > 1 + 1e-9:
            raise ValueError(
                f"mild_share, strong_share and harmful_share must sum to at most 1; got {total:g}"
            )
        return self


class MockWorld:
    """Hidden draws of B sessions over a pool of T tasks and N skills; a :class:`Backend`.

    Args:
        config: the constants.
        relevant: which skills a task is made for, bool, shape (T, N).
        topic: topic of each task in 0..n_topics-1, or -1 for a task of no skill, shape (T,).
        origin: for each skill the skill whose twin it is, or itself, shape (N,). A skill and its
            twin share their kind.
        tokens: tokens of each skill, shape (N,).
        sessions: B.
        horizon: longest session, in tasks.
        max_skills: k, most skills of one request.
    """

    STATE = frozenset(
        [
            *("gain", "harm", "mismatch", "broken", "base", "per_task"),
            *("load_draw", "check_draw", "step"),
        ]
    )

    def __init__(
        self,
        config: MockConfig,
        relevant: Bool,
        topic: Int,
        origin: Int,
        tokens: Float,
        sessions: int,
        horizon: int,
        max_skills: int,
    ) -> None:
        self.config, self.relevant, self.topic, self.origin = config, relevant, topic, origin
        self.tokens = tokens.astype(np.float32)
        n_tasks, n_skills = relevant.shape
        self.gain = np.zeros((sessions, n_skills), np.float32)
        self.harm = np.zeros((sessions, n_skills), np.float32)
        self.mismatch = np.zeros((sessions, n_skills), np.float32)
        self.broken = np.zeros((sessions, n_skills), bool)
        self.base = np.zeros((sessions, n_tasks), np.float32)
        self.per_task = np.zeros((sessions, n_tasks), np.float32)
        self.load_draw = np.zeros((sessions, horizon, max_skills))
        self.check_draw = np.zeros((sessions, horizon))
        self.step = np.zeros(sessions, np.int64)
        # Chance to load each of 0, 1, ... k chosen skills.
        fewer = np.maximum(np.arange(max_skills + 1) - 1, 0)
        self._chance = (config.load_probability * config.load_decay**fewer).astype(np.float32)
        self._base_quantile = _quantiles(config.base_alpha, config.base_beta)

    def world_sizes(self) -> dict[str, int]:
        """Names and lengths of the draws that make one hidden world."""
        n_skills, n_tasks = self.gain.shape[1], self.base.shape[1]
        return {
            "kind": n_skills,
            "amount": n_skills,
            "broken_harm": n_skills,
            "mismatch": n_skills,
            "per_task": n_tasks,
            "topic_normal": n_skills,
            "task_normal": n_tasks,
        }

    def step_sizes(self) -> dict[str, int]:
        """Names and lengths of the draws that decide the outcomes of one session."""
        _, horizon, k = self.load_draw.shape
        return {"load": horizon * k, "check": horizon}

    def reset(self, rows: Int, draws: Draws, broken: Bool) -> None:
        """Draw new worlds for ``rows``, shape (R,); ``broken`` says which skills are, (R, N)."""
        c = self.config
        kind, amount = draws["kind"][:, self.origin], draws["amount"][:, self.origin]
        mild, strong = kind < c.mild_share, kind >= 1 - c.strong_share
        harmful = ~mild & (kind < c.mild_share + c.harmful_share)
        gain = np.where(mild, between(c.mild_gain, amount), 0)
        gain = np.where(strong, between(c.strong_gain, amount), gain)
        harm = np.where(harmful, between(c.harm, amount), 0)
        self.broken[rows] = broken
        self.gain[rows] = np.where(broken, 0, gain)
        self.harm[rows] = np.where(broken, between(c.broken_harm, draws["broken_harm"]), harm)
        self.mismatch[rows] = between(c.mismatch_harm, draws["mismatch"])
        self.per_task[rows] = between(c.gain_per_task, draws["per_task"])
        self.base[rows] = self._draw_base(draws["topic_normal"], draws["task_normal"])
        self.load_draw[rows] = draws["load"].reshape(len(rows), *self.load_draw.shape[1:])
        self.check_draw[rows] = draws["check"]
        self.step[rows] = 0

    def _draw_base(self, of_topic: NDArray[np.float64], own: NDArray[np.float64]) -> Float:
        share = np.where(self.topic >= 0, self.config.base_topic_share, 0.0)
        z = np.sqrt(share) * of_topic[:, self.topic] + np.sqrt(1 - share) * own
        # The table is evenly spaced: no search for the place of z in it, as np.interp would do.
        at = np.minimum(np.maximum((z + _WIDEST) * (_CELLS / (2 * _WIDEST)), 0), _CELLS)
        cell = np.minimum(at.astype(np.int64), _CELLS - 1)
        low, high = self._base_quantile.take(cell), self._base_quantile.take(cell + 1)
        base: Float = (low + (at - cell) * (high - low)).astype(np.float32)
        return base

    def effects(self, rows: Int, tasks: Int, skills: Int) -> tuple[Float, Float]:
        """Gain and harm of ``skills`` (..., k) on ``tasks`` (...) in sessions ``rows`` (...)."""
        n_tasks, n_skills = self.relevant.shape
        row, task = rows[..., None], tasks[..., None]
        match = self.relevant.take(task * n_skills + skills)
        # Flat indices gather several times faster than pairs of them.
        at = row * n_skills + skills
        gain = self.gain.take(at) * self.per_task.take(row * n_tasks + task) * match
        return gain, np.where(match, self.harm.take(at), self.mismatch.take(at))

    def load_probability(self, chosen: Bool) -> Float:
        """Chance that each chosen skill is really loaded, shape (..., k); 0 where not chosen."""
        chance: Float = self._chance.take(chosen.sum(-1, keepdims=True)) * chosen
        return chance

    def success_probability(self, rows: Int, tasks: Int, skills: Int, loaded: Float) -> Float:
        """p of the module's formula, shape (...); ``loaded`` (..., k) may hold probabilities."""
        gain, harm = self.effects(rows, tasks, np.maximum(skills, 0))
        base = self.base.take(rows * self.base.shape[1] + tasks)
        left = (1 - base) * np.prod(1 - gain * loaded, -1)
        p: Float = (1 - left) * np.prod(1 - harm * loaded, -1)
        return p

    def execute(self, requests: Requests) -> Outcomes:
        """One NumPy pass over all requests, with the draws made at reset."""
        rows, tasks, skills = requests.rows, requests.tasks, requests.skills
        step = self.step[rows]
        chance = self.load_probability(skills >= 0)
        loaded = self.load_draw[rows, step, : skills.shape[1]] < chance
        both = np.stack([loaded, chance], dtype=np.float32)
        p, expected = self.success_probability(rows, tasks, skills, both)
        success = self.graded(p, self.check_draw[rows, step])
        tokens = (self.tokens.take(np.maximum(skills, 0)) * loaded).sum(-1)
        self.step[rows] = step + 1
        return Outcomes(success, loaded, tokens, expected, np.ones(len(rows), bool))

    def thresholds(self, probability: Float) -> NDArray[np.float64]:
        """Chance that at most 0, 1, ... n - 1 of the n checks are passed, shape (n, ...)."""
        n, p = self.config.checks, probability.astype(np.float64)
        passes, fails = powers = np.ones((2, n + 1, *p.shape))
        chances = np.stack([p, 1 - p])
        for count in range(n):
            np.multiply(powers[:, count], chances, out=powers[:, count + 1])
        ways = np.array([math.comb(n, count) for count in range(n)], np.float64)
        exactly = passes[:n] * fails[:0:-1]
        exactly *= ways.reshape(-1, *[1] * p.ndim)
        at_most: NDArray[np.float64] = exactly.cumsum(0)
        return at_most

    def graded(self, probability: Float, uniform: NDArray[np.floating]) -> Float:
        """Share of the checks passed: binomial by inversion of one uniform, same shape."""
        return grade(self.thresholds(probability), uniform)


def grade(thresholds: NDArray[np.floating], uniform: NDArray[np.floating]) -> Float:
    """Share of the n ``thresholds`` (n, ...) that ``uniform`` (...) reaches, same shape."""
    passed: Float = (uniform >= thresholds).sum(0, dtype=np.float32)
    return passed / np.float32(len(thresholds))


@lru_cache(maxsize=8)
def _quantiles(alpha: float, beta: float) -> NDArray[np.float64]:
    """Quantiles of Beta(alpha, beta) at Phi(z) for evenly spaced z from -_WIDEST to _WIDEST.

    With x = sin^2(t) the Beta density becomes 2 sin^(2 alpha - 1)(t) cos^(2 beta - 1)(t), which the
    midpoint rule integrates well also where alpha or beta lie below 1.
    """
    cells = 200_000
    t = (np.arange(cells) + 0.5) * (np.pi / 2 / cells)
    mass = np.sin(t) ** (2 * alpha - 1) * np.cos(t) ** (2 * beta - 1)
    cumulative = np.concatenate([[0.0], np.cumsum(mass)])
    z = np.linspace(-_WIDEST, _WIDEST, _CELLS + 1)
    phi = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in z])
    edges = np.sin(np.arange(cells + 1) * (np.pi / 2 / cells)) ** 2
    table: NDArray[np.float64] = np.interp(phi, cumulative / cumulative[-1], edges)
    return table
