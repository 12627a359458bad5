"""Skills, and the library that holds them: what can be chosen."""

from __future__ import annotations

import difflib
import hashlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from letta_gym.errors import SkillError
from letta_gym.library.jsonl import read_records

SKILL_FILE = "SKILL.md"

TokenCounter = Callable[[str], int]
"""Number of tokens a text costs in the agent's context."""


def estimate_tokens(text: str) -> int:
    """Estimated tokens of ``text``: a quarter of its characters, rounded up, at least 1.

    Four characters a token is the usual rule of thumb for English under byte-pair encodings.
    """
    return max(1, math.ceil(len(text) / 4))


@dataclass(frozen=True, slots=True)
class Skill:
    """One skill: what it is for, and the instructions that the agent gets when it is chosen.

    ``tokens`` is the cost of its body; 0 stands for "not given" and is replaced by
    :func:`estimate_tokens` of the body, or of :attr:`text` without one. ``metadata`` carries every
    other key of the file it came from. ``path`` is its SKILL.md, and no part of its equality.

    Raises:
        SkillError: an empty id or name, a field of a wrong type, negative tokens.
    """

    id: str
    name: str
    description: str
    body: str = ""
    tokens: int = 0
    metadata: Mapping[str, Any] = field(default_factory=dict, hash=False)
    path: Path | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        for key in ("id", "name", "description", "body"):
            _check_text(self, key)
        if not self.id or not self.name:
            raise SkillError(f"a skill needs an id and a name; got {self.id!r} and {self.name!r}")
        if type(self.tokens) is not int or self.tokens < 0:
            raise SkillError(
                f"skill {self.id!r}: tokens must be a whole number >= 0; got {self.tokens!r}"
            )
        if self.tokens == 0:
            object.__setattr__(self, "tokens", estimate_tokens(self.body or self.text))

    @property
    def text(self) -> str:
        """What is embedded: ``name: description``."""
        return f"{self.name}: {self.description}"

    @property
    def content_hash(self) -> str:
        """SHA-256 over name, description and body, framed as JSON so that no two contents meet."""
        framed = json.dumps([self.name, self.description, self.body])
        return hashlib.sha256(framed.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Problem:
    """A file of a skill tree that could not become a skill, and why."""

    path: Path
    reason: str

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class SkillLibrary:
    """An ordered mapping from skill id to :class:`Skill`.

    ``revision`` grows by one at each change, so that whoever holds something computed from the
    library can tell that it is stale. ``problems`` lists the files that were left out on loading.
    """

    def __init__(self, skills: Iterable[Skill] = (), problems: Iterable[Problem] = ()) -> None:
        self._skills: dict[str, Skill] = {}
        self._positions: dict[str, int] | None = None
        self.problems: tuple[Problem, ...] = tuple(problems)
        self.revision = 0
        for skill in skills:
            self.add(skill)

    @classmethod
    def from_folder(
        cls, folder: Path | str, *, count_tokens: TokenCounter = estimate_tokens
    ) -> SkillLibrary:
        """Load every ``SKILL.md`` below ``folder``, in order of path; the id is the skill's name.

        A broken file never hides the others: it is listed in :attr:`problems`. Symbolic links that
        lead out of the tree are listed there too, and never followed.

        Raises:
            SkillError: the folder is missing, or there is no ``SKILL.md`` in it at all.
        """
        from letta_gym.library.frontmatter import read_skill

        root = Path(folder)
        if not root.is_dir():
            raise SkillError(f"the skill folder {root} does not exist or is not a folder")
        files, problems = _find_skill_files(root)
        if not files and not problems:
            raise SkillError(f"no {SKILL_FILE} below {root}; expected {root}/<name>/{SKILL_FILE}")
        skills: dict[str, Skill] = {}
        for path in files:
            try:
                skill = read_skill(path)
            except SkillError as error:
                problems.append(Problem(path, str(error)))
                continue
            if skill.id in skills:
                first = skills[skill.id].path
                problems.append(Problem(path, f"the name {skill.id!r} is taken by {first}"))
                continue
            skills[skill.id] = replace(skill, tokens=count_tokens(skill.body or skill.text))
        return cls(skills.values(), problems)

    @classmethod
    def from_jsonl(
        cls, path: Path | str, *, count_tokens: TokenCounter = estimate_tokens
    ) -> SkillLibrary:
        """Load ``{"id", "name", "description", "body"?, "tokens"?, ...}``, one skill a line.

        ``name`` may be left out when it is the id; unknown keys are carried in ``metadata``.

        Raises:
            SkillError: the file is missing, a line is malformed, or an id occurs twice; the message
                has the line's number.
        """
        library = cls()
        for where, record in read_records(path, SkillError):
            try:
                library.add(_from_record(record, count_tokens))
            except SkillError as error:
                raise SkillError(f"{where}: {error}") from error
        return library

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids in order."""
        return tuple(self._skills)

    def __len__(self) -> int:
        return len(self._skills)

    def __iter__(self) -> Iterator[Skill]:
        return iter(tuple(self._skills.values()))

    def __contains__(self, id: object) -> bool:
        return id in self._skills

    def __getitem__(self, id: str) -> Skill:
        """The skill ``id``; :class:`SkillError` when there is none."""
        self._require(id)
        return self._skills[id]

    def index(self, id: str) -> int:
        """Position of ``id`` in :attr:`ids`; :class:`SkillError` when there is none."""
        self._require(id)
        if self._positions is None:
            self._positions = {known: position for position, known in enumerate(self._skills)}
        return self._positions[id]

    def add(self, skill: Skill) -> None:
        """Append ``skill``; :class:`SkillError` when its id is taken."""
        if skill.id in self._skills:
            raise SkillError(f"skill {skill.id!r} exists already; use replace() to change it")
        self._skills[skill.id] = skill
        self._changed()

    def replace(self, skill: Skill) -> None:
        """Put ``skill`` in the place of the one with its id; :class:`SkillError` without one."""
        self._require(skill.id)
        self._skills[skill.id] = skill
        self._changed()

    def remove(self, id: str) -> Skill:
        """Take the skill ``id`` out and return it; :class:`SkillError` when there is none."""
        self._require(id)
        self._changed()
        return self._skills.pop(id)

    def nearest(self, id: str) -> str:
        """Words for an error message: the known ids that look most like ``id``."""
        near = difflib.get_close_matches(id, self._skills, n=3)
        if near:
            return "did you mean " + " or ".join(repr(known) for known in near) + "?"
        return f"the library holds {len(self)} other skills; see its ids"

    def _require(self, id: str) -> None:
        if id not in self._skills:
            raise SkillError(f"no skill {id!r} in the library; {self.nearest(id)}")

    def _changed(self) -> None:
        self._positions = None
        self.revision += 1


def _check_text(skill: Skill, key: str) -> None:
    value = getattr(skill, key)
    if not isinstance(value, str):
        raise SkillError(f"skill {skill.id!r}: {key} must be text; got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise SkillError(f"skill {skill.id!r}: {key} is not valid Unicode: {error}") from error


def _from_record(record: Mapping[str, Any], count_tokens: TokenCounter) -> Skill:
    rest = dict(record)
    missing = [key for key in ("id", "description") if key not in rest]
    if missing:
        raise SkillError(f"a skill needs the keys 'id' and 'description'; missing: {missing}")
    id = rest.pop("id")
    skill = Skill(
        id=id,
        name=rest.pop("name", id),
        description=rest.pop("description"),
        body=rest.pop("body", ""),
        tokens=rest.pop("tokens", 0),
        metadata=rest,
    )
    given = record.get("tokens", 0)
    return skill if given else replace(skill, tokens=count_tokens(skill.body or skill.text))


def _find_skill_files(root: Path) -> tuple[list[Path], list[Problem]]:
    inside = os.path.realpath(root)
    files: list[Path] = []
    problems: list[Problem] = []

    def report(error: OSError) -> None:
        problems.append(Problem(Path(error.filename), f"cannot be read: {error.strerror}"))

    for folder, folders, names in os.walk(root, onerror=report):
        folders.sort()
        for name in sorted(folders + names):
            path = Path(folder, name)
            if path.is_symlink() and not _leads_inside(path, inside):
                problems.append(Problem(path, "symbolic link that leads out of the tree"))
            elif name == SKILL_FILE:
                files.append(path)
            elif name.lower() == SKILL_FILE.lower():
                problems.append(Problem(path, f"must be called {SKILL_FILE}"))
        if SKILL_FILE in names and Path(folder) != root:
            folders.clear()  # what lies inside a skill's folder is its own material
    return sorted(files), problems


def _leads_inside(link: Path, root: str) -> bool:
    return Path(os.path.realpath(link)).is_relative_to(root)
