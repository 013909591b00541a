"""report.png: what the page says first, for a paper or a slide."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from seal_fast.utils.files import write_atomically

COLOURS = ("#30638e", "#d1495b", "#2a8f6d", "#b07c0f", "#7a4fb0", "#0f8fa8", "#a8577e", "#667a1f", "#8a5a2b")
GREY = "#8a8d91"
_MOST = 16


def draw(content: dict[str, Any], path: Path) -> bool:
    """Write `figure(content)` as a PNG file; returns whether there was anything to draw.

    Raises:
        RunError: the file cannot be written.
    """
    if drawn := figure(content):
        write_atomically(path, lambda temporary: drawn.savefig(temporary, dpi=110, format="png"))
    return drawn is not None


def figure(content: dict[str, Any]) -> Any:
    """Top-1 at the end of each generation, and paired differences of the last epoch, with 95 % intervals.

    A group has its colour of the page, where the nine best have one of their own.

    Args:
        content: what `content.content` returns.

    Returns:
        A matplotlib figure of one or both; None where no group has several generations and none can be compared.
    """
    groups = content["groups"]
    ranked = sorted(range(len(groups)), key=lambda i: -(groups[i]["best"]["mean"] or -1.0))
    colours = {group: COLOURS[place] if place < len(COLOURS) else GREY for place, group in enumerate(ranked)}
    lines = [i for i in ranked if groups[i]["ends"]]
    rows = sorted(content["pairs"], key=lambda row: row["last"]["mean"])[-_MOST:]
    if not lines and not rows:
        return None
    from matplotlib.figure import Figure

    widths = [5.0] * bool(lines) + [5.4] * bool(rows)
    drawn = Figure(figsize=(sum(widths), max(3.2, 1.4 + 0.28 * len(rows))), layout="constrained")
    axes = list(drawn.subplots(1, len(widths), squeeze=False, width_ratios=widths)[0])
    if lines:
        axis = axes.pop(0)
        for i in lines:
            at, points = groups[i]["ends"]["at"], groups[i]["ends"]["points"]
            mean, low, high = ([_number(point[key]) for point in points] for key in ("mean", "low", "high"))
            axis.plot(at, mean, "o-", color=colours[i], markersize=3, label=groups[i]["label"])
            axis.fill_between(at, low, high, color=colours[i], alpha=0.1, linewidth=0)
        axis.set_xlabel("generation (its end)")
        axis.set_ylabel("top-1 (%)")
        axis.xaxis.get_major_locator().set_params(integer=True)
        axis.legend(frameon=False, fontsize=8)
    if rows:
        (axis,) = axes
        for place, row in enumerate(rows):
            mean, low, high = (_number(row["last"][key]) for key in ("mean", "low", "high"))
            error = None if math.isnan(low) else [[mean - low], [high - mean]]
            axis.errorbar(mean, place, xerr=error, fmt="o", color=colours[row["first"]], capsize=3)
        first, second = ([groups[row[side]]["label"] for row in rows] for side in ("first", "second"))
        alike = len(set(second)) == 1  # against one baseline
        names = first if alike else [" - ".join(pair) for pair in zip(first, second, strict=True)]
        axis.set_yticks(range(len(rows)), names, fontsize=8)
        axis.set_ylim(-0.6, len(rows) - 0.4)
        axis.axvline(0, color=GREY, linewidth=0.8)
        axis.set_xlabel(f"last epoch's top-1{f' minus that of {second[0]}' if alike else ''}, paired by seed (points)")
    for axis in drawn.axes:
        axis.spines[["top", "right"]].set_visible(False)
    return drawn


def _number(value: float | None) -> float:
    return math.nan if value is None else value
