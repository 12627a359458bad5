"""The wrappers: every check on many settings, checks that can fail, and what algorithms meet."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import SyncVectorEnv
from numpy.typing import NDArray
from stable_baselines3.common.env_checker import check_env
from stable_baselines3.common.vec_env import DummyVecEnv

from letta_gym.envs import checks_wrappers
from letta_gym.envs.checks import CHECKS_ANY, CHECKS_WRAPPER, check_single, check_wrapped
from letta_gym.envs.checks_wrappers import Check
from letta_gym.envs.playing import Env, expect_equal
from letta_gym.envs.wrappers import (
    CompactObservation,
    FlatObservation,
    PickActions,
    ScoreActions,
    SequentialActions,
    SubsetActions,
)
from letta_gym.errors import ConfigError
from letta_gym.selection.observation import CONTEXT, FEATURES

ID = "letta_gym/MockSkillSelection-v0"
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {"horizon": 6},
    "tiny-budget": {"obs": "compact", "horizon": 12, "token_budget": 2_000},
    "one-step": {"obs": "compact", "horizon": 1, "history": (5, 50)},
    "one-slot": {"obs": "compact", "horizon": 6, "candidates": 1, "installed": 1},
    "one-skill": {"obs": "compact", "horizon": 6, "max_skills": 1},
}
WRAPPERS: dict[str, Callable[[Env], Env]] = {
    "compact": CompactObservation,
    "flat": FlatObservation,
    "subsets": SubsetActions,
    "subsets-of-the-first": lambda env: SubsetActions(env, slots=1),
    "picks": PickActions,
    "scores": ScoreActions,
    "sequential": SequentialActions,
    "flat-subsets": lambda env: FlatObservation(SubsetActions(CompactObservation(env))),
    "flat-sequential": lambda env: FlatObservation(SequentialActions(env)),
}
WRAPPERS_OF_ACTIONS = ("subsets", "picks", "scores", "sequential")


def make(**keywords: Any) -> Env:
    return gymnasium.make(ID, disable_env_checker=True, **keywords)


def compact(**keywords: Any) -> Env:
    return make(obs="compact", horizon=6, **keywords)


# -- the checks hold ---------------------------------------------------------------------------


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_passes_every_check(wrapper: str, setting: str) -> None:
    check_wrapped(lambda: WRAPPERS[wrapper](make(**SETTINGS[setting])))


def test_the_checks_of_wrappers_want_a_wrapper() -> None:
    with pytest.raises(AssertionError, match="expected a wrapper of letta_gym"):
        check_wrapped(compact)


def test_the_checks_look_at_every_wrapper_of_a_stack() -> None:
    with pytest.raises(AssertionError, match="masks"):
        check_wrapped(lambda: FlatObservation(AllowsEverySet(compact(token_budget=2_000))))


def test_a_compact_environment_keeps_the_promises_about_slots_too() -> None:
    check_single(lambda: CompactObservation(make(horizon=6)))


@pytest.mark.parametrize("wrapper", CHECKS_WRAPPER)
def test_every_wrapper_says_what_it_does_to_the_optimum(wrapper: type[Any]) -> None:
    assert "The optimum: " in (wrapper.__doc__ or "")


# -- the checks can fail -----------------------------------------------------------------------


class KeepsTheTask(CompactObservation):
    def observation(self, observation: Any) -> Any:
        return super().observation(observation) | {"task": observation["task"]}


class Shuffles(FlatObservation):
    def observation(self, observation: Any) -> Any:
        return super().observation(observation)[::-1].copy()


class LosesPrecision(FlatObservation):
    def unflatten(self, flat: Any) -> Any:
        return {name: part.round(2) for name, part in super().unflatten(flat).items()}


class LacksTheEmptySet(SubsetActions):
    def __init__(self, env: Env) -> None:
        super().__init__(env)
        self.subsets = self.subsets[1:]
        self.action_space = gymnasium.spaces.Discrete(len(self.subsets))


class SwapsTwoSets(SubsetActions):
    def bits(self, action: Any) -> Any:
        return super().bits(action)[::-1].copy()


class AllowsEverySet(SubsetActions):
    def action_masks(self) -> Any:
        return np.ones(len(self.subsets), bool)


class TakesTheFirstPickOnly(PickActions):
    def bits(self, action: Any) -> Any:
        picks = np.full_like(action, self.slots)
        picks[0] = action[0]
        return super().bits(picks)


class ForbidsNone(PickActions):
    def action_masks(self) -> Any:
        return np.tile(np.append(self._free, False), self.most)


class TakesTheWorstScores(ScoreActions):
    def bits(self, action: Any) -> Any:
        return super().bits(np.where(action > 0, 1.001 - action, -1))


class IgnoresTheSign(ScoreActions):
    def bits(self, action: Any) -> Any:
        return super().bits(np.abs(action))


class PaysEveryStep(SequentialActions):
    def step(self, action: Any) -> Any:
        observation, reward, *rest = super().step(action)
        return (observation, reward + 0.01, *rest)


class ForgetsThePicks(SequentialActions):
    def _carry_out(self, bits: Any) -> Any:
        return super()._carry_out(np.zeros_like(bits))


class HidesThePicks(SequentialActions):
    def step(self, action: Any) -> Any:
        observation, *rest = super().step(action)
        return (observation | {"picked": np.zeros_like(observation["picked"])}, *rest)


class NeverSaysThatItActs(SequentialActions):
    def step(self, action: Any) -> Any:
        *rest, info = super().step(action)
        return (*rest, info | {"executed": False})


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (KeepsTheTask, checks_wrappers.check_only_the_vectors_are_left_out, "'task'"),
        (Shuffles, checks_wrappers.check_the_vector_holds_every_part, "slices of observation 0"),
        (LosesPrecision, checks_wrappers.check_the_vector_holds_every_part, "unflattened"),
        (LacksTheEmptySet, checks_wrappers.check_every_subset_is_one_action, "expected the subs"),
        (SwapsTwoSets, checks_wrappers.check_every_subset_is_one_action, "with the action"),
        (AllowsEverySet, checks_wrappers.check_every_subset_is_one_action, "masks"),
        (TakesTheFirstPickOnly, checks_wrappers.check_picks_are_slots, "with the action"),
        (ForbidsNone, checks_wrappers.check_picks_are_slots, "masks"),
        (TakesTheWorstScores, checks_wrappers.check_the_best_scores_are_loaded, "with the action"),
        (IgnoresTheSign, checks_wrappers.check_the_best_scores_are_loaded, "with the action"),
        (PaysEveryStep, checks_wrappers.check_a_decision_is_paid_at_its_last_step, "carried out"),
        (ForgetsThePicks, checks_wrappers.check_a_decision_is_paid_at_its_last_step, "carried out"),
        (HidesThePicks, checks_wrappers.check_a_decision_is_paid_at_its_last_step, "'picked'"),
        (NeverSaysThatItActs, checks_wrappers.check_a_decision_is_paid_at_its_last_step, "execut"),
    ],
)
def test_a_broken_wrapper_fails_its_check(broken: type[Any], check: Check, message: str) -> None:
    def plain() -> Env:
        return make(horizon=20, token_budget=12_000)

    sound: Any = broken.__base__
    check(lambda: sound(plain()), plain)
    with pytest.raises(AssertionError, match=message):
        check(lambda: broken(plain()), plain)


def test_every_check_of_a_wrapper_is_one_sentence_and_is_proved_able_to_fail() -> None:
    test: Any = test_a_broken_wrapper_fails_its_check
    proved = {case[1] for case in test.pytestmark[0].args[1]}

    assert proved == set(CHECKS_WRAPPER.values())
    for check in proved:
        assert (check.__doc__ or "").endswith(".")
        assert "\n\n" not in (check.__doc__ or "")
    assert set(CHECKS_ANY).isdisjoint(proved)


# -- what an action stands for -----------------------------------------------------------------


def test_there_is_one_action_for_every_subset() -> None:
    env = SubsetActions(compact(), slots=5)

    assert len(env.subsets) == sum(math.comb(5, size) for size in range(4))
    assert np.flatnonzero(env.bits(0)).tolist() == []
    assert np.flatnonzero(env.bits(1)).tolist() == [0]
    assert np.flatnonzero(env.bits(6)).tolist() == [0, 1]
    assert np.flatnonzero(env.bits(np.array(25))).tolist() == [2, 3, 4]


def test_picks_may_repeat_and_may_be_none() -> None:
    env = PickActions(compact())

    assert np.flatnonzero(env.bits(np.array([4, 12, 4]))).tolist() == [4]
    assert not env.bits(np.array([12, 12, 12])).any()


def test_scores_choose_the_best_positive_ones_and_the_earlier_of_equal_ones() -> None:
    env = ScoreActions(compact())
    env.reset(seed=3)
    scores = np.full(12, -1.0)
    scores[[1, 2, 5, 7, 8]] = 0.1, 0.9, 0.1, 0.5, 0.0

    assert np.flatnonzero(env.bits(scores)).tolist() == [1, 2, 7]
    assert not env.bits(np.zeros(12)).any()


def test_a_masked_slot_with_the_best_score_takes_nobodys_place() -> None:
    env = ScoreActions(compact(installed=6, twin_share=0.0))
    shown, _ = env.reset(seed=3)
    assert not shown["action_mask"][6:].any()
    scores = np.linspace(0.1, 1, 12)

    assert np.flatnonzero(env.bits(scores)).tolist() == [3, 4, 5]


def test_sequential_picks_earn_what_their_set_earns() -> None:
    plain, env = compact(), SequentialActions(compact())
    plain.reset(seed=5)
    shown, _ = env.reset(seed=5)
    bits = np.zeros(12, np.int8)
    bits[[3, 1]] = 1
    expected = plain.step(bits)

    first = env.step(3)
    assert first[1:] == (0.0, False, False, {"executed": False})
    assert first[0]["picked"].tolist() == (np.arange(12) == 3).tolist()
    assert not env.action_masks()[3]
    expect_equal(shown["features"], first[0]["features"], "the task stays")
    env.step(1)
    observation, reward, _, _, info = env.step(12)
    assert reward == expected[1]
    assert info == expected[4] | {"executed": True}
    assert not observation["picked"].any()


def test_a_sequence_of_k_picks_needs_no_stop_and_a_useless_pick_counts() -> None:
    env = SequentialActions(compact())
    env.reset(seed=5)
    told = [env.step(slot)[4] for slot in (2, 2, 0)]

    assert [info["executed"] for info in told] == [False, False, True]
    assert len(told[-1]["skills"]) == 2


def test_a_sequence_wants_a_session_under_way() -> None:
    env = SequentialActions(gymnasium.make(ID, obs="compact", horizon=1).unwrapped)
    with pytest.raises(ConfigError, match=r"before reset\(\)"):
        env.step(0)
    env.reset(seed=0)
    assert env.step(12)[3]
    with pytest.raises(ConfigError, match="after the end"):
        env.step(0)


# -- what algorithms meet ----------------------------------------------------------------------


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_wrapper_works_in_a_synchronous_vector(wrapper: str) -> None:
    envs = SyncVectorEnv([lambda: WRAPPERS[wrapper](compact())] * 2)
    single = WRAPPERS[wrapper](compact())
    first, _ = envs.reset(seed=4)
    envs.action_space.seed(0)
    action = envs.action_space.sample()
    stepped = envs.step(action)

    for shown, expected in (
        (first, single.reset(seed=4)[0]),
        (stepped[0], single.step(action[0])[0]),
    ):
        row = {k: v[0] for k, v in shown.items()} if isinstance(shown, dict) else shown[0]
        expect_equal(expected, row, "environment 0")


@pytest.mark.filterwarnings("ignore:We recommend you to use a symmetric")
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_stable_baselines_accepts_a_wrapper(wrapper: str) -> None:
    check_env(WRAPPERS[wrapper](compact()), warn=False)


@pytest.mark.parametrize("wrapper", ["subsets", "picks", "sequential", "flat-subsets"])
def test_masks_reach_sb3_contrib_through_a_dummy_vector(wrapper: str) -> None:
    envs = DummyVecEnv([lambda: WRAPPERS[wrapper](compact())] * 2)
    envs.seed(0)
    envs.reset()
    masks = np.stack(envs.env_method("action_masks"))
    space: Any = envs.action_space
    choices = int(space.nvec.sum()) if hasattr(space, "nvec") else int(space.n)

    assert masks.shape == (2, choices)
    assert masks.dtype == bool


@pytest.mark.parametrize("wrapper", WRAPPERS_OF_ACTIONS)
def test_a_wrapped_environment_is_made_again_from_its_spec(wrapper: str) -> None:
    env = WRAPPERS[wrapper](gymnasium.make(ID, obs="compact", horizon=2))
    assert env.spec is not None
    again = env.spec.make()

    assert again.action_space == env.action_space
    expect_equal(env.reset(seed=1)[0], again.reset(seed=1)[0], "first observation")


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrap", "action", "message"),
    [
        (SubsetActions, 299, "between 0 and 298; got 299"),
        (SubsetActions, -1, "between 0 and 298; got -1"),
        (SubsetActions, 1.0, "one whole number from 0 to 298; got 1.0"),
        (SequentialActions, 13, "between 0 and 12; got 13"),
        (SequentialActions, np.zeros(2, int), "one whole number"),
        (PickActions, np.array([0, 1]), "3 whole numbers from 0 to 12"),
        (PickActions, np.array([0, 1, 13]), "3 whole numbers from 0 to 12"),
        (PickActions, np.array([-1, 1, 3]), "3 whole numbers from 0 to 12"),
        (PickActions, np.array([0.0, 1.0, 3.0]), "3 whole numbers from 0 to 12"),
        (ScoreActions, np.zeros(3), r"shape \(12,\)"),
        (ScoreActions, np.full(12, np.nan), "finite score"),
    ],
)
def test_an_action_outside_its_space_is_refused(
    wrap: Callable[[Env], Env], action: Any, message: str
) -> None:
    env = wrap(compact())
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=message):
        env.step(action)


@pytest.mark.parametrize("slots", [0, 13])
def test_subsets_are_of_slots_that_exist(slots: int) -> None:
    with pytest.raises(ConfigError, match=rf"between 1 and 12, .*got {slots}"):
        SubsetActions(compact(), slots=slots)


def test_too_many_subsets_are_refused_before_they_are_made() -> None:
    env = make(obs="compact", candidates=64, installed=32, horizon=2)
    with pytest.raises(ConfigError, match="64 slots have more than 10,000 subsets of at most 3"):
        SubsetActions(env)
    assert len(SubsetActions(env, slots=12).subsets) == 299


def test_wrappers_that_do_not_go_together_are_refused() -> None:
    flat: Any = FlatObservation(compact())
    with pytest.raises(ConfigError, match="Put FlatObservation outermost"):
        PickActions(flat)
    with pytest.raises(ConfigError, match=r"got MultiDiscrete.*One wrapper of actions is enough"):
        ScoreActions(PickActions(compact()))
    with pytest.raises(ConfigError, match="Put FlatObservation outermost"):
        CompactObservation(flat)


def test_an_environment_without_masks_is_refused() -> None:
    class Bare(gymnasium.ObservationWrapper[Any, Any, Any]):
        def __init__(self, env: Env) -> None:
            super().__init__(env)
            parts: Any = env.observation_space
            self.observation_space = gymnasium.spaces.Dict({"context": parts["context"]})

        def observation(self, observation: Any) -> Any:
            return {"context": observation["context"]}

    with pytest.raises(ConfigError, match=r"needs 'action_mask'.*got \['context'\]"):
        PickActions(Bare(compact()))


def test_flat_vectors_of_a_batch_are_unflattened_together() -> None:
    env = FlatObservation(compact())
    flat: NDArray[np.float32] = np.stack([env.reset(seed=seed)[0] for seed in range(3)])
    parts = env.unflatten(flat)

    assert {name: part.shape for name, part in parts.items()} == {
        "action_mask": (3, 12),
        "context": (3, len(CONTEXT)),
        "features": (3, 12, len(FEATURES)),
    }
    assert parts["action_mask"].dtype == np.int8
