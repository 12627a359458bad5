"""The rules of the layout: what imports what, what is named where, and what stays out."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import letta_gym

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "letta_gym"
EXTRAS = {
    "embeddings",
    "onnx",
    "letta",
    "serve",
    "ui",
    "postgres",
    "evals",
    "ray",
    "dev",
    "all",
}
HEAVY = {
    "torch",
    "sentence_transformers",
    "transformers",
    "onnxruntime",
    "tokenizers",
    "tensorboard",
    "letta_client",
    "fastapi",
    "sqlalchemy",
    "alembic",
    "psycopg",
    "pyarrow",
    "prometheus_client",
    "uvicorn",
    "gradio",
    "ray",
    "stable_baselines3",
    "matplotlib",
}
# Put together from parts, for this file is searched too.
REGISTRIES = ("pypi" + ".org", "python" + "hosted", "npm" + "js.", "debian" + ".org")


def test_the_package_never_imports_the_learners() -> None:
    files = _modules()
    guilty = [
        f"{file.name}: {name}"
        for file in files
        for name in _imports(file)
        if name.split(".")[0] == "agents"
    ]

    assert len(files) > 20
    assert guilty == []


def test_every_module_of_the_package_table_exists() -> None:
    rooms = _rooms(letta_gym.__doc__ or "")
    missing = [room for room in rooms if not _is_module(room)]

    assert len(rooms) >= 5, f"the docstring of letta_gym names too few rooms: {rooms}"
    assert missing == []


@pytest.mark.parametrize(
    ("row", "room"),
    [
        ("    library/     what can be chosen", "library"),
        ("``letta``        who carries the task out", "letta"),
        ("| `feedback` | what outcomes teach |", "feedback"),
        ("- :mod:`letta_gym.selection.runtime`: the choice", "selection.runtime"),
        ("cli.py           the command", "cli"),
    ],
)
def test_a_row_of_the_package_table_is_read_in_every_notation(row: str, room: str) -> None:
    assert _rooms(f"Prose that names nothing.\n\n{row}\n") == [room]


def test_no_file_names_a_package_registry() -> None:
    files = _repository_files()
    guilty = [
        f"{file.relative_to(ROOT)}: {host}"
        for file in files
        for host in REGISTRIES
        if host.encode() in file.read_bytes().lower()
    ]

    assert ROOT / "pyproject.toml" in files
    assert guilty == []


def test_the_extras_are_those_that_are_documented() -> None:
    project = _pyproject()["project"]
    extras = project["optional-dependencies"]
    (everything,) = extras["all"]

    assert set(extras) == EXTRAS
    assert set(re.findall(r"\w+", everything.split("[")[1])) == EXTRAS - {"dev", "all"}


def test_every_light_and_development_dependency_is_pinned() -> None:
    project = _pyproject()["project"]
    extras = project["optional-dependencies"]
    tested = ("dev", "embeddings", "onnx", "letta", "serve", "postgres")
    wanted = [*project["dependencies"], *(text for extra in tested for text in extras[extra])]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]

    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]*", pin) for pin in pins)
    assert {_name(text) for text in wanted} <= {_name(pin) for pin in pins}


def test_make_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = re.findall(r"^([a-z][a-z-]*):", makefile, re.MULTILINE)
    listed = re.findall(r"^  make ([a-z-]+) +\S", _run("make"), re.MULTILINE)

    assert {"install", "dev", "train", "evaluate", "tensorboard", "try", "test"} <= set(targets)
    assert sorted(listed) == sorted(targets)


def test_make_hands_a_task_on_as_plain_text(tmp_path: Path) -> None:
    task = """it's "odd" `touch broken` $(touch broken) $(shell touch broken); touch broken #"""
    command = tmp_path / "bin" / "letta-gym"
    command.parent.mkdir()
    command.write_text('#!/bin/sh\nfor last; do :; done\nprintf "%s" "$last"\n', encoding="utf-8")
    command.chmod(0o755)
    policy = tmp_path / "policy.safetensors"
    policy.touch()
    for stamp in (".made", ".light", ".embedder"):
        (tmp_path / stamp).touch()

    said = _run("make", "try", f"VENV={tmp_path}", f"POLICY={policy}", f"TASK={task}")

    assert said == task
    assert not (ROOT / "broken").exists()


@pytest.mark.parametrize("module", ["letta_gym", "letta_gym.selection.runtime", "letta_gym.cli"])
def test_importing_is_light(module: str) -> None:
    program = f"import sys, {module}; print(*sorted(m for m in sys.modules if '.' not in m))"
    loaded = set(_run(sys.executable, "-c", program).split())

    assert "letta_gym" in loaded
    assert loaded & HEAVY == set()


def _modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def _imports(file: Path) -> Iterator[str]:
    """Absolute names that ``file`` imports, by statement or by ``import_module``."""
    for node in ast.walk(ast.parse(file.read_bytes())):
        match node:
            case ast.Import(names=names):
                yield from (alias.name for alias in names)
            case ast.ImportFrom(module=str(name), level=0):
                yield name
            case ast.Call(
                func=ast.Name(id="import_module" | "__import__")
                | ast.Attribute(attr="import_module"),
                args=[ast.Constant(value=str(name)), *_],
            ):
                yield name


def _rooms(docstring: str) -> list[str]:
    """Modules that the rows of a table or list name first, relative to the package, dotted."""
    row = re.compile(
        r"^[\s|*-]*(?::mod:)?(?P<tick>`{0,2})(?:letta_gym[./])?(?P<name>[a-z_]+(?:[./][a-z_]+)*?)"
        r"(?:\.py)?/?(?P=tick)(?:\s*\||\s{2,}|:\s)\s*\S",
        re.MULTILINE,
    )
    return [found["name"].replace("/", ".") for found in row.finditer(docstring)]


def _is_module(room: str) -> bool:
    path = PACKAGE.joinpath(*room.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def _repository_files() -> list[Path]:
    """Files that are tracked or would be, without links: what they lead to is listed itself."""
    listed = _run("git", "ls-files", "--cached", "--others", "--exclude-standard", "-z")
    paths = [ROOT / name for name in listed.split("\0") if name]
    return [path for path in paths if path.is_file() and not path.is_symlink()]


def _pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def _name(requirement: str) -> str:
    """The normalised name of the distribution that ``requirement`` asks for."""
    (name,) = re.findall(r"^[\w.-]+", requirement)
    return re.sub(r"[-_.]+", "-", name).lower()


def _run(*command: str) -> str:
    # A make that knows it runs inside another prints more.
    outer = ("MAKEFLAGS", "MFLAGS", "MAKELEVEL", "MAKEOVERRIDES")
    environment = {name: value for name, value in os.environ.items() if name not in outer}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
    return done.stdout
