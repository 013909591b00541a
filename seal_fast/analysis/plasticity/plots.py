"""Plots of plasticity: the profile over layers, and curves over stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.figures import curves
from seal_fast.analysis.common.stage_plots import COLOURS, new_figure, save, several_stages
from seal_fast.analysis.common.stage_plots import draw as draw_stages


def draw(results: Sequence[dict[str, Any]], path: Callable[[str], Path]) -> None:
    """Draw `plasticity`, and `plasticity_generations` where the results are of several stages.

    Raises:
        RunError: a file cannot be written.
    """
    *layers, whole = results[0]["figures"]
    figure, axes = new_figure(9, 3.2, 1, 2)
    for axis, name in zip(axes[0], ("dormant units (%)", "effective rank"), strict=True):
        for i, result in enumerate(results):
            values = [result["figures"][layer][name]["mean"] for layer in layers]
            style = {"color": COLOURS[i % len(COLOURS)], "marker": "o", "markersize": 3, "linewidth": 1.2}
            axis.plot(range(len(layers)), values, label=result["subject"], **style)
        axis.set_xticks(range(len(layers)), layers, rotation=60, fontsize=8)
        axis.set_ylim(bottom=0)
        axis.set_ylabel(name)
    axes[0, 0].legend(frameon=False, fontsize=7, ncols=1 + len(results) // 9)
    save(figure, path("plasticity"))
    if several_stages(results):
        shown = ((whole, "dormant units (%)"), (layers[-1], "effective rank"))
        panels = [(f"{name}, {layer}", curves(results, layer, name)) for layer, name in shown]
        draw_stages([panels], path("plasticity_generations"))
