"""Reliability diagrams: accuracy against confidence, and how the images spread over the bins."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.figures import draw_generations
from seal_fast.analysis.common.stage_plots import draw_line, legend, new_figure, save


def draw(results: Sequence[dict[str, Any]], path: Callable[[str], Path]) -> None:
    """Draw `evaluate`, two panels a split (Niculescu-Mizil and Caruana, ICML 2005), and the curves over stages."""
    splits = list(results[0]["splits"])
    figure, axes = new_figure(8, 3.4 * len(splits), len(splits), 2)
    for (accuracies, shares), split in zip(axes, splits, strict=True):
        accuracies.plot((0, 1), (0, 1), color="0.8", linewidth=0.8, zorder=0)
        for i, result in enumerate(results):
            bins = result["splits"][split]["bins"]
            places = [(b + 0.5) / len(bins) for b in range(len(bins))]
            draw_line(accuracies, [(b["confidence"], b["accuracy"]) for b in bins if b["images"]], i, result["subject"])
            total = sum(b["images"] for b in bins)
            draw_line(shares, [(x, 100 * b["images"] / total) for x, b in zip(places, bins, strict=True)], i)
        accuracies.set_ylabel(f"top-1 of {split} images")
        shares.set_ylabel(f"share of {split} images (%)")
        for axis in (accuracies, shares):
            axis.set_xlim(0, 1)
            axis.set_ylim(bottom=0)
            axis.set_xlabel("confidence")
        legend(accuracies, len(results))
    save(figure, path("evaluate"))
    draw_generations(results, path)
