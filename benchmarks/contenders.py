"""What learns in the fixed world: each by one constant, which is tuned with the same budget.

Every contender sees the same observations, has the discount 0 (tasks hardly touch each other under
a loose budget) and learns from sessions of the train split. The deep ones collect 32 x 16 decisions
for an update of 8 epochs, anneal the learning rate to zero, and have the entropy bonus 0.01; their
constant is the learning rate. Those of Stable-Baselines3 have its default networks, 4 minibatches,
which served them better than our 8, and as actions k picks, of which they learn far more than from
the environment's own ``MultiBinary``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from agents import bandits
from agents.bandits import BANDITS
from agents.baselines import Agent, Choice, Learned
from agents.config import RunConfig, read
from agents.evaluation import begin
from agents.ppo import PPO
from benchmarks.peers import (
    PickVecEnv,
    TorchPPO,
    masked_sb3,
    pick_masks,
    picked,
    sb3,
)
from benchmarks.runtime import ROOT
from benchmarks.speed import learner
from letta_gym.envs.glue import Driver
from letta_gym.envs.vector import SkillSelectionVectorEnv

Learn: TypeAlias = Callable[[float, int, Sequence[int]], Iterator[Agent[Driver]]]
"""Teaches a new agent with a constant and a seed; shows it after each of some numbers of decisions,
and after the last of them is done. An agent that was shown is used before the next is asked for."""

ENVS, STEPS, EPOCHS, ENTROPY = 32, 16, 8, 0.01
PARTS, STABLE_PARTS = 8, 4
RATES = (0.0003, 0.001, 0.003, 0.01)
SPREADS = (0.03, 0.1, 0.3, 1.0)
SESSIONS = 32
"""That a bandit plays at once."""


@dataclass(frozen=True, slots=True)
class Contender:
    """A learner, and the values of its constant from which the best is taken after ``steps``.

    Instead of values, ``grid`` may name another contender whose constant it takes.
    """

    learn: Learn
    grid: Sequence[float] | str
    steps: int


def world(**changes: Any) -> RunConfig:
    """The configuration of the mock in a fixed world; ``changes`` as ``section__key=value``."""
    assignments = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    return read(ROOT / "configs/mock.yaml", ["env.world=fixed", *assignments])


def ppo(wrap: Callable[[PPO], PPO] = lambda ours: ours, **changes: Any) -> Learn:
    """Our PPO, or what ``wrap`` makes of it."""

    def learn(rate: float, seed: int, marks: Sequence[int]) -> Iterator[Agent[Driver]]:
        own = {
            "num_envs": ENVS,
            "num_steps": STEPS,
            "num_minibatches": PARTS,
            "update_epochs": EPOCHS,
            "ent_coef": ENTROPY,
            "learning_rate": rate,
        }
        own = {f"train__ppo__{name}": value for name, value in own.items()}
        trained = wrap(learner(world(train__steps=marks[-1], **own, **changes), seed))
        for mark in marks:
            trained.train(mark)
            yield Learned(trained.parameters.as_dict())

    return learn


def stable(masked: bool) -> Learn:
    """PPO of Stable-Baselines3 or MaskablePPO of sb3-contrib, with k picks as actions."""

    def learn(rate: float, seed: int, marks: Sequence[int]) -> Iterator[Agent[Driver]]:
        config = world().environment(split="train")
        batch = PickVecEnv(SkillSelectionVectorEnv(ENVS, **config.model_dump()))
        model: Any = None

        def annealed(_: float) -> float:
            return rate * max(0.0, 1 - (model.num_timesteps if model else 0) / marks[-1])

        make = masked_sb3 if masked else sb3
        model = make(
            batch,
            STEPS,
            batch_size=ENVS * STEPS // STABLE_PARTS,
            n_epochs=EPOCHS,
            learning_rate=annealed,
            ent_coef=ENTROPY,
            gamma=0.0,
            seed=seed,
        )
        for mark in marks:
            model.learn(mark - model.num_timesteps, reset_num_timesteps=False)
            yield Stable(model, masked)

    return learn


class Stable:
    """A model of Stable-Baselines3 that takes its most likely action."""

    name, slots = "stable", "evidence"

    def __init__(self, model: Any, masked: bool) -> None:
        self._model, self._masked = model, masked

    def act(self, obs: Mapping[str, Any], driver: Driver) -> Choice:
        """The set that the environment makes of the action."""
        k, free = driver.config.max_skills, obs["action_mask"]
        options = {"action_masks": pick_masks(free, k)} if self._masked else {}
        action, _ = self._model.predict(obs, deterministic=True, **options)
        bits = picked(action, free.shape[1])
        return Choice(driver.picks(bits)[0], np.argsort(-bits, 1, kind="stable"))


def bandit(name: str) -> Learn:
    """The bandit ``name`` of :mod:`agents.bandits`; it learns from whole batches of sessions."""

    def learn(spread: float, seed: int, marks: Sequence[int]) -> Iterator[Agent[Driver]]:
        env = world().environment(split="train")
        agent = bandits.bandit(name, len(env.pool().ids), np.random.default_rng(seed), spread)
        done = batch = 0
        for mark in marks:
            while done < mark:
                bandits.study(agent, begin(agent, env, 1000 * seed + batch, SESSIONS))
                done, batch = done + SESSIONS * env.horizon, batch + 1
            yield agent

    return learn


SHORT, LONG = 20_480, 102_400
CONTENDERS: Mapping[str, Contender] = {
    "ppo": Contender(ppo(), RATES, SHORT),
    "ppo_long": Contender(ppo(), "ppo", LONG),
    "torch": Contender(ppo(TorchPPO), "ppo", SHORT),
    "blank": Contender(ppo(policy__sharpness=1e-6, policy__threshold=0.0), RATES, LONG),
    "sb3": Contender(stable(masked=False), RATES, LONG),
    "maskable": Contender(stable(masked=True), RATES, LONG),
    **{name: Contender(bandit(name), SPREADS, LONG) for name in BANDITS},
}
"""``torch``: the same network and learner in torch. ``blank``: ours without the closed form at the
start."""
