"""A run: the same bits for the same seed, whenever it is stopped, and everything in its folder."""

from __future__ import annotations

import json
import signal
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import train
from agents.config import RunConfig, read
from agents.interrupt import HeldInterrupt
from agents.ppo import PPO
from agents.training import CHECKPOINT, CONFIG, POLICY, SUMMARY, Run, SelectionMeter, evaluate_run
from letta_gym.config import dump
from letta_gym.errors import CheckpointError, ConfigError, SuiteError
from letta_gym.library.suite import bundled_suite
from letta_gym.selection import network, subset
from letta_gym.selection.observation import context, features
from letta_gym.selection.policy import Policy
from letta_gym.selection.runtime import SkillSelector
from letta_gym.selection.weighing import Case

UPDATES = 5
ROLLOUT = 4 * 5


def config(**train: Any) -> RunConfig:
    """A run of 5 updates in which sessions end within rollouts."""
    ppo = {"num_envs": 4, "num_steps": 5, "num_minibatches": 2, "update_epochs": 2}
    return RunConfig.model_validate(
        {
            "seed": 3,
            "env": {"installed": 6, "candidates": 6, "horizon": 7, "history": [2, 9]},
            "policy": {"hidden": 4, "sharpness": 5.0, "threshold": 0.0},
            "train": {
                "steps": ROLLOUT * UPDATES,
                "checkpoint_every": 1000,
                "histogram_every": 2,
                "evaluate": False,
                "ppo": ppo | {"learning_rate": 0.01, "ema_decay": 0.9},
            }
            | train,
            "evaluate": {"seeds": 2, "sessions": 2, "tune_sessions": 2},
        }
    )


def finished(run: Run) -> dict[str, Any]:
    return run.finish(run.train(), None)


def bits(run: Run) -> bytes:
    """All that the next update would depend on."""
    ppo = run.ppo
    assert ppo.ema is not None
    arrays = [ppo.model.parameters.flat, ppo.ema.parameters.flat, ppo.optimizer.m, ppo.optimizer.v]
    arrays += [*run.env.driver.sessions.arrays().values(), *ppo.obs.values()]
    generators = json.dumps(ppo.rng.bit_generator.state, default=str).encode()
    return b"".join(array.tobytes() for array in arrays) + generators


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[bytes, str]:
    """State and policy digest of a run that nothing stopped."""
    run = Run(config(), tmp_path_factory.mktemp("uninterrupted"))
    digest: str = finished(run)["digest"]
    return bits(run), digest


def press_ctrl_c(run: Run, step: int) -> None:
    """Send the signal in the middle of the run's environment step ``step``, counted from 1."""
    on_step, calls = run.ppo.on_step, count(1)
    assert on_step is not None

    def pressed(*args: Any) -> None:
        if next(calls) == step:
            signal.raise_signal(signal.SIGINT)
        on_step(*args)

    run.ppo.on_step = pressed


# --- determinism and resuming ---------------------------------------------------------------------


def test_the_same_seed_and_configuration_give_the_same_bits(
    tmp_path: Path, uninterrupted: tuple[bytes, str]
) -> None:
    run = Run(config(), tmp_path)
    start = run.model.parameters.flat.copy()
    digest = finished(run)["digest"]
    assert (bits(run), digest) == uninterrupted
    assert (run.model.parameters.flat != start).any()
    assert Policy.load(tmp_path / POLICY).digest == digest


def test_another_seed_gives_other_weights(tmp_path: Path, uninterrupted: tuple[bytes, str]) -> None:
    run = Run(config().model_copy(update={"seed": 4}), tmp_path)
    assert finished(run)["digest"] != uninterrupted[1]


@pytest.mark.parametrize("update", range(1, UPDATES + 1))
def test_a_run_stopped_by_ctrl_c_at_any_update_resumes_to_the_same_bits(
    tmp_path: Path, uninterrupted: tuple[bytes, str], update: int
) -> None:
    run = Run(config(), tmp_path)
    press_ctrl_c(run, 5 * update - 2)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    assert run.ppo.num_updates == update
    resumed = Run(config(), tmp_path, resume=True)
    assert bits(resumed) == bits(run)
    assert (resumed.ppo.num_updates, resumed.ppo.global_step) == (update, ROLLOUT * update)
    digest = finished(resumed)["digest"]
    assert (bits(resumed), digest) == uninterrupted


