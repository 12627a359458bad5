"""``letta-gym keys``: the API keys of the service."""

from __future__ import annotations

import argparse
from typing import Any

_ACTOR = "command line"


def make(options: argparse.Namespace) -> int:
    """``letta-gym keys make``: make a key and print it, once."""
    from letta_gym.store.keys import RIGHTS

    rights = RIGHTS if options.rights == "all" else tuple(options.rights.split(","))
    with _store(options) as store:
        agent = None if options.agent is None else store.agents.ensure(options.agent)
        print(store.keys.make(options.name, rights, actor=_ACTOR, agent=agent, team=options.team))
    return 0


def show(options: argparse.Namespace) -> int:
    """``letta-gym keys list``: show which keys hold."""
    with _store(options) as store:
        held = sorted(store.keys.held().values(), key=lambda key: key.name)
    for key in held:
        bound = f"agent {key.agent.name}" if key.agent else f"team {key.team}" if key.team else "-"
        print(f"{key.name}  {','.join(sorted(key.rights))}  {bound}")
    return 0


def revoke(options: argparse.Namespace) -> int:
    """``letta-gym keys revoke``: a key holds no more."""
    with _store(options) as store:
        store.keys.revoke(options.name, actor=_ACTOR)
    print(f"revoked {options.name}")
    return 0


def add(commands: Any) -> None:
    """Register the commands of the service below ``commands``."""
    keys = commands.add_parser("keys", help="look after the API keys of the service")
    of_keys = keys.add_subparsers(title="commands", required=True, metavar="COMMAND")

    one = of_keys.add_parser("make", help="make a key and print it; it cannot be shown again")
    _add_store(one)
    one.add_argument("name", metavar="NAME", help="what the key is called")
    one.add_argument(
        "--rights", required=True, metavar="LIST", help="some of read,select,write,train,admin; all"
    )
    bound = one.add_mutually_exclusive_group()
    bound.add_argument("--agent", metavar="NAME", help="bind it to an agent, made when it is new")
    bound.add_argument("--team", metavar="NAME", help="bind it to the agents of a team")
    one.set_defaults(command=make)

    one = of_keys.add_parser("list", help="show which keys hold, and for what")
    _add_store(one)
    one.set_defaults(command=show)

    one = of_keys.add_parser("revoke", help="let a key hold no more")
    _add_store(one)
    one.add_argument("name", metavar="NAME", help="what the key is called")
    one.set_defaults(command=revoke)


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
    return Store(options.store)
