"""Plots of barriers: the loss along every line, and the barriers over stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.figures import curves
from seal_fast.analysis.common.stage_plots import COLOURS, draw_rows, new_figure, save


def draw(results: Sequence[dict[str, Any]], path: Callable[[str], Path]) -> None:
    """Draw `barrier`, and `barrier_generations` where there are lines between the stages of a run."""
    for result in results:
        if "plane" in result:
            _draw_plane(result["plane"], path("barrier_plane"))
    kinds = list(dict.fromkeys(line["kind"] for result in results for line in result["lines"]))
    if not kinds:
        return
    splits = list(results[0]["protocol"]["images"])
    figure, axes = new_figure(max(8.0, 4 * len(kinds)), 2.8 * len(splits) + 0.3, len(splits), len(kinds))
    shown: dict[str, Any] = {}
    for row, split in zip(axes, splits, strict=True):
        for axis, kind in zip(row, kinds, strict=True):
            for i, result in enumerate(r for r in results if r["lines"]):
                for line in result["lines"]:
                    if line["kind"] == kind:
                        losses = line["splits"][split]["loss"]
                        at = [point / (len(losses) - 1) for point in range(len(losses))]
                        style = {"color": COLOURS[i % len(COLOURS)], "marker": "o", "markersize": 2, "linewidth": 1}
                        (shown[f"to {result['subject']}"],) = axis.plot(at, losses, **style)
            axis.set_title(f"{kind}, {split}", fontsize=9)
            axis.set_ylabel("loss")
            axis.set_xlabel("place on the line", fontsize=8)
    figure.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=2, frameon=False, fontsize=7)
    save(figure, path("barrier"))
    inside = [kind for kind in kinds if not kind.startswith("to ")]
    if inside:
        rows = [
            [(f"loss barrier\n{kind}, {split}", curves(results, f"{kind}, {split}", "loss barrier")) for kind in inside]
            for split in splits
        ]
        draw_rows(rows, path("barrier_generations"))


def _draw_plane(plane: dict[str, Any], path: Path) -> None:
    """Contours of the loss of each split, and the three networks."""
    figure, axes = new_figure(4.4 * len(plane["splits"]), 3.8, 1, len(plane["splits"]))
    side = len(plane["x"])
    for axis, (split, found) in zip(axes[0], plane["splits"].items(), strict=True):
        rows = [found["loss"][start : start + side] for start in range(0, side * side, side)]
        contours = axis.contourf(plane["x"], plane["y"], rows, levels=20, cmap="viridis")
        figure.colorbar(contours, ax=axis, label="loss")
        for (x, y), name in zip(plane["corners"], plane["networks"], strict=True):
            axis.plot(x, y, "o", color="white", markeredgecolor="black")
            axis.annotate(name, (x, y), (4, 4), textcoords="offset points", color="white", fontsize=7)
        axis.set_title(split, fontsize=9)
        axis.set_xlabel("distance of weights", fontsize=8)
    save(figure, path)
