"""Pictures of a comparison: accuracy over epochs, the figures of each analysis by group, and over generations."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from typing import Any

from seal_fast.analysis.common.stage_plots import COLOURS, by_stage, draw_curves
from seal_fast.report.compare import TITLES, Comparison, Figure

_PANELS = 3  # side by side


def pictures(comparison: Comparison) -> dict[str, bytes]:
    """PNG files by name: curves, one for each analysis, and one where results follow runs through their generations."""
    drawn = {"curves": _curves(comparison)}
    for analysis in TITLES:
        if names := [n for n in comparison.names(analysis) if any(f.name == n for f in comparison.shown(analysis))]:
            drawn[analysis] = _groups(comparison, analysis, names)
        staged = [f for f in comparison.figures if f.analysis == analysis and f.stage.startswith("generation-")]
        if len({(f.run, f.stage) for f in staged}) > len({f.run for f in staged}):
            drawn[f"{analysis}-generations"] = _generations(comparison, staged)
    return drawn


def _colours(comparison: Comparison) -> dict[str, str]:
    return {group: COLOURS[i % len(COLOURS)] for i, group in enumerate(comparison.runs)}


def _curves(comparison: Comparison) -> bytes:
    from matplotlib.figure import Figure as Canvas

    canvas = Canvas(figsize=(9, 4), layout="constrained")
    axis = canvas.subplots()
    of_run = {f.run: f.group for f in comparison.figures if f.analysis == "accuracy"}
    labelled: set[str] = set()
    for run, rows in comparison.rows.items():
        seen = [(i + 1, row["val_top1"]) for i, row in enumerate(rows) if row["val_top1"] is not None]
        if not seen or run not in of_run:
            continue
        group = of_run[run]
        label = None if group in labelled else group
        labelled.add(group)
        axis.plot(*zip(*seen, strict=True), color=_colours(comparison)[group], linewidth=1, alpha=0.8, label=label)
    axis.set_xlabel("epoch")
    axis.set_ylabel("val top-1 (%)")
    axis.spines[["top", "right"]].set_visible(False)
    axis.legend(frameon=False, fontsize=8)
    return _png(canvas)


def _groups(comparison: Comparison, analysis: str, names: Sequence[str]) -> bytes:
    """A panel a figure: each group's mean with its interval, each run as a small circle."""
    canvas, axes = _grid(len(names))
    for axis, name in zip(axes, names, strict=True):
        for i, (group, colour) in enumerate(_colours(comparison).items()):
            if not (found := comparison.cell(analysis, name, group)):
                continue
            interval, members = found
            axis.scatter([i] * len(members), [m.value for m in members], s=12, facecolors="none", edgecolors=colour)
            axis.plot(i, interval.mean, color=colour, marker="o")
            if not math.isnan(interval.low):
                axis.vlines(i, interval.low, interval.high, color=colour)
        axis.set_xticks(range(len(comparison.runs)), list(comparison.runs), rotation=30, fontsize=8)
        axis.set_xlim(-0.6, len(comparison.runs) - 0.4)
        axis.set_title(name, fontsize=9)
    return _png(canvas)


def _generations(comparison: Comparison, figures: Sequence[Figure]) -> bytes:
    """A panel a figure: each group's mean over its runs at the end of every ascent and generation."""
    names = list(dict.fromkeys(f.name for f in figures))
    canvas, axes = _grid(len(names))
    for axis, name in zip(axes, names, strict=True):
        shown = by_stage((f.group, f.stage, f.value) for f in figures if f.name == name)
        draw_curves(axis, shown, _colours(comparison))
        axis.set_title(name, fontsize=9)
        axis.legend(frameon=False, fontsize=7)
    return _png(canvas)


def _grid(count: int) -> tuple[Any, list[Any]]:
    from matplotlib.figure import Figure as Canvas

    columns = min(_PANELS, count)
    rows = math.ceil(count / columns)
    canvas = Canvas(figsize=(3.6 * columns, 2.8 * rows), layout="constrained")
    axes = list(canvas.subplots(rows, columns, squeeze=False).flat)
    for axis in axes[count:]:
        axis.set_visible(False)
    for axis in axes[:count]:
        axis.spines[["top", "right"]].set_visible(False)
    return canvas, axes[:count]


def _png(canvas: Any) -> bytes:
    memory = io.BytesIO()
    canvas.savefig(memory, dpi=110, format="png")
    return memory.getvalue()
