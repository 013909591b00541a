"""Plots of transfer and few-shot accuracy: bars by target, or curves over the stages of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.stage_plots import COLOURS, Result, by_stage, draw, new_figure, save, several_stages
from seal_fast.runs.stats import student

Panels = Mapping[str, Mapping[str, Callable[[Result], float]]]
"""By title and label, a figure of one network's result."""


def draw_panels(results: Sequence[Result], panels: Panels, unit: str, path: Callable[[str], Path], name: str) -> None:
    """Draw bars as `name`, or curves as `name`_generations where the results are of several stages.

    Raises:
        RunError: the file cannot be written.
    """
    if several_stages(results):
        rows = [
            [(f"{label}, {title}: {unit}", by_stage(results, figure)) for label, figure in figures.items()]
            for title, figures in panels.items()
        ]
        draw(rows, path(f"{name}_generations"))
        return
    groups = list(dict.fromkeys(result["group"] for result in results))
    width = max(6.0, 1.6 * max(map(len, panels.values())) + 2)
    figure, axes = new_figure(width, 2.8 * len(panels), len(panels))
    for axis, (title, figures) in zip(axes.flat, panels.items(), strict=True):
        _bars(axis, results, groups, figures)
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(unit)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, frameon=False, fontsize=8, ncols=4, loc="outside lower center")
    save(figure, path(name))


def _bars(axis: Any, results: Sequence[Result], groups: Sequence[str], figures: Mapping[str, Any]) -> None:
    """One bar a group at each label: the mean over its runs, with the interval where there are several."""
    wide = 0.8 / len(groups)
    for i, group in enumerate(groups):
        for place, figure in enumerate(figures.values()):
            mean = student([figure(result) for result in results if result["group"] == group])
            error = mean.half if mean.count > 1 else None
            x = place + (i - (len(groups) - 1) / 2) * wide
            label = f"{group} ({mean.count})" if place == 0 else None
            axis.bar(x, mean.mean, wide * 0.92, yerr=error, capsize=2, color=COLOURS[i % len(COLOURS)], label=label)
    axis.set_xticks(range(len(figures)), list(figures), fontsize=8)
