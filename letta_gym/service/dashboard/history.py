"""What the page shows of training runs: one as it goes, all as a table, some side by side."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import gradio as gr
import pandas as pd

from letta_gym.service.dashboard import style

NO_RUN = style.empty(
    "Nothing was trained yet",
    "Pick a configuration, and press Start training. You can watch it here, and close the page: "
    "it goes on.",
)
NOTHING_TO_COMPARE = style.empty(
    "Nothing is compared",
    "Pick two or more runs to see what was set otherwise, and what came of it.",
)

EXPLORING, LEARNED, UNTRAINED = "while exploring", "learned", "untrained"
COLOURS = {EXPLORING: "#94a3b8", LEARNED: "#0d9488", UNTRAINED: "#d97706"}
RETURN = {"selection/reward": EXPLORING, "greedy/return": LEARNED, "untrained/return": UNTRAINED}
SUCCESS = {
    "selection/success": EXPLORING,
    "greedy/success": LEARNED,
    "untrained/success": UNTRAINED,
}
FROM_LOG = {"log/snips": LEARNED}
"""Curves of the two plots: metric, and what it is called."""

_WORDS = {
    "running": ("training", ""),
    "finished": ("finished", "good"),
    "failed": ("failed", "bad"),
    "cancelled": ("cancelled", ""),
    "lost": ("lost", "bad"),
}
_RESULTS = (
    ("greedy/return", "Return, learned"),
    ("untrained/return", "Return, untrained"),
    ("greedy/success", "Success, learned"),
    ("untrained/success", "Success, untrained"),
    ("log/snips", "Estimated reward"),
)


def label(run: Mapping[str, Any]) -> str:
    """How a run is called in lists."""
    return f"{run['id']} · {run['config'] or run['kind']} · {_when(run)}"


def status(run: Mapping[str, Any]) -> str:
    """What a run does, in words."""
    if run["status"] != "running":
        return _WORDS[run["status"]][0]
    if run["cancelling"]:
        return "finishing its update"
    if run["steps"] and run["step"] >= run["steps"]:
        return "comparing"
    return "training" if run["step"] else "starting"


def panel(run: Mapping[str, Any] | None) -> str:
    """A run as it goes."""
    if run is None:
        return NO_RUN
    share = run["step"] / run["steps"] if run["steps"] else 0.0
    done = f"of {run['steps']:,}" if run["steps"] else "rounds" if run["kind"] == "log" else ""
    figures = style.cards(
        (f"Run {run['id']}", status(run).capitalize(), _took(run)),
        ("Done", style.number(run["step"]), done),
        *_result_cards(run["curves"]),
    )
    return figures + (style.bar(share) if run["steps"] else "") + _note(run)


def plot(run: Mapping[str, Any] | None, names: Mapping[str, str]) -> Any:
    """An update of a plot with the curves ``names`` of a run; hidden where it has too few."""
    points = [
        (step, value, name)
        for metric, name in names.items()
        for step, value in _points(run, metric)
    ]
    points += _level(run, names)
    if len({step for step, _, _ in points}) < 2:
        return gr.update(visible=False)
    frame = pd.DataFrame(points, columns=["step", "value", "policy"])
    low, high = float(frame["value"].min()), float(frame["value"].max())
    margin = 0.1 * (high - low) or 0.01
    limits = [round(low - margin, 3), round(high + margin, 3)]
    return gr.update(value=frame, y_lim=limits, visible=True)


def _level(run: Mapping[str, Any] | None, names: Mapping[str, str]) -> list[tuple[int, float, str]]:
    """The untrained policy stays as it is, from the start to where the run is."""
    return [
        (step, _points(run, metric)[-1][1], name)
        for metric, name in names.items()
        if name == UNTRAINED and run is not None and _points(run, metric)
        for step in (0, run["step"])
    ]


def table(runs: Sequence[Mapping[str, Any]], marked: int | None) -> str:
    """The runs, the newest first; that of the number ``marked`` stands out."""
    if not runs:
        return ""
    columns = [("Run", True), ("Status", False), ("Configuration", False), ("Done", True)]
    columns += [("Took", True), ("Started", False), ("Policy", False)]
    rows = [
        (
            str(run["id"]),
            style.tag(status(run), _WORDS[run["status"]][1]) + _small(run["error"] or ""),
            escape(run["config"] or f"by hand, {run['kind']}") + _small(_changes(run)),
            style.number(run["step"]),
            _took(run),
            f'<span class="lg-time">{_when(run)}</span>',
            f'<span class="lg-mono">{escape((run["policy_digest"] or style.UNKNOWN)[:12])}</span>',
        )
        for run in runs
    ]
    return style.table(columns, rows, [at for at, run in enumerate(runs) if run["id"] == marked])


def compared(runs: Sequence[Mapping[str, Any]]) -> str:
    """Results of some runs side by side, and the hyper-parameters in which they differ."""
    if len(runs) < 2:
        return NOTHING_TO_COMPARE
    columns = [("", False), *((f"Run {run['id']}", True) for run in runs)]
    results = [
        (name, *(_last(run, metric) for run in runs))
        for metric, name in _RESULTS
        if any(_points(run, metric) for run in runs)
    ]
    keys = {key: None for run in runs for key in run["hyper_parameters"]}
    settings = [
        (f'<span class="lg-mono">{escape(key)}</span>', *(escape(_value(run, key)) for run in runs))
        for key in keys
        if len({_value(run, key) for run in runs}) > 1
    ]
    if not settings:
        settings = [("Hyper-parameters", *("the same" for _ in runs))]
    return style.table(columns, [("Status", *map(status, runs)), *results, *settings])


def _result_cards(curves: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    if "log/snips" in curves:
        return [("Estimated reward", _end(curves, "log/snips"), "of the policy, from the log")]
    if "greedy/return" not in curves:
        return []
    return [
        (f"{name}, learned", _end(curves, f"greedy/{key}"), f"untrained: {_end(curves, other)}")
        for name, key, other in (
            ("Return", "return", "untrained/return"),
            ("Success", "success", "untrained/success"),
        )
    ]


def _note(run: Mapping[str, Any]) -> str:
    said = {
        "finished": "Its policy is a candidate: let it choose in the tab Policies.",
        "cancelled": "It was stopped, and can be resumed where it was.",
        "lost": "Its process is gone. Resume it: it continues from its last checkpoint.",
        "failed": "Put right what went wrong, then resume it.",
        "running": "It goes on when you close this page.",
    }[run["status"]]
    if run["status"] == "finished" and run["policy_digest"]:
        said = f"Its policy {run['policy_digest'][:12]} is a candidate: let it choose in Policies."
    wrong = "" if run["error"] is None else f'<div class="lg-answer">{escape(run["error"])}</div>'
    return f'{wrong}<p class="lg-note">{escape(said)}</p>{_legend(run)}'


def _legend(run: Mapping[str, Any]) -> str:
    if "greedy/return" not in run["curves"]:
        return ""
    said = {
        LEARNED: "as it would be exported",
        UNTRAINED: "in the same sessions",
        EXPLORING: "in training, trying other skills too",
    }
    return '<p class="lg-legend">' + "".join(
        f'<span><i style="background:{COLOURS[name]}"></i>{escape(f"{name}: {what}")}</span>'
        for name, what in said.items()
    )


def _when(run: Mapping[str, Any]) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(run["started_at"]))


def _took(run: Mapping[str, Any]) -> str:
    seconds = (run["ended_at"] or time.time()) - run["started_at"]
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6_000 else f"{seconds / 3_600:.1f} h"


def _changes(run: Mapping[str, Any]) -> str:
    return ", ".join(f"{key.removeprefix('train.')} {value}" for key, value in run["set"].items())


def _small(text: str) -> str:
    return f'<div class="lg-note">{escape(text)}</div>' if text else ""


def _points(run: Mapping[str, Any] | None, metric: str) -> list[tuple[int, float]]:
    if run is None or metric not in run["curves"]:
        return []
    curve = run["curves"][metric]
    return list(zip(curve["steps"], curve["values"], strict=True))


def _last(run: Mapping[str, Any], metric: str) -> str:
    points = _points(run, metric)
    return f"{points[-1][1]:.3f}" if points else style.UNKNOWN


def _end(curves: Mapping[str, Any], metric: str) -> str:
    return f"{curves[metric]['values'][-1]:.3f}" if metric in curves else style.UNKNOWN


def _value(run: Mapping[str, Any], key: str) -> str:
    value = run["hyper_parameters"].get(key)
    return style.UNKNOWN if value is None else str(value)
