"""Checks of any skill-selection environment: one small function and one sentence a property.

``run_checks("letta_gym/MockSkillSelection-v0", horizon=8)`` runs them all; :func:`check_single` and
:func:`check_vector` take factories, and so serve wrapped environments and environments of others;
:func:`check_wrapped` is for those in a wrapper of :mod:`letta_gym.envs.wrappers`.
A check says nothing, or raises an :class:`AssertionError` with what was expected and what came.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium

from letta_gym.envs.checks_single import CHECKS_ANY, CHECKS_SINGLE
from letta_gym.envs.checks_vector import CHECKS_VECTOR
from letta_gym.envs.checks_wrappers import CHECKS_WRAPPER
from letta_gym.envs.playing import Batch, Env, MakeSingle, MakeVector, expect

__all__ = [
    "CHECKS_ANY",
    "CHECKS_SINGLE",
    "CHECKS_VECTOR",
    "CHECKS_WRAPPER",
    "check_single",
    "check_vector",
    "check_wrapped",
    "run_checks",
]


def run_checks(env_id: str, *, num_envs: int = 3, **keywords: Any) -> None:
    """Make the registered environment ``env_id``, single and batched, and run every check on both.

    Args:
        env_id: a registered id.
        num_envs: size of the batch; 1 for an environment whose sessions share a memory.
        keywords: of ``gymnasium.make`` and ``gymnasium.make_vec``.

    Raises:
        AssertionError: a property does not hold.
    """

    def make_single() -> Env:
        return gymnasium.make(env_id, disable_env_checker=True, **keywords)

    def make_vector() -> Batch:
        mode = "vector_entry_point"
        return gymnasium.make_vec(env_id, num_envs=num_envs, vectorization_mode=mode, **keywords)

    check_single(make_single)
    check_vector(make_vector, make_single)


def check_single(make: MakeSingle) -> None:
    """Run every check of :data:`CHECKS_SINGLE` on the environments that ``make`` returns."""
    for check in CHECKS_SINGLE:
        check(make)


def check_vector(make_vector: MakeVector, make_single: MakeSingle) -> None:
    """Run every check of :data:`CHECKS_VECTOR`; both factories must use the same keywords."""
    for check in CHECKS_VECTOR:
        check(make_vector, make_single)


def check_wrapped(make: MakeSingle) -> None:
    """Run :data:`CHECKS_ANY`, and those of every wrapper of ours, on the environments of ``make``.

    What a wrapper promises is compared with the environment right below it.

    Raises:
        AssertionError: a property does not hold, or none of our wrappers is there.
    """
    for check in CHECKS_ANY:
        check(make)
    outermost = make()
    layers = list(_layers(outermost))
    promises = [
        (promise, depth)
        for depth, layer in enumerate(layers)
        for wrapper, promise in CHECKS_WRAPPER.items()
        if isinstance(layer, wrapper)
    ]
    expect(promises, f"expected a wrapper of letta_gym.envs.wrappers; got {outermost}")
    for promise, depth in promises:
        promise(_peeled(make, depth), _peeled(make, depth + 1))


def _layers(env: Env) -> Iterator[Env]:
    """An environment and those below it, from the outermost."""
    yield env
    if isinstance(env, gymnasium.Wrapper):
        yield from _layers(env.env)


def _peeled(make: MakeSingle, depth: int) -> MakeSingle:
    """Makes the same environments without their ``depth`` outermost wrappers."""
    return lambda: list(_layers(make()))[depth]
