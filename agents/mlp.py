"""A categorical policy and a value function as two separate tanh networks, for plain vectors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from agents.actor_critic import Action, Actions, Evaluation, Observation
from agents.adam import Floats, Parameters


class MLP:
    """A fully connected network ``x -> tanh(x W + b) -> ... -> x W + b`` over shared parameters.

    Its arrays are named ``<name>.w0, <name>.b0, <name>.w1, ...``; see :func:`mlp_arrays`.
    """

    def __init__(self, parameters: Parameters, name: str, num_layers: int) -> None:
        layers = [(f"{name}.w{i}", f"{name}.b{i}") for i in range(num_layers)]
        self._weights = [(parameters[w], parameters[b]) for w, b in layers]
        gradients = parameters.gradients
        self._gradients = [(gradients[w], gradients[b]) for w, b in layers]

    def forward(self, x: Floats) -> list[Floats]:
        """Return the input of every layer and, last, the output; each of shape (B, width)."""
        activations = [x]
        for w, b in self._weights[:-1]:
            hidden = activations[-1] @ w
            hidden += b
            activations.append(np.tanh(hidden, out=hidden))
        w, b = self._weights[-1]
        activations.append(activations[-1] @ w + b)
        return activations

    def backward(self, activations: Sequence[Floats], doutput: Floats) -> None:
        """Overwrite this network's gradients, given that of the loss for the output, (B, width)."""
        delta = doutput
        for i in reversed(range(len(self._weights))):
            x = activations[i]
            dw, db = self._gradients[i]
            np.matmul(x.T, delta, out=dw)
            delta.sum(axis=0, out=db)
            if i > 0:
                delta = delta @ self._weights[i][0].T
                delta *= 1 - x * x


def mlp_arrays(
    name: str, widths: Sequence[int], gain: float, rng: np.random.Generator
) -> dict[str, NDArray[np.float64]]:
    """Return initial arrays of an :class:`MLP`: orthogonal weights, zero biases.

    Args:
        name: prefix of the arrays' names
        widths: width of the input, of each hidden layer, and of the output
        gain: scale of the last layer; hidden layers have sqrt(2)
        rng: source of the weights
    """
    arrays = {}
    for i, (rows, columns) in enumerate(itertools.pairwise(widths)):
        last = i == len(widths) - 2
        arrays[f"{name}.w{i}"] = orthogonal(rows, columns, gain if last else math.sqrt(2), rng)
        arrays[f"{name}.b{i}"] = np.zeros(columns)
    return arrays


def orthogonal(
    rows: int, columns: int, gain: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Return ``gain`` times a random matrix with orthonormal rows or columns, the fewer of them.

    Source: A. Saxe, J. McClelland, S. Ganguli, "Exact solutions to the nonlinear dynamics of
    learning in deep linear neural networks", 2014.
    """
    normal = rng.standard_normal((max(rows, columns), min(rows, columns)))
    q, r = np.linalg.qr(normal)
    q *= np.sign(np.diag(r))  # makes the distribution uniform over orthogonal matrices
    return gain * (q if rows >= columns else q.T)


@dataclass(frozen=True, slots=True)
class _Cache:
    action: Actions  # (B,)
    actor: Sequence[Floats]  # activations, the last of them the logits
    critic: Sequence[Floats]  # activations, the last of them the values
    log_probs: Floats  # (B, num_actions)
    probs: Floats  # (B, num_actions)


class MLPActorCritic:
    """Actor and critic for a ``Box`` vector observation and a ``Discrete`` action.

    Both are tanh networks of the same hidden widths, and share nothing. Output gains are 0.01 for
    the logits, so that the first policy is near uniform, and 1 for the value.

    Args:
        obs_size: number of observed values; the observation is ``{"obs": (B, obs_size)}``
        num_actions: number of actions
        rng: source of the initial weights
        hidden: widths of the hidden layers
        dtype: floating type of parameters and results
    """

    parameters: Parameters

    def __init__(
        self,
        obs_size: int,
        num_actions: int,
        rng: np.random.Generator,
        *,
        hidden: Sequence[int] = (64, 64),
        dtype: DTypeLike = np.float32,
    ) -> None:
        arrays = mlp_arrays("actor", [obs_size, *hidden, num_actions], 0.01, rng)
        arrays |= mlp_arrays("critic", [obs_size, *hidden, 1], 1.0, rng)
        self.parameters = Parameters.from_arrays(arrays, dtype)
        self._actor = MLP(self.parameters, "actor", len(hidden) + 1)
        self._critic = MLP(self.parameters, "critic", len(hidden) + 1)

    def act(self, obs: Observation, rng: np.random.Generator, *, greedy: bool = False) -> Action:
        """Draw an action for each row (Gumbel-max), or take the most likely one."""
        x = self._input(obs)
        logits = self._actor.forward(x)[-1]
        keys = logits if greedy else logits + rng.gumbel(size=logits.shape)
        action = keys.argmax(axis=1)
        log_prob = np.take_along_axis(log_softmax(logits), action[:, None], axis=1)[:, 0]
        return Action(action, log_prob, self._critic.forward(x)[-1][:, 0])

    def value(self, obs: Observation) -> Floats:
        """Return the estimated return of each row, shape (B,)."""
        return self._critic.forward(self._input(obs))[-1][:, 0]

    def env_action(self, action: Actions) -> NDArray[Any]:
        """Return the actions as they are: the environment numbers them in the same way."""
        return action

    def evaluate(self, obs: Observation, action: Actions) -> Evaluation[_Cache]:
        """Return log-probability, entropy and value of recorded actions."""
        x = self._input(obs)
        actor, critic = self._actor.forward(x), self._critic.forward(x)
        log_probs = log_softmax(actor[-1])
        probs = np.exp(log_probs)
        entropy = -(probs * log_probs).sum(axis=1)
        log_prob = np.take_along_axis(log_probs, action[:, None], axis=1)[:, 0]
        cache = _Cache(action, actor, critic, log_probs, probs)
        return Evaluation(log_prob, entropy, critic[-1][:, 0], cache)

    def backward(
        self,
        evaluation: Evaluation[_Cache],
        dlog_prob: Floats,
        dentropy: Floats,
        dvalue: Floats,
    ) -> None:
        """Overwrite ``parameters.grad``; see :class:`agents.actor_critic.ActorCritic`."""
        cache = evaluation.cache
        surprise = cache.log_probs + evaluation.entropy[:, None]
        dlogits = cache.probs * (-dlog_prob[:, None] - dentropy[:, None] * surprise)
        dlogits[np.arange(len(dlogits)), cache.action] += dlog_prob
        self._actor.backward(cache.actor, dlogits)
        self._critic.backward(cache.critic, dvalue[:, None])

    def _input(self, obs: Observation) -> Floats:
        x: Floats = obs["obs"].astype(self.parameters.flat.dtype, copy=False)
        return x


def log_softmax(logits: Floats) -> Floats:
    """Return log-probabilities over the last axis."""
    shifted: Floats = logits - logits.max(axis=-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return shifted
