"""The gate promotes what the log proves better and refuses the rest; switches can be undone."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from letta_gym import cli
from letta_gym.errors import ConfigError, PolicyFileError, StoreError
from letta_gym.feedback.offpolicy import LoggedRewards
from letta_gym.feedback.outcome import Outcome
from letta_gym.feedback.promotion import GateConfig, rule
from letta_gym.selection.exploration import ExplorationConfig, Explorer
from letta_gym.selection.judging import Seen, check_comparable, log_probs
from letta_gym.selection.policy import Policy
from letta_gym.selection.runtime import SkillSelector
from letta_gym.store.promotion import Promotion
from letta_gym.store.store import Store
from tests.stores import Clock, new_database
from tests.test_offpolicy import World, softmax, world
from tests.test_runtime import EMBEDDER, library, policy

GATE = GateConfig(margin=0.0, min_effective=100)


# --- the gate -------------------------------------------------------------------------------------


def better(by: float) -> World:
    made = world()
    other = made.target if by > 0 else softmax(-6 * made.mean)
    return replace(made, target=(1 - abs(by)) * made.logging + abs(by) * other)


def test_a_better_policy_is_promoted_with_its_figures() -> None:
    ruling = rule(better(1.0).log(8_000, 0), GATE)

    assert ruling.promoted
    assert not ruling.worse
    assert ruling.gain.low > 0
    assert ruling.candidate - ruling.incumbent == pytest.approx(ruling.gain.value)
    assert "effective sample size" in ruling.reason


def test_a_worse_policy_is_refused_and_called_worse() -> None:
    ruling = rule(better(-1.0).log(8_000, 0), GATE)

    assert not ruling.promoted
    assert ruling.worse
    assert ruling.reason.startswith("refused: gain -")


def test_worse_policies_hardly_ever_pass() -> None:
    slightly = better(-0.1)
    assert slightly.value < replace(slightly, target=slightly.logging).value
    assert sum(rule(slightly.log(500, seed), GATE).promoted for seed in range(200)) <= 5


def test_a_small_log_and_a_small_gain_are_refused_with_the_reason() -> None:
    few = rule(better(1.0).log(150, 0), GATE)
    tight = rule(better(1.0).log(8_000, 0), GateConfig(margin=0.5))

    assert "100 are needed" in few.reason
    assert "its lower end must exceed 0.5" in tight.reason
    assert not few.promoted
    assert not tight.promoted


def test_clipping_only_takes_away_from_the_candidate() -> None:
    log = better(1.0).log(5_000, 0)
    assert rule(log, GateConfig(clip=1.2)).candidate < rule(log, GateConfig(clip=50)).candidate


def test_rewards_out_of_range_are_told() -> None:
    log = LoggedRewards(np.array([-0.2, 0.5]), -np.ones(2), -np.ones(2))
    with pytest.raises(ConfigError, match=r"rewards in \[0.0, 1.0\].*from -0.2 to 0.5"):
        rule(log)
    moved = rule(log, GateConfig(reward_low=-1))
    assert moved.incumbent == pytest.approx(0.15)
    assert moved.gain.value == pytest.approx(0)


# --- policies in a store --------------------------------------------------------------------------


@pytest.fixture
def url(tmp_path: Path) -> Iterator[str]:
    with new_database(tmp_path) as made:
        yield made


@pytest.fixture
def store(url: str) -> Iterator[Store]:
    with Store(url, Clock()) as opened:
        yield opened


def eager(sharpness: float) -> Policy:
    """A policy that takes the closed form as seriously as ``sharpness`` says."""
    made = policy()
    weights = {name: w * np.float32(sharpness) for name, w in made.weights.items()}
    return replace(made, weights=weights)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """An incumbent that chooses at random, and a candidate that chooses well."""
    paths = tmp_path / "loose.safetensors", tmp_path / "sharp.safetensors"
    for path, sharpness in zip(paths, (0.05, 1.0), strict=True):
        eager(sharpness).to_file().save(path)
    return paths


def explore(store: Store, file: Path, n: int, right: str) -> SkillSelector:
    """Log n explored decisions; those that load the skill ``right`` go well."""
    log = store.log(store.agents.ensure("ada"))
    explorer = Explorer(ExplorationConfig(daily_budget=10**9))
    rng = np.random.default_rng(0)
    runtime = SkillSelector.load(
        file, library(), embedder=EMBEDDER, rng=rng, log=log, explorer=explorer
    )
    for _ in range(n):
        choice = runtime.select("chart the figures", k=1, explore=True)
        good = right in [skill.id for skill in choice.skills]
        log.recorded(choice.decision_id, Outcome(0.9 if good else 0.1))
    return runtime


def test_the_log_promotes_the_better_policy_and_rollback_undoes_it(
    store: Store, files: tuple[Path, Path]
) -> None:
    promotion = Promotion(store, GateConfig(min_effective=20), actor="ada")
    loose, sharp = (promotion.add(file).digest for file in files)
    assert promotion.promote(loose) is None
    with pytest.raises(StoreError, match="holds 0 explored decisions"):
        promotion.promote(sharp)
    explore(store, files[0], 400, right="skill-0")
    promotion.shadow(sharp)
    ruling = promotion.promote(sharp)

    assert ruling is not None
    assert ruling.promoted, ruling.reason
    statuses = {row.digest: row.status for row in store.policies.all()}
    assert statuses == {sharp: "active", loose: "retired"}
    said = store.policies.audit()[-1]
    assert (said.actor, said.detail["from"], said.detail["retired"]) == ("ada", "shadow", loose)
    assert said.detail["gain"]["low"] > 0
    assert promotion.rollback().digest == loose
    assert [row.digest for row in store.policies.with_status("active")] == [loose]
    assert store.policies.audit()[-1].detail["reason"] == "rollback"


def test_a_refusal_changes_nothing_and_is_audited(
    store: Store, files: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    promotion = Promotion(store, GateConfig(min_effective=20), actor="ada")
    loose, sharp = (promotion.add(file).digest for file in files)
    promotion.promote(loose)
    explore(store, files[0], 400, right="skill-3")
    ruling = promotion.promote(sharp)

    assert ruling is not None
    assert not ruling.promoted
    assert {row.digest: row.status for row in store.policies.all()} == {
        loose: "active",
        sharp: "candidate",
    }
    assert store.policies.audit()[-1].action == "refuse"
    assert ruling.gain.value < 0
    promotion.canary(sharp, 0.1)  # not shown to be worse yet
    proof = replace(ruling, worse=True)
    monkeypatch.setattr(promotion, "compare", lambda digest: proof)
    with pytest.raises(StoreError, match="no canary: the log shows that the policy is worse"):
        promotion.canary(sharp, 0.1)


def test_switches_that_cannot_be_are_told(store: Store, files: tuple[Path, Path]) -> None:
    promotion = Promotion(store, actor="ada")
    loose, sharp = (promotion.add(file).digest for file in files)
    with pytest.raises(StoreError, match="no policy is active"):
        promotion.compare(sharp)
    with pytest.raises(StoreError, match="nothing to go back to"):
        promotion.rollback()
    promotion.promote(loose)
    for act in (promotion.promote, promotion.shadow):
        with pytest.raises(StoreError, match="is the active one already"):
            act(loose)
    with pytest.raises(StoreError, match="nothing to go back to"):
        promotion.rollback()
    with pytest.raises(StoreError, match="knows 0 policies 'unknown!'"):
        promotion.promote("unknown!")
    explore(store, files[0], 3, right="skill-0")
    files[1].write_bytes(files[0].read_bytes())
    with pytest.raises(StoreError, match=r"holds the policy .* by now"):
        promotion.compare(sharp)


def test_a_policy_that_observes_otherwise_is_not_compared() -> None:
    ours = policy()
    check_comparable(ours, ours)
    with pytest.raises(PolicyFileError, match="observe by other constants"):
        check_comparable(replace(ours, token_price=1.0), ours)
    seen = Seen(np.zeros((4, 2), np.float32), np.zeros(1, np.float32), np.ones(4, bool), (), 1)
    with pytest.raises(PolicyFileError, match="of another version"):
        log_probs(ours, [seen])


def test_the_policy_that_logged_finds_its_own_probabilities(
    store: Store, files: tuple[Path, Path]
) -> None:
    log = store.log(store.agents.ensure("ada"))
    rng = np.random.default_rng(0)
    runtime = SkillSelector.load(files[0], library(), embedder=EMBEDDER, rng=rng, log=log)
    said = [
        runtime.select("draw a map", k=1 + i % 3, explore=True).log_propensity for i in range(30)
    ]
    seen = [
        Seen(
            one.decision.features.reshape(len(one.decision.candidates), -1),
            one.decision.context,
            np.isfinite(one.decision.scores[:-1]),
            tuple(pick.slot for pick in one.picks),
            one.decision.k,
        )
        for one in store.history().decisions()
    ]
    by_id = dict(
        zip(
            [one.decision.id for one in store.history().decisions()],
            log_probs(runtime.policy, seen).tolist(),
            strict=True,
        )
    )

    assert sorted(by_id.values()) == pytest.approx(sorted(said), abs=1e-5)


def test_the_command_line_moves_policies(
    store: Store, url: str, files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        code = cli.main(["policy", *arguments, "--store", url])
        return code, capsys.readouterr().out

    assert run("promote", str(files[0]))[0] == 0
    explore(store, files[0], 400, right="skill-0")
    sharp = Policy.load(files[1]).digest
    assert "in the shadow" in run("shadow", str(files[1]))[1]
    code, said = run("promote", sharp[:12], "--set", "margin=0.9")
    assert (code, "must exceed 0.9" in said or "are needed" in said) == (1, True)
    assert "takes 20% of the decisions" in run("promote", sharp, "--share", "0.2")[1]
    assert f"{sharp[:12]}  canary 20%" in run("list")[1]
    code, said = run("compare", sharp, "--json")
    assert json.loads(said)["gain"]["value"] > 0
    assert "effective sample size" in run("compare", sharp)[1]
    code, said = run("promote", sharp, "--set", "min_effective=20")
    assert (code, "is active" in said) == (0, True)
    assert "is active again" in run("rollback")[1]