@pytest.mark.parametrize("update", range(2, UPDATES + 1))
def test_a_run_that_died_resumes_from_its_last_checkpoint_to_the_same_bits(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    uninterrupted: tuple[bytes, str],
    update: int,
) -> None:
    learn, calls = PPO.update, 0

    def dying(self: PPO) -> dict[str, float]:
        nonlocal calls
        calls += 1
        if calls == update:
            raise MemoryError
        return learn(self)

    run = Run(config(checkpoint_every=2), tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(PPO, "update", dying)
        with pytest.raises(MemoryError):
            run.train()
    if update < 3:
        with pytest.raises(CheckpointError, match="no checkpoint"):
            Run(config(), tmp_path, resume=True)
        resumed = Run(config(), tmp_path)
    else:
        resumed = Run(config(), tmp_path, resume=True)
    assert resumed.ppo.num_updates == (update - 1) // 2 * 2
    digest = finished(resumed)["digest"]
    assert (bits(resumed), digest) == uninterrupted


def test_a_finished_run_resumes_to_its_end_at_once(
    tmp_path: Path, uninterrupted: tuple[bytes, str]
) -> None:
    finished(Run(config(), tmp_path))
    again = Run(config(), tmp_path, resume=True)
    digest = finished(again)["digest"]
    assert (bits(again), digest) == uninterrupted
    assert [e.step for e in events(tmp_path).Scalars("losses/entropy")] == all_steps()


def test_the_first_ctrl_c_is_noted_and_the_second_one_interrupts() -> None:
    before = signal.getsignal(signal.SIGINT)
    with HeldInterrupt() as interrupt:
        assert not interrupt.came
        signal.raise_signal(signal.SIGINT)
        assert interrupt.came
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is before


def test_a_process_told_to_ignore_ctrl_c_goes_on_ignoring_it() -> None:
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        with HeldInterrupt() as interrupt:
            signal.raise_signal(signal.SIGINT)
            assert not interrupt.came
        assert signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


# --- what is refused ------------------------------------------------------------------------------


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("left", [CHECKPOINT, POLICY, SUMMARY])
def test_a_new_run_never_overwrites_another_one(tmp_path: Path, left: str) -> None:
    finished(Run(config(), tmp_path))
    for name in {CHECKPOINT, POLICY, SUMMARY} - {left}:
        (tmp_path / name).unlink()
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="holds a run already; continue it with --resume"):
        Run(config(), tmp_path)
    assert contents(tmp_path) == before


def test_there_is_nothing_to_resume_without_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no checkpoint .* without --resume"):
        Run(config(), tmp_path / "run", resume=True)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_continued_with_another_configuration(tmp_path: Path) -> None:
    finished(Run(config(), tmp_path))
    before = contents(tmp_path)
    other = config().model_dump()
    other["mock"]["checks"], other["train"]["ppo"]["gamma"] = 9, 0.5
    with pytest.raises(CheckpointError) as error:
        Run(RunConfig.model_validate(other), tmp_path, resume=True)
    assert "mock.checks is 9, was " in str(error.value)
    assert "train.ppo.gamma is 0.5, was " in str(error.value)
    assert str(error.value).count(", was ") == 2
    assert contents(tmp_path) == before


def test_what_does_not_change_the_weights_may_change_on_resuming(tmp_path: Path) -> None:
    finished(Run(config(), tmp_path))
    other = config(checkpoint_every=1, histogram_every=1).model_dump()
    other["evaluate"]["seeds"] = 5
    changed = RunConfig.model_validate(other)
    Run(changed, tmp_path, resume=True)
    assert read(tmp_path / CONFIG, []) == changed


def test_a_damaged_checkpoint_is_told(tmp_path: Path) -> None:
    finished(Run(config(), tmp_path))
    path = tmp_path / CHECKPOINT
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match="damaged"):
        Run(config(), tmp_path, resume=True)


def test_a_split_that_cannot_be_evaluated_is_told_before_training(tmp_path: Path) -> None:
    wanted = config(evaluate=True).model_dump()
    for split, error in (("train", ConfigError), ("tset", SuiteError)):
        wanted["evaluate"]["split"] = split
        with pytest.raises(error, match=split):
            Run(RunConfig.model_validate(wanted), tmp_path / "run")
    assert not (tmp_path / "run").exists()


# --- the run folder -------------------------------------------------------------------------------


def events(folder: Path) -> Any:
    accumulator = EventAccumulator(
        str(folder), size_guidance={"scalars": 0, "histograms": 0, "images": 0, "tensors": 0}
    )
    accumulator.Reload()
    return accumulator


def all_steps() -> list[int]:
    return [ROLLOUT * (i + 1) for i in range(UPDATES)]


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Run, dict[str, Any]]:
    """A run through ``train.py``'s steps, with its evaluation."""
    folder = tmp_path_factory.mktemp("evaluated")
    run = Run(config(evaluate=True), folder)
    seconds = run.train()
    return folder, run, run.finish(seconds, evaluate_run(run))


