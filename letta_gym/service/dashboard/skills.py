"""The tab of skills: how they do, what they say, and a form to make and change them."""

from __future__ import annotations

import time
from html import escape
from typing import Any

import gradio as gr

from letta_gym.service.dashboard import style
from letta_gym.service.dashboard.api import Api, told

_HEADERS = ["Skill", "Success %", "Low", "High", "Uplift", "Used", "Tokens", "Owner", "Status"]
_TYPES = ["str", "number", "number", "number", "number", "number", "number", "str", "str"]
_WIDTHS = ["200px", "100px", "75px", "75px", "85px", "75px", "85px", "110px", "110px"]
_PICK = style.empty("No skill is open", "Pick a row of the table to see what the skill says.")
_ENOUGH = 5  # outcomes from which a skill is no longer called new


def tab(api: Api, key: gr.State) -> Any:
    """Lay the tab out; returns what fills it: a function, its inputs and outputs."""
    with gr.Row():
        words = gr.Textbox(
            label="Find", placeholder="Words of the name or description", scale=4, lines=1
        )
        again = gr.Button("Refresh", scale=1, min_width=120)
    table = gr.Dataframe(
        headers=_HEADERS,
        datatype=_TYPES,
        column_widths=_WIDTHS,
        interactive=False,
        max_height=420,
        label="Skills; click a heading to sort",
        elem_id="skills-table",
    )
    detail = gr.HTML(_PICK, elem_id="skill-detail")
    with gr.Accordion("Create or change a skill", open=False):
        name = gr.Textbox(label="Name", placeholder="invoice-matching", elem_id="skill-name")
        description = gr.Textbox(
            label="Description", placeholder="What it does, and when to use it", lines=2
        )
        body = gr.Textbox(label="Instructions (Markdown)", lines=8, max_lines=30)
        scope = gr.Radio(["private", "team", "shared"], value="private", label="Who may see it")
        with gr.Row():
            save = gr.Button("Save", variant="primary", elem_id="skill-save")
            remove = gr.Button("Remove", variant="stop", elem_id="skill-remove")

    async def fill(secret: str, sought: str) -> list[list[Any]]:
        return await _rows(api, secret, sought)

    async def show(secret: str, event: gr.SelectData) -> tuple[Any, ...]:
        picked = str(event.row_value[0])
        skill = await api.get(secret, f"/skills/{picked}")
        shown = skill["description"], skill["body"], skill["scope"]
        return _detail(skill), skill["id"], *shown

    async def keep(
        secret: str, sought: str, named: str, said: str, steps: str, seen: str
    ) -> tuple[Any, ...]:
        if not named.strip() or not said.strip():
            raise told("Something is missing", "A skill needs a name and a description.")
        content = {"description": said, "body": steps, "scope": seen}
        listed = await api.get(secret, "/skills", q=named, limit=500)
        if any(one["id"] == named for one in listed["items"]):
            skill = await api.send(secret, "PUT", f"/skills/{named}", content)
        else:
            skill = await api.send(secret, "POST", "/skills", {"name": named, **content})
        gr.Info(f"Saved {named}: the next choice knows it.")
        return _detail(skill), await _rows(api, secret, sought)

    async def take(secret: str, sought: str, named: str) -> tuple[Any, ...]:
        if not named.strip():
            raise told("No skill is named", "Pick a row of the table first.")
        await api.send(secret, "DELETE", f"/skills/{named}")
        gr.Info(f"Removed {named}: the next choice does without it.")
        return _PICK, await _rows(api, secret, sought), "", "", ""

    again.click(fill, [key, words], table)
    words.submit(fill, [key, words], table)
    table.select(show, [key], [detail, name, description, body, scope])
    save.click(keep, [key, words, name, description, body, scope], [detail, table])
    remove.click(take, [key, words, name], [detail, table, name, description, body])
    return fill, [key, words], [table]


async def _rows(api: Api, key: str, words: str) -> list[list[Any]]:
    listed = await api.get(key, "/skills", q=words, limit=500)
    figures = (await api.get(key, "/metrics/skills"))["items"]
    did = {one["id"]: one for one in figures}
    return [_row(skill, did.get(skill["id"])) for skill in listed["items"]]


def _row(skill: dict[str, Any], did: dict[str, Any] | None) -> list[Any]:
    empty: dict[str, Any] = {"count": 0, "mean": None, "low": None, "high": None}
    success = empty if did is None else did["success"]
    uplift = None if did is None else did["uplift"]
    return [
        skill["id"],
        *(None if success[x] is None else round(100 * success[x]) for x in ("mean", "low", "high")),
        None if uplift is None else round(100 * uplift),
        0 if did is None else did["chosen"],
        skill["tokens"],
        skill["owner"],
        _status(did, success["count"]),
    ]


def _status(did: dict[str, Any] | None, count: int) -> str:
    if did is None:
        return "unused"
    if did["harmful"]:
        return "harmful"
    return "new" if count < _ENOUGH else "in use"


def _detail(skill: dict[str, Any]) -> str:
    changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(skill["changed_at"]))
    facts = style.cards(
        ("Skill", skill["id"], f"{skill['owner']}, {skill['scope']}"),
        ("Tokens", style.number(skill["tokens"]), "of its instructions"),
        ("Changed", changed, skill["content_hash"][:12]),
    )
    text = skill["skill_md"] or skill["body"]
    return f'{facts}<pre class="lg-answer lg-mono">{escape(text)}</pre>'
