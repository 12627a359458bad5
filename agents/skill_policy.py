"""The skill-selection network as an actor-critic: subsets by Plackett-Luce with STOP."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from agents.actor_critic import Action, Actions, Evaluation, Observation
from agents.adam import Floats, Parameters
from letta_gym.selection import bilinear, network, subset
from letta_gym.selection.observation import FEATURE


@dataclass(frozen=True, slots=True)
class Pass:
    """A forward pass through the network and the subset distribution."""

    network: network.Cache
    bilinear: bilinear.Cache | None
    subset: subset.Evaluation


class SkillPolicy:
    """Actor-critic over ``features``, ``context`` and ``action_mask`` of the observation.

    Actions are ordered picks, int, shape (B, k), padded with -1; the environment takes the set.
    With a rank, the bilinear term reads the vectors ``task`` and ``skills`` of the observation too.
    The columns ``without`` of the features have no weights: those that read them are and stay 0.
    """

    parameters: Parameters

    def __init__(
        self,
        rng: np.random.Generator,
        max_skills: int,
        *,
        hidden: int = 32,
        sharpness: float = 30.0,
        threshold: float = 0.03,
        rank: int = 0,
        dimension: int = 0,
        without: Sequence[str] = (),
        dtype: DTypeLike = np.float32,
    ) -> None:
        weights = network.initial(rng, hidden, sharpness, threshold)
        weights |= bilinear.initial(rng, rank, dimension)
        self._without = [FEATURE[name] for name in without]
        for rows in network.rows_of(weights, self._without):
            rows[...] = 0
        self.parameters = Parameters.from_arrays(weights, dtype)
        self.max_skills = max_skills

    def act(self, obs: Observation, rng: np.random.Generator, *, greedy: bool = False) -> Action:
        """Draw picks for each row, or take the most likely at each step."""
        logits, value, *_ = self._forward(obs)
        k = self.max_skills
        picks = subset.greedy(logits, k) if greedy else subset.sample(logits, k, rng)
        return Action(picks, subset.log_prob(logits, picks), value)

    def value(self, obs: Observation) -> Floats:
        """Estimated return of each row, shape (B,)."""
        return self._forward(obs)[1]

    def env_action(self, action: Actions) -> NDArray[Any]:
        """The picked sets as 0/1 vectors over the slots, int8, shape (B, M)."""
        return subset.to_mask(action, self._slots)

    def evaluate(self, obs: Observation, action: Actions) -> Evaluation[Pass]:
        """Log-probability, entropy and value of recorded picks."""
        logits, value, cache, term = self._forward(obs)
        result = subset.evaluate(logits, action)
        return Evaluation(result.log_prob, result.entropy, value, Pass(cache, term, result))

    def backward(
        self,
        evaluation: Evaluation[Pass],
        dlog_prob: Floats,
        dentropy: Floats,
        dvalue: Floats,
    ) -> None:
        """Overwrite ``parameters.grad``."""
        dlogits = subset.backward(evaluation.cache.subset, dlog_prob, dentropy)
        cache = evaluation.cache
        gradients = network.backward(self.parameters, cache.network, dlogits, dvalue)
        if cache.bilinear is not None:
            gradients |= bilinear.backward(cache.bilinear, dlogits)
        for name, gradient in gradients.items():
            self.parameters.gradients[name][...] = gradient
        if self._without:
            for rows in network.rows_of(self.parameters.gradients, self._without):
                rows[...] = 0

    def _forward(
        self, obs: Observation
    ) -> tuple[Floats, Floats, network.Cache, bilinear.Cache | None]:
        dtype = self.parameters.flat.dtype
        features = obs["features"].astype(dtype, copy=False)
        self._slots = features.shape[1]
        logits, value, cache = network.forward(
            self.parameters,
            features,
            obs["context"].astype(dtype, copy=False),
            obs["action_mask"].astype(bool, copy=False),
        )
        if not bilinear.rank(self.parameters):
            return logits, value, cache, None
        term = bilinear.add(self.parameters, logits, (obs["task"], obs["skills"]))
        return logits, value, cache, term
