"""Pictures of prediction depth: histograms, accuracy by depth, and the curve over generations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common import stage_plots as stage_pictures
from seal_fast.analysis.common.stage_plots import COLOURS
from seal_fast.runs.stats import Interval
from seal_fast.utils.files import write_atomically


def draw(results: Sequence[dict[str, Any]], out: Path) -> list[Path]:
    """Write depth.png, and depth_generations.png where several stages of a run are among the results.

    Raises:
        RunError: a file cannot be written.
    """
    written = [out / "depth.png"]
    _distributions(results, written[0])
    if stage_pictures.several_stages(results):
        figures = {"mean_depth": "mean prediction depth", "without_depth": "without depth (%)"}
        panels = [
            [(f"{title}, {split}", _curves(results, split, figure)) for figure, title in figures.items()]
            for split in results[0]["splits"]
        ]
        written.append(stage_pictures.draw(panels, out / "depth_generations.png"))
    return written


def _curves(results: Sequence[dict[str, Any]], split: str, figure: str) -> stage_pictures.Curves:
    def interval(found: dict[str, Any]) -> Interval:
        # Results that were written and read again hold None where there is no mean.
        mean, low, high = (math.nan if found[end] is None else found[end] for end in ("mean", "low", "high"))
        return Interval(mean, low, high, found["count"])

    return stage_pictures.by_stage((r["group"], r["stage"], interval(r["splits"][split][figure])) for r in results)


def _distributions(results: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    splits, first = list(results[0]["splits"]), results[0]
    figure = Figure(figsize=(9, 3 * len(splits)), layout="constrained")
    figure.suptitle(
        f"{first['k']} nearest of {first['bank']:,} training images, reference: {first['reference']}, "
        f"pooling: {first['pooling']}",
        fontsize=9,
    )
    axes = figure.subplots(len(splits), 2, squeeze=False)
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
            axis.spines[["top", "right"]].set_visible(False)
        shares.legend(frameon=False, fontsize=7, ncols=1 + len(results) // 9)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))
