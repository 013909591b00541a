"""Plots of prediction depth: histograms, accuracy by depth, and curves over stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.stage_plots import COLOURS, by_stage, new_figure, save, several_stages
from seal_fast.analysis.common.stage_plots import draw as draw_stages
from seal_fast.runs.stats import Interval


def draw(results: Sequence[dict[str, Any]], path: Callable[[str], Path]) -> None:
    """Draw `depth`, and `depth_generations` where the results are of several stages.

    Raises:
        RunError: a file cannot be written.
    """
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
        draw_stages(panels, path("depth_generations"))


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
            style = {"color": COLOURS[i % len(COLOURS)], "marker": "o", "markersize": 3, "linewidth": 1.2}
            share = [100 * count / found["examples"] for count in counts]
            shares.plot(places[:-1], share[:-1], label=result["subject"], **style)
            shares.plot(places[-1], share[-1], **style)
            known = [(x, y) for x, y in zip(places, found["top1_by_depth"], strict=False) if y is not None]
            accuracies.plot(*zip(*known, strict=True) if known else ((), ()), **style)
            if found["top1_without_depth"] is not None:
                accuracies.plot(places[-1], found["top1_without_depth"], **style)
        shares.set_ylabel(f"share of {split} images (%)")
        accuracies.set_ylabel(f"top-1 of {split} images (%)")
        for axis in (shares, accuracies):
            axis.set_xticks([*range(len(probes)), len(probes) + 0.5], [*probes, "none"], rotation=60, fontsize=8)
            axis.set_xlabel("prediction depth")
            axis.set_ylim(bottom=0)
        shares.legend(frameon=False, fontsize=7, ncols=1 + len(results) // 9)
    save(figure, path)
