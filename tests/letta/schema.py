"""Makes the tables of a Letta V1 server, whose wheel has no migrations; runs in its environment."""

from __future__ import annotations

import importlib
import pkgutil
import sys

import letta.orm
from letta.orm.base import Base
from sqlalchemy import create_engine, text


def main(uri: str) -> None:
    """Make the schema in the empty database at ``uri``."""
    for module in pkgutil.iter_modules(letta.orm.__path__):
        importlib.import_module(f"letta.orm.{module.name}")
    engine = create_engine(uri)
    with engine.begin() as connection:
        connection.execute(text("create extension if not exists vector"))
    Base.metadata.create_all(engine)
    with engine.begin() as connection:  # what only the migrations say
        connection.execute(text("create sequence if not exists message_seq_id"))
        connection.execute(
            text(
                "alter table messages alter column sequence_id "
                "set default nextval('message_seq_id')"
            )
        )


if __name__ == "__main__":
    main(sys.argv[1])
