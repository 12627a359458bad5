"""SKILL.md files of the Agent Skills standard: read, checked, and written.

A file is YAML frontmatter between two ``---`` lines, then Markdown. Skills come from strangers, so
sizes are capped and the parts of YAML that can surprise (anchors, aliases, tags, merge keys,
duplicate keys) are refused. Every scalar is read as text: ``version: 1.10`` stays ``"1.10"``, and
nothing turns into a date or a truth value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from letta_gym.errors import SkillError
from letta_gym.library.skills import Skill

MAX_FILE_BYTES = 1 << 20
MAX_FRONTMATTER_BYTES = 16 << 10
MAX_DEPTH = 16
MAX_NAME = 64
MAX_DESCRIPTION = 1024
MAX_COMPATIBILITY = 500

_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
_TEXT_KEYS = ("license", "compatibility")


def read_skill(path: Path | str) -> Skill:
    """Read one SKILL.md; its id is its name, which must be the name of its folder.

    Raises:
        SkillError: the file cannot be read, is too large, or does not fit the standard.
    """
    path = Path(path)
    if not path.is_file():
        raise SkillError("not a regular file")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise SkillError(f"cannot be read: {error.strerror}") from error
    skill = parse_skill(data, folder=path.absolute().parent.name)
    return Skill(skill.id, skill.name, skill.description, skill.body, 0, skill.metadata, path)


def parse_skill(data: bytes, *, folder: str | None = None) -> Skill:
    """Parse the content of a SKILL.md; ``folder`` is the name that the skill must have, if any.

    A byte-order mark and CRLF line ends are accepted. Line ends around the body are dropped.

    Raises:
        SkillError: the content does not fit the standard; the message says what was expected.
    """
    if len(data) > MAX_FILE_BYTES:
        raise SkillError(f"larger than {MAX_FILE_BYTES} bytes; move material to files beside it")
    try:
        content = data.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise SkillError(f"must be UTF-8: {error}") from error
    frontmatter, body = _split(content)
    fields = _read_yaml(frontmatter)
    name, description = _text(fields, "name"), _text(fields, "description")
    _check_name(name, folder)
    _check_length("description", description, MAX_DESCRIPTION)
    metadata = {key: value for key, value in fields.items() if key not in ("name", "description")}
    for key in _TEXT_KEYS:
        if key in metadata:
            metadata[key] = _text(fields, key)
    if "compatibility" in metadata:
        _check_length("compatibility", metadata["compatibility"], MAX_COMPATIBILITY)
    if not isinstance(metadata.get("metadata", {}), dict):
        raise SkillError("metadata must be a mapping of keys to values")
    return Skill(name, name, description, body, metadata=metadata)


def format_skill(skill: Skill) -> str:
    """Write ``skill`` as the text of a SKILL.md; :func:`parse_skill` reads an equal skill back.

    The id and the number of tokens are not part of the file, and numbers in the metadata come back
    as text.

    Raises:
        SkillError: the skill does not fit the standard.
    """
    fields = {"name": skill.name, "description": skill.description, **skill.metadata}
    try:
        head = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=float("inf"))
    except yaml.YAMLError as error:
        raise SkillError(f"skill {skill.id!r}: the metadata cannot be written: {error}") from error
    text = f"---\n{head}---\n" + (f"\n{skill.body}\n" if skill.body else "")
    parse_skill(text.encode())
    return text


def _split(content: str) -> tuple[str, str]:
    lines = content.split("\n")
    if lines[0].rstrip() != "---":
        raise SkillError("must start with a line '---' and YAML frontmatter")
    for number, line in enumerate(lines[1:], start=1):
        if line.rstrip() == "---":
            head = "\n".join(lines[1:number])
            if len(head.encode()) > MAX_FRONTMATTER_BYTES:
                raise SkillError(f"the frontmatter is larger than {MAX_FRONTMATTER_BYTES} bytes")
            return head, "\n".join(lines[number + 1 :]).strip("\n")
    raise SkillError("the frontmatter has no closing line '---'")


def _read_yaml(text: str) -> dict[str, Any]:
    try:
        fields = yaml.load(text, Loader=_StrictLoader)
    except RecursionError as error:
        raise SkillError("the frontmatter is nested too deeply") from error
    except (yaml.YAMLError, ValueError) as error:
        raise SkillError(f"the frontmatter is not valid YAML: {error}") from error
    if not isinstance(fields, dict):
        raise SkillError("the frontmatter must be a mapping with 'name' and 'description'")
    return fields


def _text(fields: Mapping[str, Any], key: str) -> str:
    if key not in fields:
        raise SkillError(f"the frontmatter has no {key!r}")
    value = fields[key]
    if not isinstance(value, str):
        raise SkillError(f"{key} must be text; got a {type(value).__name__}")
    return value.strip()


def _check_name(name: str, folder: str | None) -> None:
    if len(name) > MAX_NAME or not _NAME.fullmatch(name):
        raise SkillError(
            f"name must be 1 to {MAX_NAME} of a-z, 0-9 and single hyphens between them; "
            f"got {name[:80]!r}"
        )
    if folder is not None and folder != name:
        raise SkillError(f"name {name!r} must equal the folder's name; got {folder!r}")


def _check_length(key: str, value: str, most: int) -> None:
    if not 1 <= len(value) <= most:
        raise SkillError(f"{key} must have 1 to {most} characters; got {len(value)}")


class _StrictLoader(yaml.BaseLoader):
    """YAML with text scalars only, and without anchors, aliases, tags, merges or duplicate keys."""

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: yaml.Event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None) is not None:
            raise _refused("anchors and aliases are not allowed; write the value out", event)
        if getattr(event, "tag", None) is not None:
            raise _refused("tags are not allowed; quote the value if it is text", event)
        if self._depth == MAX_DEPTH:
            raise _refused(f"more than {MAX_DEPTH} levels of nesting", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def construct_scalar(self, node: yaml.ScalarNode) -> str:
        text = str(super().construct_scalar(node))
        text.encode()  # an escape can stand for half a character; the error is a ValueError
        return text

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise _refused("a key must be plain text", key)
            if key.value == "<<":
                raise _refused("merge keys are not allowed; write the values out", key)
            if key.value in seen:
                raise _refused(f"the key {key.value!r} occurs twice", key)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _refused(problem: str, where: Any) -> yaml.MarkedYAMLError:
    return yaml.MarkedYAMLError(problem=problem, problem_mark=where.start_mark)
