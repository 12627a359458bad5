"""Sessions played with random actions, and exact comparison of what they return."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import gymnasium
import numpy as np
from gymnasium.vector import VectorEnv
from numpy.typing import NDArray

Env: TypeAlias = gymnasium.Env[Any, Any]
Batch: TypeAlias = VectorEnv[Any, Any, Any]
MakeSingle: TypeAlias = Callable[[], Env]
MakeVector: TypeAlias = Callable[[], Batch]

SEED = 7
MAX_STEPS = 400
"""Most steps of one check: an environment that never ends a session is still checked."""


@dataclass(frozen=True)
class Transition:
    """One step of a single environment; ``observation`` is what the action led to."""

    action: Any
    observation: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: Mapping[str, Any]

    @property
    def ended(self) -> bool:
        """Whether the session is over."""
        return bool(self.terminated or self.truncated)


def expect(condition: object, message: str) -> None:
    """Raise an :class:`AssertionError` unless ``condition`` holds, also under ``python -O``."""
    if not condition:
        raise AssertionError(message)


def expect_equal(expected: Any, came: Any, where: str) -> None:
    """Compare nested dicts, sequences, arrays and numbers: exactly equal, dtypes of arrays too."""
    if isinstance(expected, Mapping):
        expect(isinstance(came, Mapping), f"{where}: expected a dict; got {type(came).__name__}")
        expect(expected.keys() == came.keys(), f"{where}: expected {[*expected]}; got {[*came]}")
        for key, value in expected.items():
            expect_equal(value, came[key], f"{where}[{key!r}]")
        return
    if isinstance(expected, list | tuple):
        same_length = isinstance(came, list | tuple) and len(came) == len(expected)
        expect(same_length, f"{where}: expected {expected!r}; got {came!r}")
        for i, value in enumerate(expected):
            expect_equal(value, came[i], f"{where}[{i}]")
        return
    a, b = np.asarray(expected), np.asarray(came)
    same_kind = a.shape == b.shape and a.dtype == b.dtype
    expect(same_kind, f"{where}: expected {a.dtype} of shape {a.shape}; got {b.dtype} of {b.shape}")
    if not np.array_equal(a, b):
        at = tuple(int(i) for i in np.argwhere(a != b)[0])
        raise AssertionError(f"{where}: expected {a[at]!r} at {at}; got {b[at]!r}")


def same(a: Any, b: Any) -> bool:
    """Whether :func:`expect_equal` has nothing to say."""
    try:
        expect_equal(a, b, "")
    except AssertionError:
        return False
    return True


def actions(count: int, seed: int = SEED) -> Iterator[NDArray[np.int8]]:
    """Random actions, int8 (count,), from the empty set to nearly all bits."""
    rng = np.random.default_rng(seed)
    while True:
        share = rng.choice([0.0, 0.1, 0.3, 0.9])
        yield (rng.random(count) < share).astype(np.int8)


def random_actions(env: Env, seed: int = SEED) -> Iterator[Any]:
    """Random actions of any space; of slots those of :func:`actions`."""
    if isinstance(env.action_space, gymnasium.spaces.MultiBinary):
        yield from actions(slots(env), seed)
    space = copy.deepcopy(env.action_space)
    space.seed(seed)
    while True:
        yield space.sample()


def session(
    env: Env, seed: int, adapt: Callable[[Any], Any] | None = None
) -> tuple[Any, list[Transition]]:
    """Play one session from ``seed``: its first observation and its steps.

    ``adapt`` may replace each action, knowing the environment.
    """
    first, _ = env.reset(seed=seed)
    steps = []
    for action in itertools.islice(random_actions(env, seed), MAX_STEPS):
        played = action if adapt is None else adapt(action)
        steps.append(Transition(played, *env.step(played)))
        if steps[-1].ended:
            break
    return first, steps


def arrays(data: Any, path: str = "") -> Iterator[tuple[str, NDArray[Any]]]:
    """Every array of a nested structure, with its path."""
    if isinstance(data, np.ndarray) and data.dtype != object:
        yield path, data
    elif isinstance(data, Mapping):
        for key, value in data.items():
            yield from arrays(value, f"{path}[{key!r}]")
    elif isinstance(data, list | tuple | np.ndarray):
        for i, value in enumerate(data):
            yield from arrays(value, f"{path}[{i}]")


def slots(env: Env | Batch) -> int:
    """Number of candidate slots M of an environment."""
    space = env.single_action_space if isinstance(env, VectorEnv) else env.action_space
    expect(isinstance(space, gymnasium.spaces.MultiBinary), f"expected MultiBinary; got {space}")
    return int(np.prod(space.shape or ()))


def expect_unshared(calls: Sequence[Any], what: str) -> None:
    """No array of one call shares memory with one of the next call."""
    found = [list(arrays(call)) for call in calls]
    for earlier, later in itertools.pairwise(found):
        for (path, a), (other, b) in itertools.product(earlier, later):
            expect(
                not np.shares_memory(a, b),
                f"{what}: {path or 'an array'} of one call shares memory with {other} of the next; "
                "every call must return arrays of its own",
            )


def expect_inside(space: gymnasium.Space[Any], observation: Any, where: str) -> None:
    """Compare keys, dtypes, shapes and bounds with a box, or a ``Dict`` space of boxes."""
    if isinstance(space, gymnasium.spaces.Dict):
        keys = sorted(observation)
        known = sorted(space.spaces)
        expect(keys == known, f"{where}: expected the keys {known}; got {keys}")
        for key, part in space.spaces.items():
            expect_inside(part, observation[key], f"{where}[{key!r}]")
        return
    if not isinstance(space, gymnasium.spaces.Box):
        raise AssertionError(f"expected a Box, or a Dict space of boxes; got {space}")
    kind = (observation.dtype, observation.shape)
    expect(kind == (space.dtype, space.shape), f"{where}: expected {space}; got {kind}")
    outside = np.argwhere(~((observation >= space.low) & (observation <= space.high)))
    if len(outside):
        at = tuple(int(i) for i in outside[0])
        low, high = space.low[at], space.high[at]
        raise AssertionError(f"{where}: expected {low} to {high} at {at}; got {observation[at]!r}")
