"""The vector of a skill: what it says it is for, and what its body is about."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from letta_gym.library.embeddings import Embedder
from letta_gym.library.skills import Skill
from letta_gym.library.vectors import Float, snap

_LONGEST = 1000  # characters; about the 256 word pieces that small embedders read
_PARAGRAPHS = re.compile(r"\n\s*\n")


def described(skill: Skill) -> str:
    """All that a skill's vector depends on, as one text: its hash tells a stale vector."""
    return f"{skill.text}\n\n{skill.body}"


def passages(skill: Skill) -> list[str]:
    """The body cut at paragraphs into passages that an embedder reads whole; none without a body.

    Each begins with the skill's name, so that a passage about details keeps its subject.
    """
    found: list[str] = []
    size = 0
    for paragraph in _PARAGRAPHS.split(skill.body):
        text = paragraph.strip()
        if not text:
            continue
        if not found or size + len(text) > _LONGEST:
            found.append(f"{skill.name}: {text}"[:_LONGEST])
            size = len(found[-1])
        else:
            found[-1] += f"\n{text}"
            size += len(text) + 1
    return found


def embed_skills(embedder: Embedder, skills: Sequence[Skill]) -> Float:
    """Skill vectors: the direction of "name: description" plus that of the mean passage.

    On the bundled suite the mean passage raises Hit@1 of the dense score alone from 0.67 to 0.72,
    and the area under the curve for "some skill is needed" from 0.76 to 0.81.

    Returns:
        Snapped rows, shape (n, D).
    """
    rows = embedder.encode([skill.text for skill in skills]).astype(np.float64)
    for row, skill in zip(rows, skills, strict=True):
        if parts := passages(skill):
            mean = embedder.encode(parts).astype(np.float64).mean(0)
            row /= np.linalg.norm(row)
            row += mean / np.linalg.norm(mean)
    return snap(rows) if len(rows) else rows.astype(np.float32)
