"""The wheel stands alone: built, installed with its light dependencies, and used elsewhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
NOT_SOURCE = (".*", "runs", "build", "dist", "*.egg-info", "__pycache__")

USE_THE_PACKAGE = """
import json
import sys
from pathlib import Path

import letta_gym

heavy = {"torch", "sentence_transformers", "onnxruntime", "tensorboard"} & set(sys.modules)

import gymnasium
import numpy as np

from letta_gym.library.suite import bundled_suite
from letta_gym.selection.runtime import SkillSelector

env = gymnasium.make("letta_gym/MockSkillSelection-v0")
observation, info = env.reset(seed=7)
action = np.zeros(env.action_space.shape, env.action_space.dtype)
action[0] = 1
after, reward, terminated, truncated, step_info = env.step(action)
suite = bundled_suite()
selector = SkillSelector.load("default", Path(letta_gym.__file__).parent / "bundled")
selection = selector.select(suite.tasks[0].text, embedding=suite.vectors.tasks.matrix[0])
print(json.dumps({
    "file": letta_gym.__file__,
    "path": sys.path,
    "heavy": sorted(heavy),
    "selector": SkillSelector.__module__,
    "considered": len(selection.explain().candidates),
    "observations_in_space": [
        env.observation_space.contains(observation), env.observation_space.contains(after)
    ],
    "reward": float(reward),
    "skills": len(suite.library),
    "broken_skills": len(suite.library.problems),
    "tasks": len(suite.tasks),
    "vectors": None if suite.vectors is None else [
        list(suite.vectors.skills.matrix.shape), list(suite.vectors.tasks.matrix.shape)
    ],
}))
"""


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: what an earlier build left in the checkout stays out of it."""
    source = tmp_path_factory.mktemp("source") / "checkout"
    shutil.copytree(ROOT, source, symlinks=True, ignore=shutil.ignore_patterns(*NOT_SOURCE))
    out = tmp_path_factory.mktemp("dist")
    # The test environment holds setuptools, so the build needs no network.
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", out, cwd=source)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="session")
def members(wheel: Path) -> set[str]:
    """Names of the wheel's files."""
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripts' folder of a clean environment that has the wheel and no extra."""
    environment = tmp_path_factory.mktemp("clean") / "venv"
    _run(sys.executable, "-m", "venv", environment, cwd=wheel.parent)
    scripts = environment / "bin"
    pins = ROOT / "constraints.txt"
    _run(scripts / "python", "-m", "pip", "install", "-q", "-c", pins, wheel, cwd=wheel.parent)
    return scripts


@pytest.fixture(scope="session")
def facts(installed: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What a program saw that used the installed package from a folder of its own."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    script = elsewhere / "use_the_package.py"
    script.write_text(USE_THE_PACKAGE, encoding="utf-8")
    seen: dict[str, Any] = json.loads(
        _run(installed / "python", "-W", "error", script.name, cwd=elsewhere)
    )
    return seen


def test_the_wheel_has_no_other_top_level_name(members: set[str]) -> None:
    top = {name.split("/")[0] for name in members}

    assert len(top) == 2
    assert "letta_gym" in top
    (other,) = top - {"letta_gym"}
    assert other.startswith("letta_gym-")
    assert other.endswith(".dist-info")


def test_the_wheel_carries_the_bundled_library(members: set[str]) -> None:
    skills = {f"letta_gym/bundled/{file.parent.name}/SKILL.md" for file in _skill_files()}

    assert len(skills) >= 40
    assert skills <= members
    assert "letta_gym/bundled/tasks.jsonl" in members
    assert "letta_gym/bundled/vectors.safetensors" in members


def test_the_wheel_carries_the_vocabulary_and_the_type_marker(members: set[str]) -> None:
    assert "letta_gym/library/wordpiece.txt.gz" in members
    assert "letta_gym/py.typed" in members


def test_the_wheel_carries_every_module_and_no_byte_code(members: set[str]) -> None:
    modules = {file.relative_to(ROOT).as_posix() for file in (ROOT / "letta_gym").rglob("*.py")}

    assert modules <= members
    assert not [name for name in members if "__pycache__" in name]


def test_the_installed_package_is_the_one_that_ran(facts: dict[str, Any], installed: Path) -> None:
    assert Path(facts["file"]).is_relative_to(installed.parent)
    assert not [entry for entry in facts["path"] if Path(entry) == ROOT]


def test_importing_the_installed_package_is_light(facts: dict[str, Any]) -> None:
    assert facts["heavy"] == []


def test_the_installed_environment_runs(facts: dict[str, Any]) -> None:
    assert facts["observations_in_space"] == [True, True]
    assert abs(facts["reward"]) < float("inf")


def test_the_installed_library_is_that_of_the_checkout(facts: dict[str, Any]) -> None:
    tasks = (ROOT / "skills" / "tasks.jsonl").read_text(encoding="utf-8").splitlines()

    assert facts["broken_skills"] == 0
    assert facts["skills"] == len(_skill_files())
    assert facts["tasks"] == len([line for line in tasks if line.strip()])
    assert facts["vectors"] == [[facts["skills"], 384], [facts["tasks"], 384]]


def test_the_runtime_comes_with_the_wheel(facts: dict[str, Any]) -> None:
    assert facts["selector"].startswith("letta_gym.selection.")
    assert facts["considered"] == 12


def test_the_installed_command_finds_the_bundled_skills(
    facts: dict[str, Any], installed: Path
) -> None:
    bundled = Path(facts["file"]).parent / "bundled"

    _run(installed / "letta-gym", "skills", "validate", bundled, cwd=installed)


def _skill_files() -> list[Path]:
    return sorted((ROOT / "skills").glob("*/SKILL.md"))


def _run(*command: str | Path, cwd: Path) -> str:
    """Standard output of ``command``, run as if no checkout were near; fails with all it said."""
    hidden = ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout
