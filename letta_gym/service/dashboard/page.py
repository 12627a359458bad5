"""The dashboard: one page with a tab for each thing that one wants to see or do."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when Gradio is imported

import gradio as gr

from letta_gym.service.dashboard import metrics, policies, run, skills, style, training, transfer
from letta_gym.service.dashboard.api import Api

PATH = "/ui"
_HEAD = (
    '<div class="lg-head"><h1>letta-gym</h1>'
    "<span>which skills an agent should load, learned from what happened</span></div>"
)
_TABS = (
    ("Skills", skills),
    ("Training", training),
    ("Policies", policies),
    ("Metrics", metrics),
    ("Transfer", transfer),
)
_FONTS = ["ui-sans-serif", "system-ui", "sans-serif"]


def make_page(api: Api, keys: bool) -> gr.Blocks:
    """The page; with ``keys`` it asks for an API key, which it sends with every call."""
    with gr.Blocks(title="letta-gym", analytics_enabled=False, fill_width=True) as page:
        gr.HTML(_HEAD)
        key = gr.State("")
        with gr.Row(visible=keys):
            box = gr.Textbox(
                label="API key",
                type="password",
                placeholder="lg_…",
                info="Kept for this visit only. Make one with: letta-gym keys make",
            )
        with gr.Tabs():
            with gr.Tab("Run a task", id="run"):
                run.tab(api, key)
            fillers = []
            for name, module in _TABS:
                with gr.Tab(name, id=name.lower()) as tab:
                    fill, inputs, outputs = module.tab(api, key)
                    fillers.append((tab, fill, inputs, outputs))
        for tab, fill, inputs, outputs in fillers:
            tab.select(fill, inputs, outputs)
        box.change(lambda text: text.strip(), box, key)
    return page


def mount(app: Any, api: Api, keys: bool) -> Any:
    """Serve the page below :data:`PATH` of ``app``; nothing it needs comes from elsewhere."""
    return gr.mount_gradio_app(
        app,
        make_page(api, keys),
        PATH,
        theme=gr.themes.Base(primary_hue="teal", neutral_hue="slate", font=_FONTS),
        css_paths=style.CSS,
        footer_links=[],
        ssr_mode=False,
        pwa=False,
        mcp_server=False,
        enable_monitoring=False,
        show_error=True,
    )
