"""The tab of training: a run is started, watched, stopped and resumed, and compared with others."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import gradio as gr

from letta_gym.service.dashboard import history, style
from letta_gym.service.dashboard.api import Api, told

_MOST = 4  # fields of the form
_FIELDS = {
    "log": (
        ("train.rounds", "Rounds", "Passes of learning over the log; a few suffice."),
        ("train.min_decisions", "Fewest decisions", "With fewer in the log, nothing is learned."),
        ("train.learning_rate", "Learning rate", "How far one step moves the policy."),
        ("seed", "Seed", "Another seed draws other minibatches."),
    ),
    "": (
        ("train.steps", "Decisions", "To train on. A million takes a minute or two on the mock."),
        ("seed", "Seed", "The same seed gives the same policy; another tells how much is luck."),
        ("train.ppo.learning_rate", "Learning rate", "How far one update moves the policy."),
        ("train.ppo.ent_coef", "Entropy bonus", "More of it keeps the policy trying other skills."),
    ),
}
"""Hyper-parameters of the form by kind: key, name, and what it does."""

_SECONDS = 2.0  # between two looks at a run


def tab(api: Api, key: gr.State) -> Any:
    """Lay the tab out; returns what fills it: a function, its inputs and outputs."""
    recipes, made, timer = gr.State([]), gr.State(None), gr.Timer(_SECONDS, active=False)
    with gr.Row():
        with gr.Column(scale=2, min_width=300):
            config = gr.Dropdown([], label="Configuration", elem_id="config")
            fields = [gr.Number(visible=False, min_width=130) for _ in range(_MOST)]
            with gr.Accordion("More settings", open=False):
                more = gr.Textbox(
                    label="One key a line",
                    placeholder="train.ppo.gamma = 0.99",
                    info="Any number, switch or word of the configuration; unknown keys are told.",
                    lines=3,
                    elem_id="more",
                )
            start = gr.Button("Start training", variant="primary", elem_id="train")
        with gr.Column(scale=5, min_width=300):
            shown = gr.HTML(history.NO_RUN, elem_id="training")
            returns = _plot("Return by decisions: success less the price of tokens", "return")
            success = _plot("Success by decisions", "success")
            with gr.Row():
                cancel = gr.Button("Cancel", visible=False, elem_id="cancel")
                resume = gr.Button("Resume", visible=False, elem_id="resume")
    with gr.Row(visible=False) as looking:
        picked = gr.Dropdown([], label="Run to look at", scale=3, elem_id="run-pick")
        again = gr.Button("Refresh", scale=1, min_width=120)
    listed = gr.HTML(elem_id="runs")
    with gr.Column(visible=False) as comparing:
        side = gr.Dropdown(
            [], multiselect=True, max_choices=4, label="Compare runs", elem_id="compare-runs"
        )
        compared = gr.HTML(history.NOTHING_TO_COMPARE, elem_id="compared")
    panel = [shown, returns, success, cancel, resume, timer, listed, looking, comparing]
    panel += [picked, side]

    async def fill(secret: str, run: int | None, name: str | None) -> tuple[Any, ...]:
        known = (await api.get(secret, "/training/configs"))["items"]
        chosen = name if any(one["name"] == name for one in known) else None
        if chosen is None and known:
            chosen = known[0]["name"]
        choices = [one["name"] for one in known]
        asked = _form(known, chosen)
        asked[0] |= {"choices": choices, "value": chosen}
        if name == chosen:  # what was typed stays when the tab is opened again
            asked[1:] = [gr.skip()] * _MOST
        return known, *asked, *await _looked(api, secret, run)

    async def watch(secret: str, run: int | None) -> tuple[Any, ...]:
        try:
            return await _looked(api, secret, run)
        except gr.Error as error:
            lost = style.empty("The run cannot be followed", f"{error} Press Refresh to try again.")
            return lost, *[gr.skip()] * 4, gr.Timer(active=False), *[gr.skip()] * 5

    async def tick(secret: str, run: int | None) -> tuple[Any, ...]:
        *seen, runs, others = await watch(secret, run)
        going = seen[panel.index(timer)].active
        # While it runs the lists stay as they are: one of them may be open.
        return *seen, *((gr.skip(), gr.skip()) if going else (runs, others))

    async def begin(
        secret: str, known: list[Any], name: str | None, extra: str, *values: float | None
    ) -> int:
        if name is None:
            raise told("No configuration is picked", "Pick one from the list first.")
        body = {"config": name, "set": _changes(known, name, values) | _extra(extra)}
        run: int = (await api.send(secret, "POST", "/training/run", body))["id"]
        gr.Info(f"Run {run} has started.")
        return run

    async def stop(secret: str, run: int | None) -> None:
        await api.send(secret, "POST", f"/training/runs/{run}/cancel")
        gr.Info(f"Run {run} finishes its update, then it stops.")

    async def go_on(secret: str, run: int | None) -> None:
        await api.send(secret, "POST", f"/training/runs/{run}/resume")

    async def compare(secret: str, runs: Sequence[int]) -> str:
        path = "/training/runs/{}"
        return history.compared([await api.get(secret, path.format(run)) for run in sorted(runs)])

    def ask(known: list[Any], name: str | None) -> list[Any]:
        return _form(known, name)

    outputs = [recipes, config, *fields, *panel]
    config.input(ask, [recipes, config], [config, *fields])
    # In two steps, for what an error would be written over is every output of the first.
    begun = start.click(begin, [key, recipes, config, more, *fields], made)
    begun.success(watch, [key, made], panel)
    cancel.click(stop, [key, picked]).success(watch, [key, picked], panel)
    resume.click(go_on, [key, picked]).success(watch, [key, picked], panel)
    picked.input(watch, [key, picked], panel)
    timer.tick(tick, [key, picked], panel, show_progress="hidden")
    again.click(fill, [key, picked, config], outputs)
    side.change(compare, [key, side], compared)
    return fill, [key, picked, config], outputs


def _plot(title: str, figure: str) -> gr.LinePlot:
    return gr.LinePlot(
        x="step",
        y="value",
        color="policy",
        color_map=history.COLOURS,
        x_title=" ",
        y_title=figure,
        color_title=" ",
        colors_in_legend=[],  # Gradio's own is cut off at the bottom; the panel has one
        label=title,
        height=260,
        visible=False,
        elem_id=f"{figure}-plot",
    )


async def _looked(api: Api, key: str, wanted: int | None) -> tuple[Any, ...]:
    """The panel and the history; without a wish, the newest run is looked at."""
    runs = (await api.get(key, "/training/runs", limit=50))["items"]
    known = [one["id"] for one in runs]
    at = wanted if wanted in known else known[0] if known else None
    run = None if at is None else await api.get(key, f"/training/runs/{at}", points=200)
    going = run is not None and run["status"] == "running"
    from_log = run is not None and run["kind"] == "log"
    choices = [(history.label(one), one["id"]) for one in runs]
    return (
        history.panel(run),
        history.plot(run, history.FROM_LOG if from_log else history.RETURN),
        history.plot(run, {} if from_log else history.SUCCESS),
        gr.update(visible=going, interactive=run is not None and not run["cancelling"]),
        gr.update(visible=run is not None and run["resumable"]),
        gr.Timer(active=going),
        history.table(runs, at),
        gr.update(visible=bool(runs)),
        gr.update(visible=len(runs) > 1),
        gr.update(choices=choices, value=at),
        gr.update(choices=choices),
    )


def _wanted(known: Sequence[Any], name: str | None) -> list[tuple[str, str, str, Any]]:
    """The fields of a configuration, with what it sets them to."""
    recipe = next((one for one in known if one["name"] == name), None)
    if recipe is None:
        return []
    rows = _FIELDS.get(recipe["kind"], _FIELDS[""])
    values = recipe["values"]
    return [(key, label, info, values[key]) for key, label, info in rows if key in values]


def _form(known: Sequence[Any], name: str | None) -> list[Any]:
    """What becomes of the list of configurations and of the fields."""
    says = next((one["description"] for one in known if one["name"] == name), None)
    rows = [
        gr.update(label=label, info=info, value=value, visible=True)
        for _, label, info, value in _wanted(known, name)
    ]
    return [gr.update(info=says), *rows, *[gr.update(visible=False)] * (_MOST - len(rows))]


def _changes(known: Sequence[Any], name: str, values: Sequence[float | None]) -> dict[str, Any]:
    """What the form sets otherwise than the configuration."""
    asked = zip(_wanted(known, name), values, strict=False)
    return {
        key: int(value) if isinstance(default, int) and float(value).is_integer() else value
        for (key, _, _, default), value in asked
        if value is not None and value != default
    }


def _extra(text: str) -> dict[str, Any]:
    """Further keys, one a line: ``key = value``."""
    found = {}
    for line in filter(None, map(str.strip, text.splitlines())):
        key, equals, value = line.partition("=")
        if not equals or not key.strip() or not value.strip():
            raise told("A setting cannot be read", f"Write key = value on each line; got {line!r}.")
        try:
            found[key.strip()] = json.loads(value)
        except ValueError:
            found[key.strip()] = value.strip()
    return found
