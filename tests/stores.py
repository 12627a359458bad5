"""Stores to test with: on SQLite, or on the PostgreSQL that ``make test-postgres`` starts."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from sqlalchemy import create_engine, make_url, text

from letta_gym.feedback.decision import Decision, Pick
from letta_gym.library.skills import Skill
from letta_gym.library.vectors import Float, snap

POSTGRES = os.environ.get("LETTA_GYM_TEST_POSTGRES")
DAY = 86_400.0


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self, now: float = 1_700_000_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now

    def pass_days(self, days: float) -> None:
        """Move the clock on."""
        self.now += days * DAY


@contextmanager
def new_database(folder: Path) -> Iterator[str]:
    """URL of an empty database, which is removed at the end."""
    if POSTGRES is None:
        yield f"sqlite:///{folder / 'store.sqlite'}"
        return
    server = make_url(POSTGRES).set(drivername="postgresql+psycopg")
    name = f"test_{secrets.token_hex(8)}"
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f"CREATE DATABASE {name}"))
    try:
        yield make_url(POSTGRES).set(database=name).render_as_string(hide_password=False)
    finally:
        with engine.connect() as connection:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
        engine.dispose()


def skill(name: str, body: str = "", tokens: int = 100) -> Skill:
    """A skill whose content follows from its arguments."""
    return Skill(name, name, f"{name} things", body or f"Steps of {name}.", tokens)


def decision(
    number: int | str,
    skills: tuple[Skill, ...] = (skill("a"), skill("b"), skill("c")),
    slots: tuple[int, ...] = (1, 0),
    *,
    task: str = "chart the figures",
    policy: str = "p" * 64,
    log_propensity: float = -0.5,
) -> Decision:
    """A decision over ``skills`` that picked ``slots``."""
    rng = np.random.default_rng([*str(number).encode()])
    m = len(skills)
    keys = tuple(one.content_hash for one in skills)
    scores = rng.standard_normal(m + 1).astype(np.float32)
    scores[m - 1] = -np.inf
    return Decision(
        id=f"decision-{number}",
        task=task,
        vector=vector(rng),
        skills=skills,
        keys=keys,
        features=rng.standard_normal((m, 4)).astype(np.float32),
        context=rng.standard_normal(3).astype(np.float32),
        scores=scores,
        picks=tuple(
            Pick(slot, skills[slot].id, keys[slot], 0.25 * (rank + 1), skills[slot].tokens)
            for rank, slot in enumerate(slots)
        ),
        k=3,
        log_propensity=log_propensity,
        explored=True,
        policy_digest=policy,
    )


def vector(rng: np.random.Generator, dimension: int = 8) -> Float:
    """A snapped vector, shape (D,)."""
    row: Float = snap(rng.standard_normal((1, dimension)))[0]
    return row
