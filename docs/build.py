"""Writes the parts of the documentation that the code knows best: ``python -m docs.build``.

A part stands between the marks ``<!-- NAME:start -->`` and ``<!-- NAME:end -->``. A test asserts
that the files are what this module would write.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from agents.chart import CHART_HEIGHT, draw_line_chart
from agents.svg import Svg
from benchmarks.figures import RESULTS
from letta_gym.envs.checks import CHECKS_ANY, CHECKS_SINGLE, CHECKS_VECTOR, CHECKS_WRAPPER
from letta_gym.files import write_atomically
from letta_gym.selection.observation import CONTEXT, FEATURE, FEATURES, Column

DOCS = Path(__file__).parent


def columns(table: Sequence[Column]) -> str:
    """A Markdown table of observation columns, in their order."""
    lines = ["| # | column | low | high | from | meaning |", "|--:|---|--:|--:|---|---|"]
    lines += [
        f"| {i} | `{c.name}` | {c.low:g} | {c.high:g} | {c.source} | {c.meaning} |"
        for i, c in enumerate(table)
    ]
    return "\n".join(lines)


def checks(functions: Iterable[Callable[..., None]]) -> str:
    """A Markdown list of checks, each with its sentence."""
    lines = []
    for function in functions:
        sentence = (function.__doc__ or "").split("\n\n")[0]
        lines.append(f"- `{function.__name__}`: {' '.join(sentence.replace('``', '`').split())}")
    return "\n".join(lines)


def wrappers(classes: Iterable[type]) -> str:
    """A Markdown list of wrappers, each with its first sentence and what it says of the optimum."""
    lines = []
    for wrapper in classes:
        paragraphs = (wrapper.__doc__ or "").split("\n\n")
        optimum = next(part for part in paragraphs if part.strip().startswith("The optimum:"))
        text = " ".join(f"{paragraphs[0]} {optimum}".replace("``", "`").split())
        lines.append(f"- `{wrapper.__name__}`: {text}")
    return "\n".join(lines)


def comparison(name: str, metrics: Mapping[str, str]) -> str:
    """A Markdown table of a kept comparison: agents by ``metrics``, mean and half the interval."""
    path = RESULTS / "learning" / f"{name}.json"
    agents = json.loads(path.read_text(encoding="utf-8"))["agents"]
    lines = [
        "| agent | " + " | ".join(metrics.values()) + " |",
        "|---" + "|--:" * len(metrics) + "|",
    ]
    for agent, found in agents.items():
        cells = [_interval(found[metric]) for metric in metrics]
        lines.append(f"| `{agent}` | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _interval(bounds: Mapping[str, float | None]) -> str:
    mean, high = bounds["mean"], bounds["high"]
    if mean is None:
        return "-"
    return f"{mean:.3f}" if high is None else f"{mean:.3f} ± {high - mean:.3f}"


METATOOL = {
    "hit_at_1/seen": "seen",
    "hit_at_1/new@0": "new",
    "hit_at_1/new@5": "after 5",
    "hit_at_1/new@20": "after 20",
    "hit_at_1/new@50": "after 50",
}
BFCL = {
    "none_recall": "none recall",
    "none_precision": "none precision",
    "hit_at_1": "Hit@1",
    "success": "success",
    "utility": "utility",
}


def first_day(agents: Mapping[str, str]) -> str:
    """A Markdown table of the package's policy before any outcome, beside retrieval."""
    found = _kept("learning")
    metrics = {"hit_at_1": "Hit@1", **BFCL, "skills_per_task": "skills"}
    lines = ["| suite | agent | " + " | ".join(metrics.values()) + " |"]
    lines.append("|---|---" + "|--:" * len(metrics) + "|")
    for suite in ("metatool", "bfcl", "llmrouter"):
        for agent, shown in agents.items():
            keys = (f"{agent}_{suite}_{metric}" for metric in metrics)
            cells = [f"{found[key]['value']:.3f}" if key in found else "-" for key in keys]
            lines.append(f"| {suite} | {shown} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ablation() -> str:
    """A Markdown table of what each column of the features adds, on metatool and on the mock."""
    kept, lines = _kept("learning"), ["| column | metatool | mock |", "|---|---|---|"]
    for name in FEATURE:
        cells = []
        for prefix in ("gain_of_", "mock_gain_of_"):
            mean, low, high = (
                kept[f"{prefix}{name}_{bound}"]["value"] for bound in ("mean", "low", "high")
            )
            cells.append(f"{mean:+.4f} [{low:+.4f}, {high:+.4f}]")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _kept(benchmark: str) -> Mapping[str, Mapping[str, Any]]:
    kept = json.loads((RESULTS / f"{benchmark}.json").read_text(encoding="utf-8"))
    found: Mapping[str, Mapping[str, Any]] = kept["figures"]
    return found


FIRST_DAY = {
    "hybrid": "retrieval",
    "tuned_hybrid": "retrieval, tuned",
    "default": "`default`",
}


def figures(benchmark: str, *groups: str) -> str:
    """A Markdown table of what a benchmark measured last, and where; of ``groups`` or of all.

    A group is what stands before the first slash of a figure's name.
    """
    kept = json.loads((RESULTS / f"{benchmark}.json").read_text(encoding="utf-8"))
    versions = ", ".join(f"{name} {version}" for name, version in kept["versions"].items())
    lines = [f"On {kept['machine']}, with {versions}:", ""]
    lines += ["| figure | value | target | holds |", "|---|--:|--:|---|"]
    for name, figure in kept["figures"].items():
        if groups and name.split("/")[0] not in groups:
            continue
        shown = _value(figure["value"])
        holds = {None: "", True: "yes", False: "no"}[figure["holds"]]
        lines.append(f"| `{name}` | {shown} | {figure['target'] or ''} | {holds} |")
    return "\n".join(lines)


def _value(value: float | bool) -> str:
    if isinstance(value, bool):
        return str(value)
    return f"{value:,.4g}" if isinstance(value, float) and value < 1000 else f"{value:,.0f}"


SHOWN = {
    "ppo": "PPO",
    "ppo_long": "PPO, longer",
    "blank": "PPO, blank start",
    "maskable": "MaskablePPO",
    "sb3": "SB3 PPO",
    "linucb_per_skill": "LinUCB per skill",
    "thompson": "Thompson",
    "linucb": "LinUCB",
}
"""Contenders of the plot, and their names there."""


def learning_curves() -> str:
    """The learning curves that were measured last, as SVG."""
    kept = json.loads(CURVES.read_text(encoding="utf-8"))
    series = {
        shown: (kept[name]["steps"], kept[name]["mean"])
        for name, shown in SHOWN.items()
        if name in kept
    }
    picture = Svg(CHART_HEIGHT)
    draw_line_chart(picture, series, "Learning in a fixed world", "decisions", "return of a task")
    return picture.source()


def curves() -> str:
    """The table of what was learned, below the plot of it where curves are kept."""
    shown = "![Return by decisions](learning.svg)\n\n" if CURVES.is_file() else ""
    return shown + figures("curves")


CURVES = RESULTS / "curves" / "learning.json"
PICTURES: Mapping[str, tuple[Path, Callable[[], str]]] = {"learning.svg": (CURVES, learning_curves)}
"""Picture of this folder -> the file that it is made from, and what makes it."""

GENERATED: Mapping[str, Mapping[str, Callable[[], str]]] = {
    "environment.md": {
        "features": lambda: columns(FEATURES),
        "context": lambda: columns(CONTEXT),
        "checks-single": lambda: checks(CHECKS_SINGLE),
        "checks-vector": lambda: checks(CHECKS_VECTOR),
    },
    "replay.md": {
        "metatool": lambda: comparison("metatool", METATOOL),
        "bfcl": lambda: comparison("bfcl", BFCL),
        "ablation": ablation,
        "default": lambda: first_day(FIRST_DAY),
    },
    "service.md": {"figures": lambda: figures("service")},
    "speed.md": {
        "speed": lambda: figures("speed"),
        "curves": curves,
        "ray": lambda: figures("ray"),
    },
    "letta.md": {
        "rest": lambda: figures("letta", "rest", "learning", "faulty", "killed"),
    },
    "letta-code.md": {
        "code": lambda: figures("letta", "code", "hook"),
    },
    "algorithms.md": {
        "wrappers": lambda: wrappers(CHECKS_WRAPPER),
        "checks-any": lambda: checks(CHECKS_ANY),
        "checks-wrapper": lambda: checks(CHECKS_WRAPPER.values()),
    },
}
"""File of this folder -> name of a part -> what makes it."""


def built(name: str, text: str) -> str:
    """``text`` of the file ``name`` with every generated part made anew.

    Raises:
        ValueError: a part does not stand in the text exactly once.
    """
    for part, make in GENERATED[name].items():
        marks = re.compile(f"(<!-- {part}:start -->\n).*?(<!-- {part}:end -->)", re.DOTALL)
        text, found = marks.subn(rf"\g<1>{_literal(make())}\n\g<2>", text)
        if found != 1:
            raise ValueError(f"{name} must hold the marks of {part!r} once; found {found}")
    return text


def _literal(text: str) -> str:
    return text.replace("\\", "\\\\")


def main() -> None:
    """Write every file that has generated parts, and every picture whose figures are kept."""
    for name, (source, make) in PICTURES.items():
        if source.is_file():
            write_atomically(DOCS / name, make().encode())
    for name in GENERATED:
        path = DOCS / name
        write_atomically(path, built(name, path.read_text(encoding="utf-8")).encode())


if __name__ == "__main__":
    main()
