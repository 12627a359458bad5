"""The folders in which Letta Code's agents keep their skills: import from them, deliver into them.

Agents write skills of their own. A :class:`FolderWatch` brings what is new or changed into a
library, by content hash. :func:`deliver` puts skills into another agent's folder. What it wrote
carries a mark in its metadata, which holds a digest of what was written: a skill that the agent has
changed since is the agent's again, and is never overwritten.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from threading import Event

from letta_gym.errors import SkillError
from letta_gym.files import sha256_of
from letta_gym.letta.run_folder import copy_files, names_of
from letta_gym.library.frontmatter import format_skill, parse_skill, read_skill
from letta_gym.library.skills import SKILL_FILE, Problem, Skill, SkillLibrary

MARK = "letta-gym"
"""Key in the ``metadata`` of a delivered skill."""


def skill_folders(
    project: Path | str, agent: str | None = None, home: Path | None = None
) -> tuple[Path, ...]:
    """Where Letta Code looks for skills, the folder whose skills win first.

    Args:
        project: the working folder.
        agent: id of an agent, for its own folder.
        home: home folder of the user, by default that of this process.
    """
    project, letta = Path(project), (Path.home() if home is None else home) / ".letta"
    own = [] if agent is None else [letta / "agents" / agent / "memory" / "skills"]
    return (project / ".agents" / "skills", project / ".skills", *own, letta / "skills")


@dataclass(frozen=True, slots=True)
class Changes:
    """What a scan did to the library; false when it did nothing.

    Attributes:
        added: ids that are new.
        changed: ids with another content than before.
        removed: ids whose file is gone; one that had stood in the library before is back as it was.
    """

    added: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.changed or self.removed)


class FolderWatch:
    """Keeps a library up to date with the folders of an agent.

    Of two skills with the same name the one in the earlier folder counts, as for Letta Code. A file
    that cannot be read leaves what was known of it, and is listed in ``problems``; it may be in the
    middle of being written. What :func:`deliver` wrote is passed over until the agent changes it.

    Args:
        library: gets what is found.
        folders: see :func:`skill_folders`; they need not exist.
        settle: seconds for which a file must have been left alone.

    Attributes:
        problems: files that the latest scan could not read.
    """

    def __init__(self, library: SkillLibrary, folders: Sequence[Path], settle: float = 0.5) -> None:
        self.library, self.folders, self.settle = library, tuple(folders), settle
        self.problems: tuple[Problem, ...] = ()
        self._read: dict[Path, tuple[_Stamp, Skill | None]] = {}  # None: a delivery of ours
        self._imported: dict[str, Skill | None] = {}  # id -> what stood in the library before

    def scan(self) -> Changes:
        """Look once; only files that changed are read."""
        found = self._found()
        added, changed = [], []
        for id, skill in found.items():
            known = None
            if id in self.library:
                known = self.library[id]
            if known is not None and known.content_hash == skill.content_hash:
                continue
            self._imported.setdefault(id, known)
            if known is None:
                self.library.add(skill)
                added.append(id)
            else:
                self.library.replace(skill)
                changed.append(id)
        gone = [id for id in self._imported if id not in found]
        for id in gone:
            self._take_back(id)
        return Changes(tuple(added), tuple(changed), tuple(gone))

    def watch(self, stop: Event, interval: float = 2.0) -> Iterator[Changes]:
        """Scan every ``interval`` seconds until ``stop`` is set; yields what changed."""
        while not stop.is_set():
            if changes := self.scan():
                yield changes
            stop.wait(interval)

    def _found(self) -> dict[str, Skill]:
        """The skills that count, by id."""
        found: dict[str, Skill] = {}
        seen: dict[Path, tuple[_Stamp, Skill | None]] = {}
        problems: list[Problem] = []
        for folder in self.folders:
            for path in sorted(folder.glob(f"*/{SKILL_FILE}")):
                try:
                    seen[path] = self._look(path)
                except (SkillError, OSError) as error:
                    problems.append(Problem(path, str(error)))
                    if path in self._read:
                        seen[path] = self._read[path]
                skill = seen[path][1] if path in seen else None
                if skill is not None:
                    found.setdefault(skill.id, skill)
        self._read, self.problems = seen, tuple(problems)
        return found

    def _look(self, path: Path) -> tuple[_Stamp, Skill | None]:
        if path.is_symlink() or path.parent.is_symlink():
            raise SkillError("a symbolic link is not followed")
        stamp, known = _stamp(path), self._read.get(path)
        if known is not None and known[0] == stamp:
            return known
        if 0 <= time.time() - stamp[0] / 1e9 < self.settle:
            raise SkillError("it was written a moment ago; the next scan takes it")
        skill = read_skill(path)
        if _is_untouched(skill):
            return stamp, None
        return stamp, _without_mark(skill)

    def _take_back(self, id: str) -> None:
        before = self._imported.pop(id)
        if before is not None:
            self.library.replace(before)
        elif id in self.library:
            self.library.remove(id)


@dataclass(frozen=True, slots=True)
class Delivery:
    """What :func:`deliver` did.

    Attributes:
        written: ids of the skills that were put there, or brought up to date.
        current: ids of those that stood there already.
        refused: why a skill was not put there, by id.
    """

    written: tuple[str, ...]
    current: tuple[str, ...]
    refused: Mapping[str, str]


def deliver(skills: Sequence[Skill], folder: Path | str) -> Delivery:
    """Put skills into an agent's folder, with their files and a mark that they are ours.

    What we put there before is brought up to date; anything else of that name stays untouched.

    Raises:
        SkillError: a skill cannot be written as a SKILL.md.
        OSError: the folder cannot be written.
    """
    folder = Path(folder)
    written, current, refused = [], [], {}
    for name, skill in zip(names_of(skills), skills, strict=True):
        target = folder / name
        if os.path.lexists(target) and not _is_ours(target):
            refused[skill.id] = f"{target} is not ours, or was changed since we put it there"
            continue
        staged = _stage(folder, name, skill)
        if os.path.lexists(target) and _mark_of(target) == _mark_of(staged):
            shutil.rmtree(staged.parent)
            current.append(skill.id)
        else:
            _swap(staged, target)
            written.append(skill.id)
    return Delivery(tuple(written), tuple(current), refused)


def ours(folder: Path | str) -> tuple[str, ...]:
    """Names of the skills in ``folder`` that :func:`deliver` put there and nobody changed since."""
    return tuple(path.name for path in sorted(Path(folder).glob("*")) if _is_ours(path))


def withdraw(folder: Path | str, names: Sequence[str] | None = None) -> tuple[str, ...]:
    """Remove what :func:`deliver` put there and nobody changed since.

    Args:
        folder: an agent's folder.
        names: names of the skills to remove; None for all of ours.

    Returns:
        The names of those removed.
    """
    folder = Path(folder)
    wanted = [path.name for path in folder.glob("*")] if names is None else names
    gone = [name for name in sorted(wanted) if _is_ours(folder / name)]
    if gone:
        holder = _holder(folder)
        holder.mkdir()
        for name in gone:  # out of sight at once, for somebody may be about to look
            (folder / name).rename(holder / name)
        shutil.rmtree(holder, ignore_errors=True)
    return tuple(gone)


_Stamp = tuple[int, int, int, int]
"""Of a skill's folder: its latest change in ns, how long and which file its SKILL.md is, files."""


