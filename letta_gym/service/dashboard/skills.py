"""The tab of skills: how they do, what they say, and a form to make and change them."""

from __future__ import annotations

import time
from html import escape
from typing import Any

import gradio as gr

from letta_gym.service.dashboard import charts, style
from letta_gym.service.dashboard.api import Api, told

_COLUMNS = (
    *(("Skill", "str", 200), ("Success %", "number", 100), ("Low", "number", 75)),
    *(("High", "number", 75), ("Uplift", "number", 85), ("Trend", "number", 80)),
    *(("Used", "number", 75), ("Tokens", "number", 85), ("Owner", "str", 110)),
    ("Status", "str", 110),
)
_HEADERS = [name for name, _, _ in _COLUMNS]
_TYPES = [kind for _, kind, _ in _COLUMNS]
_WIDTHS = [f"{width}px" for _, _, width in _COLUMNS]
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
    days = charts.of_success("Success by day", "skill-days")
    form = _Form()
    actions = _Actions(api)
    shown = [detail, days]
    again.click(actions.fill, [key, words], table)
    words.submit(actions.fill, [key, words], table)
    table.select(actions.show, [key], [*shown, *form.fields])
    form.save.click(actions.save, [key, words, *form.fields], [*shown, table])
    form.remove.click(actions.remove, [key, words, form.name], [*shown, table, *form.fields[:-1]])
    return actions.fill, [key, words], [table]


class _Form:
    """The form to create and change a skill."""

    def __init__(self) -> None:
        with gr.Accordion("Create or change a skill", open=False):
            self.name = gr.Textbox(
                label="Name", placeholder="invoice-matching", elem_id="skill-name"
            )
            description = gr.Textbox(
                label="Description", placeholder="What it does, and when to use it", lines=2
            )
            body = gr.Textbox(label="Instructions (Markdown)", lines=8, max_lines=30)
            scope = gr.Radio(["private", "team", "shared"], value="private", label="Who may see it")
            with gr.Row():
                self.save = gr.Button("Save", variant="primary", elem_id="skill-save")
                self.remove = gr.Button("Remove", variant="stop", elem_id="skill-remove")
        self.fields = [self.name, description, body, scope]


class _Actions:
    """What the table and the buttons do."""

    def __init__(self, api: Api) -> None:
        self.api = api

    async def fill(self, secret: str, sought: str) -> list[list[Any]]:
        """The rows of the table."""
        return await _rows(self.api, secret, sought)

    async def show(self, secret: str, event: gr.SelectData) -> tuple[Any, ...]:
        """Open the skill of a row."""
        skill = await self.api.get(secret, f"/skills/{event.row_value[0]}")
        opened = await self._opened(secret, skill)
        return *opened, skill["id"], skill["description"], skill["body"], skill["scope"]

    async def save(
        self, secret: str, sought: str, named: str, said: str, steps: str, seen: str
    ) -> tuple[Any, ...]:
        """Create or change a skill."""
        if not named.strip() or not said.strip():
            raise told("Something is missing", "A skill needs a name and a description.")
        content = {"description": said, "body": steps, "scope": seen}
        listed = await self.api.get(secret, "/skills", q=named, limit=500)
        if any(one["id"] == named for one in listed["items"]):
            skill = await self.api.send(secret, "PUT", f"/skills/{named}", content)
        else:
            skill = await self.api.send(secret, "POST", "/skills", {"name": named, **content})
        gr.Info(f"Saved {named}: the next choice knows it.")
        return *await self._opened(secret, skill), await self.fill(secret, sought)

    async def remove(self, secret: str, sought: str, named: str) -> tuple[Any, ...]:
        """Remove a skill."""
        if not named.strip():
            raise told("No skill is named", "Pick a row of the table first.")
        await self.api.send(secret, "DELETE", f"/skills/{named}")
        gr.Info(f"Removed {named}: the next choice does without it.")
        return _PICK, charts.HIDDEN, await self.fill(secret, sought), "", "", ""

    async def _opened(self, secret: str, skill: dict[str, Any]) -> tuple[Any, ...]:
        history = await self.api.get(secret, f"/skills/{skill['id']}/history")
        points = [(day["at"], day["success"]["mean"]) for day in history["days"]]
        return _detail(skill, history["versions"]), charts.success(points)


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
        _trend(did),
        0 if did is None else did["chosen"],
        skill["tokens"],
        skill["owner"],
        _status(did, success["count"]),
    ]


def _trend(did: dict[str, Any] | None) -> int | None:
    """Success of the last week less that of all time, in percentage points."""
    if did is None or not did["recent"]["count"]:
        return None
    difference: float = did["recent"]["mean"] - did["success"]["mean"]
    return round(100 * difference)


def _status(did: dict[str, Any] | None, count: int) -> str:
    if did is None:
        return "unused"
    if did["harmful"]:
        return "harmful"
    return "new" if count < _ENOUGH else "in use"


def _detail(skill: dict[str, Any], versions: list[dict[str, Any]]) -> str:
    changed = time.strftime("%Y-%m-%d %H:%M", time.localtime(skill["changed_at"]))
    facts = style.cards(
        ("Skill", skill["id"], f"{skill['owner']}, {skill['scope']}"),
        ("Tokens", style.number(skill["tokens"]), "of its instructions"),
        ("Changed", changed, skill["content_hash"][:12]),
    )
    text = skill["skill_md"] or skill["body"]
    return facts + _versions(versions) + f'<pre class="lg-answer lg-mono">{escape(text)}</pre>'


def _versions(versions: list[dict[str, Any]]) -> str:
    rows = [
        (
            f'<span class="lg-mono">{escape(one["content_hash"][:12])}</span>',
            time.strftime("%Y-%m-%d %H:%M", time.localtime(one["since"])),
            style.number(one["tokens"]),
            style.number(one["chosen"]),
            style.mean(one["success"]),
        )
        for one in versions
    ]
    columns = [("Version", False), ("Since", False), ("Tokens", True), ("Chosen", True)]
    marked = [at for at, one in enumerate(versions) if one["current"]]
    return style.title("Versions") + style.table([*columns, ("Success", True)], rows, marked)
