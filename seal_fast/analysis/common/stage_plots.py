"""Curves over the stages of runs, from generation to generation and across ascents."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from seal_fast.runs.plots import EARLY, stage_place
from seal_fast.runs.stats import Interval, student
from seal_fast.utils.files import write_atomically

COLOURS = ("#003d5b", "#d1495b", "#edae49", "#00798c", "#6a4c93", "#8a8d91", "#2e933c", "#b5651d")

Result = Mapping[str, Any]
Curves = Mapping[str, Mapping[str, Interval]]
"""A figure by group and stage."""


def by_stage(results: Sequence[Result], figure: Callable[[Result], float | Interval | None]) -> Curves:
    """A figure of single networks as curves: Student's interval of several networks, of one its own."""
    curves: dict[str, dict[str, list[Interval]]] = {}
    for result in sorted(results, key=lambda result: stage_place(result["stage"])):
        if (value := figure(result)) is None:
            continue
        interval = value if isinstance(value, Interval) else student([value])
        if math.isfinite(interval.mean):
            curves.setdefault(result["group"], {}).setdefault(result["stage"], []).append(interval)
    return {
        group: {s: some[0] if len(some) == 1 else student([one.mean for one in some]) for s, some in stages.items()}
        for group, stages in curves.items()
    }


def draw_curves(axis: Any, curves: Curves, colours: Mapping[str, str]) -> None:
    """One line a group with its interval shaded; ascents are marked."""
    stages: dict[float, str] = {}
    for group, points in curves.items():
        places = [stage_place(stage) for stage in points]
        stages |= dict(zip(places, points, strict=True))
        means, low, high = ([getattr(point, end) for point in points.values()] for end in ("mean", "low", "high"))
        axis.plot(places, means, color=colours[group], marker="o", markersize=3, linewidth=1.2, label=group)
        axis.fill_between(places, low, high, color=colours[group], alpha=0.15, linewidth=0)
    ordered = sorted(stages)
    for place in ordered:
        if stages[place].endswith("-ascent"):
            axis.axvline(place, color=EARLY, alpha=0.2, linewidth=6)
    names = [stages[place].removeprefix("generation-").replace("-ascent", "\nascent") for place in ordered]
    axis.set_xticks(ordered, names, fontsize=8)


def draw_rows(panels: Sequence[Sequence[tuple[str, Curves]]], path: Path) -> None:
    """Draw rows of panels (title, curves) into a PNG file.

    Raises:
        RunError: the file cannot be written.
    """
    columns = max(map(len, panels))
    figure, axes = new_figure(max(5.0, 3.4 * columns), 2.6 * len(panels) + 0.3, len(panels), columns)
    groups = dict.fromkeys(group for row in panels for _, curves in row for group in curves)
    colours = {group: COLOURS[i % len(COLOURS)] for i, group in enumerate(groups)}
    for row, shown in zip(axes, panels, strict=True):
        for axis in row[len(shown) :]:
            axis.set_visible(False)
        for axis, (title, curves) in zip(row, shown, strict=False):
            draw_curves(axis, curves, colours)
            axis.set_title(title, fontsize=9)
    for axis, _ in zip(axes[-1], panels[-1], strict=False):
        axis.set_xlabel("generation (its end, or its ascent's)", fontsize=8)
    axes[0][0].legend(frameon=False, fontsize=8)
    save(figure, path)


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1) -> tuple[Any, Any]:
    """A figure of so many inches, and its axes [rows, columns]."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.spines[["top", "right"]].set_visible(False)
    return figure, axes


def draw_line(axis: Any, points: Iterable[tuple[float, float | None]], place: int, label: str | None = None) -> None:
    """A line through the points that have a value, in the colour of the result at `place`."""
    known = [point for point in points if point[1] is not None]
    style = {"color": COLOURS[place % len(COLOURS)], "marker": "o", "markersize": 3, "linewidth": 1.2}
    axis.plot(*zip(*known, strict=True) if known else ((), ()), label=label, **style)


def legend(axis: Any, count: int) -> None:
    """The names of so many lines, nine in a column."""
    axis.legend(frameon=False, fontsize=7, ncols=1 + count // 9)


def save(figure: Any, path: Path) -> None:
    """Write a figure as PNG, atomically.

    Raises:
        RunError: the file cannot be written.
    """
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))


def several_stages(results: Sequence[Result]) -> bool:
    """Whether results are of several generations or ascents, so that there is a curve to draw."""
    return len({result["stage"] for result in results if result["stage"].startswith("generation-")}) > 1
