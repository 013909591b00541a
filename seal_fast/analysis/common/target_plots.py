"""Plots of transfer and few-shot accuracy: bars by target, or curves over the stages of runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.stage_plots import COLOURS, by_stage, draw, save, several_stages
from seal_fast.runs.stats import student

Panel = tuple[str, str, Mapping[str, Callable[[dict[str, Any]], float | None]]]
"""Title, unit, and by label a figure of one network's result, None where it has none."""


def draw_panels(
    results: Sequence[dict[str, Any]], panels: Sequence[Panel], path: Callable[[str], Path], name: str
) -> None:
    """Draw bars as `name`, or curves as `name`_generations where the results are of several stages.

    Raises:
        RunError: the file cannot be written.
    """
    if several_stages(results):
        rows = [
            [
                (f"{label}, {title}: {unit}", by_stage((r["group"], r["stage"], value(r)) for r in results))
                for label, value in values.items()
            ]
            for title, unit, values in panels
        ]
        draw(rows, path(f"{name}_generations"))
        return
    from matplotlib.figure import Figure

    groups = list(dict.fromkeys(result["group"] for result in results))
    width = max(6.0, 1.6 * max(len(values) for *_, values in panels) + 2)
    figure = Figure(figsize=(width, 2.8 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, (title, unit, values) in zip(axes, panels, strict=True):
        _bars(axis, results, groups, values)
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(unit)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, ncols=4, loc="outside lower center")
    save(figure, path(name))


def _bars(axis: Any, results: Sequence[dict[str, Any]], groups: Sequence[str], values: Mapping[str, Any]) -> None:
    """One bar a group at each label: the mean over its runs, with the interval where there are several."""
    wide = 0.8 / len(groups)
    for i, group in enumerate(groups):
        for place, value in enumerate(values.values()):
            known = [v for r in results if r["group"] == group and (v := value(r)) is not None]
            if not known:
                continue
            mean = student(known)
            error = mean.half if len(known) > 1 else None
            x = place + (i - (len(groups) - 1) / 2) * wide
            label = f"{group} ({len(known)})" if place == 0 else None
            axis.bar(x, mean.mean, wide * 0.92, yerr=error, capsize=2, color=COLOURS[i % len(COLOURS)], label=label)
    axis.set_xticks(range(len(values)), list(values), fontsize=8)
