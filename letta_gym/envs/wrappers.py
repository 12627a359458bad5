"""Other forms of the environment, for algorithms that take neither ``Dict`` nor ``MultiBinary``.

Each wraps any environment with the action space ``MultiBinary(M)`` and an ``action_mask`` in its
observation, and says in its docstring what it changes about the optimum: the largest return that a
policy can reach. Wrappers of actions go inside, :class:`FlatObservation` outermost::

    env = gymnasium.make("letta_gym:letta_gym/MockSkillSelection-v0", obs="compact")
    env = FlatObservation(SubsetActions(env, slots=6))
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.utils import RecordConstructorArgs
from numpy.typing import NDArray

from letta_gym.errors import ConfigError

Arrays = dict[str, NDArray[Any]]
Bits = NDArray[np.int8]
Bool = NDArray[np.bool_]

VECTORS = ("task", "skills")
MOST_SUBSETS = 10_000


class CompactObservation(
    gymnasium.ObservationWrapper[Arrays, Any, Arrays],
    RecordConstructorArgs,
):
    """The observation without the vectors ``task`` and ``skills``, where it has them.

    ``gymnasium.make(..., obs="compact")`` gives the same and never makes them, which is faster;
    this is for an environment that was made already.

    The optimum: lower only by what can be read from the vectors beyond the features, which hold
    their similarities.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        parts = _parts(env)
        self.observation_space: spaces.Space[Any] = spaces.Dict(
            {name: part for name, part in parts.items() if name not in VECTORS}
        )

    def observation(self, observation: Arrays) -> Arrays:
        """The observation without its vectors."""
        return {name: part for name, part in observation.items() if name not in VECTORS}