def test_the_folder_holds_the_whole_run(evaluated: tuple[Path, Run, dict[str, Any]]) -> None:
    folder, run, summary = evaluated
    names = {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}
    others = {name for name in names if not name.startswith("events.out.tfevents.")}
    assert others == {POLICY, CHECKPOINT, CONFIG, SUMMARY}
    assert len(names) > len(others)
    assert read(folder / CONFIG, []) == run.config
    text = (folder / SUMMARY).read_text(encoding="utf-8")

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    assert json.loads(text, parse_constant=refuse) == summary
    assert summary["steps"] == run.config.train.steps
    assert summary["updates"] == UPDATES
    assert summary["digest"] == Policy.load(folder / POLICY).digest
    assert {"learned", "oracle", "none"} <= set(summary["evaluation"]["agents"])


def test_tensorboard_has_every_curve_at_every_update(
    evaluated: tuple[Path, Run, dict[str, Any]],
) -> None:
    log = events(evaluated[0])
    expected = {
        "charts/learning_rate",
        "charts/SPS",
        "losses/policy_loss",
        "losses/value_loss",
        "losses/entropy",
        "losses/approx_kl",
        "losses/clipfrac",
        "losses/explained_variance",
        "selection/reward",
        "selection/success",
        "selection/token_cost",
        "selection/tokens",
        "selection/skills_per_task",
        "selection/empty_choices",
        "selection/new_skills_tried",
    }
    tags = set(log.Tags()["scalars"])
    assert expected | {"charts/episodic_return", "charts/episodic_length"} <= tags
    for tag in expected:
        assert [event.step for event in log.Scalars(tag)] == all_steps(), tag
    assert {e.value for e in log.Scalars("charts/episodic_length")} == {7.0}


def test_the_curves_of_the_selection_are_means_over_tasks() -> None:
    meter = SelectionMeter()
    no = np.zeros(2, bool)
    for picks, success in (([[0, 3], [-1, -1]], [1.0, 0.5]), ([[2, -1], [1, -1]], [0.0, 0.25])):
        infos = {
            "picks": np.array(picks),
            "success": np.array(success),
            "token_cost": np.array([0.1, 0.0]),
            "tokens": np.array([800.0, 0.0]),
            "new_skills": np.array([1, 0]),
        }
        meter.add(infos, infos["success"] - infos["token_cost"], no, no)
    assert meter.flush() == pytest.approx(
        {
            "selection/reward": 1.55 / 4,
            "selection/success": 1.75 / 4,
            "selection/token_cost": 0.2 / 4,
            "selection/tokens": 400.0,
            "selection/skills_per_task": 1.0,
            "selection/empty_choices": 0.25,
            "selection/new_skills_tried": 0.5,
        }
    )


def test_tensorboard_has_histograms_hyper_parameters_texts_and_the_figure(
    evaluated: tuple[Path, Run, dict[str, Any]],
) -> None:
    folder, run, summary = evaluated
    log = events(folder)
    tags = log.Tags()
    for kind in ("weights", "gradients"):
        for name in run.model.parameters:
            histograms = log.Histograms(f"{kind}/{name}")
            assert [h.step for h in histograms] == [ROLLOUT * i for i in (1, 3, 5)]
    assert log.Histograms("gradients/score_linear")[-1].histogram_value.sum_squares > 0
    assert [image.step for image in log.Images("evaluation/return")] == [ROLLOUT * UPDATES]
    assert {"config", "evaluation", "_hparams_/session_start_info"} <= set(tags["tensors"])
    text = log.Tensors("config")[0].tensor_proto.string_val[0].decode()
    assert dump(run.config) in text
    final = log.Scalars("eval/return")[-1].value
    learned = summary["evaluation"]["agents"]["learned"]
    assert final == pytest.approx(learned["return"]["mean"], rel=1e-6)


def test_histograms_may_be_written_at_every_update(tmp_path: Path) -> None:
    Run(config(histogram_every=1), tmp_path).train()
    steps = [h.step for h in events(tmp_path).Histograms("weights/score_linear")]
    assert steps == all_steps()