def _stamp(path: Path) -> _Stamp:
    status, files = path.stat(), _files(path.parent)
    latest = max([status.st_mtime_ns, *(file.stat().st_mtime_ns for file in files)])
    return latest, status.st_size, status.st_ino, len(files)


def _files(folder: Path) -> list[Path]:
    """Every file of a skill but its SKILL.md, in order."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and not path.is_symlink())
    return [path for path in files if path != folder / SKILL_FILE]


def _digest(skill: Skill, folder: Path) -> str:
    """Digest of the skill and the files beside it."""
    files = [(path.relative_to(folder).as_posix(), sha256_of(path)) for path in _files(folder)]
    return hashlib.sha256(json.dumps([skill.content_hash, files]).encode()).hexdigest()


def _is_untouched(skill: Skill) -> bool:
    """Whether the skill is a delivery of ours as we wrote it."""
    assert skill.path is not None
    mark = _mark(skill)
    return mark is not None and mark == _digest(skill, skill.path.parent)


def _is_ours(folder: Path) -> bool:
    if folder.is_symlink() or not folder.is_dir():
        return False
    try:
        return _read_as_ours(folder / SKILL_FILE, _stamp(folder / SKILL_FILE))
    except (SkillError, OSError):
        return False


@lru_cache(maxsize=4096)
def _read_as_ours(path: Path, stamp: _Stamp) -> bool:
    """Whether the skill is ours, read once for each state of its folder."""
    return _is_untouched(read_skill(path))


def _mark(skill: Skill) -> str | None:
    metadata = skill.metadata.get("metadata")
    mark = metadata.get(MARK) if isinstance(metadata, Mapping) else None
    return mark if isinstance(mark, str) else None


def _mark_of(folder: Path) -> str | None:
    return _mark(read_skill(folder / SKILL_FILE))


def _with_mark(skill: Skill, mark: str) -> Skill:
    own = skill.metadata.get("metadata", {})
    return replace(skill, metadata={**skill.metadata, "metadata": {**own, MARK: mark}})


def _without_mark(skill: Skill) -> Skill:
    if _mark(skill) is None:
        return skill
    rest = {key: value for key, value in skill.metadata.items() if key != "metadata"}
    own = {key: value for key, value in skill.metadata["metadata"].items() if key != MARK}
    return replace(skill, metadata=rest | ({"metadata": own} if own else {}))


def _holder(folder: Path) -> Path:
    """A new name beside ``folder`` for what is on its way in or out."""
    return folder.parent / f".letta-gym-{secrets.token_hex(6)}"


def _stage(folder: Path, name: str, skill: Skill) -> Path:
    """The skill with its mark in a folder beside ``folder``, whence it takes its place at once."""
    folder.mkdir(parents=True, exist_ok=True)
    holder = _holder(folder)
    staged = holder / name
    try:
        copy_files(skill, staged)
        plain = _without_mark(replace(skill, id=name, name=name))
        plain = parse_skill(format_skill(plain).encode())  # as it will be read back
        marked = _with_mark(plain, _digest(plain, staged))
        (staged / SKILL_FILE).write_text(format_skill(marked), encoding="utf-8")
    except BaseException:
        shutil.rmtree(holder, ignore_errors=True)
        raise
    return staged


def _swap(staged: Path, target: Path) -> None:
    old = staged.parent / "old"
    if target.exists():
        target.rename(old)
    staged.rename(target)
    shutil.rmtree(staged.parent, ignore_errors=True)
