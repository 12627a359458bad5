"""The tab of transfers: skills of others that would help, and bundles taken in and given out."""

from __future__ import annotations

import tempfile
import time
from html import escape
from pathlib import Path
from typing import Any

import gradio as gr

from letta_gym.service.dashboard import style
from letta_gym.service.dashboard.api import Api, told

_NO_TASKS = style.empty(
    "This agent has no tasks yet",
    "Once it has run some, skills that did well for others on tasks like them are listed here.",
)
_NO_OFFERS = style.empty(
    "Nothing is recommended",
    "No agent that this one may see did well, on tasks like its own, with a skill that it lacks. "
    "Agents let others see what they do by their scope.",
)
_FATES = {
    "new": ("new", "good"),
    "same": ("known already; its evidence counts", ""),
    "kept": ("its own was kept", ""),
    "taken": ("the bundle's was taken", "good"),
}


def tab(api: Api, key: gr.State) -> Any:
    """Lay the tab out; returns what fills it: a function, its inputs and outputs."""
    with gr.Row():
        agent = gr.Dropdown([], label="For the agent", scale=3, elem_id="transfer-agent")
        again = gr.Button("Refresh", scale=1, min_width=120)
    shown = gr.HTML(_NO_TASKS, elem_id="transfers")
    with gr.Row():
        offer = gr.Dropdown([], label="Recommended skill", scale=3, elem_id="transfer-offer")
        accept = gr.Button("Take it over", variant="primary", scale=1, elem_id="transfer-accept")
    choices = _Choices()
    with gr.Row(equal_height=False):
        source = gr.Dropdown([], label="Pack what this agent has", elem_id="transfer-source")
        pack = gr.Button("Make a bundle", elem_id="transfer-pack")
    packed = gr.File(label="The bundle", visible=False, elem_id="transfer-packed", height=100)
    given = gr.File(
        label="Take in a bundle", file_types=[".bundle"], height=140, elem_id="transfer-file"
    )
    _Actions(api, key, agent, shown, choices).connect(offer, accept, source, pack, packed, given)

    async def fill(secret: str, chosen: str | None) -> tuple[Any, ...]:
        names = [one["name"] for one in (await api.get(secret, "/agents"))["items"]]
        picked = chosen if chosen in names else next(iter(names), None)
        filled = await _seen(api, secret, picked)
        named = gr.update(choices=names, value=picked)
        return named, gr.update(choices=names), *filled

    outputs = [agent, source, shown, offer]
    again.click(fill, [key, agent], outputs)
    agent.input(fill, [key, agent], outputs)
    return fill, [key, agent], outputs


class _Choices:
    """What is asked where the agent has another content under the name of a skill."""

    def __init__(self) -> None:
        self.bundle = gr.State(b"")
        self.names: gr.State = gr.State([])
        with gr.Group(visible=False, elem_id="transfer-conflicts") as self.group:
            self.taken = gr.CheckboxGroup(
                [],
                label="The agent has another content of these skills",
                info="Tick those that the bundle's content shall take the place of.",
            )
            self.go = gr.Button("Take the bundle in so", elem_id="transfer-go")
        self.result = gr.HTML(elem_id="transfer-result")

    @property
    def outputs(self) -> list[Any]:
        """What :func:`_taken_in` and :func:`_asked` give values for."""
        return [self.bundle, self.names, self.group, self.taken, self.result]


