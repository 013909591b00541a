"""Plots of drift: curves over stages by group, and the profile over layers of each run's last checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.earlier import KINDS
from seal_fast.analysis.common.figures import curves
from seal_fast.analysis.common.stage_plots import draw_line, draw_rows, legend, new_figure, save


def draw(results: Sequence[dict[str, Any]], path: Callable[[str], Path]) -> None:
    """Draw `drift`, and `drift_layers` where a run has kept several checkpoints."""
    panels = []
    for group in ("early", "late"):
        columns = [(f"norm, {group}", curves(results, group, "norm"))]
        for title in KINDS.values():
            if found := curves(results, f"{title}, {group}", "relative distance"):
                columns.append((f"relative distance\n{title}, {group}", found))
        panels.append(columns)
    draw_rows(panels, path("drift"))
    last = {result["subject"].rpartition(" ")[0]: result for result in results if "start" in result["from"]}
    if last:
        _profile(last, path("drift_layers"))


def _profile(last: dict[str, dict[str, Any]], path: Path) -> None:
    """From the first kept checkpoint to the last, layer by layer."""
    layers = list(next(iter(last.values()))["layers"])
    figure, axes = new_figure(max(8.0, 0.16 * len(layers)), 6, 2)
    for axis, name in zip(axes[:, 0], ("relative distance", "filter angle (degrees)"), strict=True):
        for i, (run, result) in enumerate(last.items()):
            found = [(at, result["layers"][layer]["start"].get(name)) for at, layer in enumerate(layers)]
            draw_line(axis, found, i, run)
        axis.set_xticks(range(len(layers)), layers, rotation=90, fontsize=6)
        axis.set_xlim(-0.5, len(layers) - 0.5)
        axis.set_ylim(bottom=0)
        axis.set_ylabel(f"{name}\nfrom the start", fontsize=9)
    legend(axes[0, 0], len(last))
    save(figure, path)
