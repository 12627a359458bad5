"""``letta-gym exec`` and ``letta-gym hook``: choose skills in a person's own Letta Code."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # every command imports what it needs, so that --help is instant
    from letta_gym.selection.runtime import SkillSelector

IDLE = 3600.0  # seconds without an event after which the hooks' server ends


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
    words += ["--policy", str(Path(options.policy).resolve())]
    words += ["--skills", str(Path(options.skills).resolve()), "--project", str(place.project)]
    words += [] if options.budget is None else ["--budget", str(options.budget)]
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

    place = hook_settings.Place.of(options.project)
    logging.basicConfig(
        filename=place.state / "log", level="INFO", format="%(asctime)s %(message)s"
    )
    selector = _selector(options)
    selector.select("Load the embedder.")  # so that the first prompt need not wait for it
    narrowing = hook_server.Narrowing(
        selector, place.skills, place.decisions, _k(options, selector), options.budget
    )
    if hook_settings.is_installed(place):  # it may have been removed while this was loading
        hook_server.serve(narrowing, place.socket, IDLE)
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


def _selector(options: argparse.Namespace) -> SkillSelector:
    from letta_gym.selection.runtime import SkillSelector

    return SkillSelector.load(options.policy, options.skills)


def _k(options: argparse.Namespace, selector: SkillSelector) -> int:
    most = selector.policy.max_skills
    return min(3, most) if options.k is None else int(options.k)


def _add_choice(one: argparse.ArgumentParser) -> None:
    one.add_argument("--policy", required=True, metavar="FILE", help="policy file")
    one.add_argument("--skills", required=True, metavar="DIR", help="folder of NAME/SKILL.md")
    one.add_argument(
        "-k", "--k", type=int, metavar="N", help="most skills to choose (3, or the policy's most)"
    )
    one.add_argument(
        "--budget", type=float, metavar="TOKENS", help="most tokens they may cost in all (no limit)"
    )
