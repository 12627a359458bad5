"""The ``letta-gym`` command; the store and the service bring commands of their own."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from letta_gym.letta import commands as letta_commands
from letta_gym.service import commands as service_commands
from letta_gym.store import commands as store_commands

if TYPE_CHECKING:  # every command imports what it needs, so that --help is instant
    from letta_gym.library.vectors import Float
    from letta_gym.selection.choice import Selection
    from letta_gym.selection.policy_file import PolicyFile

Command = Callable[[argparse.Namespace], int]

OK, PROBLEMS, ERROR = 0, 1, 2
"""Exit codes: all well; broken skill files were found; nothing was done, stderr says why."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; errors are one line on stderr."""
    options = _parser().parse_args(arguments)
    from letta_gym.errors import LettaGymError

    command: Command = options.command
    try:
        code = command(options)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, `head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except (LettaGymError, OSError) as error:
        print(f"letta-gym: {' '.join(str(error).split())}", file=sys.stderr)
        return ERROR
    return code


def select(options: argparse.Namespace) -> int:
    """``letta-gym select``: choose skills for one task."""
    import numpy as np

    from letta_gym.selection.runtime import SkillSelector

    vector = None if options.embedding is None else _read_vector(options.embedding)
    selector = SkillSelector.load(
        options.policy, options.skills, rng=np.random.default_rng(options.seed)
    )
    k = selector.policy.usual_skills if options.k is None else options.k
    selection = selector.select(options.task, k, options.budget, options.explore, vector)
    _warn_of_problems(selector.shelf.library.problems)
    print(_selection_json(selection) if options.json else _selection_text(selection))
    return OK


def validate(options: argparse.Namespace) -> int:
    """``letta-gym skills validate``: list every broken file of a tree."""
    from letta_gym.library.skills import SkillLibrary

    library = SkillLibrary.from_folder(options.folder)
    for problem in library.problems:
        print(f"{problem.path}: {' '.join(problem.reason.split())}")
    tokens = sum(skill.tokens for skill in library)
    broken = len(library.problems)
    print(f"{len(library)} valid skills, about {tokens:,} tokens in all; {broken} broken files")
    return PROBLEMS if broken else OK


def inspect(options: argparse.Namespace) -> int:
    """``letta-gym policy inspect``: show what a policy file holds."""
    from letta_gym.selection.observation import schema_hash
    from letta_gym.selection.policy_file import PolicyFile

    file = PolicyFile.load(options.policy)
    shown: dict[str, Any] = {"digest": file.digest}
    shown |= {"fits_this_version": file.header.schema_hash == schema_hash()}
    shown |= file.header.model_dump(mode="json")
    shown["tensors"] = {name: list(tensor.shape) for name, tensor in file.tensors.items()}
    shown["probes"] = list(file.probes.shape)
    print(json.dumps(shown, indent=2) if options.json else _policy_text(shown, file))
    return OK


def embed(options: argparse.Namespace) -> int:
    """``letta-gym embed``: write the vectors of a suite folder."""
    from letta_gym.library.embeddings import default_embedder
    from letta_gym.library.suite import Suite

    suite = Suite.load(options.folder, stored_vectors=False)
    _warn_of_problems(suite.library.problems)
    embedder = default_embedder()
    path = suite.embed(embedder).write_vectors(options.folder)
    counts = f"{len(suite.library)} skills and {len(suite.tasks)} tasks"
    print(f"{path}: {counts} by {embedder.identity}")
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="letta-gym",
        description="Choose the skills that an agent should load for a task.",
        epilog="Exit codes: 0 all well, 1 broken skill files, 2 an error, told on stderr.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_select(commands)

    skills = commands.add_parser("skills", help="look after a folder of skills")
    of_skills = skills.add_subparsers(title="commands", required=True, metavar="COMMAND")
    one = _command(of_skills, "validate", validate, "list every broken file and the reason")
    one.add_argument("folder", metavar="DIR", help="folder with NAME/SKILL.md below it")

    policy = commands.add_parser("policy", help="look into a policy file")
    of_policy = policy.add_subparsers(title="commands", required=True, metavar="COMMAND")
    one = _command(of_policy, "inspect", inspect, "show header, provenance, evaluation and tensors")
    one.add_argument("policy", metavar="FILE", help="policy file, or default")
    one.add_argument("--json", action="store_true", help="print JSON")
    store_commands.add_policy(of_policy)

    one = _command(
        commands,
        "embed",
        embed,
        "write the vectors of a suite, with an installed embedder",
    )
    one.add_argument("folder", metavar="DIR", help="suite folder: tasks.jsonl and its skills")
    letta_commands.add(commands)
    store_commands.add(commands)
    store_commands.add_transfer(commands)
    service_commands.add(commands)
    return parser


def _add_select(commands: Any) -> None:
    one = _command(commands, "select", select, "choose skills for a task, and say why")
    one.add_argument("task", metavar="TASK", help="the task in words; after -- it may begin with -")
    one.add_argument("--policy", required=True, metavar="FILE", help="policy file, or default")
    one.add_argument("--skills", required=True, metavar="DIR", help="folder of NAME/SKILL.md")
    one.add_argument(
        "-k", "--k", type=int, metavar="N", help="most skills to choose (3, or the policy's most)"
    )
    one.add_argument(
        "--budget", type=float, metavar="TOKENS", help="most tokens they may cost in all (no limit)"
    )
    one.add_argument("--json", action="store_true", help="print JSON")
    one.add_argument(
        "--explore", action="store_true", help="sample from the policy instead of taking its best"
    )
    one.add_argument("--seed", type=_seed, metavar="N", help="seed of --explore (by default new)")
    one.add_argument(
        "--embedding", metavar="FILE", help="vector of the task as .npy; then no embedder is needed"
    )


def _seed(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"must be a whole number of at least 0; got {text!r}")
    return int(text)


def _command(commands: Any, name: str, run: Command, text: str) -> argparse.ArgumentParser:
    described = text[0].upper() + text[1:] + "."
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=described)
    parser.set_defaults(command=run)
    return parser


def _read_vector(path: str) -> Float:
    import numpy as np

    from letta_gym.errors import EmbeddingError

    try:
        vector: Float = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise EmbeddingError(f"cannot read the embedding {path}: {error}") from error
    if not isinstance(vector, np.ndarray):
        raise EmbeddingError(f"the embedding {path} must be one .npy array, not an archive")
    return vector


def _warn_of_problems(problems: Sequence[object]) -> None:
    if problems:
        print(
            f"letta-gym: {len(problems)} broken skill files were left out; "
            "list them with: letta-gym skills validate DIR",
            file=sys.stderr,
        )


def _selection_json(selection: Selection) -> str:
    chosen = [
        {"skill": skill.id, "score": score - selection.stop_score, "tokens": skill.tokens}
        for skill, score in zip(selection.skills, selection.scores, strict=True)
    ]
    shown = {
        "skills": chosen,
        "tokens": selection.tokens,
        "log_propensity": selection.log_propensity,
        "explored": selection.explored,
        "policy_digest": selection.policy_digest,
        "candidates": selection.explain().to_json(),
    }
    return json.dumps(shown, indent=2)


def _selection_text(selection: Selection) -> str:
    chosen = ", ".join(skill.id for skill in selection.skills) or "no skill"
    lines = [f"chosen: {chosen} ({selection.tokens:,} tokens)"]
    if selection.explored:
        lines.append(f"sampled with the log-probability {selection.log_propensity:.3f}")
    lines += ["", str(selection.explain()), ""]
    lines.append("A score above 0 beats loading nothing more; * marks what was chosen.")
    return "\n".join(lines)


def _policy_text(shown: dict[str, Any], file: PolicyFile) -> str:
    header = file.header
    fits = "as this version computes" if shown["fits_this_version"] else "of another version"
    weights = sum(tensor.size for tensor in file.tensors.values())
    lines = [
        f"digest      {file.digest}",
        f"format      {header.format_version}",
        f"embedder    {header.embedder.identity}",
        f"columns     {len(header.columns)}, {fits} (schema {header.schema_hash[:12]})",
        f"weights     {weights:,} in {len(file.tensors)} tensors",
    ]
    for title in ("dimensions", "hyper_parameters", "provenance", "evaluation", "tensors"):
        lines += ["", title, *_rows(shown[title])]
    return "\n".join(lines)


def _rows(values: dict[str, Any], indent: str = "  ") -> list[str]:
    rows: list[str] = []
    for name, value in values.items():
        if isinstance(value, dict):
            rows += [f"{indent}{name}", *_rows(value, indent + "  ")]
        else:
            rows.append(f"{indent}{name:24s} {json.dumps(value)}")
    return rows or [f"{indent}-"]


if __name__ == "__main__":
    sys.exit(main())
