"""A skill that helps is replaced by one that does not: how soon is it left alone, and used again?

Agents serve the tasks of :mod:`benchmarks.loop.deployments` with the policy that comes with the
package and explore as in production, with the constants that are the default, and with more
hold-outs of fresh skills; for comparison, an untrained network that samples. Of each agent the
skill is one that helps and that it chooses for at least half of the tasks for which it is made.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import Figure, below
from benchmarks.loop.deployments import Agent, Shop, interval
from letta_gym.letta.mock import MockConfig, MockWorld
from letta_gym.selection.exploration import DailyBudget, ExplorationConfig, Explorer
from letta_gym.selection.policy import Policy

SEEDS, BEFORE = 60, 400  # tasks before the skill breaks
USES, SERVED, WINDOW, PATIENCE = 40, 600, 30, 100
HOLD_FRESH = 0.1

Int = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Found:
    """Of one agent: share of the tasks for which the broken skill was chosen, and the way back."""

    best: float
    sampled: float
    until_used: int


def figures() -> dict[str, Figure]:
    """All of this part."""
    untrained = Shop.open()
    trained = replace(untrained, policy=Policy.load("default"))
    usual, more = ExplorationConfig(), ExplorationConfig(hold_fresh=HOLD_FRESH)
    return (
        _figures("broken_skill", trained, usual)
        | _figures("broken_skill_fresh_held_out", trained, more)
        | _figures("broken_skill_untrained", untrained, None)
    )


def _figures(name: str, shop: Shop, config: ExplorationConfig | None) -> dict[str, Figure]:
    each = [one for seed in range(SEEDS) if (one := _broken(shop, seed, config)) is not None]
    best, sampled = [one.best for one in each], [one.sampled for one in each]
    returns = [one.until_used for one in each]
    again = float(np.mean([n < PATIENCE for n in returns]))
    aimed = config is not None
    found = {
        f"{name}_agents": Figure(len(each)),
        f"{name}_until_used_again": Figure(float(np.mean(returns))),
        f"{name}_used_again_within_100": Figure(again, "1" if aimed else None, again == 1),
    }
    for kind, rates in (("best", best), ("sampled", sampled)):
        rate, key = float(np.mean(rates)), f"{name}_{kind}_choice_rate_after_40_uses"
        low, high = interval(rates)
        found[key] = below(rate, 0.1) if aimed else Figure(rate)
        found |= {f"{key}_low": Figure(low), f"{key}_high": Figure(high)}
    return found


def _broken(shop: Shop, seed: int, config: ExplorationConfig | None) -> _Found | None:
    """One agent; None where it relies on no skill that helps."""
    rng = np.random.default_rng(seed)
    world = shop.world(rng)
    # How much is explored is the matter here, not the budget of a day: these are weeks.
    explorer = None if config is None else Explorer(config, DailyBudget(SERVED + BEFORE))
    agent = Agent(shop, world, seed, explorer)
    for task in rng.integers(len(shop.suite.tasks), size=BEFORE):
        agent.serve(int(task))
    number = _relied_on(agent, world, rng)
    if number is None:
        return None
    fitting = np.flatnonzero(world.relevant[:, number])
    id, gain = agent.ids[number], float(world.gain[0, number])
    library = agent.selector.shelf.library
    library.replace(replace(library[id], body="Steps that no longer work."))
    world.gain[0, number], world.harm[0, number] = 0, rng.uniform(*MockConfig().broken_harm)
    uses = served = 0
    while uses < USES and served < SERVED:
        uses += id in agent.serve(int(rng.choice(fitting)))[2]
        served += 1
    best = sampled = 0
    for task in rng.choice(fitting, WINDOW):
        best += number in agent.choose(int(task), explore=False)[1]
        sampled += id in [one.id for one in agent.serve(int(task))[0].skills]
    library.replace(replace(library[id], body="Steps that work again."))
    world.gain[0, number], world.harm[0, number] = gain, 0
    return _Found(best / WINDOW, sampled / WINDOW, _until_chosen(agent, id, rng, fitting))


def _relied_on(agent: Agent, world: MockWorld, rng: np.random.Generator) -> int | None:
    """A skill that helps, and is chosen for most of the tasks that it is made for."""
    strong = np.flatnonzero(world.gain[0] >= MockConfig().strong_gain[0])
    for number in rng.permutation(strong).tolist():
        fitting = np.flatnonzero(world.relevant[:, number]).tolist()
        chosen = [number in agent.choose(task, explore=False)[1] for task in fitting]
        if np.mean(chosen) >= 0.5:
            return int(number)
    return None


def _until_chosen(agent: Agent, id: str, rng: np.random.Generator, fitting: Int) -> int:
    for count in range(PATIENCE):
        if id in agent.serve(int(rng.choice(fitting)))[2]:
            return count
    return PATIENCE
