"""The parameters of a network as one flat buffer, and the vector operations that train them."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, Self, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from letta_gym.errors import CheckpointError, ConfigError

Floats: TypeAlias = NDArray[np.floating[Any]]


class Parameters(Mapping[str, Floats]):
    """Named arrays that are views into one flat buffer, with a gradient of the same layout.

    ``parameters["w"]`` is a weight, ``parameters.gradients["w"]`` its gradient; ``flat`` and
    ``grad`` are the same memory as vectors. Write into the views (``[...] =``, ``out=``).

    Attributes:
        flat: array, shape (P,): all parameters, in the order of the names
        grad: array, shape (P,): the gradient of the loss
        gradients: name -> view of ``grad`` with the parameter's shape
    """

    flat: Floats
    grad: Floats
    gradients: Mapping[str, Floats]

    def __init__(
        self, shapes: Mapping[str, tuple[int, ...]], dtype: DTypeLike = np.float32
    ) -> None:
        if not np.issubdtype(dtype, np.floating):
            raise ConfigError(f"parameters are floating-point numbers; got the type {dtype}")
        size = sum(math.prod(shape) for shape in shapes.values())
        self.flat = np.zeros(size, dtype=dtype)
        self.grad = np.zeros(size, dtype=dtype)
        self._views = _views(self.flat, shapes)
        self.gradients = _views(self.grad, shapes)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, NDArray[Any]], dtype: DTypeLike = np.float32) -> Self:
        """Return parameters with the names, shapes and values of ``arrays``; gradients are 0."""
        parameters = cls({name: array.shape for name, array in arrays.items()}, dtype)
        parameters.load(arrays)
        return parameters

    def __getitem__(self, name: str) -> Floats:
        return self._views[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._views)

    def __len__(self) -> int:
        return len(self._views)

    def copy(self) -> Self:
        """Return parameters that share no memory with these; gradients are 0."""
        return type(self).from_arrays(self, self.flat.dtype)

    def as_dict(self) -> dict[str, Floats]:
        """Return name -> copy of each array."""
        return {name: view.copy() for name, view in self.items()}

    def load(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Copy the values of ``arrays`` into the buffer.

        Raises:
            CheckpointError: names or shapes differ; nothing was changed.
        """
        mine = {name: view.shape for name, view in self.items()}
        theirs = {name: array.shape for name, array in arrays.items()}
        if mine != theirs:
            raise CheckpointError(
                f"the arrays do not fit the network: expected {mine}; got {theirs}. "
                "Build the network with the configuration that the arrays were saved with."
            )
        for name, view in self.items():
            view[...] = arrays[name]


def _views(flat: Floats, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Floats]:
    ends = np.cumsum([math.prod(shape) for shape in shapes.values()])
    pieces = np.split(flat, ends[:-1])
    return {
        name: piece.reshape(shape)
        for (name, shape), piece in zip(shapes.items(), pieces, strict=True)
    }


def clip_grad_norm(grad: Floats, max_norm: float) -> float:
    """Scale ``grad`` in place to a Euclidean norm of at most ``max_norm``; return the norm before.

    The factor is ``max_norm / (norm + 1e-6)``, as in ``torch.nn.utils.clip_grad_norm_``.
    """
    norm = math.sqrt(float(grad @ grad))
    if norm + 1e-6 > max_norm:
        grad *= max_norm / (norm + 1e-6)
    return norm


class Adam:
    """Adam with bias correction, in place on flat buffers (Kingma and Ba, 2015, algorithm 1).

    Attributes:
        learning_rate: step size; set it between steps to anneal
        steps: number of steps taken
        m: array, shape (P,): running mean of the gradient
        v: array, shape (P,): running mean of its square
    """

    learning_rate: float
    steps: int
    m: Floats
    v: Floats

    def __init__(
        self,
        parameters: Parameters,
        learning_rate: float,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.parameters = parameters
        self.learning_rate = learning_rate
        self.betas = betas
        self.eps = eps
        self.steps = 0
        self.m = np.zeros_like(parameters.flat)
        self.v = np.zeros_like(parameters.flat)
        self._scratch = np.empty_like(parameters.flat)
        self._direction = np.empty_like(parameters.flat)

    def step(self) -> None:
        """Move the parameters one step against ``parameters.grad``."""
        beta1, beta2 = self.betas
        grad, scratch, direction = self.parameters.grad, self._scratch, self._direction
        self.steps += 1

        self.m *= beta1
        self.m += np.multiply(grad, 1 - beta1, out=scratch)
        self.v *= beta2
        np.multiply(grad, grad, out=scratch)
        self.v += np.multiply(scratch, 1 - beta2, out=scratch)

        np.sqrt(self.v, out=scratch)
        scratch /= math.sqrt(1 - beta2**self.steps)
        scratch += self.eps
        np.divide(self.m, scratch, out=direction)
        direction *= self.learning_rate / (1 - beta1**self.steps)
        self.parameters.flat -= direction

    def state(self) -> dict[str, Any]:
        """Return copies of the moments and the step count."""
        return {"m": self.m.copy(), "v": self.v.copy(), "steps": self.steps}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned."""
        self.m[...] = state["m"]
        self.v[...] = state["v"]
        self.steps = int(state["steps"])


class Ema:
    """An exponential moving average of the parameters, the weights to use after training.

    After n updates the decay is ``min(decay, (1 + n) / (10 + n))``, so that the first averages
    forget the initial weights quickly.

    Attributes:
        parameters: the averaged weights; they start as a copy
        updates: number of updates n
    """

    parameters: Parameters
    updates: int

    def __init__(self, parameters: Parameters, decay: float) -> None:
        self.parameters = parameters.copy()
        self.decay = decay
        self.updates = 0
        self._scratch = np.empty_like(parameters.flat)

    def update(self, parameters: Parameters) -> None:
        """Move the average towards ``parameters``."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        np.subtract(parameters.flat, self.parameters.flat, out=self._scratch)
        self._scratch *= 1 - decay
        self.parameters.flat += self._scratch

    def state(self) -> dict[str, Any]:
        """Return copies of the averaged weights and the update count."""
        return {"parameters": self.parameters.as_dict(), "updates": self.updates}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state` returned.

        Raises:
            CheckpointError: the weights belong to another network.
        """
        self.parameters.load(state["parameters"])
        self.updates = int(state["updates"])
