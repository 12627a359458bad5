"""The curve of success over time, as several tabs show it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import gradio as gr
import pandas as pd

HIDDEN = gr.update(visible=False)


def of_success(label: str, name: str) -> gr.LinePlot:
    """An empty chart, hidden until :func:`success` gives it points."""
    return gr.LinePlot(
        x="day",
        y="success",
        y_lim=[0, 100],
        x_title="",
        y_title="Success, %",
        label=label,
        height=260,
        visible=False,
        elem_id=name,
    )


def success(points: Sequence[tuple[float, float | None]]) -> Any:
    """What the chart shows: Unix seconds and a share for each point; hidden with fewer than two."""
    known = [(at, value) for at, value in points if value is not None]
    if len(known) < 2:
        return HIDDEN
    frame = pd.DataFrame(
        {
            "day": pd.to_datetime([at for at, _ in known], unit="s"),
            "success": [100 * value for _, value in known],
        }
    )
    return gr.update(value=frame, visible=True)
