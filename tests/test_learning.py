"""Learning, end to end: what is learned beats what needs no learning, and a broken learner shows.

In these worlds every matching skill works, the history is empty, and whatever is loaded beside the
task hurts. So all that there is to learn is which skill fits, and when none does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from agents import ppo
from agents.adam import Floats
from agents.baselines import Agent, Learned, NoSkills, Oracle, Random
from agents.config import RunConfig
from agents.evaluation import earn, tune
from agents.training import Run
from letta_gym.envs.glue import Driver

CONFIG = RunConfig.model_validate(
    {
        "seed": 1,
        "env": {
            "max_skills": 2,
            "candidates": 8,
            "horizon": 4,
            "token_price": 0.05,
            "installed": 12,
            "twin_share": 0.0,
            "new_share": 0.0,
            "none_share": 0.3,
            "pair_share": 0.0,
            "stream_share": 1.0,
            "history": [1, 1],
            "history_empty": 1.0,
        },
        "mock": {
            "mild_share": 0.0,
            "strong_share": 1.0,
            "harmful_share": 0.0,
            "strong_gain": [0.9, 1.0],
            "gain_per_task": [0.9, 1.0],
            "mismatch_harm": [0.1, 0.3],
            "load_probability": 1.0,
            "load_decay": 1.0,
            "base_alpha": 1.0,
            "base_beta": 4.0,
        },
        # The untrained policy hardly tells skills apart, and loads none when it acts greedily.
        "policy": {"hidden": 16, "sharpness": 1.0, "threshold": 2.0},
        "train": {
            "steps": 24 * 1024,
            "evaluate": False,
            "ppo": {
                "learning_rate": 0.01,
                "anneal_lr": True,
                "num_envs": 64,
                "num_steps": 16,
                "gamma": 0.0,
                "num_minibatches": 4,
                "update_epochs": 4,
                "norm_adv": True,
                "clip_coef": 0.2,
                "ent_coef": 0.003,
                "vf_coef": 0.5,
                "max_grad_norm": 0.5,
                "target_kl": None,
                "ema_decay": None,
            },
        },
        "evaluate": {"seeds": 2, "tune_sessions": 200},
    }
)


def earned(agent: Agent[Driver]) -> float:
    """Mean return on tasks that were not trained on, in the same worlds for every agent."""
    return earn(agent, CONFIG.environment(split="validation"), seed=5, sessions=400)


def trained(folder: Path) -> tuple[Agent[Driver], Agent[Driver]]:
    """The greedy policy before and after training."""
    run = Run(CONFIG, folder)
    before = Learned(run.ppo.parameters.as_dict())
    run.train()
    return before, Learned(run.policy().weights)


def test_training_finds_most_of_what_there_is_to_gain(tmp_path: Path) -> None:
    before, after = (earned(agent) for agent in trained(tmp_path))
    none, most = earned(NoSkills()), earned(Oracle())
    assert before == none
    assert earned(Random(np.random.default_rng(0))) < none
    assert most - none > 0.4
    assert after > none + 0.7 * (most - none)
    assert after > earned(tune("evidence", CONFIG)) + 0.01  # the closed form at its best threshold


def test_a_learner_with_the_sign_of_its_advantages_flipped_gains_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    standardise = ppo.standardise

    def flipped(advantages: Floats, shares: Floats) -> Floats:
        return -standardise(advantages, shares)

    monkeypatch.setattr(ppo, "standardise", flipped)
    _, after = trained(tmp_path)
    assert earned(after) < earned(NoSkills())
