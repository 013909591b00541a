"""Plots of single training examples: learning, forgetting and margins, and what ascents make the network forget."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.figures import curves
from seal_fast.analysis.common.stage_plots import COLOURS, draw_rows, legend, new_figure, save, several_stages

_STYLES = {"all examples": "-", "right labels": "--", "wrong labels": ":"}
_ACROSS = ("forgotten by the ascent (%)", "of these right again (%)", "wrong at the end (%)")
_ALL = ("forgetting events", "area under the margin", "right the last time (%)")


def draw(results: Sequence[dict[str, Any]], path: Callable[[str], Path]) -> None:
    """Draw `examples`, and `examples_generations` where the results are of several stages."""
    latest = {(r["group"], r["seed"]): r for r in sorted(results, key=lambda r: r["epochs"]) if r["profile"]}
    figure, axes = new_figure(11, 3.2, 1, 3)
    for i, result in enumerate(latest.values()):
        for part, found in result["profile"].items():
            style = {"color": COLOURS[i % len(COLOURS)], "linestyle": _STYLES[part], "linewidth": 1.2}
            name = result["subject"] if part == "all examples" else None
            axes[0, 0].plot(range(result["epochs"]), [100 * x for x in found["learnt"]], label=name, **style)
            axes[0, 1].plot(range(len(found["forgotten"])), [100 * x for x in found["forgotten"]], **style)
            axes[0, 2].plot(found["margins"], range(len(found["margins"])), **style)
    labels = ("epoch", "learnt by then (%)"), ("forgetting events", "examples (%)")
    for axis, (x, y) in zip(axes[0], (*labels, ("area under the margin", "examples below (%)")), strict=True):
        axis.set_xlabel(x)
        axis.set_ylabel(y)
    if latest:
        legend(axes[0, 0], len(latest))
    save(figure, path("examples"))
    if several_stages(results):
        rows = [("across the generation", _ACROSS), ("all examples", _ALL)]
        panels = [[(name, curves(results, part, name)) for name in names] for part, names in rows]
        draw_rows(panels, path("examples_generations"))
