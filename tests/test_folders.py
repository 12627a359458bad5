"""Skills that agents write: imported by content hash, delivered without touching what is theirs."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from letta_gym.errors import SkillError
from letta_gym.letta.folders import FolderWatch, deliver, skill_folders, withdraw
from letta_gym.library.frontmatter import read_skill
from letta_gym.library.skills import Skill, SkillLibrary

PDF = Skill("pdf-tools", "pdf-tools", "works on PDF", "Use the script.\n\n")


def write(folder: Path, name: str, body: str = "Do it.", extra: str = "") -> Path:
    path = folder / name / "SKILL.md"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"---\nname: {name}\ndescription: does {name}\n{extra}---\n\n{body}\n")
    return path


def watching(library: SkillLibrary, *folders: Path) -> FolderWatch:
    return FolderWatch(library, folders, settle=0)


def content(folder: Path) -> dict[str, bytes]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_the_folders_are_those_of_letta_code_in_its_order(tmp_path: Path) -> None:
    folders = skill_folders("work", "agent-1", tmp_path)

    assert folders == (
        Path("work/.agents/skills"),
        Path("work/.skills"),
        tmp_path / ".letta/agents/agent-1/memory/skills",
        tmp_path / ".letta/skills",
    )
    assert len(skill_folders("work", home=tmp_path)) == 3


# --- import ---------------------------------------------------------------------------------------


def test_what_an_agent_writes_enters_the_library(tmp_path: Path) -> None:
    library = SkillLibrary([PDF])
    watch = watching(library, tmp_path)
    write(tmp_path, "charts", "Draw.")

    changes = watch.scan()

    assert (changes.added, changes.changed, changes.removed) == (("charts",), (), ())
    assert library["charts"].body == "Draw."
    assert library.ids == ("pdf-tools", "charts")
    revision = library.revision
    assert not watch.scan()
    assert library.revision == revision


def test_a_change_counts_when_the_content_changed(tmp_path: Path) -> None:
    library = SkillLibrary()
    watch = watching(library, tmp_path)
    path = write(tmp_path, "charts", "Draw.")
    watch.scan()
    before = library["charts"].content_hash

    path.touch()
    assert not watch.scan()
    write(tmp_path, "charts", "Draw with care.")
    assert watch.scan().changed == ("charts",)
    assert library["charts"].content_hash != before


def test_a_skill_that_is_gone_leaves_the_library_as_it_was(tmp_path: Path) -> None:
    library = SkillLibrary([PDF])
    watch = watching(library, tmp_path)
    paths = [write(tmp_path, name, "Better.") for name in ("pdf-tools", "charts")]
    assert watch.scan().changed == ("pdf-tools",)

    for path in paths:
        path.unlink()

    assert set(watch.scan().removed) == {"charts", "pdf-tools"}
    assert list(library) == [PDF]


def test_the_earlier_folder_wins(tmp_path: Path) -> None:
    project, everywhere = tmp_path / "project", tmp_path / "global"
    write(everywhere, "charts", "Global.")
    library = SkillLibrary()
    watch = watching(library, project, everywhere)
    watch.scan()
    assert library["charts"].body == "Global."

    path = write(project, "charts", "Project.")
    watch.scan()
    assert library["charts"].body == "Project."

    path.unlink()
    watch.scan()
    assert library["charts"].body == "Global."


def test_a_file_in_the_middle_of_being_written_leaves_what_was_known(tmp_path: Path) -> None:
    library = SkillLibrary()
    watch = watching(library, tmp_path)
    path = write(tmp_path, "charts", "Draw.")
    watch.scan()
    path.write_text("---\nname: cha")

    assert not watch.scan()
    assert library["charts"].body == "Draw."
    assert [problem.path for problem in watch.problems] == [path]


def test_a_fresh_file_waits_until_it_was_left_alone(tmp_path: Path) -> None:
    library = SkillLibrary()
    path = write(tmp_path, "charts")

    assert not FolderWatch(library, [tmp_path], settle=60).scan()
    _age(path, 61)
    assert FolderWatch(library, [tmp_path], settle=60).scan().added == ("charts",)


def test_links_are_not_followed(tmp_path: Path) -> None:
    write(tmp_path / "elsewhere", "charts")
    folder = tmp_path / "skills"
    folder.mkdir()
    (folder / "charts").symlink_to(tmp_path / "elsewhere" / "charts")
    watch = watching(SkillLibrary(), folder)

    assert not watch.scan()
    assert "link" in watch.problems[0].reason


def test_watching_yields_changes_until_it_is_stopped(tmp_path: Path) -> None:
    stop = threading.Event()
    changes: Iterator[object] = watching(SkillLibrary(), tmp_path).watch(stop, interval=0.01)
    threading.Timer(0.05, lambda: write(tmp_path, "charts")).start()

    first = next(changes)
    stop.set()

    assert "charts" in str(first)
    assert list(changes) == []


# --- delivery -------------------------------------------------------------------------------------


def test_a_delivered_skill_reads_as_it_was_with_its_files_and_our_mark(tmp_path: Path) -> None:
    source = write(tmp_path / "library", "charts", "Draw.", "metadata:\n  author: me\n")
    (source.parent / "draw.py").write_text("pass\n")
    skill = read_skill(source)

    delivery = deliver([skill, PDF], tmp_path / "agent")

    assert (delivery.written, delivery.refused) == (("charts", "pdf-tools"), {})
    charts = read_skill(tmp_path / "agent/charts/SKILL.md")
    assert charts.content_hash == skill.content_hash
    assert charts.metadata["metadata"]["author"] == "me"
    assert "letta-gym" in charts.metadata["metadata"]
    assert (tmp_path / "agent/charts/draw.py").read_text() == "pass\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent", "library"]


def test_delivering_again_writes_only_what_changed(tmp_path: Path) -> None:
    deliver([PDF], tmp_path / "agent")
    before = content(tmp_path / "agent")

    assert deliver([PDF], tmp_path / "agent").current == ("pdf-tools",)
    assert content(tmp_path / "agent") == before
    newer = Skill("pdf-tools", "pdf-tools", "works on PDF", "Use the new script.")
    assert deliver([newer], tmp_path / "agent").written == ("pdf-tools",)
    assert read_skill(tmp_path / "agent/pdf-tools/SKILL.md").body == newer.body
    assert sorted(path.name for path in tmp_path.iterdir()) == ["agent"]


@pytest.mark.parametrize("what", ["theirs", "body", "file", "added", "link"])
def test_what_is_the_agents_is_never_touched(tmp_path: Path, what: str) -> None:
    source = write(tmp_path / "library", "charts", "Draw.")
    (source.parent / "draw.py").write_text("pass\n")
    skill, agent = read_skill(source), tmp_path / "agent"
    if what == "theirs":
        write(agent, "charts", "My own.")
    elif what == "link":
        agent.mkdir()
        (agent / "charts").symlink_to(source.parent)
    else:
        deliver([skill], agent)
        match what:
            case "body":
                path = agent / "charts/SKILL.md"
                path.write_text(path.read_text().replace("Draw.", "Draw better."))
            case "file":
                (agent / "charts/draw.py").write_text("improved\n")
            case "added":
                (agent / "charts/notes.txt").write_text("note\n")
    before = content(agent)
    newer = Skill("charts", "charts", "does charts", "Newer.")

    delivery = deliver([newer], agent)

    assert set(delivery.refused) == {"charts"}
    assert withdraw(agent) == ()
    assert content(agent) == before
    assert (agent / "charts").is_symlink() == (what == "link")


def test_withdrawing_removes_ours_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, "theirs")
    deliver([PDF, Skill("charts", "charts", "draws", "Draw.")], tmp_path)

    assert withdraw(tmp_path, ["charts", "theirs"]) == ("charts",)
    assert withdraw(tmp_path) == ("pdf-tools",)
    assert list(content(tmp_path)) == ["theirs/SKILL.md"]


def test_a_delivery_is_not_imported_until_the_agent_changes_it(tmp_path: Path) -> None:
    deliver([PDF], tmp_path)
    library = SkillLibrary()
    watch = watching(library, tmp_path)
    assert not watch.scan()

    path = tmp_path / "pdf-tools" / "SKILL.md"
    path.write_text(path.read_text().replace("Use the script.", "Use my script."))

    assert watch.scan().added == ("pdf-tools",)
    assert library["pdf-tools"].body == "Use my script."
    assert "metadata" not in library["pdf-tools"].metadata


def test_a_skill_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(SkillError, match="description"):
        deliver([Skill("a", "a", "", "x")], tmp_path / "agent")

    assert content(tmp_path) == {}
    assert [path.name for path in tmp_path.iterdir()] == ["agent"]


def test_a_skill_of_one_agent_reaches_another(tmp_path: Path) -> None:
    source = write(tmp_path / "one", "charts", "Draw.")
    (source.parent / "draw.py").write_text("pass\n")
    library = SkillLibrary()
    watching(library, tmp_path / "one").scan()

    deliver(list(library), tmp_path / "two")

    assert read_skill(tmp_path / "two/charts/SKILL.md").body == "Draw."
    assert (tmp_path / "two/charts/draw.py").exists()


def _age(path: Path, seconds: float) -> None:
    then = path.stat().st_mtime - seconds
    os.utime(path, (then, then))