class FlatObservation(
    gymnasium.ObservationWrapper[NDArray[np.float32], Any, Arrays],
    RecordConstructorArgs,
):
    """The observation as one float32 vector; ``layout`` says which slice holds which part.

    Parts stand in alphabetical order, each in C order; :meth:`unflatten` gives them back.

    The optimum: unchanged, for nothing is lost. What is lost is that slots are alike: a network on
    the vector learns every slot on its own.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        RecordConstructorArgs.__init__(self)
        super().__init__(env)
        self._boxes = dict(sorted(_parts(env).items()))
        ends = list(itertools.accumulate(box.low.size for box in self._boxes.values()))
        self.layout = {
            name: slice(end - box.low.size, end)
            for (name, box), end in zip(self._boxes.items(), ends, strict=True)
        }
        low, high = (
            np.concatenate([getattr(box, bound).ravel() for box in self._boxes.values()])
            for bound in ("low", "high")
        )
        self.observation_space: spaces.Space[Any] = spaces.Box(
            low.astype(np.float32), high.astype(np.float32), dtype=np.float32
        )

    def observation(self, observation: Arrays) -> NDArray[np.float32]:
        """All parts in one vector."""
        return np.concatenate([observation[name].ravel() for name in self._boxes], dtype=np.float32)

    def unflatten(self, flat: NDArray[np.float32]) -> Arrays:
        """The parts of vectors (..., n), each (..., *shape of the part) in its own dtype."""
        return {
            name: flat[..., self.layout[name]]
            .reshape(*flat.shape[:-1], *box.low.shape)
            .astype(box.dtype)
            for name, box in self._boxes.items()
        }


class _SlotActions(gymnasium.Wrapper[Arrays, Any, Arrays, Bits], RecordConstructorArgs):
    """Knows the slots M, the most skills k, and which slots may be chosen now."""

    def __init__(self, env: gymnasium.Env[Any, Any], **arguments: Any) -> None:
        RecordConstructorArgs.__init__(self, **arguments)
        super().__init__(env)
        if not isinstance(env.action_space, spaces.MultiBinary):
            raise ConfigError(
                f"{type(self).__name__} wraps an environment with the action space MultiBinary; "
                f"got {env.action_space}. One wrapper of actions is enough"
            )
        if "action_mask" not in (parts := _parts(env)):
            raise ConfigError(
                f"{type(self).__name__} needs 'action_mask' in the observation; got {[*parts]}"
            )
        self.slots = int(env.action_space.n)  # type: ignore[arg-type]
        self.most = min(int(env.get_wrapper_attr("config").max_skills), self.slots)
        self._free: Bool = np.zeros(self.slots, bool)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        """Start a new session."""
        observation, info = self.env.reset(seed=seed, options=options)
        self._free = observation["action_mask"].astype(bool)
        return observation, info

    def _carry_out(self, bits: Bits) -> tuple[Arrays, Any, bool, bool, dict[str, Any]]:
        result = self.env.step(bits)
        self._free = result[0]["action_mask"].astype(bool)
        return result


class _SetActions(_SlotActions, ABC):
    """One action stands for one set."""

    def step(self, action: Any) -> tuple[Arrays, Any, bool, bool, dict[str, Any]]:
        """Carry out the set that the action stands for."""
        return self._carry_out(self.bits(action))

    @abstractmethod
    def bits(self, action: Any) -> Bits:
        """The set that an action stands for, one bit a slot, int8 (M,).

        Raises:
            ConfigError: it is no action of this space.
        """


class SubsetActions(_SetActions):
    """``Discrete``: each set of at most k of the first ``slots`` slots is one action; for DQN.

    Action 0 is the empty set; then come the sets of one slot, of two, and so on, each size in
    lexicographic order. ``subsets`` (A, M) holds the bits of every action.

    The optimum: unchanged with all M slots. With fewer, what only the later slots can earn is lost;
    slots are sorted, so that is the least promising. The number of actions grows as M to the k:
    12 slots and k = 3 make 299, 64 slots 43,745.

    Args:
        env: the environment.
        slots: how many leading slots may be chosen; by default all.

    Raises:
        ConfigError: ``slots`` is not between 1 and M, or there would be more than 10,000 actions.
    """

    def __init__(self, env: gymnasium.Env[Any, Any], slots: int | None = None) -> None:
        super().__init__(env, slots=slots)
        first = self.slots if slots is None else slots
        if not 1 <= first <= self.slots:
            raise ConfigError(
                f"slots must lie between 1 and {self.slots}, the slots of the environment; "
                f"got {slots}"
            )
        sets: list[tuple[int, ...]] = []
        for size in range(min(self.most, first) + 1):
            sets += itertools.islice(
                itertools.combinations(range(first), size), MOST_SUBSETS + 1 - len(sets)
            )
        if len(sets) > MOST_SUBSETS:
            raise ConfigError(
                f"{first} slots have more than {MOST_SUBSETS:,} subsets of at most {self.most}; "
                "choose fewer slots, or PickActions"
            )
        self.subsets: Bits = np.zeros((len(sets), self.slots), np.int8)
        for action, members in enumerate(sets):
            self.subsets[action, list(members)] = 1
        self.action_space = spaces.Discrete(len(sets))

    def bits(self, action: Any) -> Bits:
        """The set of an action, int8 (M,)."""
        bits: Bits = self.subsets[_index(action, len(self.subsets))].copy()
        return bits

    def action_masks(self) -> Bool:
        """Which actions hold no masked slot, (A,)."""
        masked = self.subsets.astype(bool) & ~self._free
        return np.logical_not(masked.any(1))


class PickActions(_SetActions):
    """``MultiDiscrete``: k picks, each a slot or M for none; for sb3-contrib's MaskablePPO.

    A pick of a masked slot, and a second pick of the same slot, do nothing.

    The optimum: unchanged, for every set of at most k is an action (most are several, in other
    orders). But a policy draws the picks independently of each other, so while it explores it picks
    slots twice and cannot say "either of these two, not both".
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.action_space = spaces.MultiDiscrete([self.slots + 1] * self.most)

    def bits(self, action: Any) -> Bits:
        """The set of the picks, int8 (M,)."""
        picks = np.asarray(action)
        whole = picks.shape == (self.most,) and np.issubdtype(picks.dtype, np.integer)
        if not whole or picks.min() < 0 or picks.max() > self.slots:
            raise ConfigError(
                f"an action is {self.most} whole numbers from 0 to {self.slots}, the last for no "
                f"pick; got {action!r}"
            )
        bits = np.zeros(self.slots + 1, np.int8)
        bits[picks] = 1
        return bits[:-1]

    def action_masks(self) -> Bool:
        """What each pick may be, pick by pick, (k (M + 1),); none is always allowed."""
        return np.tile(np.append(self._free, True), self.most)


