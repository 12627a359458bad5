"""Runs the migrations on the connection that :meth:`letta_gym.store.engine.Database.migrate` gives.

Users never call Alembic: opening a store migrates it.
"""

from __future__ import annotations

from typing import Any, Literal

from alembic import context

from letta_gym.store.columns import Floats, Vector
from letta_gym.store.models import Base


def _plain(kind: str, item: Any, _: object) -> str | Literal[False]:
    """Write our own column types as what they are in the database."""
    return "sa.LargeBinary()" if kind == "type" and isinstance(item, Floats | Vector) else False


context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    render_item=_plain,
)
with context.begin_transaction():
    context.run_migrations()
