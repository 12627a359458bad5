"""What is learned in a fixed world: PPO, bandits and bounds, and what a tight budget changes.

Everything plays ``env.world: fixed``: the hidden quality of the skills stays, sessions change.
Returns are per task, over held-out sessions of the train split; intervals over ``--seeds`` runs.
Hyper-parameters of PPO are those of ``configs/mock.yaml`` but for those named here, and nothing was
tuned on these figures. The bandits' constants are those of :mod:`agents.bandits`.

- Learning: PPO after ``--steps`` decisions, beside the bandits after as many and twice as many.
- Tight budget: the session ends when the tokens are spent, so that what a task is given is taken
  from those after it. PPO with discount 0.99 and 0, beside the oracle that takes the best set for
  each task alone, and the one that knows the best fixed price of tokens.
"""

from __future__ import annotations

import os

os.environ |= {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}

import argparse
from collections.abc import Sequence
from typing import Any

import numpy as np

from agents import bandits
from agents.bandits import BANDITS
from agents.baselines import Agent, Learned, NoSkills, Oracle
from agents.config import RunConfig, read
from agents.evaluation import Interval, begin, earn, priced
from benchmarks.figures import Figure, at_least, report
from benchmarks.runtime import ROOT
from benchmarks.speed import learner
from letta_gym.envs.glue import Driver

SESSIONS, FIRST_SEED = 96, 70_000
BUDGETS = (10_000, 5_000)


def world(**changes: Any) -> RunConfig:
    """The configuration of the mock in a fixed world; ``changes`` as ``section_key=value``."""
    assignments = [f"{key.replace('__', '.')}={value}" for key, value in changes.items()]
    return read(ROOT / "configs/mock.yaml", ["env.world=fixed", *assignments])


def held_out_return(agent: Agent[Driver], config: RunConfig) -> float:
    """Mean return of a task in sessions that nobody learned from."""
    return earn(agent, config.environment(split="train"), FIRST_SEED, SESSIONS)


def ppo(config: RunConfig, seed: int) -> Learned:
    """Our policy after ``train.steps`` decisions."""
    trained = learner(config, seed)
    trained.train()
    return Learned(trained.parameters.as_dict())


def bandit(name: str, config: RunConfig, seed: int, steps: int) -> Agent[Driver]:
    """A bandit after at least ``steps`` decisions."""
    env, sessions = config.environment(split="train"), 32
    agent = bandits.bandit(name, len(env.pool().ids), np.random.default_rng(seed))
    for batch in range(-(-steps // (sessions * env.horizon))):
        bandits.study(agent, begin(agent, env, 1000 * seed + batch, sessions))
    return agent


def bounds(values: Sequence[float], name: str) -> dict[str, Figure]:
    """Mean and 95 % interval as figures."""
    interval = Interval.of(values)
    return {
        f"{name}_mean": Figure(interval.mean),
        f"{name}_low": Figure(interval.low),
        f"{name}_high": Figure(interval.high),
    }


def learning(steps: int, seeds: int) -> dict[str, Figure]:
    """PPO and the bandits where the budget is loose."""
    config = world(train__steps=steps, train__ppo__num_envs=32)
    figures = {
        "learning_none": Figure(held_out_return(NoSkills(), config)),
        "learning_oracle": Figure(held_out_return(Oracle(), config)),
    }
    runs = [held_out_return(ppo(config, seed), config) for seed in range(seeds)]
    figures |= bounds(runs, f"learning_ppo_{steps}")
    for name in BANDITS:
        for more in (1, 2):
            taught = [bandit(name, config, seed, more * steps) for seed in range(seeds)]
            returns = [held_out_return(agent, config) for agent in taught]
            figures |= bounds(returns, f"learning_{name}_{more * steps}")
    return figures


def tight(budget: int, steps: int, seeds: int) -> dict[str, Figure]:
    """PPO with and without a future, and two oracles, under a budget that binds."""
    figures: dict[str, Figure] = {}
    means: dict[str, float] = {}
    for gamma in (0.99, 0.0):
        config = world(env__token_budget=budget, train__steps=steps, train__ppo__gamma=gamma)
        runs = [held_out_return(ppo(config, seed), config) for seed in range(seeds)]
        means[f"gamma_{gamma:g}"] = float(np.mean(runs))
        figures |= bounds(runs, f"tight_{budget}_gamma_{gamma:g}")
    best = priced(config)
    myopic, price = held_out_return(Oracle(), config), held_out_return(best, config)
    over_myopic, over_priced = means["gamma_0.99"] / myopic, means["gamma_0.99"] / price
    return figures | {
        f"tight_{budget}_myopic_oracle": Figure(myopic),
        f"tight_{budget}_priced_oracle": Figure(price),
        f"tight_{budget}_surcharge": Figure(best.surcharge),
        f"tight_{budget}_over_myopic": at_least(over_myopic, 1.25),
        f"tight_{budget}_over_priced": at_least(over_priced, 0.95),
        f"tight_{budget}_gamma_0.99_over_0": Figure(means["gamma_0.99"] / means["gamma_0"]),
    }


def main() -> None:
    """Measure, print and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="runs of each learner")
    parser.add_argument("--steps", type=int, default=20_480, help="decisions of the learning part")
    parser.add_argument("--tight-steps", type=int, default=204_800, help="of the tight budgets")
    options = parser.parse_args()
    figures = {name: Figure(getattr(options, name)) for name in ("seeds", "steps", "tight_steps")}
    for budget in BUDGETS:
        figures |= tight(budget, options.tight_steps, options.seeds)
    figures |= learning(options.steps, options.seeds)
    report("curves", figures, ("gymnasium",))


if __name__ == "__main__":
    main()
