"""The commands of the store: ``letta-gym data ...``, and those of ``policy`` that need a store."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # every command imports what it needs
    from letta_gym.feedback.analytics import Point, PolicyRecord, Summary
    from letta_gym.feedback.beta import Rate
    from letta_gym.feedback.promotion import Ruling
    from letta_gym.store.promotion import Promotion
    from letta_gym.store.store import Store

OK, REFUSED = 0, 1

_ACTOR = "command line"


def export(options: argparse.Namespace) -> int:
    """``letta-gym data export``: write decisions and outcomes to a file."""
    with _store(options) as store:
        count = store.export(options.out, options.format, agent=options.agent)
    print(f"{options.out}: {count:,} decisions")
    return OK


def purge(options: argparse.Namespace) -> int:
    """``letta-gym data purge``: remove decisions of long ago."""
    with _store(options) as store:
        count = store.purge(options.older_than, actor=_ACTOR)
    print(f"removed {count:,} decisions older than {options.older_than:g} days")
    return OK


def seed(options: argparse.Namespace) -> int:
    """``letta-gym data seed``: offer a library to every agent."""
    from letta_gym.library.skills import SkillLibrary
    from letta_gym.library.suite import BUNDLED
    from letta_gym.store.stock import seed

    library = SkillLibrary.from_folder(options.skills or BUNDLED)
    with _store(options, create=True) as store:
        count = seed(store, tuple(library), actor=_ACTOR)
    print(f"{count} of {len(library)} skills are new or changed; every agent may choose from them")
    return OK


def embed(options: argparse.Namespace) -> int:
    """``letta-gym data embed``: keep the vectors of the offered skills that have none."""
    from letta_gym.library.cache import EmbeddingCache
    from letta_gym.library.embeddings import default_embedder
    from letta_gym.store.stock import embed

    embedder = default_embedder()
    if options.cache is not None:
        embedder = EmbeddingCache(options.cache, embedder)
    with _store(options) as store:
        count = embed(store, embedder, actor=_ACTOR)
    print(f"{count} skills were embedded with {embedder.identity.id}")
    return OK


def report(options: argparse.Namespace) -> int:
    """``letta-gym data report``: trends, policies and skills of a store."""
    import time

    from letta_gym.config import override, resolve
    from letta_gym.feedback.analytics import Period, compare_policies, summarise, trend
    from letta_gym.feedback.quality import QualityConfig

    quality = resolve(QualityConfig, override({}, options.set), "the quality tracker")
    with _store(options) as store:
        trials = [t for t in store.trials() if options.agent in (None, t.agent)]
        names = {version.key: version.skill for version in store.history().versions().values()}
    summary = summarise(trials, [*names], time.time(), price=options.price, quality=quality)
    points = trend(trials, Period[options.period.upper()])
    policies = compare_policies(trials)
    if options.json:
        said = {
            "summary": asdict(summary),
            "trend": [asdict(point) for point in points],
            "policies": [asdict(policy) for policy in policies],
            "skills": names,
        }
        print(json.dumps(said, indent=2))
    else:
        print(_report_text(summary, points, policies, names))
    return OK


def pack(options: argparse.Namespace) -> int:
    """``letta-gym transfer pack``: write the skills and outcomes of an agent to a bundle."""
    from letta_gym.store.transfers import Transfers

    with _store(options) as store:
        bundle = Transfers(store).pack(options.source, options.to)
    bundle.save(options.out)
    counts = f"{len(bundle.skills)} skills, {len(bundle.success):,} outcomes"
    print(f"{options.out}: {counts}, SHA-256 {bundle.digest}")
    return OK


def take(options: argparse.Namespace) -> int:
    """``letta-gym transfer take``: give the skills and evidence of a bundle to an agent."""
    from letta_gym.store.transfers import Conflict, Transfers

    with _store(options) as store:
        row = Transfers(store).take_in(
            options.bundle, options.to, conflicts=Conflict(options.conflicts), actor=_ACTOR
        )
    for skill, fate in row.content["skills"].items():
        print(f"{skill:32s} {fate}")
    return OK


def list_policies(options: argparse.Namespace) -> int:
    """``letta-gym policy list``: the policies of a store, the newest first."""
    with _store(options) as store:
        for row in store.policies.all():
            share = f" {row.share:.0%}" if row.status == "canary" else ""
            print(f"{row.digest[:12]}  {row.status + share:12s}  {row.path or '-'}")
    return OK


def shadow(options: argparse.Namespace) -> int:
    """``letta-gym policy shadow``: let a policy choose beside the active one."""
    with _store(options) as store:
        promotion = _promotion(store, options)
        row = promotion.shadow(_digest(promotion, options.policy))
    print(f"{row.digest[:12]} chooses in the shadow")
    return OK


def promote(options: argparse.Namespace) -> int:
    """``letta-gym policy promote``: make a policy the active one, or a canary."""
    with _store(options) as store:
        promotion = _promotion(store, options)
        digest = _digest(promotion, options.policy)
        if options.share is not None:
            ruling = promotion.canary(digest, options.share)
            print(f"{digest[:12]} takes {options.share:.0%} of the decisions", end="")
            print("" if ruling is None else f"; {ruling.reason}")
            return OK
        ruling = promotion.promote(digest, force=options.force)
    if ruling is None or ruling.promoted or options.force:
        print(f"{digest[:12]} is active", "" if ruling is None else f"({ruling.reason})")
        return OK
    print(f"{digest[:12]}: {ruling.reason}")
    return REFUSED


def rollback(options: argparse.Namespace) -> int:
    """``letta-gym policy rollback``: make the policy active that was so before."""
    with _store(options) as store:
        row = _promotion(store, options).rollback()
    print(f"{row.digest[:12]} is active again")
    return OK


def compare(options: argparse.Namespace) -> int:
    """``letta-gym policy compare``: what the log of the active policy says of another."""
    with _store(options) as store:
        promotion = _promotion(store, options)
        ruling = promotion.compare(_digest(promotion, options.policy))
    print(json.dumps(asdict(ruling), indent=2) if options.json else _ruling_text(ruling))
    return OK


def add(commands: Any) -> None:
    """Register ``data`` below ``commands``."""
    data = commands.add_parser("data", help="look after the store of decisions and outcomes")
    of_data = data.add_subparsers(title="commands", required=True, metavar="COMMAND")

    one = _command(of_data, "export", export, "write decisions and outcomes to a file")
    one.add_argument("--format", choices=("parquet", "jsonl"), default="jsonl", help="(jsonl)")
    one.add_argument("--out", required=True, metavar="FILE", help="where to write")
    one.add_argument("--agent", metavar="NAME", help="only this agent's (all)")

    one = _command(of_data, "report", report, "show trends, policies and skills")
    one.add_argument("--agent", metavar="NAME", help="only this agent's (all)")
    one.add_argument("--period", choices=("hour", "day"), default="day", help="of a trend (day)")
    one.add_argument("--price", type=float, default=0.0, metavar="P", help="of a token (0)")
    one.add_argument("--json", action="store_true", help="print JSON")
    _add_constants(one, "the quality tracker, such as half_life_days=30")

    one = _command(of_data, "seed", seed, "offer a library of skills to every agent")
    one.add_argument("--skills", metavar="DIR", help="folder of SKILL.md (the bundled ones)")

    one = _command(of_data, "embed", embed, "keep the vectors of the skills that have none")
    one.add_argument("--cache", metavar="FILE", help="keep them there too, for the service")

    one = _command(of_data, "purge", purge, "remove decisions of long ago, with their outcomes")
    one.add_argument(
        "--older-than", type=float, required=True, metavar="DAYS", help="age of what goes"
    )


def add_transfer(commands: Any) -> None:
    """Register ``transfer`` below ``commands``."""
    transfer = commands.add_parser("transfer", help="carry skills and evidence to other agents")
    of_transfer = transfer.add_subparsers(title="commands", required=True, metavar="COMMAND")
    one = _command(of_transfer, "pack", pack, "write skills and outcomes of an agent to a bundle")
    one.add_argument("--source", required=True, metavar="NAME", help="whose")
    one.add_argument("--to", metavar="NAME", help="for whom (for agents of another store)")
    one.add_argument("--out", required=True, metavar="FILE", help="where to write")
    one = _command(of_transfer, "take", take, "give what a bundle holds to an agent")
    one.add_argument("bundle", metavar="FILE", help="bundle")
    one.add_argument("--to", required=True, metavar="NAME", help="to whom")
    one.add_argument(
        "--conflicts",
        choices=("refuse", "keep", "take"),
        default="refuse",
        help="where it has another content of a skill (refuse)",
    )


def add_policy(of_policy: Any) -> None:
    """Register what ``policy`` does with a store."""
    _command(of_policy, "list", list_policies, "list the policies of a store")
    one = _command(of_policy, "shadow", shadow, "let a policy choose beside the active one")
    _add_policy(one)
    one = _command(of_policy, "promote", promote, "make a policy active, if the log speaks for it")
    _add_policy(one)
    one.add_argument(
        "--share", type=float, metavar="S", help="only for this share of the decisions, a canary"
    )
    one.add_argument("--force", action="store_true", help="whatever the log says; it is audited")
    _command(of_policy, "rollback", rollback, "make the policy active that was so before")
    one = _command(of_policy, "compare", compare, "judge a policy by the log of the active one")
    _add_policy(one)
    one.add_argument("--json", action="store_true", help="print JSON")


def _command(
    commands: Any, name: str, run: Callable[[argparse.Namespace], int], text: str
) -> argparse.ArgumentParser:
    described = text[0].upper() + text[1:] + "."
    parser: argparse.ArgumentParser = commands.add_parser(name, help=text, description=described)
    parser.add_argument(
        "--store", required=True, metavar="URL", help="database: a path, or postgresql://..."
    )
    parser.set_defaults(command=run)
    return parser


def _add_policy(command: argparse.ArgumentParser) -> None:
    command.add_argument("policy", metavar="POLICY", help="policy file, or digest of a known one")
    _add_constants(command, "the gate, such as margin=0.01")


def _add_constants(command: argparse.ArgumentParser, whose: str) -> None:
    command.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help=f"a constant of {whose}"
    )


def _store(options: argparse.Namespace, *, create: bool = False) -> Store:
    from letta_gym.errors import MissingExtraError

    try:
        from letta_gym.store.store import Store
    except ModuleNotFoundError as error:
        raise MissingExtraError("serve", "the store") from error
    return Store(options.store, create=create)


def _promotion(store: Store, options: argparse.Namespace) -> Promotion:
    from letta_gym.config import override, resolve
    from letta_gym.feedback.promotion import GateConfig
    from letta_gym.store.promotion import Promotion

    config = resolve(GateConfig, override({}, getattr(options, "set", [])), "the gate")
    return Promotion(store, config, actor=_ACTOR)


def _digest(promotion: Promotion, policy: str) -> str:
    """Digest of a policy file, which is made known, or of a policy that is known."""
    if Path(policy).is_file():
        return promotion.add(policy).digest
    return promotion.store.policies.get(policy).digest


def _report_text(
    summary: Summary,
    points: Sequence[Point],
    policies: Sequence[PolicyRecord],
    names: Mapping[str, str],
) -> str:
    from datetime import UTC, datetime

    def rate(one: Rate) -> str:
        return f"{one.value:5.1%} ({one.low:5.1%} to {one.high:5.1%})"

    whole = summary.whole
    if whole is None:
        return "no settled decision yet"
    lines = [
        f"{whole.decisions:,} settled decisions, success {rate(whole.success)}",
        f"a skill was loaded in {summary.coverage:.0%} of them, {whole.tokens:,.0f} tokens each; "
        f"{whole.tokens_saved:,.0f} saved in all",
        f"cost {summary.cost:.2f}, saved {summary.saved:.2f}; {summary.used:.0%} of skills used",
        "",
        "period (UTC)      decisions  success",
    ]
    for point in points:
        start = datetime.fromtimestamp(point.start, UTC)
        lines.append(f"{start:%Y-%m-%d %H:%M}  {point.decisions:9,}  {rate(point.success)}")
    lines += ["", "policy        decisions  success"]
    lines += [f"{p.policy[:12]}  {p.decisions:9,}  {rate(p.success)}" for p in policies]
    for title, skills in (("best skills", summary.top), ("worst skills", summary.bottom)):
        lines += ["", title]
        lines += [f"{names[s.key]:32s} {rate(s.success)}  {s.verdict}" for s in skills]
    lines += ["", "used together (times more often than by chance)"]
    lines += [f"{names[p.one]} + {names[p.other]}  {p.lift:.1f}" for p in summary.together]
    lines += ["", "proposed for pruning; nothing is removed"]
    lines += [f"{names[one.key]:32s} {one.reason}" for one in summary.prune]
    return "\n".join(lines)


def _ruling_text(ruling: Ruling) -> str:
    found = ruling.diagnostics
    lines = [
        f"candidate   {ruling.candidate:.4f}",
        f"active      {ruling.incumbent:.4f}",
        f"gain        {ruling.gain.value:+.4f}  ({ruling.gain.low:+.4f} to "
        f"{ruling.gain.high:+.4f})",
        f"decisions   {found.decisions:,}, effective sample size {found.effective:.0f}",
        f"weights     mean {found.mean_weight:.3f}, largest {found.largest_weight:.1f}, "
        f"clipped {found.clipped:.1%}",
        "",
        f"may be promoted: {ruling.reason}" if ruling.promoted else ruling.reason,
    ]
    return "\n".join(lines)
