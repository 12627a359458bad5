"""``letta-gym data``: take the log out of a store, and remove what is too old."""

from __future__ import annotations

import argparse
from typing import Any


def export(options: argparse.Namespace) -> int:
    """``letta-gym data export``: write decisions and outcomes to a file."""
    with _store(options) as store:
        count = store.export(options.out, options.format, agent=options.agent)
    print(f"{options.out}: {count:,} decisions")
    return 0


def purge(options: argparse.Namespace) -> int:
    """``letta-gym data purge``: remove decisions of long ago."""
    with _store(options) as store:
        count = store.purge(options.older_than, actor="command line")
    print(f"removed {count:,} decisions older than {options.older_than:g} days")
    return 0


def add(commands: Any) -> None:
    """Register the commands of the store below ``commands``."""
    data = commands.add_parser("data", help="look after the store of decisions and outcomes")
    of_data = data.add_subparsers(title="commands", required=True, metavar="COMMAND")

    one = of_data.add_parser("export", help="write decisions and outcomes to a file")
    _add_store(one)
    one.add_argument("--format", choices=("parquet", "jsonl"), default="jsonl", help="(jsonl)")
    one.add_argument("--out", required=True, metavar="FILE", help="where to write")
    one.add_argument("--agent", metavar="NAME", help="only this agent's (all)")
    one.set_defaults(command=export)

    one = of_data.add_parser("purge", help="remove decisions of long ago, with their outcomes")
    _add_store(one)
    one.add_argument(
        "--older-than", type=float, required=True, metavar="DAYS", help="age of what goes"
    )
    one.set_defaults(command=purge)


def _add_store(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--store", required=True, metavar="URL", help="database: a path, or postgresql://..."
    )


def _store(options: argparse.Namespace) -> Any:
    from letta_gym.errors import MissingExtraError

    try:
        from letta_gym.store.store import Store
    except ModuleNotFoundError as error:
        raise MissingExtraError("serve", "the store") from error
    return Store(options.store, create=False)
