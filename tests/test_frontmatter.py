"""SKILL.md files: what the standard allows comes back, what strangers try is refused."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from letta_gym.errors import SkillError
from letta_gym.library.frontmatter import (
    MAX_FILE_BYTES,
    MAX_FRONTMATTER_BYTES,
    format_skill,
    parse_skill,
    read_skill,
)
from letta_gym.library.skills import Skill

PLAIN = "---\nname: pdf-forms\ndescription: Fill in PDF forms.\n---\n\n# Forms\n\nUse a form.\n"


def with_fields(fields: str) -> bytes:
    return f"---\nname: a\ndescription: d\n{fields}\n---\nbody".encode()


def test_a_plain_file_is_read() -> None:
    skill = parse_skill(PLAIN.encode(), folder="pdf-forms")
    assert skill == Skill(
        id="pdf-forms",
        name="pdf-forms",
        description="Fill in PDF forms.",
        body="# Forms\n\nUse a form.",
    )


def test_crlf_a_byte_order_mark_and_trailing_blanks_change_nothing() -> None:
    windows = b"\xef\xbb\xbf" + PLAIN.replace("---\n", "--- \n").replace("\n", "\r\n").encode()
    assert parse_skill(windows) == parse_skill(PLAIN.encode())


def test_optional_and_unknown_keys_are_carried_as_text() -> None:
    skill = parse_skill(
        with_fields(
            "license: Apache-2.0\ncompatibility: needs git\nallowed-tools: Bash(git:*) Read\n"
            "metadata:\n  version: 1.10\n  date: 2024-01-01\ntags: [yes, 2, null]\nwhen: 12:30"
        )
    )
    assert skill.metadata == {
        "license": "Apache-2.0",
        "compatibility": "needs git",
        "allowed-tools": "Bash(git:*) Read",
        "metadata": {"version": "1.10", "date": "2024-01-01"},
        "tags": ["yes", "2", "null"],
        "when": "12:30",
    }


def test_a_name_that_looks_like_a_number_or_a_truth_value_stays_a_name() -> None:
    for name in ["123", "true", "null", "1e5"]:
        assert parse_skill(f"---\nname: {name}\ndescription: d\n---".encode()).name == name


def test_only_a_line_of_three_hyphens_closes_the_frontmatter() -> None:
    data = b"---\nname: a\ndescription: |\n  one --- two\n  --- three\n---\nx\n---\ny"
    skill = parse_skill(data)
    assert skill.description == "one --- two\n--- three"
    assert skill.body == "x\n---\ny"


def test_a_file_without_body_is_a_skill() -> None:
    assert parse_skill(b"---\nname: a\ndescription: d\n---").body == ""


@pytest.mark.parametrize(
    "name", ["-a", "a-", "a--b", "A", "a_b", "a b", "ä", "a.b", "a" * 65, "''", "a/../b"]
)
def test_names_outside_the_standard_are_refused(name: str) -> None:
    with pytest.raises(SkillError, match="name must be 1 to 64"):
        parse_skill(f"---\nname: {name}\ndescription: d\n---\n".encode())


def test_names_and_descriptions_may_use_their_full_length() -> None:
    data = f"---\nname: {'a' * 64}\ndescription: {'ü' * 1024}\n---\n".encode()
    assert len(parse_skill(data).description) == 1024


@pytest.mark.parametrize("description", ["''", "'  '", "d" * 1025])
def test_descriptions_of_another_length_are_refused(description: str) -> None:
    with pytest.raises(SkillError, match="description must have 1 to 1024 characters"):
        parse_skill(f"---\nname: a\ndescription: {description}\n---\n".encode())


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "must start with"),
        (b"# Title", "must start with"),
        (b"---\nname: a\ndescription: d\n", "no closing line"),
        (b"---\n---\n", "must be a mapping"),
        (b"---\n- a\n---\n", "must be a mapping"),
        (b"---\ndescription: d\n---\n", "no 'name'"),
        (b"---\nname: a\n---\n", "no 'description'"),
        (b"---\nname: [a]\ndescription: d\n---\n", "name must be text; got a list"),
        (b"---\nname: a\ndescription: {a: b}\n---\n", "description must be text; got a dict"),
        (b"---\nname: a\ndescription: one: two\n---\n", "not valid YAML"),
        (b"---\nname: a\ndescription: 'open\n---\n", "not valid YAML"),
        (b"---\nname: a\ndescription: d\x00\n---\n", "not valid YAML"),
        (b"---\nname: a\ndescription: \xff\n---\n", "UTF-8"),
        (with_fields("compatibility: " + "c" * 501), "compatibility must have 1 to 500"),
        (with_fields("license: [MIT]"), "license must be text"),
        (with_fields("metadata: none"), "metadata must be a mapping"),
        (with_fields('label: "\\ud800"'), "not valid YAML"),
    ],
)
def test_malformed_files_are_refused_with_the_reason(data: bytes, words: str) -> None:
    with pytest.raises(SkillError, match=words):
        parse_skill(data)


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ("x: &anchor 1", "anchors and aliases"),
        ("x: *alias", "anchors and aliases"),
        ("x: !!python/object/apply:os.system ['true']", "tags are not allowed"),
        ("x: !custom 1", "tags are not allowed"),
        ("name: again", "'name' occurs twice"),
        ("x: {y: 1, y: 2}", "'y' occurs twice"),
        ("<<: {y: 1}", "merge keys"),
        ("? [a, b]\n: 1", "key must be plain text"),
    ],
)
def test_the_surprising_parts_of_yaml_are_refused(fields: str, words: str) -> None:
    with pytest.raises(SkillError, match=words):
        parse_skill(with_fields(fields))


def test_large_files_and_large_frontmatter_are_refused() -> None:
    with pytest.raises(SkillError, match="larger than 1048576 bytes"):
        parse_skill(PLAIN.encode() + b"x" * MAX_FILE_BYTES)
    with pytest.raises(SkillError, match="frontmatter is larger than 16384 bytes"):
        parse_skill(with_fields("x: " + "y" * MAX_FRONTMATTER_BYTES))


@pytest.mark.parametrize(
    "bomb",
    [
        "[" * 16000,
        "{" * 16000,
        "x: " + "[" * 8000 + "]" * 7000,
        "- " * 8000,
        "? " * 8000,
        "x: {" + "a," * 7900,
        "x: '" + "\\" * 16000,
    ],
)
def test_hostile_frontmatter_is_refused_quickly(bomb: str) -> None:
    started = time.process_time()
    with pytest.raises(SkillError):
        parse_skill(with_fields(bomb))
    assert time.process_time() - started < 5.0


def test_sixteen_levels_are_read_and_one_more_is_refused() -> None:
    assert parse_skill(with_fields("x: " + "[" * 14 + "y" + "]" * 14)).metadata
    with pytest.raises(SkillError, match="more than 16 levels"):
        parse_skill(with_fields("x: " + "[" * 15 + "y" + "]" * 15))


def test_a_skill_must_have_its_folders_name(tmp_path: Path) -> None:
    path = tmp_path / "pdf-forms" / "SKILL.md"
    path.parent.mkdir()
    path.write_text(PLAIN, encoding="utf-8")
    skill = read_skill(path)
    assert (skill.name, skill.path) == ("pdf-forms", path)
    path.parent.rename(tmp_path / "other")
    with pytest.raises(SkillError, match="must equal the folder's name; got 'other'"):
        read_skill(tmp_path / "other" / "SKILL.md")


def test_a_relative_path_knows_its_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "pdf-forms"
    folder.mkdir()
    (folder / "SKILL.md").write_text(PLAIN, encoding="utf-8")
    monkeypatch.chdir(folder)
    assert read_skill("SKILL.md").name == "pdf-forms"


def test_a_pipe_in_the_place_of_a_file_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "SKILL.md")
    with pytest.raises(SkillError, match="not a regular file"):
        read_skill(tmp_path / "SKILL.md")


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"]) | st.sampled_from("\n:#-'\"[{&*!|>%"))
DESCRIPTION = TEXT.map(str.strip).filter(lambda text: 1 <= len(text) <= 1024)
NAME = st.from_regex(r"[a-z0-9]{1,5}(-[a-z0-9]{1,5}){0,3}", fullmatch=True)
METADATA = st.dictionaries(
    st.sampled_from(["tags", "version", "when_to_use", "x-y"]),
    TEXT | st.lists(TEXT, max_size=3) | st.dictionaries(NAME, TEXT, max_size=3),
    max_size=3,
)


@settings(deadline=None)
@given(name=NAME, description=DESCRIPTION, body=TEXT, metadata=METADATA)
def test_a_written_skill_reads_back_equal(
    name: str, description: str, body: str, metadata: dict[str, object]
) -> None:
    skill = Skill(name, name, description, body.strip("\n"), metadata=metadata)
    assert parse_skill(format_skill(skill).encode()) == skill


def test_a_skill_outside_the_standard_is_not_written() -> None:
    with pytest.raises(SkillError, match="name must be"):
        format_skill(Skill("x", "Not A Name", "d"))
    with pytest.raises(SkillError, match="cannot be written"):
        format_skill(Skill("x", "x", "d", metadata={"x": object()}))
