"""``letta-gym exec`` and ``letta-gym hook``: choose skills in a person's own Letta Code."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # every command imports what it needs, so that --help is instant
    from letta_gym.letta.hook_settings import Place
    from letta_gym.selection.runtime import SkillSelector
    from letta_gym.store.store import Store

IDLE = 3600.0  # seconds without an event after which the hooks' server ends
STORE_VARIABLE = "LETTA_GYM_STORE"
"""Environment variable with the URL of the store, for one that holds a password."""


def execute(options: argparse.Namespace) -> int:
    """``letta-gym exec``: run a command with only the chosen skills visible."""
    from letta_gym.letta import narrowed

    line = options.line
    narrowed.check(line, Path.cwd())
    task = narrowed.prompt_of(line) if options.task is None else options.task
    selector = _selector(options)
    selection = selector.select(task, _k(options, selector), options.budget)
    chosen = ", ".join(skill.id for skill in selection.skills) or "no skill"
    print(f"letta-gym: chosen: {chosen}", file=sys.stderr, flush=True)
    return narrowed.run(line, selection.skills)


def install(options: argparse.Namespace) -> int:
    """``letta-gym hook install``: add the hooks, and show every skill until the first prompt."""
    from letta_gym.letta import hook_settings

    place = hook_settings.Place.of(options.project)
    selector = _selector(options)
    k = _k(options, selector)
    # -P: what lies in the project's folder is no part of the program.
    words = [sys.executable, "-P", "-m", "letta_gym.cli", "hook", "serve", "--k", str(k)]
    named = options.policy == "default"  # that of the package, and no file
    words += ["--policy", options.policy if named else str(Path(options.policy).resolve())]
    words += ["--skills", str(Path(options.skills).resolve()), "--project", str(place.project)]
    words += [] if options.budget is None else ["--budget", str(options.budget)]
    words += ["--explore"] if options.explore else []
    if options.store is not None:
        url = options.store if "://" in options.store else str(Path(options.store).resolve())
        with _store(url) as store:  # what is wrong with it shows now
            store.agents.ensure(options.agent)
        words += ["--store", url, "--agent", options.agent]
    delivery = hook_settings.install(place, words, list(selector.shelf.library))
    for reason in delivery.refused.values():
        print(f"letta-gym: left as it is: {reason}", file=sys.stderr)
    shown = len(delivery.written) + len(delivery.current)
    print(f"{place.settings}: at most {k} of {shown} skills for each prompt")
    print(f"what was chosen and loaded: {place.decisions}")
    return 0


def uninstall(options: argparse.Namespace) -> int:
    """``letta-gym hook uninstall``: leave the project as it was."""
    from letta_gym.letta import hook_settings

    place = hook_settings.Place.of(options.project)
    found = hook_settings.uninstall(place)
    print("hooks removed" if found else f"no hooks of letta-gym in {place.settings}")
    return 0


def serve(options: argparse.Namespace) -> int:
    """``letta-gym hook serve``: load the policy and answer the hooks until nobody comes."""
    import logging

    from letta_gym.letta import hook_server, hook_settings
    from letta_gym.selection.exploration import Explorer

    place = hook_settings.Place.of(options.project)
    logging.basicConfig(
        filename=place.state / "log", level="INFO", format="%(asctime)s %(message)s"
    )
    selector = _selector(options)
    selector.select("Load the embedder.")  # so that the first prompt need not wait for it
    if options.explore:
        selector.explorer = Explorer()
    with contextlib.ExitStack() as stack:
        if options.store is not None:
            _attach(selector, options.store, options.agent, stack)
        narrowing = hook_server.Narrowing(
            selector,
            place.skills,
            place.decisions,
            _k(options, selector),
            options.budget,
            explore=options.explore,
        )
        if hook_settings.is_installed(place):  # it may have been removed while this was loading
            hook_server.serve(narrowing, place.socket, IDLE)
    return 0


def rate(options: argparse.Namespace) -> int:
    """``letta-gym hook rate``: say how a prompt went; it is learned at once."""
    from letta_gym.errors import ConfigError
    from letta_gym.letta import hook_server, hook_settings

    place = hook_settings.Place.of(options.project)
    one = hook_settings.decided(place, options.decision)
    id, loaded = one["decision_id"], one["loaded"]
    outcome = hook_server.rated(options.value, loaded)
    kept_in = _kept_in(place)
    if kept_in is not None:
        with _store(kept_in[0]) as store:
            known = store.history().one(id)
            if known is not None and known.outcome is not None and known.outcome.evidence:
                raise ConfigError(f"the prompt {one['prompt']!r} was rated already")
            if not hook_settings.rate(place, id, options.value, loaded):
                store.log(store.agents.ensure(kept_in[1])).recorded(id, outcome)
    elif not hook_settings.rate(place, id, options.value, loaded):
        raise ConfigError(
            "the rating cannot be kept: the server of the hooks ended, and there is no store; "
            "install the hooks with --store"
        )
    print(f"{one['prompt'][:60]!r}: {options.value:g} for {', '.join(loaded) or 'no skill'}")
    return 0


def add(commands: Any) -> None:
    """Register the commands of Letta Code below ``commands``."""
    one = commands.add_parser("exec", help="run a letta command with only the chosen skills")
    _add_choice(one)
    one.add_argument("--task", metavar="TEXT", help="the task, if it does not follow -p")
    one.add_argument("line", nargs="+", metavar="COMMAND", help='after --, such as: letta -p "..."')
    one.set_defaults(command=execute)

    hook = commands.add_parser("hook", help="choose skills in sessions of Letta Code")
    of_hook = hook.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for name, run, text in (
        ("install", install, "choose skills for each prompt in a project"),
        ("uninstall", uninstall, "remove the hooks and the skills that they put there"),
        ("serve", serve, "answer the hooks of a project (they start it themselves)"),
    ):
        one = of_hook.add_parser(name, help=text)
        one.set_defaults(command=run)
        one.add_argument("--project", default=".", metavar="DIR", help="its folder (this one)")
        if run is not uninstall:
            _add_choice(one)
            _add_record(one)
    one = of_hook.add_parser("rate", help="say how a prompt went, from 0 (bad) to 1 (good)")
    one.set_defaults(command=rate)
    one.add_argument("value", type=float, metavar="VALUE", help="from 0 to 1")
    one.add_argument("--project", default=".", metavar="DIR", help="its folder (this one)")
    one.add_argument("--decision", metavar="ID", help="of an earlier prompt (the latest)")


def _selector(options: argparse.Namespace) -> SkillSelector:
    from letta_gym.selection.runtime import SkillSelector

    return SkillSelector.load(options.policy, options.skills)


def _store(url: str) -> Store:
    from letta_gym.errors import MissingExtraError

    try:
        from letta_gym.store.store import Store
    except ModuleNotFoundError as error:
        raise MissingExtraError("serve", "the store") from error
    return Store(os.environ.get(STORE_VARIABLE) or url)


def _attach(selector: SkillSelector, url: str, agent: str, stack: contextlib.ExitStack) -> None:
    """Let the selector go on from a store, and keep there what it decides; if need be without."""
    import logging

    from letta_gym.errors import LettaGymError
    from letta_gym.letta.hook_record import Recorder

    try:
        store = stack.enter_context(_store(url))
        viewer = store.agents.ensure(agent)
        store.restore(selector.memory, viewer)
        selector.log = stack.enter_context(Recorder(store.log(viewer)))
    except LettaGymError as error:
        logging.getLogger(__name__).error("what is decided is not kept in the store: %s", error)


def _kept_in(place: Place) -> tuple[str, str] | None:
    """URL of the store and name of the agent that the hooks of a project were installed with."""
    if not place.command.is_file():
        return None
    words = place.command.read_text(encoding="utf-8").split("\0")
    if "--store" not in words:
        return None
    return words[words.index("--store") + 1], words[words.index("--agent") + 1]


def _k(options: argparse.Namespace, selector: SkillSelector) -> int:
    return selector.policy.usual_skills if options.k is None else int(options.k)


def _add_choice(one: argparse.ArgumentParser) -> None:
    one.add_argument("--policy", required=True, metavar="FILE", help="policy file")
    one.add_argument("--skills", required=True, metavar="DIR", help="folder of NAME/SKILL.md")
    one.add_argument(
        "-k", "--k", type=int, metavar="N", help="most skills to choose (3, or the policy's most)"
    )
    one.add_argument(
        "--budget", type=float, metavar="TOKENS", help="most tokens they may cost in all (no limit)"
    )


def _add_record(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--store",
        metavar="URL",
        help=f"database that keeps what is decided (none); {STORE_VARIABLE} goes first",
    )
    one.add_argument("--agent", default="letta-code", metavar="NAME", help="there (letta-code)")
    one.add_argument(
        "--explore", action="store_true", help="sample the choice, to train a policy on it"
    )
