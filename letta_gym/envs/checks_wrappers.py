"""What every wrapper promises beside its environment; see :mod:`letta_gym.envs.checks`."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from numpy.typing import NDArray

from letta_gym.envs.playing import (
    MAX_STEPS,
    SEED,
    Env,
    MakeSingle,
    Transition,
    expect,
    expect_equal,
    random_actions,
)
from letta_gym.envs.wrappers import (
    VECTORS,
    CompactObservation,
    FlatObservation,
    PickActions,
    ScoreActions,
    SequentialActions,
    SubsetActions,
)

Check: TypeAlias = Callable[[MakeSingle, MakeSingle], None]
Slots: TypeAlias = Iterable[int]


def _side_by_side(make: MakeSingle, make_plain: MakeSingle) -> tuple[Any, Env, Any, Any]:
    """A wrapped and a plain environment with their first observations, from the same seed."""
    wrapped, plain = make(), make_plain()
    return wrapped, plain, wrapped.reset(seed=SEED)[0], plain.reset(seed=SEED)[0]


def _bits(slots: Slots, env: Env) -> NDArray[np.int8]:
    bits = np.zeros(env.action_space.shape or (), np.int8)
    bits[list(slots)] = 1
    return bits


def _free(shown: Mapping[str, Any]) -> set[int]:
    return set(np.flatnonzero(shown["action_mask"]).tolist())


def _most(env: Env) -> int:
    """k, or M where there are fewer slots."""
    config: Any = env.unwrapped.config  # type: ignore[attr-defined]
    return int(min(config.max_skills, config.candidates))


def _compare(
    make: MakeSingle,
    make_plain: MakeSingle,
    read: Callable[[Any, Any, set[int]], Slots],
    allowed: Callable[[Any, set[int]], list[bool]] | None = None,
    adapt: Callable[[int, Any], Any] = lambda step, action: action,
) -> None:
    """A session of actions does what the slots that ``read`` finds in them do when set as bits.

    Args:
        make: makes the wrapped environment.
        make_plain: makes the same one without the wrapper.
        read: slots of an action, from the wrapper, the action, and the slots that may be chosen.
        allowed: what ``action_masks()`` must be, from the wrapper and those slots.
        adapt: what is played in place of a random action, from the step and the action.
    """
    wrapped, plain, shown, expected = _side_by_side(make, make_plain)
    expect_equal(expected, shown, "first observation")
    for i, drawn in enumerate(itertools.islice(random_actions(wrapped), MAX_STEPS)):
        action, free = adapt(i, drawn), _free(expected)
        if allowed is not None:
            expect_equal(np.array(allowed(wrapped, free)), wrapped.action_masks(), f"masks {i}")
        bits = _bits(read(wrapped, action, free), plain)
        a, b = Transition(action, *plain.step(bits)), Transition(action, *wrapped.step(action))
        dropped = {"dropped": 0}
        expect_equal(
            vars(a) | {"info": {**a.info, **dropped}},
            vars(b) | {"info": {**b.info, **dropped}},
            f"step {i} with the action {action}",
        )
        expected = a.observation
        if a.ended:
            return


def _observations(make: MakeSingle, make_plain: MakeSingle) -> Iterator[tuple[Any, Any]]:
    """Observations of the plain and of the wrapped environment, played with the same actions."""
    wrapped, plain, shown, expected = _side_by_side(make, make_plain)
    yield expected, shown
    for action in itertools.islice(random_actions(plain), MAX_STEPS):
        expected, _, terminated, truncated, _ = plain.step(action)
        yield expected, wrapped.step(action)[0]
        if terminated or truncated:
            return


def check_only_the_vectors_are_left_out(make: MakeSingle, make_plain: MakeSingle) -> None:
    """The observation is that of the environment without ``task`` and ``skills``."""
    for i, (expected, shown) in enumerate(_observations(make, make_plain)):
        kept = {name: part for name, part in expected.items() if name not in VECTORS}
        expect_equal(kept, shown, f"observation {i}")


def check_the_vector_holds_every_part(make: MakeSingle, make_plain: MakeSingle) -> None:
    """Every part of the observation stands in the vector, and comes back exactly."""
    env: Any = make()
    for i, (expected, shown) in enumerate(_observations(make, make_plain)):
        slices = {name: shown[part] for name, part in env.layout.items()}
        flat = {name: part.ravel().astype(np.float32) for name, part in expected.items()}
        expect_equal(flat, slices, f"slices of observation {i}")
        expect_equal(expected, env.unflatten(shown), f"observation {i}, unflattened")
        size, came = sum(part.size for part in flat.values()), shown.shape
        expect(came == (size,), f"observation {i}: expected {size} numbers; got shape {came}")


def check_every_subset_is_one_action(make: MakeSingle, make_plain: MakeSingle) -> None:
    """Each set of at most k of the leading slots is one action, and does what it does as bits."""
    wrapped: Any = make()
    sets = [tuple(np.flatnonzero(bits).tolist()) for bits in wrapped.subsets]
    reach = range(max((slot for members in sets for slot in members), default=-1) + 1)
    wanted = [
        members
        for size in range(_most(wrapped) + 1)
        for members in itertools.combinations(reach, size)
    ]
    expect(sets == wanted, f"expected the subsets {wanted[:9]} ...; got {sets[:9]} ...")
    expect(wrapped.action_space.n == len(sets), f"expected {len(sets)} actions")
    _compare(
        make,
        make_plain,
        lambda _, action, free: wanted[action],
        lambda _, free: [set(members) <= free for members in wanted],
    )


def check_picks_are_slots(make: MakeSingle, make_plain: MakeSingle) -> None:
    """The slots picked are loaded; no pick, a masked slot and a second pick of one do nothing."""

    def read(env: Any, action: Any, free: set[int]) -> Slots:
        return {int(pick) for pick in action} & free

    def allowed(env: Any, free: set[int]) -> list[bool]:
        count = env.action_space.nvec
        return [pick in free or pick == n - 1 for n in count for pick in range(n)]

    env: Any = make()
    picks, most = len(env.action_space.nvec), _most(env)
    expect(picks == most, f"expected {most} picks; got {picks}")
    _compare(make, make_plain, read, allowed)


def check_the_best_scores_are_loaded(make: MakeSingle, make_plain: MakeSingle) -> None:
    """Of the slots that may be chosen, the k with the largest scores above 0 are loaded."""

    def read(env: Any, action: Any, free: set[int]) -> Slots:
        able = sorted((-float(action[slot]), slot) for slot in free if action[slot] > 0)
        return [slot for _, slot in able[: _most(env)]]

    def every_other_below_zero(step: int, action: Any) -> Any:
        return -np.abs(action) if step % 2 else action

    _compare(make, make_plain, read, adapt=every_other_below_zero)


def check_a_decision_is_paid_at_its_last_step(make: MakeSingle, make_plain: MakeSingle) -> None:
    """The picks of a decision do together what their set does, paid where it is carried out."""
    wrapped, plain, shown, expected = _side_by_side(make, make_plain)
    stop, free = int(wrapped.action_space.n) - 1, _free(expected)
    picked, steps, ended = set[int](), 0, False
    for i, action in enumerate(itertools.islice(random_actions(wrapped), MAX_STEPS)):
        left = np.array([slot in free - picked or slot == stop for slot in range(stop + 1)])
        now = {"action_mask": left[:-1].astype(np.int8), "picked": _bits(picked, plain)}
        expect_equal(left, wrapped.action_masks(), f"masks before step {i}")
        expect_equal({**expected, **now}, shown, f"observation before step {i}")
        if ended:
            return
        shown, reward, terminated, truncated, info = wrapped.step(action)
        picked |= {int(action)} & free
        steps += 1
        over = int(action) == stop or steps == _most(plain)
        expect(info["executed"] is over, f"step {i}: expected info['executed'] to be {over}")
        if not over:
            came = (reward, terminated, truncated)
            expect(came == (0.0, False, False), f"step {i}, not carried out: got {came}")
            continue
        expected, *paid, told = plain.step(_bits(picked, plain))
        expect_equal(paid, [reward, terminated, truncated], f"step {i}, carried out")
        expect_equal(told | {"executed": True}, info, f"info of step {i}, carried out")
        free, picked, steps, ended = _free(expected), set(), 0, terminated or truncated


CHECKS_WRAPPER: Mapping[type[gymnasium.Wrapper[Any, Any, Any, Any]], Check] = {
    CompactObservation: check_only_the_vectors_are_left_out,
    FlatObservation: check_the_vector_holds_every_part,
    SubsetActions: check_every_subset_is_one_action,
    PickActions: check_picks_are_slots,
    ScoreActions: check_the_best_scores_are_loaded,
    SequentialActions: check_a_decision_is_paid_at_its_last_step,
}
"""Wrapper -> its own promise; :data:`letta_gym.envs.checks_single.CHECKS_ANY` holds beside it."""
