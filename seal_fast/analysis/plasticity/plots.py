"""Plots of plasticity: the profile over layers, and curves over stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.figures import curves
from seal_fast.analysis.common.stage_plots import draw_line, draw_rows, legend, new_figure, save, several_stages


def draw(results: Sequence[dict[str, Any]], path: Callable[[str], Path]) -> None:
    """Draw `plasticity`, and `plasticity_generations` where the results are of several stages."""
    *layers, whole = results[0]["figures"]
    names = list(
        dict.fromkeys(["dormant units (%)", "effective rank", *(n for r in results for n in r["figures"][whole])])
    )
    figure, axes = new_figure(13, 3.2 * -(-len(names) // 3), -(-len(names) // 3), 3)
    for axis, name in zip(axes.flat, names, strict=False):
        for i, result in enumerate(results):
            found = [(at, result["figures"].get(layer, {}).get(name)) for at, layer in enumerate(layers)]
            draw_line(axis, [(at, value["mean"]) for at, value in found if value], i, result["subject"])
        axis.set_xticks(range(len(layers)), layers, rotation=60, fontsize=8)
        axis.set_ylim(bottom=0)
        axis.set_ylabel(name, fontsize=9)
    for axis in axes.flat[len(names) :]:
        axis.set_visible(False)
    legend(axes[0, 0], len(results))
    save(figure, path("plasticity"))
    if several_stages(results):
        block = [layer for layer in layers if "effective rank" in results[0]["figures"][layer]][-1]
        shown = [(block, "effective rank"), *((whole, name) for name in names if name != "effective rank")]
        panels = [(f"{name}\n{layer}", curves(results, layer, name)) for layer, name in shown]
        draw_rows([panels], path("plasticity_generations"))
