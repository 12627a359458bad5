"""Skills and their library: an ordered mapping, and how it is loaded from strangers' folders."""

from __future__ import annotations

import json
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

from letta_gym.errors import SkillError
from letta_gym.library.skills import Problem, Skill, SkillLibrary, estimate_tokens


def skill(id: str, description: str = "d", body: str = "") -> Skill:
    return Skill(id, id, description, body)


def write_skill(root: Path, *parts: str, name: str | None = None) -> Path:
    path = root.joinpath(*parts, "SKILL.md")
    path.parent.mkdir(parents=True, exist_ok=True)
    name = name or path.parent.name
    path.write_text(f"---\nname: {name}\ndescription: does {name}\n---\nbody of {name}\n", "utf-8")
    return path


def write_lines(path: Path, *records: object) -> Path:
    path.write_text("\n".join(json.dumps(record) for record in records), encoding="utf-8")
    return path


@pytest.mark.parametrize(("text", "tokens"), [("", 1), ("abcd", 1), ("abcde", 2), ("a" * 400, 100)])
def test_tokens_are_a_quarter_of_the_characters_rounded_up(text: str, tokens: int) -> None:
    assert estimate_tokens(text) == tokens


def test_tokens_that_are_not_given_are_estimated_from_the_body_or_the_text() -> None:
    assert Skill("a", "a", "d", "b" * 40).tokens == 10
    assert Skill("a", "a", "d" * 37).tokens == 10  # "a: " and 37 characters
    assert Skill("a", "a", "d", "b" * 40, tokens=7).tokens == 7


def test_a_skill_is_immutable_and_embeds_name_and_description() -> None:
    one = Skill("a", "Name", "what it does")
    assert one.text == "Name: what it does"
    with pytest.raises(FrozenInstanceError):
        one.name = "b"  # type: ignore[misc]


def test_the_content_hash_tells_apart_what_plain_joining_would_not() -> None:
    hashes = {
        Skill("a", "a", "b", "c").content_hash,
        Skill("a", "ab", "", "c").content_hash,
        Skill("a", "a", "bc", "").content_hash,
        Skill("a", "a", "", "bc").content_hash,
    }
    assert len(hashes) == 4
    assert Skill("x", "a", "b", "c", 5, {"k": 1}).content_hash in hashes


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"id": ""}, "needs an id and a name"),
        ({"name": ""}, "needs an id and a name"),
        ({"name": 5}, "name must be text; got int"),
        ({"body": None}, "body must be text; got NoneType"),
        ({"description": "\ud800"}, "not valid Unicode"),
        ({"tokens": -1}, "tokens must be a whole number"),
        ({"tokens": 1.5}, "tokens must be a whole number"),
        ({"tokens": True}, "tokens must be a whole number"),
    ],
)
def test_malformed_skills_are_refused(fields: dict[str, object], words: str) -> None:
    with pytest.raises(SkillError, match=words):
        Skill(**{"id": "a", "name": "a", "description": "d", **fields})  # type: ignore[arg-type]


def test_a_library_keeps_order_and_finds_positions() -> None:
    library = SkillLibrary([skill("b"), skill("a"), skill("c")])
    assert library.ids == ("b", "a", "c")
    assert [one.id for one in library] == ["b", "a", "c"]
    assert [library.index(id) for id in library.ids] == [0, 1, 2]
    assert library.remove("b") == skill("b")
    assert [library.index(id) for id in ("a", "c")] == [0, 1]
    library.add(skill("b"))
    assert library.index("b") == 2
    assert len(library) == 3


def test_replacing_keeps_the_position() -> None:
    library = SkillLibrary([skill("a"), skill("b")])
    library.replace(skill("a", "new"))
    assert library.ids == ("a", "b")
    assert library["a"].description == "new"


def test_the_revision_grows_with_each_change_and_only_then() -> None:
    library = SkillLibrary([skill("a")])
    start = library.revision
    library.add(skill("b"))
    library.replace(skill("b", "new"))
    library.remove("a")
    assert library.revision == start + 3
    for change in (lambda: library.add(skill("b")), lambda: library.remove("a")):
        with pytest.raises(SkillError):
            change()
    assert "b" in library
    assert library.index("b") == 0
    assert library.revision == start + 3


def test_wrong_ids_get_the_nearest_ones_in_the_message() -> None:
    library = SkillLibrary([skill("pdf-forms"), skill("git-bisect")])
    with pytest.raises(SkillError, match=r"exists already; use replace\(\)"):
        library.add(skill("pdf-forms"))
    for call in (library.index, library.remove, library.__getitem__):
        with pytest.raises(SkillError, match="did you mean 'pdf-forms'"):
            call("pdf-form")
    with pytest.raises(SkillError, match="no skill 'zzz' in the library; the library holds 2"):
        library.replace(skill("zzz"))


def test_a_folder_is_loaded_in_order_of_path_at_any_depth(tmp_path: Path) -> None:
    write_skill(tmp_path, "zebra")
    path = write_skill(tmp_path, "office", "pdf")
    library = SkillLibrary.from_folder(tmp_path, count_tokens=len)
    assert library.ids == ("pdf", "zebra")
    assert library["pdf"].path == path
    assert library["pdf"].tokens == len("body of pdf")
    assert library.problems == ()


