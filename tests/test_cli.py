"""The command line: each command, with good and with bad input."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from letta_gym import cli
from letta_gym.feedback.evidence import EvidenceConfig
from letta_gym.library.skills import SkillLibrary
from letta_gym.library.suite import Suite, bundled_suite
from letta_gym.selection import network
from letta_gym.selection.candidates import RetrievalConfig
from letta_gym.selection.observation import FEATURES
from letta_gym.selection.policy import Policy
from letta_gym.store.store import Store

ROOT = Path(__file__).parent.parent
SKILLS = ROOT / "skills"
TASK = "Pull the table out of this scanned invoice and total the amounts."


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained policy for the bundled vectors; it chooses eagerly."""
    vectors = bundled_suite().vectors
    assert vectors is not None
    weights = network.initial(np.random.default_rng(0), 8, sharpness=30.0, threshold=0.0)
    made = Policy(
        weights={name: w.astype(np.float32) for name, w in weights.items()},
        evidence=EvidenceConfig(),
        retrieval=RetrievalConfig(),
        token_price=1e-6,
        max_skills=3,
        slots=12,
        embedder=vectors.identity,
        probes=vectors.probes,
    )
    path = tmp_path_factory.mktemp("policy") / "policy.safetensors"
    made.to_file({"seed": 7}, {"return": {"mean": 0.25}}).save(path)
    return path


