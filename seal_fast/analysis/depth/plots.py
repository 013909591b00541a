"""Plots of prediction depth: histograms, accuracy by depth, and curves over stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.stage_plots import (
    by_stage,
    draw_line,
    draw_rows,
    legend,
    new_figure,
    save,
    several_stages,
)
from seal_fast.runs.stats import Interval


def draw(results: Sequence[dict[str, Any]], path: Callable[[str], Path]) -> None:
    """Draw `depth`, and `depth_generations` where the results are of several stages."""
    _distributions(results, path("depth"))
    if several_stages(results):
        figures = {"mean_depth": "mean prediction depth", "without_depth": "without depth (%)"}
        panels = [
            [
                (f"{title}, {split}", by_stage(results, lambda r, s=split, f=figure: Interval(**r["splits"][s][f])))
                for figure, title in figures.items()
            ]
            for split in results[0]["splits"]
        ]
        draw_rows(panels, path("depth_generations"))


def _distributions(results: Sequence[dict[str, Any]], path: Path) -> None:
    splits, protocol = list(results[0]["splits"]), results[0]["protocol"]
    figure, axes = new_figure(9, 3 * len(splits), len(splits), 2)
    figure.suptitle(
        f"{protocol['k']} nearest of {protocol['bank']:,} training images, reference: {protocol['reference']}, "
        f"pooling: {protocol['pooling']}",
        fontsize=9,
    )
    for (shares, accuracies), split in zip(axes, splits, strict=True):
        for i, result in enumerate(results):
            found, probes = result["splits"][split], result["probes"]
            places = [*range(len(probes)), len(probes) + 0.5]
            counts = [*found["histogram"], found["examples"] - sum(found["histogram"])]
            share = [100 * count / found["examples"] for count in counts]
            draw_line(shares, zip(places[:-1], share[:-1], strict=True), i, result["subject"])
            draw_line(shares, [(places[-1], share[-1])], i)
            draw_line(accuracies, zip(places, found["top1_by_depth"], strict=False), i)
            draw_line(accuracies, [(places[-1], found["top1_without_depth"])], i)
        shares.set_ylabel(f"share of {split} images (%)")
        accuracies.set_ylabel(f"top-1 of {split} images (%)")
        for axis in (shares, accuracies):
            axis.set_xticks([*range(len(probes)), len(probes) + 0.5], [*probes, "none"], rotation=60, fontsize=8)
            axis.set_xlabel("prediction depth")
            axis.set_ylim(bottom=0)
        legend(shares, len(results))
    save(figure, path)
