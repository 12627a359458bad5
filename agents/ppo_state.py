"""The state of a PPO learner: all that a continued run depends on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from agents.rollout import Resumable
from letta_gym.errors import CheckpointError

if TYPE_CHECKING:
    from agents.ppo import PPO, PPOConfig


def taken(ppo: PPO) -> dict[str, Any]:
    """Return the state as nested arrays and JSON values.

    Take it between ``update`` and ``collect``. The environment's own state, and the observation
    that belongs to it, are part of it if the environment is :class:`agents.rollout.Resumable`.
    """
    state: dict[str, Any] = {
        "config": ppo.config.model_dump(mode="json"),
        "parameters": ppo.model.parameters.as_dict(),
        "optimizer": ppo.optimizer.state(),
        "rng": ppo.rng.bit_generator.state,
        "global_step": ppo.global_step,
        "num_updates": ppo.num_updates,
        "num_skipped": ppo.num_skipped,
    }
    if ppo.ema is not None:
        state["ema"] = ppo.ema.state()
    if isinstance(ppo.env, Resumable):
        state["env"] = {
            "state": ppo.env.get_state(),
            "obs": {name: array.copy() for name, array in ppo.obs.items()},
            "episodes": ppo.episodes.state(),
        }
    return state


def restore(ppo: PPO, state: Mapping[str, Any]) -> None:
    """Let ``ppo`` continue from what :func:`taken` returned.

    Without the environment's state the run continues with the episodes it is in.

    Raises:
        CheckpointError: the state belongs to another configuration, network or environment.
    """
    check_config(state, ppo.config)
    if "env" in state and not isinstance(ppo.env, Resumable):
        raise CheckpointError(
            "the checkpoint holds the state of its environment, but "
            f"{type(ppo.env).__name__} has no set_state; use the environment it was made with"
        )
    ppo.model.parameters.load(state["parameters"])
    try:
        ppo.rng.bit_generator.state = state["rng"]
    except ValueError as error:
        raise CheckpointError(f"the checkpoint is of another random generator: {error}") from error
    ppo.optimizer.restore(state["optimizer"])
    if ppo.ema is not None:
        ppo.ema.restore(state["ema"])
    ppo.global_step = int(state["global_step"])
    ppo.num_updates = int(state["num_updates"])
    ppo.num_skipped = int(state["num_skipped"])
    if "env" in state and isinstance(ppo.env, Resumable):
        ppo.env.set_state(state["env"]["state"])
        ppo.obs = {name: array.copy() for name, array in state["env"]["obs"].items()}
        ppo.episodes.restore(state["env"]["episodes"])


def check_config(state: Mapping[str, Any], config: PPOConfig) -> None:
    """Raise CheckpointError unless ``state`` was saved with the same hyper-parameters."""
    theirs, mine = state.get("config"), config.model_dump(mode="json")
    if not isinstance(theirs, Mapping):
        raise CheckpointError(f"this is no state of a PPO learner; it has the keys {sorted(state)}")
    different = [key for key in {**mine, **theirs} if mine.get(key) != theirs.get(key)]
    if different:
        raise CheckpointError(
            "the checkpoint belongs to another configuration: "
            + "; ".join(f"{k} is {mine.get(k)}, was {theirs.get(k)}" for k in different)
            + ". Restore the old values, or start a new run"
        )
