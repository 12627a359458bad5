"""What every single environment must do; see :mod:`letta_gym.envs.checks`."""

from __future__ import annotations

import copy
import itertools
import warnings
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
from gymnasium.utils import RecordConstructorArgs
from gymnasium.utils.env_checker import check_env

from letta_gym.envs.playing import (
    MAX_STEPS,
    SEED,
    Env,
    MakeSingle,
    Transition,
    actions,
    expect,
    expect_equal,
    expect_inside,
    expect_unshared,
    random_actions,
    same,
    session,
    slots,
)


class _AlwaysTerminated(gymnasium.Wrapper[Any, Any, Any, Any], RecordConstructorArgs):
    """Calls the end of a session a termination: Gymnasium's checker refuses horizon 1."""

    def __init__(self, env: Env) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        observation, reward, terminated, truncated, info = self.env.step(action)
        return observation, reward, terminated or truncated, False, info


def check_gymnasium_accepts_it(make: MakeSingle) -> None:
    """Gymnasium's own ``check_env`` has nothing to say, not even a warning."""
    env = make()
    _, steps = session(env, SEED)
    if len(steps) == 1 and steps[0].truncated:
        env = _AlwaysTerminated(env)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        warnings.filterwarnings("ignore", message=".*due to the environment not having a spec")
        try:
            check_env(env)
        except (Warning, gymnasium.error.Error) as error:
            raise AssertionError(f"expected no complaint of check_env; got: {error}") from error


def check_same_seed_same_session(make: MakeSingle) -> None:
    """The same seed and actions give the same session, another seed another one."""
    env = make()
    first, steps = session(env, SEED)
    for again in (env, make()):
        observation, repeated = session(again, SEED)
        expect_equal(first, observation, "first observation after reset with the same seed")
        expect(len(steps) == len(repeated), f"expected {len(steps)} steps; got {len(repeated)}")
        for i, (a, b) in enumerate(zip(steps, repeated, strict=True)):
            expect_equal(vars(a), vars(b), f"step {i} with the same seed")
    others = [make().reset(seed=SEED + i)[0] for i in range(1, 6)]
    expect(
        not all(same(first, other) for other in others),
        "expected other seeds to give other sessions; got the same observation",
    )


def check_fresh_arrays(make: MakeSingle) -> None:
    """Every call returns arrays of its own, which later calls leave alone."""
    env = make()
    calls: list[Any] = [env.reset(seed=SEED)]
    kept = [copy.deepcopy(calls[0])]
    for action in itertools.islice(random_actions(env), MAX_STEPS):
        observation, _, terminated, truncated, info = env.step(action)
        calls.append((observation, info))
        kept.append(copy.deepcopy(calls[-1]))
        if terminated or truncated:
            break
    calls.append(env.reset())
    expect_unshared(calls, "single environment")
    for i, (copied, call) in enumerate(zip(kept, calls, strict=False)):
        expect_equal(copied[0], call[0], f"observation {i}, looked at again after the session")
        expect_equal(copied[1], call[1], f"info {i}, looked at again after the session")


def check_plain_python_ends(make: MakeSingle) -> None:
    """Rewards are finite Python floats, ends are Python bools, and infos are dicts."""
    for step in session(make(), SEED)[1]:
        reward = type(step.reward).__name__
        expect(
            type(step.reward) is float and np.isfinite(step.reward),
            f"expected a finite float as reward; got {step.reward!r} ({reward})",
        )
        for name in ("terminated", "truncated"):
            value = getattr(step, name)
            expect(type(value) is bool, f"expected {name} to be bool; got {type(value).__name__}")
        expect(type(step.info) is dict, f"expected a dict as info; got {type(step.info).__name__}")


def check_observations_in_space(make: MakeSingle) -> None:
    """Every observation of whole random sessions lies in the observation space."""
    env = make()
    for seed in range(SEED, SEED + 5):
        first, steps = session(env, seed)
        for i, observation in enumerate([first, *(step.observation for step in steps)]):
            expect_inside(env.observation_space, observation, f"observation {i} of seed {seed}")


def check_masked_bits_do_nothing(make: MakeSingle) -> None:
    """A set bit on a masked slot changes nothing but ``info["dropped"]``."""
    plain, noisy = make(), make()
    shown, _ = noisy.reset(seed=SEED)
    expect_equal(plain.reset(seed=SEED)[0], shown, "first observation after the same seed")
    for i, action in enumerate(itertools.islice(actions(slots(plain)), MAX_STEPS)):
        mask = shown["action_mask"].astype(bool)
        a = Transition(action, *plain.step(action & mask))
        b = Transition(action, *noisy.step(action | ~mask))
        dropped = {"dropped": a.info["dropped"] + int((~mask).sum())}
        expect_equal(
            vars(a) | {"info": dict(a.info) | dropped},
            vars(b),
            f"step {i} with every masked bit set",
        )
        shown = b.observation
        if a.ended:
            break


def check_the_first_k_bits_count(make: MakeSingle) -> None:
    """Of more than ``max_skills`` bits the first unmasked ones in slot order are carried out."""
    greedy, modest = make(), make()
    shown, _ = greedy.reset(seed=SEED)
    modest.reset(seed=SEED)
    most = int(greedy.unwrapped.config.max_skills)  # type: ignore[attr-defined]
    every = np.ones(slots(greedy), np.int8)
    for i in range(MAX_STEPS):
        mask = shown["action_mask"].astype(bool)
        first = (mask & (np.cumsum(mask) <= most)).astype(np.int8)
        a, b = Transition(every, *greedy.step(every)), Transition(first, *modest.step(first))
        for step, bits in ((a, every), (b, first)):
            done, came = len(step.info["skills"]), step.info["dropped"]
            expect(done <= most, f"step {i}: expected at most {most} skills; got {done}")
            dropped = int(bits.sum()) - done
            expect(came == dropped, f"step {i}: expected info['dropped'] == {dropped}; got {came}")
        info = dict(a.info) | {"dropped": b.info["dropped"]}
        expect_equal(
            vars(b), vars(a) | {"action": first, "info": info}, f"step {i} with every bit set"
        )
        shown = a.observation
        if a.ended:
            break


def check_how_sessions_end(make: MakeSingle) -> None:
    """Truncated exactly at the horizon, terminated where no skill is left to choose, never both."""
    env = make()
    horizon = int(env.unwrapped.config.horizon)  # type: ignore[attr-defined]
    for seed, adapt in itertools.product(range(SEED, SEED + 3), (None, np.zeros_like)):
        _, steps = session(env, seed, adapt)
        last = steps[-1]
        played = f"seed {seed}, {len(steps)} steps with a horizon of {horizon}"
        expect(not (last.terminated and last.truncated), f"{played}: terminated and truncated")
        if last.truncated:
            expect(len(steps) == horizon, f"{played}: expected truncation at the horizon only")
        elif last.terminated:
            left = int(last.observation["action_mask"].sum())
            expect(left == 0, f"{played}: expected no skill to be left at the end; got {left}")
        else:
            expect(len(steps) < horizon, f"{played}: expected the session to end")


CHECKS_ANY: tuple[Callable[[MakeSingle], None], ...] = (
    check_gymnasium_accepts_it,
    check_same_seed_same_session,
    check_fresh_arrays,
    check_plain_python_ends,
    check_observations_in_space,
)
"""Those that need no slots, and so hold of every wrapper too."""

CHECKS_SINGLE: tuple[Callable[[MakeSingle], None], ...] = (
    *CHECKS_ANY,
    check_masked_bits_do_nothing,
    check_the_first_k_bits_count,
    check_how_sessions_end,
)
