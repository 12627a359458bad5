"""The folder of a rollout: exactly its skills, and a hook that refuses all others."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from letta_gym.errors import SkillError
from letta_gym.letta.run_folder import bodies, lay_out
from letta_gym.library.frontmatter import read_skill
from letta_gym.library.skills import Skill, SkillLibrary

PDF = Skill("pdf-tools", "pdf-tools", "works on PDF", "Use the script.")
ODD = Skill("tool #7: Charts & Maps", "Charts & Maps", "draws", "Draw.")


def on_disk(folder: Path, body: str = "Use the script.") -> Skill:
    home = folder / "pdf-tools"
    (home / "scripts").mkdir(parents=True)
    (home / "SKILL.md").write_text(
        f"---\nname: pdf-tools\ndescription: works on PDF\n---\n\n{body}\n"
    )
    (home / "scripts" / "merge.py").write_text("print('merged')\n")
    (home / "secret").symlink_to("/etc/hostname")
    return SkillLibrary.from_folder(folder)["pdf-tools"]


def asked(folder: Path, skill: str) -> subprocess.CompletedProcess[str]:
    """What the hook says when the agent wants to load ``skill``."""
    settings = json.loads((folder / ".letta" / "settings.json").read_text())
    (matcher,) = settings["hooks"]["PreToolUse"]
    assert matcher["matcher"] == "Skill"
    (hook,) = matcher["hooks"]
    event = {"event_type": "PreToolUse", "tool_name": "Skill", "tool_input": {"skill": skill}}
    text = json.dumps(event, separators=(",", ":"))
    return subprocess.run(
        ["sh", "-c", hook["command"]], input=text, capture_output=True, text=True, check=False
    )


def test_the_skills_of_the_folder_are_exactly_the_chosen_ones(tmp_path: Path) -> None:
    names = lay_out(tmp_path / "run", [PDF, ODD])

    library = SkillLibrary.from_folder(tmp_path / "run" / ".skills")
    assert list(names.values()) == [PDF.id, ODD.id]
    assert set(library.ids) == set(names)
    assert library.problems == ()
    assert [library[name].body for name in names] == [PDF.body, ODD.body]


def test_a_skill_from_a_folder_comes_with_its_files_but_without_links(tmp_path: Path) -> None:
    lay_out(tmp_path / "run", [on_disk(tmp_path / "library")])

    copy = tmp_path / "run" / ".skills" / "pdf-tools"
    assert (copy / "scripts" / "merge.py").read_text() == "print('merged')\n"
    assert not (copy / "secret").exists()
    assert not copy.is_symlink()


def test_what_was_chosen_is_shown_even_where_the_file_changed_since(tmp_path: Path) -> None:
    skill = on_disk(tmp_path / "library")
    assert skill.path is not None
    skill.path.write_text(skill.path.read_text().replace("Use the script.", "Delete everything."))

    lay_out(tmp_path / "run", [skill])

    assert read_skill(tmp_path / "run/.skills/pdf-tools/SKILL.md").body == "Use the script."


def test_names_that_are_put_right_stay_apart(tmp_path: Path) -> None:
    alike = [Skill(id, "Tool!", "does", "x") for id in ("a", "b", "c")]

    names = lay_out(tmp_path / "run", alike)

    assert list(names.values()) == ["a", "b", "c"]
    assert len(list((tmp_path / "run" / ".skills").iterdir())) == 3


def test_a_name_of_the_standard_stays_as_it_is(tmp_path: Path) -> None:
    assert lay_out(tmp_path / "run", [PDF]) == {"pdf-tools": "pdf-tools"}


def test_a_skill_without_a_description_cannot_be_shown(tmp_path: Path) -> None:
    with pytest.raises(SkillError, match="description"):
        lay_out(tmp_path / "run", [Skill("a", "a", "", "x")])


@pytest.mark.parametrize("skill", ["pdf-tools", "pdf"])
def test_the_hook_lets_the_chosen_skills_pass(tmp_path: Path, skill: str) -> None:
    lay_out(tmp_path / "it's a $run", [PDF, Skill("pdf", "pdf", "reads", "x")])

    assert asked(tmp_path / "it's a $run", skill).returncode == 0


@pytest.mark.parametrize(
    "skill", ["elsewhere", "pdf-tools-2", "my-pdf-tools", "", "pdf", '","skill":"pdf-tools']
)
def test_the_hook_refuses_every_other_skill_and_says_what_there_is(
    tmp_path: Path, skill: str
) -> None:
    lay_out(tmp_path / "run", [PDF])

    done = asked(tmp_path / "run", skill)

    assert done.returncode == 2
    assert "pdf-tools" in done.stderr


def test_without_skills_the_hook_refuses_all(tmp_path: Path) -> None:
    assert lay_out(tmp_path / "run", []) == {}
    assert asked(tmp_path / "run", "pdf-tools").returncode == 2


def test_bodies_are_told_apart_in_a_prompt() -> None:
    text = bodies([PDF, ODD])

    assert text.count("<skill name=") == text.count("</skill>") == 2
    assert text.index("Use the script.") < text.index("Draw.")
    assert bodies([]) == ""
