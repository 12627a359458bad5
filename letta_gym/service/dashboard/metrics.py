"""The tab of metrics: how well choosing goes, and which skills help or harm."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from letta_gym.service.dashboard import charts, style
from letta_gym.service.dashboard.api import Api

_NONE = style.empty(
    "There is no decision yet", "Run a task in the first tab, or call POST /tasks/select."
)
_SPANS = [("Last day", 1), ("Last week", 7), ("Last 30 days", 30), ("Last year", 365)]


def tab(api: Api, key: gr.State) -> Any:
    """Lay the tab out; returns what fills it: a function, its inputs and outputs."""
    with gr.Row():
        days = gr.Dropdown(_SPANS, value=30, label="Time", scale=3)
        again = gr.Button("Refresh", scale=1, min_width=120)
    shown = gr.HTML(_NONE, elem_id="summary")
    plot = charts.of_success("Success by day", "trend")
    skills = gr.HTML()

    async def fill(secret: str, span: float) -> tuple[Any, ...]:
        glance = await api.get(secret, "/metrics/dashboard", days=span)
        width = "hour" if span <= 1 else "day"
        trend = await api.get(secret, "/metrics/trends/success", days=span, width=width)
        points = [(one["at"], one["value"]) for one in trend["points"]]
        return _summary(glance["summary"]), charts.success(points), _skills(glance)

    outputs = [shown, plot, skills]
    again.click(fill, [key, days], outputs)
    days.change(fill, [key, days], outputs)
    return fill, [key, days], outputs


def _summary(s: dict[str, Any]) -> str:
    if not s["decisions"]:
        return _NONE
    thumbs = f"{s['liked']} liked, {s['disliked']} disliked"
    return style.cards(
        ("Decisions", style.number(s["decisions"]), thumbs),
        ("Success", style.percent(s["success"]["mean"]), f"95 %: {style.mean(s['success'])}"),
        ("Uplift", style.signed(s["uplift"]), "over tasks without a skill; not the same tasks"),
        ("Tokens saved", style.percent(s["tokens_saved"]), "against loading every skill"),
        ("Coverage", style.percent(s["coverage"]), "of the tasks got a skill"),
        ("Failures", style.number(s["failures"]), "outcomes that teach nothing"),
    )


def _skills(glance: dict[str, Any]) -> str:
    parts = []
    for name, kind, key in (("Top skills", "good", "best"), ("Harmful skills", "bad", "harmful")):
        known = [one for one in glance[key] if one["success"]["count"]]
        if not known:
            continue
        rows = [
            (
                escape(one["id"]) + (" " + style.tag("harmful", kind) if kind == "bad" else ""),
                style.mean(one["success"]),
                style.signed(one["uplift"]),
                style.number(one["chosen"]),
            )
            for one in known
        ]
        columns = [("Skill", False), ("Success", True), ("Uplift", True), ("Chosen", True)]
        parts.append(style.title(name) + style.table(columns, rows))
    return "".join(parts)