def test_broken_files_are_reported_and_the_others_loaded(tmp_path: Path) -> None:
    write_skill(tmp_path, "good")
    bad_name = write_skill(tmp_path, "folder", name="other")
    binary = tmp_path / "binary" / "SKILL.md"
    binary.parent.mkdir()
    binary.write_bytes(b"\xff\xfe\x00")
    lower = tmp_path / "lower" / "skill.md"
    lower.parent.mkdir()
    lower.write_text("x", encoding="utf-8")
    directory = tmp_path / "strange" / "SKILL.md"
    directory.mkdir(parents=True)
    library = SkillLibrary.from_folder(tmp_path)
    assert library.ids == ("good",)
    reasons = {problem.path: problem.reason for problem in library.problems}
    assert set(reasons) == {bad_name, binary, lower, directory}
    assert "must equal the folder's name" in reasons[bad_name]
    assert "UTF-8" in reasons[binary]
    assert "must be called SKILL.md" in reasons[lower]
    assert "not a regular file" in reasons[directory]


def test_a_folder_of_only_broken_skills_gives_their_problems(tmp_path: Path) -> None:
    path = write_skill(tmp_path, "a", name="b")
    library = SkillLibrary.from_folder(tmp_path)
    assert len(library) == 0
    assert [str(problem) for problem in library.problems] == [
        f"{path}: name 'b' must equal the folder's name; got 'a'"
    ]


def test_two_skills_of_one_name_are_reported_not_mixed(tmp_path: Path) -> None:
    first, second = write_skill(tmp_path, "x", "pdf"), write_skill(tmp_path, "y", "pdf")
    library = SkillLibrary.from_folder(tmp_path)
    assert library["pdf"].path == first
    assert library.problems == (Problem(second, f"the name 'pdf' is taken by {first}"),)


def test_material_inside_a_skills_folder_is_not_a_skill(tmp_path: Path) -> None:
    write_skill(tmp_path, "maker")
    write_skill(tmp_path, "maker", "assets", "template")
    assert SkillLibrary.from_folder(tmp_path).ids == ("maker",)


def test_a_skills_own_folder_can_be_loaded(tmp_path: Path) -> None:
    write_skill(tmp_path, "pdf")
    assert SkillLibrary.from_folder(tmp_path / "pdf").ids == ("pdf",)


def test_links_out_of_the_tree_are_reported_and_never_followed(tmp_path: Path) -> None:
    outside, tree = tmp_path / "outside", tmp_path / "tree"
    secret = write_skill(outside, "secret")
    write_skill(tree, "good")
    (tree / "linked").symlink_to(outside / "secret")
    (tree / "secret").mkdir()
    (tree / "secret" / "SKILL.md").symlink_to(secret)
    (tree / "loop").symlink_to(tree / "loop")
    (tree / "sibling").symlink_to(tmp_path / "tree-two")
    library = SkillLibrary.from_folder(tree)
    assert library.ids == ("good",)
    reported = {problem.path for problem in library.problems}
    assert reported >= {tree / "linked", tree / "secret" / "SKILL.md", tree / "sibling"}


def test_links_inside_the_tree_do_not_load_a_skill_twice(tmp_path: Path) -> None:
    write_skill(tmp_path, "a")
    (tmp_path / "b").symlink_to(tmp_path / "a")
    library = SkillLibrary.from_folder(tmp_path)
    assert library.ids == ("a",)
    assert library.problems == ()


def test_the_tree_itself_may_be_a_link(tmp_path: Path) -> None:
    write_skill(tmp_path, "tree", "a")
    (tmp_path / "link").symlink_to(tmp_path / "tree")
    library = SkillLibrary.from_folder(tmp_path / "link")
    assert library.ids == ("a",)
    assert library.problems == ()


def test_a_missing_or_empty_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SkillError, match="does not exist"):
        SkillLibrary.from_folder(tmp_path / "none")
    with pytest.raises(SkillError, match=r"no SKILL\.md below"):
        SkillLibrary.from_folder(tmp_path)


def test_json_lines_are_read_and_unknown_keys_carried(tmp_path: Path) -> None:
    path = write_lines(
        tmp_path / "skills.jsonl",
        {"id": "b#1", "name": "b", "description": "does b", "tokens": 9, "price": 0.5},
        {"id": "a", "description": "does a", "body": "x" * 8},
    )
    library = SkillLibrary.from_jsonl(path, count_tokens=len)
    assert library["b#1"] == Skill("b#1", "b", "does b", "", 9, {"price": 0.5})
    assert library["a"] == Skill("a", "a", "does a", "x" * 8, 8)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"id": "b"', "not JSON"),
        ("[1]", "must be a JSON object; got list"),
        ('{"id": "b"}', "missing: \\['description'\\]"),
        ('{"id": 5, "description": "d"}', "id must be text"),
        ('{"id": "a", "description": "d"}', "exists already"),
        ('{"id": "b", "description": "d", "tokens": "many"}', "tokens must be a whole number"),
        ('{"id": "b", "description": "d", "tokens": false}', "tokens must be a whole number"),
        ('{"id": "b", "description": "d", "x": NaN}', "NaN is not a JSON number"),
        ("[" * 100_000, "not JSON"),
        ("\udcff", "not JSON"),
    ],
)
def test_malformed_lines_are_named_by_number(tmp_path: Path, line: str, words: str) -> None:
    path = tmp_path / "skills.jsonl"
    good = '{"id": "a", "description": "d"}\n\n'
    path.write_bytes((good + line).encode(errors="surrogateescape"))
    with pytest.raises(SkillError, match=rf"skills\.jsonl:3: .*{words}"):
        SkillLibrary.from_jsonl(path)


def test_a_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SkillError, match="cannot read"):
        SkillLibrary.from_jsonl(tmp_path / "skills.jsonl")