@pytest.fixture(scope="module")
def embedding(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The stored vector of a bundled task."""
    vectors = bundled_suite().vectors
    assert vectors is not None
    path = tmp_path_factory.mktemp("embedding") / "task.npy"
    np.save(path, vectors.tasks.matrix[0])
    return path


def write_skill(folder: Path, name: str, description: str = "Does things.") -> None:
    path = folder / name / "SKILL.md"
    path.parent.mkdir(parents=True)
    path.write_text(f"---\nname: {name}\ndescription: {description}\n---\n\nSteps.\n")


def run(capsys: pytest.CaptureFixture[str], *arguments: Any) -> tuple[int, str, str]:
    code = cli.main([str(argument) for argument in arguments])
    said = capsys.readouterr()
    return code, said.out, said.err


# --- select ---------------------------------------------------------------------------------------


def test_select_with_the_installed_embedder_chooses_from_the_bundled_skills(policy: Path) -> None:
    command = [sys.executable, "-m", "letta_gym.cli", "select", "--policy", str(policy)]
    done = subprocess.run(
        [*command, "--skills", str(SKILLS), "--json", "--", TASK],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    shown = json.loads(done.stdout)
    assert shown["skills"]
    candidates = {c["skill"] for c in shown["candidates"]}
    assert candidates & {"invoice-processing", "ocr-scanning", "pdf-extraction"}
    assert candidates <= set(SkillLibrary.from_folder(SKILLS).ids)


def test_select_prints_a_table_of_the_choice_its_cost_and_the_reasons(
    capsys: pytest.CaptureFixture[str], policy: Path, embedding: Path
) -> None:
    given = ["--policy", policy, "--skills", SKILLS, "--embedding", embedding]
    code, table, errors = run(capsys, "select", *given, "--", TASK)
    assert (code, errors) == (0, "")
    _, text, _ = run(capsys, "select", *given, "--json", "--", TASK)
    shown = json.loads(text)
    names = [skill["skill"] for skill in shown["skills"]]
    assert names
    assert table.startswith(f"chosen: {', '.join(names)} ({shown['tokens']:,} tokens)\n")
    assert shown["tokens"] == sum(skill["tokens"] for skill in shown["skills"])
    starred = [line.split()[1] for line in table.splitlines() if line.startswith("* ")]
    assert sorted(starred) == sorted(names)
    assert "not tried yet" in table
    chosen = [c for c in shown["candidates"] if c["chosen"]]
    assert {c["skill"]: c["score"] for c in chosen} == pytest.approx(
        {skill["skill"]: skill["score"] for skill in shown["skills"]}
    )
    assert all(c["reasons"] for c in shown["candidates"])
    assert (shown["explored"], shown["log_propensity"]) == (False, 0)


def test_select_keeps_to_k_and_to_the_budget(
    capsys: pytest.CaptureFixture[str], policy: Path, embedding: Path
) -> None:
    given = ["select", "--policy", policy, "--skills", SKILLS, "--embedding", embedding, "--json"]
    _, free, _ = run(capsys, *given, TASK)
    _, one, _ = run(capsys, *given, "--k", 1, TASK)
    first = json.loads(free)["skills"][0]
    assert [skill["skill"] for skill in json.loads(one)["skills"]] == [first["skill"]]
    for budget in (1, first["tokens"], first["tokens"] + 1):
        _, text, _ = run(capsys, *given, "--budget", budget, TASK)
        assert json.loads(text)["tokens"] <= budget
    _, text, _ = run(capsys, *given[:-1], "--budget", 1, TASK)
    assert text.startswith("chosen: no skill (0 tokens)")


def test_select_explores_reproducibly(
    capsys: pytest.CaptureFixture[str], policy: Path, embedding: Path
) -> None:
    given = ["select", "--policy", policy, "--skills", SKILLS, "--embedding", embedding]
    seen: dict[int, str] = {}
    for seed in (1, 2, 3, 4, 1):
        _, text, _ = run(capsys, *given, "--explore", "--seed", seed, "--json", TASK)
        shown = json.loads(text)
        assert shown["explored"]
        assert shown["log_propensity"] < 0
        assert seen.setdefault(seed, text) == text
    assert len(set(seen.values())) > 1
    _, table, _ = run(capsys, *given, "--explore", TASK)
    assert "sampled with the log-probability -" in table


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"--policy": "none.safetensors"}, "cannot read the policy none.safetensors"),
        ({"--skills": "nowhere"}, "the skill folder nowhere does not exist"),
        ({"--k": "9"}, "k must lie in 1..3; got 9"),
        ({"--budget": "0"}, "token budget above 0"),
        ({"--budget": "nan"}, "token budget above 0"),
        ({"--embedding": "none.npy"}, "cannot read the embedding none.npy"),
        ({"--embedding": __file__}, "cannot read the embedding"),
    ],
)
def test_select_says_in_one_line_what_is_wrong(
    change: dict[str, str],
    words: str,
    capsys: pytest.CaptureFixture[str],
    policy: Path,
    embedding: Path,
) -> None:
    given = {"--policy": policy, "--skills": SKILLS, "--embedding": embedding, **change}
    code, out, errors = run(capsys, "select", *(x for pair in given.items() for x in pair), TASK)
    assert (code, out) == (2, "")
    assert errors.startswith("letta-gym: ")
    assert errors.count("\n") == 1
    assert words in errors


def test_select_refuses_a_damaged_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: Path
) -> None:
    data = bytearray(policy.read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "p").write_bytes(data)
    code, _, errors = run(capsys, "select", "--policy", tmp_path / "p", "--skills", SKILLS, TASK)
    assert code == 2
    assert "damaged" in errors


def test_select_refuses_an_archive_for_an_embedding(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: Path
) -> None:
    np.savez(tmp_path / "e.npz", a=np.ones(384))
    given = ["--policy", policy, "--skills", SKILLS, "--embedding", tmp_path / "e.npz"]
    code, _, errors = run(capsys, "select", *given, TASK)
    assert code == 2
    assert "one .npy array" in errors


# --- skills validate ------------------------------------------------------------------------------


def test_validate_counts_skills_and_tokens(capsys: pytest.CaptureFixture[str]) -> None:
    library = SkillLibrary.from_folder(SKILLS)
    tokens = sum(skill.tokens for skill in library)
    code, out, errors = run(capsys, "skills", "validate", SKILLS)
    assert (code, errors) == (0, "")
    assert out == f"{len(library)} valid skills, about {tokens:,} tokens in all; 0 broken files\n"


def test_validate_lists_every_broken_file_with_its_reason(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], policy: Path
) -> None:
    write_skill(tmp_path, "good")
    write_skill(tmp_path, "Bad-Name")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "SKILL.md").write_text("no frontmatter")
    code, out, _ = run(capsys, "skills", "validate", tmp_path)
    lines = out.splitlines()
    assert code == 1
    assert lines[0].startswith(f"{tmp_path / 'Bad-Name' / 'SKILL.md'}: name must be 1 to 64")
    assert lines[1].startswith(f"{tmp_path / 'empty' / 'SKILL.md'}: must start with a line '---'")
    assert lines[2].startswith("1 valid skills, about ")
    assert lines[2].endswith("2 broken files")
    _, _, errors = run(capsys, "select", "--policy", policy, "--skills", tmp_path, TASK)
    assert errors.startswith("letta-gym: 2 broken skill files were left out")


def test_validate_needs_a_folder_with_skills(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder, words in ((tmp_path, "no SKILL.md below"), (tmp_path / "x", "does not exist")):
        code, out, errors = run(capsys, "skills", "validate", folder)
        assert (code, out) == (2, "")
        assert words in errors


# --- policy inspect -------------------------------------------------------------------------------


def test_inspect_shows_header_provenance_evaluation_and_tensors(
    capsys: pytest.CaptureFixture[str], policy: Path
) -> None:
    code, text, _ = run(capsys, "policy", "inspect", policy, "--json")
    shown = json.loads(text)
    assert code == 0
    assert shown["fits_this_version"] is True
    assert shown["provenance"] == {"seed": 7}
    assert shown["evaluation"] == {"return": {"mean": 0.25}}
    assert shown["tensors"]["score_linear"] == [len(FEATURES)]
    assert shown["digest"] == Policy.load(policy).digest
    code, table, _ = run(capsys, "policy", "inspect", policy)
    assert code == 0
    for words in (shown["digest"], "all-MiniLM-L6-v2", "as this version computes", "0.25", "seed"):
        assert words in table


def test_inspect_refuses_what_is_no_policy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "p").write_bytes(b"no policy")
    code, out, errors = run(capsys, "policy", "inspect", tmp_path / "p")
    assert (code, out) == (2, "")
    assert "damaged, or no policy file" in errors


# --- embed ----------------------------------------------------------------------------------------


def test_embed_writes_the_vectors_of_a_suite(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_skill(tmp_path, "draw-maps", "Draws maps of towns.")
    write_skill(tmp_path, "mend-tests", "Mends failing tests.")
    task = {"id": "t", "task": "A map of Oslo, please.", "relevant": ["draw-maps"]}
    (tmp_path / "tasks.jsonl").write_text(json.dumps(task) + "\n")
    code, out, errors = run(capsys, "embed", tmp_path)
    assert (code, errors) == (0, "")
    assert out.startswith(f"{tmp_path / 'vectors.safetensors'}: 2 skills and 1 tasks by ")
    vectors = Suite.load(tmp_path).vectors
    assert vectors is not None
    fits = vectors.tasks.matrix @ vectors.skills.matrix.T
    assert fits[0, 0] > fits[0, 1]


def test_embed_needs_a_suite(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, errors = run(capsys, "embed", tmp_path)
    assert code == 2
    assert "tasks.jsonl" in errors
    assert not (tmp_path / "vectors.safetensors").exists()


# --- exec and hook --------------------------------------------------------------------------------


def test_exec_runs_the_command_with_the_chosen_skills_and_hands_its_code_on(
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    letta = tmp_path / "letta"
    letta.write_text('#!/bin/sh\nls "$4" > seen; exit 5\n')
    letta.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    options = ["--policy", policy, "--skills", SKILLS, "--k", "2"]

    code, said, problems = run(capsys, "exec", *options, "--", letta, "-p", TASK)

    chosen = problems.removeprefix("letta-gym: chosen: ").strip().split(", ")
    assert (code, said) == (5, "")
    assert 1 <= len(chosen) <= 2
    assert set(chosen) <= set(SkillLibrary.from_folder(SKILLS).ids)
    assert sorted((tmp_path / "seen").read_text().split()) == sorted(chosen)


def test_exec_without_a_prompt_runs_nothing(
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    options = ["--policy", policy, "--skills", SKILLS]

    code, _, problems = run(capsys, "exec", *options, "--", "touch", "made")

    assert code == cli.ERROR
    assert "--task" in problems
    assert list(tmp_path.iterdir()) == []


def test_hooks_choose_for_each_prompt_and_leave_no_trace(
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.delenv("LETTA_GYM_STORE", raising=False)
    project, url = tmp_path / "project", tmp_path / "store.sqlite"
    (project / ".letta").mkdir(parents=True)
    settings = project / ".letta" / "settings.local.json"
    settings.write_text('{"model": "opus"}\n')
    options = ["--policy", policy, "--skills", SKILLS, "--k", "2", "--project", project]
    options += ["--store", url, "--agent", "ada", "--explore"]
    skills = project / ".agents" / "skills"

    assert run(capsys, "hook", "install", *options)[0] == cli.OK
    (entry,) = json.loads(settings.read_text())["hooks"]["UserPromptSubmit"]

    def hooked(event: str, **fields: Any) -> None:
        done = subprocess.run(
            ["sh", "-c", entry["hooks"][0]["command"]],
            cwd=project,
            input=json.dumps({"event_type": event, **fields}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout, done.stderr) == (0, "", "")

    decisions = tmp_path / "state" / "letta-gym"
    until = time.monotonic() + 60
    while not [*decisions.rglob("decisions.jsonl")] and time.monotonic() < until:
        hooked("UserPromptSubmit", prompt=TASK, is_command=False)
        hooked("Stop", stop_reason="end_turn")
        time.sleep(0.1)
    assert len(list(skills.iterdir())) <= 2
    code, said, _ = run(capsys, "hook", "rate", "0.75", "--project", project)
    assert (code, said.startswith(f"'{TASK[:59]}")) == (cli.OK, True)

    assert run(capsys, "hook", "uninstall", "--project", project)[0] == cli.OK
    assert settings.read_text() == '{"model": "opus"}\n'
    assert sorted(path.name for path in project.rglob("*")) == [".letta", settings.name]
    assert run(capsys, "hook", "serve", *options)[0] == cli.OK  # nobody to serve any more
    (decision,) = decisions.rglob("decisions.jsonl")
    assert json.loads(decision.read_text().splitlines()[-1])["prompt"] == TASK
    with Store(url) as store:
        while not (trials := list(store.trials())) and time.monotonic() < until:
            time.sleep(0.1)  # the server writes what waits as it ends
        assert [(trial.agent, trial.success) for trial in trials] == [("ada", 0.75)]
        assert all(one.decision.explored for one in store.history().decisions())


@pytest.mark.parametrize("given", ["default", "file"])
def test_the_hooks_server_is_told_the_policy_wherever_it_is_started(
    given: str,
    policy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(policy.parent)
    name = given if given == "default" else policy.name
    options = ["--policy", name, "--skills", SKILLS, "--project", tmp_path]

    assert run(capsys, "hook", "install", *options)[0] == cli.OK
    (command,) = (tmp_path / "state").rglob("serve")
    words = command.read_text(encoding="utf-8").split("\0")
    told = words[words.index("--policy") + 1]
    assert told == ("default" if given == "default" else str(policy.resolve()))
    assert run(capsys, "hook", "uninstall", "--project", tmp_path)[0] == cli.OK


# --- all of them ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "command",
    [
        [],
        ["select"],
        ["skills"],
        ["skills", "validate"],
        ["policy"],
        ["policy", "inspect"],
        ["embed"],
        ["exec"],
        ["hook"],
        ["hook", "install"],
        ["hook", "rate"],
    ],
)
def test_every_command_has_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([*command, "--help"])
    assert ended.value.code == 0
    assert f"usage: {' '.join(['letta-gym', *command])}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "COMMAND"),
        (["skills"], "COMMAND"),
        (["choose"], "invalid choice"),
        (["select", "task"], "--policy"),
        (["select", "--policy", "p", "--skills", "s", "--seed", "-1", "t"], "at least 0; got '-1'"),
    ],
)
def test_arguments_that_are_missing_or_unknown_exit_with_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_a_reader_that_stops_early_is_no_error(policy: Path) -> None:
    command = f"'{sys.executable}' -m letta_gym.cli policy inspect '{policy}' | true"
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command], cwd=ROOT, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
