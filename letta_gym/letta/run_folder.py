"""The folder in which one rollout runs: exactly its skills, and a hook that refuses all others.

::

    RUN/.skills/<name>/SKILL.md     the chosen skills, copied
    RUN/.letta/settings.json        refuses the Skill tool any other name

Letta Code loads a global or bundled skill by its name even where it does not list it, hence the
hook.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from letta_gym.errors import SkillError
from letta_gym.letta.turn import SKILL_TOOL
from letta_gym.library.frontmatter import MAX_NAME, format_skill, read_skill
from letta_gym.library.skills import SKILL_FILE, Skill

_HOOK_TIMEOUT = 30_000  # ms; it takes a few, and a hook that is late does not refuse


def names_of(skills: Sequence[Skill]) -> dict[str, str]:
    """Id of each skill by the folder name that stands for it.

    A name that the Agent Skills standard allows stays; any other is put right, and made unique with
    a part of the id's hash.
    """
    return {_folder_name(skill): skill.id for skill in skills}


def lay_out(folder: Path, skills: Sequence[Skill]) -> dict[str, str]:
    """Make ``folder`` for a rollout with these skills.

    A skill that was read from a folder is copied with everything beside its SKILL.md, symbolic
    links excepted.

    Returns:
        The id of each skill by the name under which the agent sees it.

    Raises:
        SkillError: a skill cannot be written as a SKILL.md.
        OSError: the folder exists, or a file cannot be copied.
    """
    names = names_of(skills)
    folder.mkdir(parents=True)
    for name, skill in zip(names, skills, strict=True):
        _place(folder / ".skills" / name, name, skill)
    _write_hook(folder / ".letta", tuple(names))
    return names


def bodies(skills: Sequence[Skill]) -> str:
    """The instructions of the skills as text for a prompt; empty without skills."""
    return "\n\n".join(
        f'<skill name="{name}">\n{skill.body or skill.description}\n</skill>'
        for name, skill in zip(names_of(skills), skills, strict=True)
    )


def _folder_name(skill: Skill) -> str:
    slug = re.sub(r"[^a-z0-9]+", "-", skill.name.lower()).strip("-")
    if slug == skill.name == skill.id and len(slug) <= MAX_NAME:
        return slug
    mark = hashlib.sha256(skill.id.encode()).hexdigest()[:8]
    return f"{slug[: MAX_NAME - 9].strip('-')}-{mark}".strip("-")


def copy_files(skill: Skill, target: Path) -> None:
    """Make the folder ``target`` with every file of the skill's own folder but symbolic links.

    Raises:
        OSError: ``target`` exists, or a file cannot be copied.
    """
    if skill.path is not None and skill.path.is_file():
        shutil.copytree(skill.path.parent, target, ignore=_links)
    else:
        target.mkdir(parents=True)


def _place(target: Path, name: str, skill: Skill) -> None:
    copy_files(skill, target)
    source = skill.path
    if source is not None and source.parent.name == name and _is_current(skill, source):
        return
    text = format_skill(replace(skill, name=name))
    (target / SKILL_FILE).write_text(text, encoding="utf-8")


def _is_current(skill: Skill, path: Path) -> bool:
    """Whether the file still says what was chosen."""
    try:
        return read_skill(path).content_hash == skill.content_hash
    except SkillError:
        return False


def _links(folder: str, names: list[str]) -> list[str]:
    """The links among ``names``: what they lead to may lie anywhere."""
    return [name for name in names if Path(folder, name).is_symlink()]


def _write_hook(folder: Path, names: Sequence[str]) -> None:
    folder.mkdir()
    script = folder / "only-chosen-skills.sh"
    # The names hold only letters, digits and hyphens, so they mean themselves in the pattern. A
    # quote within another argument arrives escaped and cannot stand for one of these.
    allowed = "|".join(names)
    check = f'grep -qE \'"skill" *: *"({allowed})"\' && exit 0\n' if names else ""
    shown = ", ".join(names) or "none"
    script.write_text(
        f"{check}echo 'Refused. Skills of this task: {shown}.' >&2\nexit 2\n", encoding="utf-8"
    )
    hook = {
        "type": "command",
        "command": f"sh {shlex.quote(str(script.absolute()))}",
        "timeout": _HOOK_TIMEOUT,
    }
    settings = {"hooks": {"PreToolUse": [{"matcher": SKILL_TOOL, "hooks": [hook]}]}}
    (folder / "settings.json").write_text(json.dumps(settings), encoding="utf-8")