class ScoreActions(_SetActions):
    """``Box`` in [-1, 1]: a score for each slot; for SAC, TD3 and other continuous control.

    Of the slots that may be chosen and have a score above 0, the k with the largest scores are
    loaded; of equal scores the earlier slot.

    The optimum: unchanged, for every set of at most k has scores. But the reward is flat between
    sets and jumps from one to the next, so a critic that is smooth in the action only approximates
    it, and its gradient by the action is that of the approximation.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.action_space = spaces.Box(-1, 1, (self.slots,), np.float32)

    def bits(self, action: Any) -> Bits:
        """The set of the k largest scores above 0, int8 (M,)."""
        score = np.asarray(action, np.float64)
        if score.shape != (self.slots,) or not np.isfinite(score).all():
            raise ConfigError(
                f"an action is one finite score a slot, shape ({self.slots},); got {action!r}"
            )
        wanted = self._free & (score > 0)
        best = np.argsort(np.where(wanted, -score, np.inf), kind="stable")[: self.most]
        bits = np.zeros(self.slots, np.int8)
        bits[best] = wanted[best]
        return bits


class SequentialActions(_SlotActions):
    """``Discrete(M + 1)``: one pick a step, M for STOP; one decision takes up to k steps.

    The set is carried out at STOP or after the k-th pick. Until then the task stays, the reward is
    0, and ``info`` holds nothing but ``executed``, which is false. A pick of a masked slot, and a
    second pick of one, use up a pick and do nothing. The observation shows the slots
    ``picked (M,)``, and its ``action_mask`` leaves them out.

    The optimum: unchanged without discount. A discount counts steps, not decisions: a set of two
    picks is paid one step later than STOP and so seems worth less by the factor gamma, and at gamma
    0 a first pick is never paid at all. Learners that can should discount by 1 within a decision
    (``info["executed"]`` tells); with others choose gamma near 1.
    """

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.action_space = spaces.Discrete(self.slots + 1)
        picked = spaces.Box(0, 1, (self.slots,), np.int8)
        self.observation_space: spaces.Space[Any] = spaces.Dict({**_parts(env), "picked": picked})
        self._observation: Arrays | None = None
        self._picked: Bits = np.zeros(self.slots, np.int8)
        self._picks = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Arrays, dict[str, Any]]:
        """Start a new session."""
        observation, info = super().reset(seed=seed, options=options)
        return self._next_decision(observation), info

    def step(self, action: Any) -> tuple[Arrays, Any, bool, bool, dict[str, Any]]:
        """Note a pick, or carry out the set."""
        if self._observation is None:
            raise ConfigError("step() came before reset(), or after the end; call reset() first")
        slot = _index(action, self.slots + 1)
        if slot < self.slots:
            self._picked[slot] |= self._free[slot]
            self._picks += 1
            if self._picks < self.most:
                return self._shown(self._observation), 0.0, False, False, {"executed": False}
        observation, reward, terminated, truncated, info = self._carry_out(self._picked)
        shown = self._next_decision(observation)
        if terminated or truncated:
            self._observation = None
        return shown, reward, terminated, truncated, info | {"executed": True}

    def action_masks(self) -> Bool:
        """Which slots may be picked now, and STOP, which always may; (M + 1,)."""
        return np.append(self._free & ~self._picked.astype(bool), True)

    def _next_decision(self, observation: Arrays) -> Arrays:
        self._observation, self._picks = observation, 0
        self._picked = np.zeros(self.slots, np.int8)
        return self._shown(observation)

    def _shown(self, observation: Arrays) -> Arrays:
        """Fresh arrays of the observation and the picks so far."""
        shown = {name: part.copy() for name, part in observation.items()}
        shown["action_mask"] = self.action_masks()[:-1].astype(np.int8)
        return shown | {"picked": self._picked.copy()}


def _parts(env: gymnasium.Env[Any, Any]) -> dict[str, spaces.Box]:
    """The boxes of a ``Dict`` observation space.

    Raises:
        ConfigError: the observation space is another one.
    """
    space = env.observation_space
    if not isinstance(space, spaces.Dict):
        raise ConfigError(
            f"expected the observation space Dict of the environment; got {space}. "
            "Put FlatObservation outermost"
        )
    return {name: part for name, part in space.spaces.items() if isinstance(part, spaces.Box)}


def _index(action: Any, count: int) -> int:
    """A whole number from 0 to ``count`` - 1, from an int or an array of one.

    Raises:
        ConfigError: it is something else.
    """
    array = np.asarray(action)
    if array.size != 1 or not np.issubdtype(array.dtype, np.integer):
        raise ConfigError(f"an action is one whole number from 0 to {count - 1}; got {action!r}")
    index = int(array.item())
    if not 0 <= index < count:
        raise ConfigError(f"an action lies between 0 and {count - 1}; got {index}")
    return index
