"""What every batched environment must do; see :mod:`letta_gym.envs.checks`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from letta_gym.envs.playing import (
    MAX_STEPS,
    SEED,
    Batch,
    Env,
    MakeSingle,
    MakeVector,
    actions,
    expect,
    expect_equal,
    expect_inside,
    expect_unshared,
    slots,
)

Check = Callable[[MakeVector, MakeSingle], None]


def _batches(vector: Batch, steps: int) -> Iterator[NDArray[np.int8]]:
    """Random actions, int8 (B, M)."""
    rows = [actions(slots(vector), SEED + i) for i in range(vector.num_envs)]
    for _ in range(steps):
        yield np.stack([next(row) for row in rows])


def _row(batch: Any, row: int) -> Any:
    """Observation of one sub-environment, from a dict of arrays or an object array of dicts."""
    if isinstance(batch, Mapping):
        return {key: value[row] for key, value in batch.items()}
    return batch[row]


def _play(vector: Batch, batches: Iterator[NDArray[np.int8]]) -> list[dict[str, Any]]:
    """Steps of a batch by the names of their parts."""
    names = ("observation", "reward", "terminated", "truncated", "infos")
    return [dict(zip(names, vector.step(batch), strict=True)) for batch in batches]


def _expect_info(info: Mapping[str, Any], infos: Mapping[str, Any], row: int, where: str) -> None:
    """Every number of a single environment's info stands in the batch's, marked as known."""
    for key, value in info.items():
        if isinstance(value, Mapping):
            expect(key in infos, f"{where}: expected the key {key!r} in infos; got {[*infos]}")
            _expect_info(value, infos[key], row, f"{where}[{key!r}]")
        elif isinstance(value, int | float):
            known = key in infos and f"_{key}" in infos and bool(infos[f"_{key}"][row])
            expect(known, f"{where}: expected {key!r}, marked by '_{key}'; got {[*infos]}")
            came = infos[key][row]
            expect(came == value, f"{where}[{key!r}]: expected {value!r}; got {came!r}")


def _follow(vector: Batch, singles: Sequence[Env], batch: NDArray[np.int8], where: str) -> Any:
    """Step the batch and the single environments, compare them, and return who ended, bool (B,)."""
    shown, rewards, terminated, truncated, infos = vector.step(batch)
    for row, env in enumerate(singles):
        at = f"{where}, environment {row}"
        observation, reward, over, cut, info = env.step(batch[row])
        came = (float(rewards[row]), bool(terminated[row]), bool(truncated[row]))
        expect(came == (reward, over, cut), f"{at}: expected {(reward, over, cut)}; got {came}")
        _expect_info(info, infos, row, f"{at}: infos")
        if over or cut:
            expect_equal(observation, _row(infos["final_obs"], row), f"{at}: final_obs")
            _expect_info(info, infos["final_info"], row, f"{at}: final_info")
            observation, _ = env.reset()
        expect_equal(observation, _row(shown, row), f"{at}: observation")
    return terminated | truncated


def _expect_first(shown: Any, singles: Sequence[Env], seeds: Sequence[int], where: str) -> None:
    for row, (env, seed) in enumerate(zip(singles, seeds, strict=True)):
        expect_equal(env.reset(seed=seed)[0], _row(shown, row), f"{where}, environment {row}")


def check_equals_single_environments(make_vector: MakeVector, make_single: MakeSingle) -> None:
    """Sub-environment i is, bit for bit, the single environment with seed ``seed + i``."""
    vector = make_vector()
    singles = [make_single() for _ in range(vector.num_envs)]
    shown, _ = vector.reset(seed=SEED)
    _expect_first(shown, singles, range(SEED, SEED + vector.num_envs), "reset(seed)")
    ends = np.zeros(vector.num_envs, int)
    for i, batch in enumerate(_batches(vector, MAX_STEPS)):
        ends += _follow(vector, singles, batch, f"step {i}")
        if ends.min() > 1:
            break


def check_seeds_as_a_list(make_vector: MakeVector, make_single: MakeSingle) -> None:
    """A list of seeds gives each sub-environment its own."""
    vector: Any = make_vector()
    singles = [make_single() for _ in range(vector.num_envs)]
    seeds = [SEED + 5 * i for i in reversed(range(vector.num_envs))]
    shown, _ = vector.reset(seed=seeds)
    _expect_first(shown, singles, seeds, f"reset(seed={seeds})")
    for i, batch in enumerate(_batches(vector, 3)):
        _follow(vector, singles, batch, f"step {i} after reset(seed={seeds})")


def check_same_step_autoreset(make_vector: MakeVector, make_single: MakeSingle) -> None:
    """A session that ends starts anew in the same step, and its last observation is kept whole."""
    vector = make_vector()
    mode = vector.metadata.get("autoreset_mode")
    expect(mode is AutoresetMode.SAME_STEP, f"expected metadata of SAME_STEP; got {mode!r}")
    vector.reset(seed=SEED)
    seen = np.zeros(vector.num_envs, bool)
    for i, batch in enumerate(_batches(vector, MAX_STEPS)):
        step = _play(vector, iter([batch]))[0]
        infos, ended = step["infos"], step["terminated"] | step["truncated"]
        for key in ("final_obs", "final_info"):
            there = key in infos
            expect(there == ended.any(), f"step {i}: ended {ended}, but {key!r} there is {there}")
            if there:
                expect_equal(ended, infos[f"_{key}"], f"step {i}: infos['_{key}']")
        for row in np.flatnonzero(ended):
            final = _row(infos["final_obs"], int(row))
            expect_inside(vector.single_observation_space, final, f"step {i}: final_obs of {row}")
        seen |= ended
        if seen.all():
            break


def check_reset_mask(make_vector: MakeVector, make_single: MakeSingle) -> None:
    """``options["reset_mask"]`` starts the masked sessions anew and leaves the others alone."""
    vector: Any = make_vector()
    other = make_vector()
    count = vector.num_envs
    mask = np.arange(count) % 2 == 0
    kept = np.flatnonzero(~mask).tolist()
    for env in (vector, other):
        env.reset(seed=SEED)
    batches = list(_batches(vector, 40))
    _play(vector, iter(batches[:3]))
    before = _play(other, iter(batches[:3]))[-1]["observation"]
    seeds = [SEED + 100 + i for i in range(count)]
    shown, _ = vector.reset(seed=seeds, options={"reset_mask": mask})
    singles = {row: make_single() for row in np.flatnonzero(mask).tolist()}
    for row, single in singles.items():
        expect_equal(single.reset(seed=seeds[row])[0], _row(shown, row), f"masked session {row}")
    for row in kept:
        expect_equal(_row(before, row), _row(shown, row), f"session {row}, outside reset_mask")
    for i, batch in enumerate(batches[3:]):
        a, b = vector.step(batch), other.step(batch)
        for row in kept:
            where = f"session {row}, outside reset_mask, {i + 1} steps later"
            expect_equal(_row(b[0], row), _row(a[0], row), where)
            expect(a[1][row] == b[1][row], f"{where}: expected {b[1][row]}; got {a[1][row]}")


def check_fresh_batches(make_vector: MakeVector, make_single: MakeSingle) -> None:
    """Every call returns arrays of its own, which later calls leave alone."""
    vector = make_vector()
    calls: list[Any] = [vector.reset(seed=SEED)]
    kept = [copy.deepcopy(calls[0])]
    for batch in _batches(vector, 40):
        step = vector.step(batch)
        calls.append(step)
        kept.append(copy.deepcopy(step))
    calls.append(vector.reset(options={"reset_mask": np.ones(vector.num_envs, bool)}))
    expect_unshared(calls, "vector environment")
    for i, (copied, call) in enumerate(zip(kept, calls, strict=False)):
        for part, (a, b) in enumerate(zip(copied, call, strict=True)):
            expect_equal(a, b, f"part {part} of call {i}, looked at again after later calls")


def check_batched_types(make_vector: MakeVector, make_single: MakeSingle) -> None:
    """Spaces are batches of the single ones; observations, rewards and ends fit them."""
    vector = make_vector()
    count, single = vector.num_envs, make_single()
    for name in ("observation_space", "action_space"):
        space = getattr(single, name)
        came = getattr(vector, f"single_{name}")
        expect(came == space, f"single_{name}: expected {space}; got {came}")
        batched, came = batch_space(space, count), getattr(vector, name)
        expect(came == batched, f"{name}: expected {batched}; got {came}")
    shown, _ = vector.reset(seed=SEED)
    steps = _play(vector, _batches(vector, 60))
    for i, observation in enumerate([shown, *(step["observation"] for step in steps)]):
        expect_inside(vector.observation_space, observation, f"observation {i}")
    for i, step in enumerate(steps):
        for name, kind in (
            ("reward", np.floating),
            ("terminated", np.bool_),
            ("truncated", np.bool_),
        ):
            array = step[name]
            fits = np.issubdtype(array.dtype, kind) and array.shape == (count,)
            wanted = f"{kind.__name__} of shape ({count},)"
            expect(
                fits, f"step {i}: expected {name} to be {wanted}; got {array.dtype} {array.shape}"
            )
        expect(np.isfinite(step["reward"]).all(), f"step {i}: the reward is {step['reward']}")
        both = step["terminated"] & step["truncated"]
        expect(
            not both.any(), f"step {i}: terminated and truncated in sessions {both.nonzero()[0]}"
        )


def check_masked_bits_do_nothing_in_a_batch(
    make_vector: MakeVector, make_single: MakeSingle
) -> None:
    """Set bits on masked slots change nothing but ``infos["dropped"]``."""
    plain, noisy = make_vector(), make_vector()
    plain.reset(seed=SEED)
    shown, _ = noisy.reset(seed=SEED)
    for i, batch in enumerate(_batches(plain, 40)):
        mask = shown["action_mask"].astype(bool)
        a, b = plain.step(batch & mask), noisy.step(batch | ~mask)
        more = (~mask).sum(1)
        for came, extra, which in ((a, 0, "none"), (b, more, "all")):
            picked = (came[4]["picks"] >= 0).sum(1)
            bits = (batch & mask).sum(1) + extra
            expect_equal(
                bits - picked, came[4]["dropped"], f"step {i}, {which} of the masked bits: dropped"
            )
        for part, name in enumerate(("observation", "reward", "terminated", "truncated")):
            expect_equal(a[part], b[part], f"step {i} with every masked bit set: {name}")
        shown = b[0]


def check_state_can_be_saved(make_vector: MakeVector, make_single: MakeSingle) -> None:
    """``set_state(get_state())`` continues bit for bit, in the same or a new environment."""
    vector: Any = make_vector()
    has = hasattr(vector, "get_state") and hasattr(vector, "set_state")
    expect(has, f"expected get_state and set_state; {type(vector).__name__} lacks them")
    vector.reset(seed=SEED)
    batches = list(_batches(vector, 40))
    shown = _play(vector, iter(batches[:5]))[-1]["observation"]
    state = vector.get_state()
    kept = copy.deepcopy(state)
    expected = _play(vector, iter(batches[5:]))
    expect_equal(kept, state, "a saved state, looked at again after later steps")
    for env, which in ((vector, "the same environment"), (make_vector(), "a new environment")):
        again: Any = env
        expect_equal(shown, again.set_state(state), f"observation of set_state in {which}")
        for i, (a, b) in enumerate(zip(expected, _play(again, iter(batches[5:])), strict=True)):
            expect_equal(a, b, f"step {i} after set_state in {which}")


CHECKS_VECTOR: tuple[Check, ...] = (
    check_equals_single_environments,
    check_seeds_as_a_list,
    check_same_step_autoreset,
    check_reset_mask,
    check_fresh_batches,
    check_batched_types,
    check_masked_bits_do_nothing_in_a_batch,
    check_state_can_be_saved,
)
