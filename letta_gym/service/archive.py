"""Skills out of a ZIP archive of a stranger's: read in memory, nothing is ever unpacked to disk."""

from __future__ import annotations

import io
import stat
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from letta_gym.errors import SkillError
from letta_gym.library.frontmatter import MAX_FILE_BYTES, parse_skill
from letta_gym.library.skills import SKILL_FILE, Skill

MAX_ENTRIES = 10_000
MAX_SKILLS = 1_000


@dataclass(frozen=True, slots=True)
class Refused:
    """A file of an archive that could not become a skill, and why."""

    path: str
    reason: str


def read_archive(data: bytes) -> tuple[list[Skill], list[Refused]]:
    """The skills of every ``NAME/SKILL.md`` in a ZIP archive, and what was refused.

    A name that leads out of the archive, a link, an encrypted or a huge file is refused. Names are
    only ever compared: no file is written.

    Raises:
        SkillError: the bytes are no ZIP archive, hold too much, or no SKILL.md.
    """
    try:
        archive = zipfile.ZipFile(io.BytesIO(data))
    except (zipfile.BadZipFile, ValueError, OSError, NotImplementedError) as error:
        raise SkillError(f"the body must be a ZIP archive: {error}") from error
    with archive:
        entries = archive.infolist()
        if len(entries) > MAX_ENTRIES:
            raise SkillError(f"the archive has {len(entries):,} files; at most {MAX_ENTRIES:,}")
        files = [e for e in entries if PurePosixPath(e.filename).name == SKILL_FILE]
        if not files or len(files) > MAX_SKILLS:
            raise SkillError(
                f"the archive must hold 1 to {MAX_SKILLS:,} files NAME/{SKILL_FILE}; "
                f"got {len(files):,}"
            )
        return _sorted_out(archive, files)


def _sorted_out(
    archive: zipfile.ZipFile, files: list[zipfile.ZipInfo]
) -> tuple[list[Skill], list[Refused]]:
    skills: dict[str, Skill] = {}
    refused: list[Refused] = []
    for entry in files:
        try:
            skill = _read(archive, entry)
            if skill.id in skills:
                raise SkillError(f"the name {skill.id!r} occurs twice")
        except SkillError as error:
            refused.append(Refused(entry.filename, str(error)))
        else:
            skills[skill.id] = skill
    return list(skills.values()), refused


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> Skill:
    problem = next(_problems(entry), None)
    if problem is not None:
        raise SkillError(problem)
    try:
        with archive.open(entry) as file:
            data = file.read(MAX_FILE_BYTES + 1)  # what it says of its size need not be true
    except (zipfile.BadZipFile, RuntimeError, NotImplementedError, OSError, EOFError) as error:
        raise SkillError(f"cannot be read: {error}") from error
    except Exception as error:  # zlib.error, lzma.LZMAError: each method has its own
        raise SkillError(f"cannot be unpacked: {error}") from error
    return parse_skill(data, folder=PurePosixPath(entry.filename).parent.name)


def _problems(entry: zipfile.ZipInfo) -> Iterator[str]:
    path = PurePosixPath(entry.filename)
    if path.is_absolute() or ".." in path.parts or "\\" in entry.filename or ":" in path.parts[0]:
        yield "its name leads out of the archive"
    if len(path.parts) < 2:
        yield f"must lie in a folder of the skill's name: NAME/{SKILL_FILE}"
    if stat.S_ISLNK(entry.external_attr >> 16):
        yield "a symbolic link"
    if entry.flag_bits & 1:
        yield "encrypted"
    if entry.file_size > MAX_FILE_BYTES:
        yield f"larger than {MAX_FILE_BYTES} bytes"
