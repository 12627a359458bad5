"""The tab of policies: who chooses, who is on trial, what the gate says, who may choose next."""

from __future__ import annotations

import time
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from letta_gym.service.dashboard import style
from letta_gym.service.dashboard.api import Api, told

_ROLES = ("active", "canary", "shadow")
_UNJUDGED = style.empty(
    "No policy is judged yet", "Pick one above, then ask what the log of the active policy says."
)


def tab(api: Api, key: gr.State) -> Any:
    """Lay the tab out; returns what fills it: a function, its inputs and outputs."""
    shown = gr.HTML(elem_id="policies")
    with gr.Row():
        digest = gr.Dropdown([], label="Policy", scale=3, elem_id="policy-pick")
        again = gr.Button("Refresh", scale=1, min_width=120)
    with gr.Row():
        judge = gr.Button("What does the log say?", elem_id="judge")
        shadow = gr.Button("Into the shadow", elem_id="shadow")
        canary = gr.Button("As a canary", elem_id="canary")
        stop = gr.Button("End its trial", elem_id="stop")
    share = gr.Slider(1, 50, 10, step=1, label="Share of a canary, in percent", elem_id="share")
    ruling = gr.HTML(_UNJUDGED, elem_id="ruling")
    with gr.Row():
        promote = gr.Button("Promote", variant="primary", elem_id="promote")
        back = gr.Button("Roll back", elem_id="rollback")
    force = gr.Checkbox(
        label="Whatever the log says (the audit keeps that)", elem_id="force", container=False
    )
    file = gr.File(
        label="Upload a policy file (.safetensors)",
        file_types=[".safetensors"],
        height=140,
        elem_id="policy-file",
    )

    async def fill(secret: str) -> tuple[Any, ...]:
        return await _shown(api, secret)

    async def act(secret: str, chosen: str | None, what: str, body: Any = None) -> tuple[Any, ...]:
        path = f"/policies/{_picked(chosen)}/{what}"
        after = await api.send(secret, "POST", path, body)
        gr.Info(f"The policy {after['digest'][:12]} is {after['status']} now.")
        return await _shown(api, secret)

    async def activate(secret: str, chosen: str | None, forced: bool) -> tuple[Any, ...]:
        return await act(secret, chosen, "promote", {"force": forced})

    async def trial(secret: str, chosen: str | None, percent: float) -> tuple[Any, ...]:
        return await act(secret, chosen, "promote", {"share": percent / 100})

    async def watch(secret: str, chosen: str | None) -> tuple[Any, ...]:
        return await act(secret, chosen, "shadow")

    async def end(secret: str, chosen: str | None) -> tuple[Any, ...]:
        listed = (await api.get(secret, "/policies"))["items"]
        status = {one["digest"]: one["status"] for one in listed}.get(_picked(chosen))
        if status not in ("canary", "shadow"):
            raise told("It is on no trial", "Only a canary or a policy in the shadow is.")
        return await act(secret, chosen, "rollback")

    async def undo(secret: str) -> tuple[Any, ...]:
        active = (await api.get(secret, "/policies"))["active"]
        return await act(secret, active, "rollback")

    async def ask(secret: str, chosen: str | None) -> str:
        found = await api.get(secret, f"/policies/{_picked(chosen)}/comparison")
        return _ruling(_picked(chosen), found)

    async def upload(secret: str, path: str | None) -> tuple[Any, ...]:
        if path is None:
            return await _shown(api, secret)
        made = await api.send(secret, "POST", "/policies", content=Path(path).read_bytes())
        gr.Info(f"{made['digest'][:12]} is a candidate now: put it on trial, or promote it.")
        return await _shown(api, secret)

    outputs = [shown, digest]
    again.click(fill, [key], outputs)
    # A refusal is told in words, and the figures stay to be read: nothing is laid over them.
    quiet: Any = {"show_progress": "hidden"}
    judge.click(ask, [key, digest], [ruling], **quiet)
    promoted = promote.click(activate, [key, digest, force], outputs, **quiet)
    promoted.success(lambda: False, None, [force], **quiet)
    canary.click(trial, [key, digest, share], outputs, **quiet)
    shadow.click(watch, [key, digest], outputs, **quiet)
    stop.click(end, [key, digest], outputs, **quiet)
    back.click(undo, [key], outputs, **quiet)
    file.upload(upload, [key, file], outputs)
    return fill, [key], outputs


