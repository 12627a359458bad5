"""The tab of policies: who chooses, how each did, and who may choose next."""

from __future__ import annotations

import time
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from letta_gym.service.dashboard import style
from letta_gym.service.dashboard.api import Api, told


def tab(api: Api, key: gr.State) -> Any:
    """Lay the tab out; returns what fills it: a function, its inputs and outputs."""
    shown = gr.HTML(elem_id="policies")
    with gr.Row():
        digest = gr.Dropdown([], label="Policy", scale=3, elem_id="policy-pick")
        again = gr.Button("Refresh", scale=1, min_width=120)
    with gr.Row():
        promote = gr.Button("Promote", variant="primary", elem_id="promote")
        back = gr.Button("Roll back", elem_id="rollback")
        shadow = gr.Button("Mark as shadow", elem_id="shadow")
    file = gr.File(
        label="Upload a policy file (.safetensors)", file_types=[".safetensors"], height=140
    )

    async def fill(secret: str) -> tuple[Any, ...]:
        return await _shown(api, secret)

    async def act(secret: str, chosen: str | None, what: str) -> tuple[Any, ...]:
        if not chosen:
            raise told("No policy is picked", "Pick one from the list first.")
        after = await api.send(secret, "POST", f"/policies/{chosen}/{what}")
        gr.Info(f"The policy {after['digest'][:12]} is {after['status']} now.")
        return await _shown(api, secret)

    async def activate(secret: str, chosen: str | None) -> tuple[Any, ...]:
        return await act(secret, chosen, "promote")

    async def watch(secret: str, chosen: str | None) -> tuple[Any, ...]:
        return await act(secret, chosen, "shadow")

    async def undo(secret: str) -> tuple[Any, ...]:
        active = (await api.get(secret, "/policies"))["active"]
        return await act(secret, active, "rollback")

    async def upload(secret: str, path: str | None) -> tuple[Any, ...]:
        if path is None:
            return await _shown(api, secret)
        made = await api.send(secret, "POST", "/policies", content=Path(path).read_bytes())
        gr.Info(f"{made['digest'][:12]} is a candidate now: promote it to let it choose.")
        return await _shown(api, secret)

    outputs = [shown, digest]
    again.click(fill, [key], outputs)
    promote.click(activate, [key, digest], outputs)
    shadow.click(watch, [key, digest], outputs)
    back.click(undo, [key], outputs)
    file.upload(upload, [key, file], outputs)
    return fill, [key], outputs


async def _shown(api: Api, key: str) -> tuple[Any, ...]:
    listed = (await api.get(key, "/policies"))["items"]
    did = {one["digest"]: one for one in (await api.get(key, "/metrics/compare"))["items"]}
    choices = [(f"{one['digest'][:12]} · {one['status']}", one["digest"]) for one in listed]
    note = (
        '<p class="lg-note">Policies served different tasks at different times, so a difference '
        "need not be theirs.</p>"
    )
    return _table(listed, did) + note, gr.update(choices=choices, value=None)


def _table(listed: list[dict[str, Any]], did: dict[str, dict[str, Any]]) -> str:
    columns = [
        *(("Policy", False), ("Status", False), ("Kind", False), ("Decisions", True)),
        *(("Success", True), ("Tokens a task", True), ("Added", False)),
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
                style.UNKNOWN if figures is None else style.number(figures["tokens_per_task"]),
                time.strftime("%Y-%m-%d", time.localtime(one["added_at"])),
            )
        )
    marked = [at for at, one in enumerate(listed) if one["status"] == "active"]
    return style.table(columns, rows, marked)
