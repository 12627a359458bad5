"""The tab where a task is run: the choice, why it was made, what came of it, and a thumb."""

from __future__ import annotations

from html import escape
from typing import Any

import gradio as gr

from letta_gym.service.dashboard import style
from letta_gym.service.dashboard.api import Api, told

_EXAMPLES = [
    "Merge these three PDF files and number the pages",
    "Why does my SQL query return duplicate rows after a join?",
    "Translate the release notes into German",
]
_NOTHING = style.empty(
    "Nothing was run yet", "Write a task above, then choose skills for it, or run it."
)


def tab(api: Api, key: gr.State) -> None:
    """Lay the tab out."""
    decision = gr.State("")
    with gr.Row():
        with gr.Column(scale=4):
            task = gr.Textbox(
                label="Task",
                placeholder="What should the agent do?",
                lines=3,
                max_lines=12,
                elem_id="task",
            )
        with gr.Column(scale=1, min_width=200):
            k = gr.Slider(1, 3, 3, step=1, label="Most skills")
    with gr.Row():
        run = gr.Button("Run the task", variant="primary", elem_id="run")
        choose = gr.Button("Only choose skills", elem_id="choose")
    gr.Examples(_EXAMPLES, task, label="For example")
    shown = gr.HTML(_NOTHING, elem_id="outcome")
    with gr.Group(visible=False, elem_id="feedback") as feedback:
        comment = gr.Textbox(label="Comment", placeholder="Optional", lines=1)
        with gr.Row():
            up = gr.Button("👍 It helped", elem_id="up")
            down = gr.Button("👎 It did not", elem_id="down")

    async def carry_out(secret: str, text: str, most: int) -> tuple[Any, ...]:
        answer = await api.send(secret, "POST", "/tasks/execute", _body(text, most))
        return await _shown(api, secret, answer, _result(answer))

    async def only_choose(secret: str, text: str, most: int) -> tuple[Any, ...]:
        answer = await api.send(secret, "POST", "/tasks/select", _body(text, most))
        return await _shown(api, secret, answer, "")

    async def say(secret: str, made: str, word: str, success: float) -> tuple[Any, ...]:
        body = {"success": success, "comment": word or None}
        kept = await api.send(secret, "POST", f"/tasks/{made}/feedback", body)
        learned = kept["kept_as"] == "outcome"
        gr.Info("Thank you. " + ("The next choice knows." if learned else "It is kept."))
        return gr.update(visible=False), ""

    async def good(secret: str, made: str, word: str) -> tuple[Any, ...]:
        return await say(secret, made, word, 1.0)

    async def bad(secret: str, made: str, word: str) -> tuple[Any, ...]:
        return await say(secret, made, word, 0.0)

    outputs = [decision, shown, feedback]
    run.click(carry_out, [key, task, k], outputs)
    task.submit(carry_out, [key, task, k], outputs)
    choose.click(only_choose, [key, task, k], outputs)
    up.click(good, [key, decision, comment], [feedback, comment])
    down.click(bad, [key, decision, comment], [feedback, comment])


def _body(text: str, most: int) -> dict[str, Any]:
    if not text.strip():
        raise told("There is no task", "Write what the agent should do, then try again.")
    return {"task": text, "k": int(most)}


async def _shown(api: Api, key: str, answer: dict[str, Any], result: str) -> tuple[Any, ...]:
    looked = await api.get(key, f"/tasks/{answer['decision_id']}")
    html = _choice(answer) + result + _reasons(looked["explanation"])
    return answer["decision_id"], html, gr.update(visible=True)


def _choice(answer: dict[str, Any]) -> str:
    ids = [skill["id"] for skill in answer["skills"]]
    tokens = sum(skill["tokens"] for skill in answer["skills"])
    by = "untrained baseline" if answer["fallback"] else "trained policy"
    return style.cards(
        ("Chosen skills", str(len(ids)), ", ".join(ids) or "no skill is worth its tokens"),
        ("Tokens of the skills", style.number(tokens), "loaded into the agent's context"),
        ("Chosen by", by, answer["policy_digest"][:12]),
    )


def _result(answer: dict[str, Any]) -> str:
    success, reward = answer["success"], answer["reward"]
    graded = f"graded by {answer['graded_by']}" if success is not None else "nobody graded it"
    worth = style.UNKNOWN if reward is None else f"{reward:.2f}"
    loaded = ", ".join(answer["loaded"]) or "none of them"
    figures = style.cards(
        ("Success", style.percent(success), graded),
        ("Reward", worth, "success less the price of tokens"),
        ("Really loaded", str(len(answer["loaded"])), loaded),
    )
    said = f'<div class="lg-answer">{escape(answer["response"] or "")}</div>'
    return style.title("Outcome") + figures + said


def _reasons(candidates: list[dict[str, Any]]) -> str:
    top = max((abs(one["score"]) for one in candidates), default=1.0) or 1.0
    rows = [
        (
            f"<strong>{escape(one['skill'])}</strong>"
            f'<div class="lg-note">{escape(", ".join(one["reasons"]))}</div>',
            f"{one['score']:+.2f}{style.bar(max(one['score'], 0) / top)}",
            style.number(one["tokens"]),
        )
        for one in candidates
    ]
    marked = [at for at, one in enumerate(candidates) if one["chosen"]]
    columns = [("Skill, and what speaks for and against it", False), ("Score", True)]
    columns.append(("Tokens", True))
    note = '<p class="lg-note">A score above 0 beats loading nothing more.</p>'
    return style.title("Why these skills") + style.table(columns, rows, marked) + note