def _picked(chosen: str | None) -> str:
    if not chosen:
        raise told("No policy is picked", "Pick one from the list first.")
    return chosen


async def _shown(api: Api, key: str) -> tuple[Any, ...]:
    listed = (await api.get(key, "/policies"))["items"]
    did = {one["digest"]: one for one in (await api.get(key, "/metrics/compare"))["items"]}
    choices = [(f"{one['digest'][:12]} · {one['status']}", one["digest"]) for one in listed]
    note = (
        '<p class="lg-note">Policies served different tasks at different times, so a difference '
        "need not be theirs. What the log says weighs that.</p>"
    )
    page = _roles(listed) + style.title("All policies") + _table(listed, did) + note
    return page, gr.update(choices=choices, value=None)


def _roles(listed: list[dict[str, Any]]) -> str:
    """Who chooses, and who is on trial."""
    of = {one["status"]: one for one in listed}
    notes = {"active": "chooses", "canary": "nobody is one", "shadow": "nobody is in it"}
    cards = []
    for role in _ROLES:
        one = of.get(role)
        note = notes[role]
        if one is not None and role == "canary":
            note = f"chooses for {100 * one['share']:.0f} % of the tasks"
        elif one is not None and role == "shadow":
            note = _agreement(one["in_shadow"])
        cards.append((role.title(), style.UNKNOWN if one is None else one["digest"][:8], note))
    waiting = sum(one["status"] == "candidate" for one in listed)
    cards.append(("Candidates", str(waiting), "wait for a trial"))
    return style.cards(*cards)


def _agreement(found: Mapping[str, Any] | None) -> str:
    if not found or not found["choices"]:
        return "was not asked yet"
    same = found["same"] / found["choices"]
    return f"chose the same in {style.percent(same)} of {found['choices']:,} choices"


def _ruling(digest: str, found: Mapping[str, Any]) -> str:
    """The figures of the gate."""
    gain = found["gain"]
    verdict = "may be promoted" if found["promoted"] else "is refused"
    return style.title(f"{digest[:12]} {verdict}") + (
        style.cards(
            ("Gain", f"{gain['value']:+.3f}", f"{gain['low']:+.3f} to {gain['high']:+.3f}"),
            ("Its reward", f"{found['candidate']:.3f}", "estimated, a decision"),
            ("Active policy", f"{found['incumbent']:.3f}", "reward of a decision"),
            (
                "Effective sample",
                style.number(found["effective"]),
                f"of {found['decisions']:,} explored decisions",
            ),
        )
        + f'<p class="lg-note">{escape(found["reason"])}</p>'
    )


def _table(listed: list[dict[str, Any]], did: Mapping[str, dict[str, Any]]) -> str:
    columns = [
        *(("Policy", False), ("Status", False), ("Kind", False), ("Decisions", True)),
        *(("Success", True), ("Against the baseline", True), ("Tokens a task", True)),
        ("Added", False),
    ]
    rows = []
    for one in listed:
        figures = did.get(one["digest"])
        rows.append(
            (
                f'<span class="lg-mono">{escape(one["digest"][:12])}</span>',
                style.tag(one["status"], "good" if one["status"] == "active" else ""),
                "untrained baseline" if one["fallback"] else "trained",
                style.number(0 if figures is None else figures["decisions"]),
                style.UNKNOWN if figures is None else style.mean(figures["success"]),
                _lead(None if figures is None else figures["lead"]),
                style.UNKNOWN if figures is None else style.number(figures["tokens_per_task"]),
                time.strftime("%Y-%m-%d", time.localtime(one["added_at"])),
            )
        )
    marked = [at for at, one in enumerate(listed) if one["status"] == "active"]
    return style.table(columns, rows, marked)


def _lead(lead: Mapping[str, float] | None) -> str:
    if lead is None:
        return style.UNKNOWN
    ends = f"{100 * lead['low']:+.0f} to {100 * lead['high']:+.0f}"
    return f"{style.signed(lead['value'])} ({ends})"
