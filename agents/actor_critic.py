"""What PPO asks of a model: to act, to value, to evaluate actions, and to differentiate itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeAlias, TypeVar

import numpy as np
from numpy.typing import NDArray

from agents.adam import Floats, Parameters

Observation: TypeAlias = Mapping[str, NDArray[Any]]
"""A batch of observations: name -> array of shape (B, ...)."""

Actions: TypeAlias = NDArray[np.int64]
"""A batch of actions in the form the model keeps them, shape (B, ...)."""

CacheT = TypeVar("CacheT")


@dataclass(frozen=True, slots=True)
class Action:
    """Actions drawn for a batch, with what PPO records about them."""

    action: Actions  # (B, ...)
    log_prob: Floats  # (B,)
    value: Floats  # (B,)


@dataclass(frozen=True, slots=True)
class Evaluation(Generic[CacheT]):
    """A differentiable forward pass over recorded observations and actions."""

    log_prob: Floats  # (B,)
    entropy: Floats  # (B,), in nats
    value: Floats  # (B,)
    cache: CacheT  # whatever the model's backward pass needs


class ActorCritic(Protocol[CacheT]):
    """A policy and a value function over one set of parameters, with a hand-written gradient.

    Results have the floating type of ``parameters``, whatever that of the observation. Every
    forward pass reads only the observation: masks are a part of it, so that the update sees the
    mask under which an action was drawn.
    """

    parameters: Parameters

    def act(self, obs: Observation, rng: np.random.Generator, *, greedy: bool = False) -> Action:
        """Draw an action for each row, or take the most likely one."""
        ...

    def value(self, obs: Observation) -> Floats:
        """Return the estimated return of each row, shape (B,)."""
        ...

    def env_action(self, action: Actions) -> NDArray[Any]:
        """Return what ``env.step`` of the vector environment takes for these actions."""
        ...

    def evaluate(self, obs: Observation, action: Actions) -> Evaluation[CacheT]:
        """Return log-probability, entropy and value of recorded actions."""
        ...

    def backward(
        self,
        evaluation: Evaluation[CacheT],
        dlog_prob: Floats,
        dentropy: Floats,
        dvalue: Floats,
    ) -> None:
        """Overwrite ``parameters.grad`` with the gradient of a loss.

        Args:
            evaluation: the result of :meth:`evaluate`; parameters must not have changed since
            dlog_prob: array, shape (B,): gradient with respect to ``log_prob``
            dentropy: array, shape (B,): gradient with respect to ``entropy``
            dvalue: array, shape (B,): gradient with respect to ``value``
        """
        ...