class _Actions:
    """What the buttons of the tab do."""

    def __init__(
        self, api: Api, key: gr.State, agent: gr.Dropdown, shown: gr.HTML, choices: _Choices
    ) -> None:
        self.api, self.key, self.agent, self.shown, self.choices = api, key, agent, shown, choices

    def connect(
        self,
        offer: gr.Dropdown,
        accept: gr.Button,
        source: gr.Dropdown,
        pack: gr.Button,
        packed: gr.File,
        given: gr.File,
    ) -> None:
        """Let every button do what it says."""
        c = self.choices
        whose = [self.key, self.agent]
        accept.click(self.accept, [*whose, offer], c.outputs)
        given.upload(self.upload, [*whose, given], c.outputs)
        c.go.click(self.decide, [*whose, c.bundle, c.names, c.taken], c.outputs)
        pack.click(self.pack, [*whose, source], packed)

    async def accept(self, secret: str, agent: str | None, offer: str | None) -> tuple[Any, ...]:
        """Take a recommended skill over, with its outcomes."""
        if not offer:
            raise told("No skill is picked", "Pick a recommended one from the list first.")
        source, content = offer.split("/", 1)
        query = {"source": source, "content_hash": content}
        data = await self.api.get(secret, "/transfers/bundle", agent=agent, **query)
        return await self.take(secret, agent, data, {})

    async def upload(self, secret: str, agent: str | None, path: str | None) -> tuple[Any, ...]:
        """Take a file in."""
        data = b"" if path is None else Path(path).read_bytes()
        return await self.take(secret, agent, data, {})

    async def decide(
        self, secret: str, agent: str | None, data: bytes, names: list[str], taken: list[str]
    ) -> tuple[Any, ...]:
        """Take the bundle in, with what was chosen for each conflict."""
        keep = [name for name in names if name not in taken]
        return await self.take(secret, agent, data, {"keep": keep, "take": taken})

    async def take(
        self, secret: str, agent: str | None, data: bytes, choices: dict[str, list[str]]
    ) -> tuple[Any, ...]:
        """Take a bundle in, or ask what to do about its conflicts."""
        try:
            done = await self.api.send(
                secret, "POST", "/transfers", content=data, query=choices, agent=agent
            )
        except gr.Error as refused:
            problem = getattr(refused, "problem", {})
            names = [one["where"] for one in problem.get("errors", [])]
            if problem.get("status") != 409 or not names:
                raise
            return data, names, gr.update(visible=True), gr.update(choices=names, value=[]), ""
        gr.Info("Taken in: the next choice knows.")
        return b"", [], gr.update(visible=False), gr.update(choices=[], value=[]), _done(done)

    async def pack(self, secret: str, agent: str | None, source: str | None) -> Any:
        """Make a bundle to download."""
        if not source:
            raise told("No agent is picked", "Pick the one whose skills are to be packed.")
        data = await self.api.get(secret, "/transfers/bundle", agent=agent, source=source)
        folder = Path(tempfile.mkdtemp(prefix="letta-gym-"))
        path = folder / f"{''.join(c if c.isalnum() else '-' for c in source)}.bundle"
        path.write_bytes(data)
        return gr.update(value=str(path), visible=True)


async def _seen(api: Api, key: str, agent: str | None) -> tuple[Any, ...]:
    if agent is None:
        return _NO_TASKS, gr.update(choices=[], value=None)
    found = await api.get(key, "/transfers/recommendations", agent=agent)
    taken = (await api.get(key, "/transfers", agent=agent))["items"]
    offers = [
        (f"{one['id']} · {one['agents'][0]}", f"{one['agents'][0]}/{one['content_hash']}")
        for one in found["items"]
    ]
    html = _recommended(found) + _received(taken)
    return html, gr.update(choices=offers, value=None)


def _recommended(found: dict[str, Any]) -> str:
    if not found["tasks"]:
        return _NO_TASKS
    if not found["items"]:
        return _NO_OFFERS
    rows = []
    for one in found["items"]:
        rate = {**one["expected"], "count": 1}
        mark = " " + style.tag("it has another of this name") if one["known"] else ""
        rows.append(
            (
                escape(one["id"]) + mark,
                escape(", ".join(one["agents"])),
                style.mean(rate) + style.bar(one["expected"]["mean"]),
                style.number(one["outcomes"]),
                style.number(one["tokens"]),
            )
        )
    columns = [("Skill", False), ("Did well for", False), ("Expected success", True)]
    columns += [("Outcomes on like tasks", True), ("Tokens", True)]
    return style.title("Recommended, the surest first") + style.table(columns, rows)


def _received(taken: list[dict[str, Any]]) -> str:
    if not taken:
        return ""
    rows = [
        (
            time.strftime("%Y-%m-%d %H:%M", time.localtime(one["imported_at"])),
            escape(one["source"]),
            escape(", ".join(one["skills"])),
        )
        for one in taken
    ]
    columns = [("Taken in", False), ("From", False), ("Skills", False)]
    return style.title("Taken in before") + style.table(columns, rows)


def _done(transfer: dict[str, Any]) -> str:
    rows = [(escape(skill), style.tag(*_FATES[fate])) for skill, fate in transfer["skills"].items()]
    columns = [("Skill", False), ("What became of it", False)]
    return style.title(f"Taken in from {transfer['source']}") + style.table(columns, rows)
