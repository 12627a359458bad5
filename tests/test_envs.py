"""The environments: every shipped check on many settings, and checks that can fail."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

import letta_gym
from letta_gym.envs import checks_single, checks_vector
from letta_gym.envs.checks import CHECKS_SINGLE, CHECKS_VECTOR, check_single, run_checks
from letta_gym.envs.playing import expect_equal, session
from letta_gym.envs.single import SkillSelectionEnv
from letta_gym.envs.vector import SkillSelectionVectorEnv
from letta_gym.errors import ConfigError, SuiteError
from letta_gym.selection.observation import FEATURE

ID = "letta_gym/MockSkillSelection-v0"
COMPACT: dict[str, Any] = {"obs": "compact"}
SETTINGS: dict[str, dict[str, Any]] = {
    "full": {"horizon": 6},
    "compact": {"obs": "compact", "horizon": 20, "token_budget": 12_000},
    "one-step": {"obs": "compact", "horizon": 1, "history": (5, 50)},
    "tiny-budget": {"obs": "compact", "horizon": 12, "token_budget": 2_000},
    "fixed-world": {"obs": "compact", "horizon": 6, "world": "fixed"},
    "retrieval-slots": {"obs": "compact", "horizon": 6, "slots": "retrieval"},
    "test-split": {"obs": "compact", "horizon": 8, "split": "test"},
    "one-slot": {"obs": "compact", "horizon": 6, "candidates": 1, "installed": 1},
    "thirds": {"obs": "compact", "horizon": 6, "history_empty": 0, "mock": {"checks": 3}},
}


def make(**keywords: Any) -> SkillSelectionEnv:
    env = gymnasium.make(ID, **keywords).unwrapped
    assert isinstance(env, SkillSelectionEnv)
    return env


def ones(env: SkillSelectionEnv | SkillSelectionVectorEnv) -> NDArray[np.int8]:
    return np.ones_like(env.action_space.sample())


# -- the checks hold ---------------------------------------------------------------------------


@pytest.mark.parametrize("check", CHECKS_SINGLE, ids=lambda check: check.__name__)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_single_environment_passes_every_check(
    setting: str, check: Callable[[Callable[[], Any]], None]
) -> None:
    keywords = SETTINGS[setting]
    check(lambda: gymnasium.make(ID, disable_env_checker=True, **keywords))


@pytest.mark.parametrize("check", CHECKS_VECTOR, ids=lambda check: check.__name__)
@pytest.mark.parametrize("setting", SETTINGS)
def test_a_vector_environment_passes_every_check(setting: str, check: checks_vector.Check) -> None:
    keywords = SETTINGS[setting]
    check(
        lambda: SkillSelectionVectorEnv(num_envs=3, **keywords),
        lambda: SkillSelectionEnv(**keywords),
    )


def test_run_checks_makes_both_environments_by_their_id() -> None:
    run_checks(ID, num_envs=2, obs="compact", horizon=3)


def test_run_checks_passes_its_keywords_on() -> None:
    with pytest.raises(ConfigError, match="did you mean 'horizon'"):
        run_checks(ID, horizont=3)


def test_the_checks_serve_wrapped_environments() -> None:
    def wrapped() -> gymnasium.Env[Any, Any]:
        return gymnasium.wrappers.TransformReward(make(obs="compact", horizon=4), _halved)

    check_single(wrapped)


def _halved(reward: Any) -> float:
    return float(reward) / 2


# -- the checks can fail -----------------------------------------------------------------------


class Altered(SkillSelectionEnv):
    """A single environment whose steps and observations a subclass can spoil."""

    def step(self, action: Any) -> Any:
        return self.spoil(np.asarray(action), super().step(action))

    def spoil(self, action: NDArray[Any], result: Any) -> Any:
        return result


class SharesMemory(Altered):
    def _observe(self) -> Any:
        fresh = super()._observe()
        kept: dict[str, NDArray[Any]] = self.__dict__.setdefault("kept", fresh)
        for name, array in kept.items():
            array[...] = fresh[name]
        return dict(kept)


class SharesInfo(Altered):
    def spoil(self, action: NDArray[Any], result: Any) -> Any:
        last = self.__dict__.setdefault("last", np.zeros(1))
        last[0] = result[1]
        return (*result[:4], result[4] | {"reward": last})


class NumpyBools(Altered):
    def spoil(self, action: NDArray[Any], result: Any) -> Any:
        return (*result[:2], np.bool_(result[2]), *result[3:])


class NumpyReward(Altered):
    def spoil(self, action: NDArray[Any], result: Any) -> Any:
        return (result[0], np.float32(result[1]), *result[2:])


class IgnoresTheSeed(Altered):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=np.random.SeedSequence().entropy % 2**31)  # type: ignore[operator]


class AlwaysTheSameSession(Altered):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=0)


class MaskedBitsCount(Altered):
    def step(self, action: Any) -> Any:
        situation = self.driver.situation
        assert situation is not None
        beside = float((np.asarray(action, bool) & ~situation.mask[0]).sum())
        observation, reward, *rest = super().step(action)
        return (observation, reward - beside, *rest)


class LastBitsCount(Altered):
    def step(self, action: Any) -> Any:
        situation = self.driver.situation
        assert situation is not None
        wanted = np.flatnonzero(np.asarray(action, bool) & situation.mask[0])
        chosen = np.zeros(self.config.candidates, np.int8)
        chosen[wanted[-self.config.max_skills :]] = 1
        observation, reward, terminated, truncated, info = super().step(chosen)
        info["dropped"] = int(np.sum(action)) - len(info["skills"])
        return observation, reward, terminated, truncated, info


class MiscountsDropped(Altered):
    def spoil(self, action: NDArray[Any], result: Any) -> Any:
        return (*result[:4], result[4] | {"dropped": 0})


class LeavesTheSpace(Altered):
    def spoil(self, action: NDArray[Any], result: Any) -> Any:
        result[0]["context"][-1] = np.inf
        return result


class LacksAKey(Altered):
    def spoil(self, action: NDArray[Any], result: Any) -> Any:
        del result[0]["context"]
        return result


class EndsTwice(Altered):
    def spoil(self, action: NDArray[Any], result: Any) -> Any:
        ended = result[2] or result[3]
        return (*result[:2], ended, ended, result[4])


class TruncatesEarly(Altered):
    def spoil(self, action: NDArray[Any], result: Any) -> Any:
        return (*result[:2], False, result[2] or self.driver.sessions.step_index[0] > 2, result[4])


class CallsTheHorizonATermination(Altered):
    def spoil(self, action: NDArray[Any], result: Any) -> Any:
        return (*result[:2], result[2] or result[3], False, result[4])


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (SharesMemory, checks_single.check_fresh_arrays, "shares memory"),
        (SharesMemory, checks_single.check_gymnasium_accepts_it, "share an object"),
        (SharesInfo, checks_single.check_fresh_arrays, "shares memory"),
        (NumpyBools, checks_single.check_plain_python_ends, "expected terminated to be bool"),
        (NumpyReward, checks_single.check_plain_python_ends, "expected a finite float"),
        (IgnoresTheSeed, checks_single.check_same_seed_same_session, "same seed"),
        (AlwaysTheSameSession, checks_single.check_same_seed_same_session, "other seeds"),
        (MaskedBitsCount, checks_single.check_masked_bits_do_nothing, "every masked bit"),
        (LastBitsCount, checks_single.check_the_first_k_bits_count, "every bit set"),
        (MiscountsDropped, checks_single.check_the_first_k_bits_count, "dropped"),
        (LeavesTheSpace, checks_single.check_observations_in_space, "expected -8.0 to 8.0"),
        (LacksAKey, checks_single.check_observations_in_space, "expected the keys"),
        (EndsTwice, checks_single.check_how_sessions_end, "terminated and truncated"),
        (TruncatesEarly, checks_single.check_how_sessions_end, "horizon only"),
        (CallsTheHorizonATermination, checks_single.check_how_sessions_end, "no skill to be left"),
    ],
)
def test_a_broken_single_environment_fails_its_check(
    broken: type[SkillSelectionEnv], check: Callable[[Callable[[], Any]], None], message: str
) -> None:
    keywords: dict[str, Any] = {"obs": "compact", "horizon": 24, "token_budget": 8000}
    check(lambda: SkillSelectionEnv(**keywords))
    with pytest.raises(AssertionError, match=message):
        check(lambda: broken(**keywords))


class AlteredBatch(SkillSelectionVectorEnv):
    """A vector environment whose steps a subclass can spoil."""

    def step(self, actions: NDArray[Any]) -> Any:
        return self.spoil(super().step(actions))

    def spoil(self, result: Any) -> Any:
        return result


class IgnoresResetMask(AlteredBatch):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return super().reset(seed=seed)


class ResetsTheWrongRows(AlteredBatch):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        if options:
            options = {"reset_mask": ~options["reset_mask"]}
        return super().reset(seed=seed, options=options)


class ReusesItsBuffer(AlteredBatch):
    def spoil(self, result: Any) -> Any:
        kept = self.__dict__.setdefault("kept", result[0])
        for name, array in kept.items():
            array[...] = result[0][name]
        return (dict(kept), *result[1:])


class WritesIntoOldInfos(AlteredBatch):
    def spoil(self, result: Any) -> Any:
        for array in self.__dict__.setdefault("old", []):
            array[...] = -1
        self.__dict__["old"] = [result[4]["success"]]
        return result


class OneSeedForAll(AlteredBatch):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        seeds = [seed] * self.num_envs if isinstance(seed, int) else seed
        return super().reset(seed=seeds, options=options)


class SortsSeeds(AlteredBatch):
    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        seeds = sorted(seed) if isinstance(seed, list) else seed
        return super().reset(seed=seeds, options=options)


class RoundsRewards(AlteredBatch):
    def spoil(self, result: Any) -> Any:
        return (result[0], np.round(result[1], 3), *result[2:])


class LosesFinalObservations(AlteredBatch):
    def spoil(self, result: Any) -> Any:
        result[4].pop("final_obs", None)
        return result


class FinalObservationOfTheNextSession(AlteredBatch):
    def spoil(self, result: Any) -> Any:
        if "final_obs" in result[4]:
            result[4]["final_obs"] = {k: v.copy() for k, v in result[0].items()}
        return result


class IncompleteFinalObservation(AlteredBatch):
    def spoil(self, result: Any) -> Any:
        if "final_obs" in result[4]:
            del result[4]["final_obs"]["context"]
        return result


class LosesTheOutcome(AlteredBatch):
    def spoil(self, result: Any) -> Any:
        del result[4]["outcome"]
        return result


class ResetsInTheNextStep(AlteredBatch):
    metadata = SkillSelectionVectorEnv.metadata | {"autoreset_mode": AutoresetMode.NEXT_STEP}


class IntegerEnds(AlteredBatch):
    def spoil(self, result: Any) -> Any:
        return (*result[:2], result[2].astype(np.int8), *result[3:])


class DoublePrecision(AlteredBatch):
    def spoil(self, result: Any) -> Any:
        return ({k: v.astype(np.float64) for k, v in result[0].items()}, *result[1:])


class CountsMaskedBits(AlteredBatch):
    def step(self, actions: NDArray[Any]) -> Any:
        situation = self.driver.situation
        assert situation is not None
        beside = (np.asarray(actions, bool) & ~situation.mask).sum(1)
        observation, reward, *rest = super().step(actions)
        return (observation, (reward - beside).astype(np.float32), *rest)


class ForgetsItsGenerators(AlteredBatch):
    def set_state(self, state: dict[str, Any]) -> Any:
        own = [g.bit_generator.state for g in self._generators]
        return super().set_state(state | {"generators": own})


class HandsOutItsState(AlteredBatch):
    def get_state(self) -> dict[str, Any]:
        return super().get_state() | {"arrays": self.driver.sessions.arrays()}


@pytest.mark.parametrize(
    ("broken", "check", "message"),
    [
        (IgnoresResetMask, checks_vector.check_reset_mask, "outside reset_mask"),
        (ResetsTheWrongRows, checks_vector.check_reset_mask, "masked session 0"),
        (ReusesItsBuffer, checks_vector.check_fresh_batches, "shares memory"),
        (WritesIntoOldInfos, checks_vector.check_fresh_batches, "looked at again"),
        (OneSeedForAll, checks_vector.check_equals_single_environments, "environment 1"),
        (RoundsRewards, checks_vector.check_equals_single_environments, "expected"),
        (SortsSeeds, checks_vector.check_seeds_as_a_list, "environment 0"),
        (LosesFinalObservations, checks_vector.check_same_step_autoreset, "final_obs"),
        (
            FinalObservationOfTheNextSession,
            checks_vector.check_equals_single_environments,
            "final_obs",
        ),
        (IncompleteFinalObservation, checks_vector.check_same_step_autoreset, "expected the keys"),
        (LosesTheOutcome, checks_vector.check_equals_single_environments, "the key 'outcome'"),
        (ResetsInTheNextStep, checks_vector.check_same_step_autoreset, "SAME_STEP"),
        (IntegerEnds, checks_vector.check_batched_types, "expected terminated"),
        (DoublePrecision, checks_vector.check_batched_types, "float64"),
        (CountsMaskedBits, checks_vector.check_masked_bits_do_nothing_in_a_batch, "reward"),
        (ForgetsItsGenerators, checks_vector.check_state_can_be_saved, "after set_state"),
        (HandsOutItsState, checks_vector.check_state_can_be_saved, "looked at again"),
    ],
)
def test_a_broken_vector_environment_fails_its_check(
    broken: type[SkillSelectionVectorEnv], check: checks_vector.Check, message: str
) -> None:
    keywords: dict[str, Any] = {"obs": "compact", "horizon": 8, "token_budget": 8000}
    with pytest.raises(AssertionError, match=message):
        check(lambda: broken(num_envs=3, **keywords), lambda: SkillSelectionEnv(**keywords))


def test_every_check_is_one_sentence_and_is_proved_able_to_fail() -> None:
    proved = set()
    tests: list[Any] = [
        test_a_broken_single_environment_fails_its_check,
        test_a_broken_vector_environment_fails_its_check,
    ]
    for test in tests:
        proved |= {case[1] for case in test.pytestmark[0].args[1]}
    assert proved == {*CHECKS_SINGLE, *CHECKS_VECTOR}
    for check in proved:
        assert check.__doc__
        assert check.__doc__.endswith(".")
        assert "\n\n" not in check.__doc__


# -- Gymnasium's routes ------------------------------------------------------------------------


def test_every_registered_id_works() -> None:
    ours = [name for name in gymnasium.registry if name.startswith("letta_gym/")]
    assert ID in ours
    for name in ours:
        assert f"``{name}``" in (letta_gym.__doc__ or "")
        if name == "letta_gym/SkillSelection-v0":  # it works with a Letta, see test_live_env.py
            with pytest.raises(ConfigError, match="needs the section 'rest'"):
                gymnasium.make(name)
            continue
        env = gymnasium.make(name)
        shown, _ = env.reset(seed=0)
        assert env.observation_space.contains(shown)
        assert float(env.step(env.action_space.sample())[1]) <= 1


def test_an_id_with_its_module_imports_the_package_by_itself() -> None:
    code = (
        "import gymnasium\n"
        f"env = gymnasium.make('letta_gym:{ID}')\n"
        "print(sorted(env.reset(seed=0)[0]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['action_mask', 'context', 'features', 'skills', 'task']"


@pytest.mark.parametrize("mode", [None, "vector_entry_point"])
def test_make_vec_gives_our_batched_environment(mode: str | None) -> None:
    env = gymnasium.make_vec(ID, num_envs=2, vectorization_mode=mode, **COMPACT)
    assert isinstance(env, SkillSelectionVectorEnv)
    assert env.num_envs == 2
    assert env.config.obs == "compact"


def test_our_batch_equals_the_synchronous_vector_environment_of_gymnasium() -> None:
    keywords: dict[str, Any] = {"obs": "compact", "horizon": 5}
    ours = SkillSelectionVectorEnv(num_envs=3, **keywords)
    theirs: Any = gymnasium.make_vec(
        ID,
        num_envs=3,
        vectorization_mode="sync",
        vector_kwargs={"autoreset_mode": AutoresetMode.SAME_STEP},
        **keywords,
    )
    expect_equal(theirs.reset(seed=1)[0], ours.reset(seed=1)[0], "reset")
    rng = np.random.default_rng(0)
    for _ in range(12):
        action = (rng.random((3, ours.config.candidates)) < 0.2).astype(np.int8)
        expected, came = theirs.step(action), ours.step(action)
        expect_equal(expected[0], came[0], "observation")
        np.testing.assert_array_equal(expected[1], came[1])
        np.testing.assert_array_equal(expected[2], came[2])
        np.testing.assert_array_equal(expected[3], came[3])
        final = came[4]["final_info"] if came[3].any() else came[4]
        told = expected[4]["final_info"] if came[3].any() else expected[4]
        for part, name in (
            ("outcome", "success"),
            ("outcome", "tokens"),
            ("reward_parts", "tokens"),
        ):
            np.testing.assert_array_equal(told[part][name], final[part][name])


def test_a_large_batch_equals_single_environments_also_for_inexact_grades() -> None:
    keywords: dict[str, Any] = {
        "obs": "compact",
        "horizon": 3,
        "mock": {"checks": 3},
        "history": (400, 401),
        "history_empty": 0,
    }
    count = 45
    shown, _ = SkillSelectionVectorEnv(num_envs=count, **keywords).reset(seed=0)
    env = SkillSelectionEnv(**keywords)
    for row in range(count):
        expected, _ = env.reset(seed=row)
        expect_equal(expected, {k: v[row] for k, v in shown.items()}, f"row {row}")


# -- bad input ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"horizn": 3}, "horizn: unknown key; did you mean 'horizon'"),
        ({"mock": {"chekcs": 3}}, "mock.chekcs: unknown key; did you mean 'checks'"),
        ({"evidence": {"bandwith": 1}}, "evidence.bandwith: unknown key; did you mean 'bandwidth'"),
        ({"obs": "compacted"}, "obs: .*'full' or 'compact'.*got 'compacted'"),
        ({"horizon": 0}, "horizon: .*greater than or equal to 1.*got 0"),
        ({"candidates": 9, "installed": 4}, "candidates must be at most 8 = 2 x installed.*got 9"),
        ({"installed": 500}, "installed must be at most .*split 'train'.*got 500"),
        ({"history": (0, 5)}, r"history must be .*got \(0, 5\)"),
        ({"history": (9, 5)}, r"history must be .*got \(9, 5\)"),
        ({"mock": {"harm": (0.5, 0.2)}}, "mock.harm: .*low <= high"),
        ({"mock": {"strong_share": 1, "mild_share": 0.25}}, "must sum to at most 1; got 1"),
    ],
)
def test_a_wrong_keyword_is_a_config_error_that_says_what_to_do(
    keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        gymnasium.make(ID, **keywords)
    with pytest.raises(ConfigError, match=message):
        gymnasium.make_vec(ID, num_envs=2, **keywords)


def test_an_unknown_split_is_an_error_that_names_the_splits() -> None:
    with pytest.raises(SuiteError, match=r"no split 'tset'; it has: .*train"):
        gymnasium.make(ID, split="tset")


def test_an_action_of_the_wrong_shape_is_refused() -> None:
    env = make(obs="compact", candidates=12)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"shape \(12,\); got shape \(3,\)"):
        env.step(np.zeros(3, np.int8))
    batch = SkillSelectionVectorEnv(num_envs=2, obs="compact", candidates=12)
    batch.reset(seed=0)
    with pytest.raises(ConfigError, match=r"shape \(2, 12\); got shape \(12,\)"):
        batch.step(np.zeros(12, np.int8))


def test_an_action_that_is_no_set_of_bits_is_refused() -> None:
    env = make(**COMPACT)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=r"0 or 1; got \[0\.5\]"):
        env.step(np.full(env.config.candidates, 0.5))


def test_a_step_needs_a_session_under_way() -> None:
    env = SkillSelectionEnv(obs="compact", horizon=1)
    with pytest.raises(ConfigError, match=r"before reset\(\)"):
        env.step(ones(env))
    env.reset(seed=0)
    env.step(ones(env))
    with pytest.raises(ConfigError, match="after the end"):
        env.step(ones(env))
    env.reset()
    env.step(ones(env))
    batch = SkillSelectionVectorEnv(num_envs=2, **COMPACT)
    with pytest.raises(ConfigError, match=r"before reset\(\)"):
        batch.step(ones(batch))


@pytest.mark.parametrize(
    ("mask", "came"),
    [
        (np.array([1, 0, 1]), "int64"),
        (np.array([True, False]), r"shape \(2,\)"),
        (np.ones((3, 1), bool), r"shape \(3, 1\)"),
    ],
)
def test_a_reset_mask_is_bool_with_one_entry_a_session(mask: NDArray[Any], came: str) -> None:
    env = SkillSelectionVectorEnv(num_envs=3, **COMPACT)
    env.reset(seed=0)
    with pytest.raises(ConfigError, match=rf"bool of shape \(3,\); got .*{came}"):
        env.reset(options={"reset_mask": mask})


def test_the_first_reset_starts_every_session() -> None:
    env = SkillSelectionVectorEnv(num_envs=2, **COMPACT)
    with pytest.raises(ConfigError, match="starts every session"):
        env.reset(seed=0, options={"reset_mask": np.array([True, False])})
    env.reset(seed=0, options={"reset_mask": np.array([True, True])})


def test_a_batch_wants_as_many_seeds_as_sessions() -> None:
    env = SkillSelectionVectorEnv(num_envs=3, **COMPACT)
    with pytest.raises(ConfigError, match="3 environments need as many seeds; got 2"):
        env.reset(seed=[1, 2])


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"num_envs": 0}, "at least 1; got 0"),
        ({"render_mode": "ansi"}, "watch one session"),
        ({"max_episode_steps": 5}, "horizon=5 instead"),
    ],
)
def test_a_batch_refuses_what_it_cannot_do(keywords: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SkillSelectionVectorEnv(**keywords)


def test_an_unknown_render_mode_is_refused() -> None:
    with pytest.raises(ConfigError, match="'ansi'; got 'human'"):
        SkillSelectionEnv(render_mode="human")


# -- sessions ----------------------------------------------------------------------------------


def test_the_ansi_transcript_can_be_followed() -> None:
    env = make(render_mode="ansi", horizon=4, token_budget=40_000)
    _, steps = session(env, 3)
    text = str(env.render())
    lines = text.splitlines()
    sessions = env.driver.sessions
    assert lines[0].startswith("session: 4 tasks, 40,000 tokens, ")
    ids = {env.driver.pool.ids[i] for i in sessions.skills[0][sessions.present[0]]}
    assert ids == set(
        "".join(lines[1 : lines.index(_task_line(lines, 1))])
        .replace("installed: ", "")
        .replace(" ", "")
        .split(",")
    )
    for number, step in enumerate(steps, 1):
        task = env.driver.pool.suite.tasks[int(sessions.stream[0, number - 1])].text.split()
        line = _task_line(lines, number)
        assert line.split()[1:4] == task[:3]
        told = lines[lines.index(line) + 1]
        assert f"reward {step.reward:+.3f}" in told
        assert f"success {step.info['outcome']['success']:.2f}" in told
        assert all(skill in told for skill in step.info["skills"])
        assert told.count("(not loaded)") == len(step.info["skills"]) - len(
            step.info["outcome"]["loaded"]
        )
        assert ("no skill" in told) == (not step.info["skills"])
    assert lines[-1] == f"end: all tasks done, return {sum(s.reward for s in steps):.3f}"
    assert max(map(len, lines)) <= 160
    assert make().render() is None


def _task_line(lines: list[str], number: int) -> str:
    return next(line for line in lines if line.startswith(f"{number:3d}  "))


def test_rewards_are_their_parts_and_the_price_of_what_was_loaded() -> None:
    env = make(obs="compact", token_price=0.5)
    tokens = dict(zip(env.driver.pool.ids, env.driver.pool.tokens.tolist(), strict=True))
    for step in session(env, 5)[1]:
        outcome, parts = step.info["outcome"], step.info["reward_parts"]
        assert set(outcome["loaded"]) <= set(step.info["skills"])
        assert outcome["tokens"] == sum(tokens[name] for name in outcome["loaded"])
        assert parts["success"] == outcome["success"]
        assert parts["tokens"] == pytest.approx(-0.5 * outcome["tokens"] / 1000)
        assert step.reward == pytest.approx(parts["success"] + parts["tokens"])


def test_what_the_budget_no_longer_covers_is_dropped() -> None:
    env = make(obs="compact", token_budget=4000, mock={"load_probability": 1.0, "load_decay": 1.0})
    tokens = dict(zip(env.driver.pool.ids, env.driver.pool.tokens.tolist(), strict=True))
    dropped = 0
    for seed in range(5):
        left = 4000.0
        env.reset(seed=seed)
        ended = False
        while not ended:
            assert env.driver.situation is not None
            covered = env.driver.situation.mask[0].sum()
            _, _, terminated, truncated, info = env.step(ones(env))
            cost = sum(tokens[name] for name in info["skills"])
            assert cost <= left
            left -= cost
            dropped += min(covered, env.config.max_skills) > len(info["skills"])
            ended = terminated or truncated
    assert dropped


def test_a_stream_of_every_task_leaves_no_history_and_no_leak_from_other_splits() -> None:
    env = make(obs="compact", stream_share=1.0)
    for seed in range(5):
        env.reset(seed=seed)
        assert env.driver.sessions.outcomes[0] == 0
        assert not env.driver.sessions.ledger.wins.any()


def test_a_session_without_a_task_of_its_skills_gets_others_of_its_split() -> None:
    env = make(obs="compact", stream_share=1e-6, horizon=8)
    env.reset(seed=0)
    pool = env.driver.pool
    assert set(pool.split[env.driver.sessions.stream[0]]) == {"train"}


@pytest.mark.parametrize("split", ["train", "validation", "test"])
def test_tasks_come_from_their_split_and_past_ones_from_earlier_splits(split: str) -> None:
    env = SkillSelectionVectorEnv(num_envs=8, obs="compact", split=split, history_empty=0)
    env.reset(seed=0)
    sessions, pool = env.driver.sessions, env.driver.pool
    assert set(pool.split[sessions.stream].ravel()) == {split}
    asked, past = sessions._parts(np.random.default_rng(0).random((1, len(sessions.asked))))
    assert not (asked & past).any()
    assert "test" not in pool.split[sessions.asked[past[0]]]


def test_skills_that_are_new_have_no_history() -> None:
    env = SkillSelectionVectorEnv(num_envs=8, obs="compact", new_share=0.5, history_empty=0)
    env.reset(seed=0)
    sessions = env.driver.sessions
    known = sessions.ledger.fit_successes + sessions.ledger.fit_failures
    assert (known[:, :-1][sessions.new] == 0).all()
    assert (known[:, :-1][~sessions.present] == 0).all()
    assert known[:, :-1].any()


def test_pairs_of_look_alikes_hold_exactly_one_broken_skill() -> None:
    env = SkillSelectionVectorEnv(num_envs=16, obs="compact", twin_share=0.5)
    env.reset(seed=0)
    sessions, pool = env.driver.sessions, env.driver.pool
    pairs = 0
    for row in range(16):
        here = sessions.skills[row][sessions.present[row]]
        assert len(set(here)) == len(here)
        for skill in here:
            twin = [j for j in here if j != skill and pool.origin[j] == pool.origin[skill]]
            broken = sessions.world.broken[row, skill]
            if not twin:
                assert not broken
                continue
            pairs += 1
            assert broken != sessions.world.broken[row, twin[0]]
            assert twin[0] in pool.alike[:, skill]
    assert pairs


def test_the_compact_observation_lacks_only_the_vectors() -> None:
    full, _ = make(obs="full").reset(seed=4)
    compact, _ = make(obs="compact").reset(seed=4)
    assert set(full) - set(compact) == {"task", "skills"}
    expect_equal(compact, {key: full[key] for key in compact}, "compact")


def test_the_vectors_shown_are_those_of_the_task_and_the_slots() -> None:
    env = make()
    shown: Mapping[str, Any] = env.reset(seed=4)[0]
    sessions, pool = env.driver.sessions, env.driver.pool
    np.testing.assert_array_equal(shown["task"], pool.task_vectors[sessions.stream[0, 0]])
    scores = shown["skills"] @ shown["task"]
    np.testing.assert_allclose(4 * scores, shown["features"][:, FEATURE["dense"]], atol=1e-6)