def test_a_resumed_run_shows_the_curves_of_one_that_was_not_stopped(tmp_path: Path) -> None:
    run = Run(config(), tmp_path / "stopped")
    press_ctrl_c(run, 8)
    with pytest.raises(KeyboardInterrupt):
        run.train()
    Run(config(), tmp_path / "stopped", resume=True).train()
    Run(config(), tmp_path / "whole").train()
    stopped, whole = events(tmp_path / "stopped"), events(tmp_path / "whole")
    assert [e.step for e in stopped.Scalars("losses/entropy")] == all_steps()
    for tag in set(whole.Tags()["scalars"]) - {"charts/SPS"}:
        curves = [[(e.step, e.value) for e in log.Scalars(tag)] for log in (stopped, whole)]
        assert curves[0] == curves[1], tag


def test_the_policy_file_says_how_it_was_made(
    evaluated: tuple[Path, Run, dict[str, Any]],
) -> None:
    folder, run, _ = evaluated
    policy = Policy.load(folder / POLICY)
    assert policy.evidence == run.config.evidence
    assert policy.token_price == run.config.env.token_price / 1000
    assert (policy.max_skills, policy.slots) == (run.config.env.max_skills, 6)
    assert run.ppo.ema is not None
    for name, weights in run.ppo.ema.parameters.items():
        np.testing.assert_array_equal(policy.weights[name], weights)
    assert (policy.weights["score_linear"] != run.model.parameters["score_linear"]).any()


def test_the_exported_policy_chooses_like_the_trained_network_with_its_opening(
    evaluated: tuple[Path, Run, dict[str, Any]],
) -> None:
    folder, run, _ = evaluated
    suite = bundled_suite()
    assert suite.vectors is not None
    installed = suite.library.ids[:6]
    selector = SkillSelector.load(folder / POLICY, Path(train.__file__).parent / "skills")
    weights, opening = run.ppo.parameters, selector.policy.opening
    assert opening is not None
    choices = set()
    for task in range(0, len(suite.tasks), 10):
        text, vector = suite.tasks[task].text, suite.vectors.tasks.matrix[task]
        session = selector.session(1e5, 7)
        weighed = selector.weigh([Case(text, vector, session, installed)])
        rows, situation = weighed.rows[0], weighed.situation
        f = features(situation, run.config.evidence, run.config.env.token_price / 1000)
        c = context(situation, f)
        logits, _, _ = network.forward(weights, f, c, situation.mask)
        opening.settle(logits, c, selector.shelf.likeness)
        picks = [i for i in subset.greedy(logits, 3)[0].tolist() if i >= 0]
        chosen = session.select(text, embedding=vector, available=installed)
        assert {s.id for s in chosen.skills} == {selector.shelf.ids[rows[i]] for i in picks}
        choices.add(tuple(picks))
    assert len(choices) > 1


# --- the command ----------------------------------------------------------------------------------


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    """Arguments of ``train.py`` for the small run."""
    path = tmp_path / "small.yaml"
    path.write_text(dump(config()), encoding="utf-8")
    return ["--config", str(path), "--run-dir", str(tmp_path / "run")]


def test_the_command_trains_stops_and_resumes(
    command: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    uninterrupted: tuple[bytes, str],
) -> None:
    update = PPO.update

    def pressed(self: PPO) -> dict[str, float]:
        if self.num_updates == 1:
            signal.raise_signal(signal.SIGINT)
        return update(self)

    with monkeypatch.context() as patch:
        patch.setattr(PPO, "update", pressed)
        assert train.main(command) == 130
    assert "continue with the same command and --resume" in capsys.readouterr().err
    assert not (tmp_path / "run" / POLICY).exists()

    assert train.main(command) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert train.main([*command, "--resume"]) == 0
    out = capsys.readouterr().out
    assert str(tmp_path / "run" / POLICY) in out
    assert "make tensorboard" in out
    assert 'make try TASK="' in out
    assert Policy.load(tmp_path / "run" / POLICY).digest == uninterrupted[1]


def test_the_command_compares_the_policy_with_the_baselines(
    command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert train.main([*command, "--set", "train.evaluate=true", "--set", "train.steps=20"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for agent in ("none", "random", "cosine", "hybrid", "evidence", "learned", "oracle"):
        assert any(line.startswith(f"{agent} ") for line in lines), agent


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--set", "train.stepps=3"], "did you mean 'steps'"),
        (["--set", "suite.path=/nowhere"], "/nowhere does not exist"),
        (["--resume"], "there is no checkpoint"),
        (["--run-dir", "{file}/run"], "small.yaml"),
    ],
)
def test_the_command_says_what_is_wrong_in_one_line(
    command: list[str], capsys: pytest.CaptureFixture[str], extra: list[str], message: str
) -> None:
    assert train.main([*command, *(text.format(file=command[1]) for text in extra)]) == 2
    error = capsys.readouterr().err
    assert error.startswith("train.py: ")
    assert message in error
