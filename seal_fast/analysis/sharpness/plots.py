"""Plots of sharpness: the loss by distance, the blocks' largest eigenvalues, and curves over stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.figures import curves
from seal_fast.analysis.common.stage_plots import draw_line, draw_rows, new_figure, save, several_stages

RISE, TOP = "rise of the loss", "largest eigenvalue"
WHOLE = "all layers"
SIZES = "rho", "adaptive_rho", "noise", "adaptive_noise"


def draw(results: Sequence[dict[str, Any]], path: Callable[[str], Path]) -> None:
    """Draw `sharpness`, and `sharpness_generations` where the results are of several stages."""
    sizes = {name: results[0]["protocol"][name] for name in SIZES}
    figure, axes = new_figure(11, 6, 2, 3)
    blocks = [s for r in results for s, found in r["figures"].items() if RISE not in found and s != WHOLE]
    blocks = list(dict.fromkeys(blocks))
    for i, result in enumerate(results):
        found = result["figures"]
        for axis, (name, values) in zip((*axes[0, :2], *axes[1, :2]), sizes.items(), strict=True):
            title = name.replace("_", " ")
            rises = [(value, found[f"{title} {value:g}"][RISE]["mean"]) for value in values]
            draw_line(axis, rises, i, result["subject"])
            axis.set_xticks(values)
            axis.set_xlabel(title, fontsize=8)
            axis.set_ylabel(RISE, fontsize=8)
        known = [(at, found[block][TOP]["mean"]) for at, block in enumerate(blocks) if block in found]
        draw_line(axes[0, 2], known, i)
    axes[0, 2].set_xticks(range(len(blocks)), blocks, rotation=60, fontsize=7)
    axes[0, 2].set_ylabel(TOP, fontsize=8)
    axes[1, 2].set_axis_off()
    lines = axes[0, 0].get_legend_handles_labels()
    axes[1, 2].legend(*lines, frameon=False, fontsize=7, ncols=1 + len(results) // 16, loc="center")
    save(figure, path("sharpness"))
    if several_stages(results):
        largest = [f"{name.replace('_', ' ')} {max(values):g}" for name, values in sizes.items()]
        names = dict.fromkeys(name for result in results for name in result["figures"].get(WHOLE, ()))
        rows = [
            [(f"{RISE}, {section}", curves(results, section, RISE)) for section in largest],
            [(name, curves(results, WHOLE, name)) for name in names],
        ]
        draw_rows([row for row in rows if row], path("sharpness_generations"))
