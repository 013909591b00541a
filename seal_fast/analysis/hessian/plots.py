"""Plots of curvature: spectral densities on a logarithmic scale, and the ends of the spectrum over stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from seal_fast.analysis.common.stage_plots import COLOURS, by_stage, draw_rows, new_figure, save, several_stages
from seal_fast.curvature.estimates import Density


def draw(results: Sequence[dict[str, Any]], path: Callable[[str], Path]) -> None:
    """Draw `hessian_density`, and `hessian_generations` where the results are of several stages."""
    if any(result["density"] for result in results):
        _densities(results, path("hessian_density"))
    if several_stages(results):
        panels = {
            "largest eigenvalue": by_stage(results, lambda r: next(iter(r["top"]), None)),
            "most negative eigenvalue": by_stage(results, lambda r: next(iter(r["bottom"]), None)),
            "trace": by_stage(results, lambda r: r["trace"]),
        }
        row = [(title, curves) for title, curves in panels.items() if curves]
        draw_rows([row], path("hessian_generations"))


def _densities(results: Sequence[dict[str, Any]], path: Path) -> None:
    """The densities among the results, with the eigenvalues found as ticks."""
    shown = [result for result in results if result["density"]]
    densities = [as_density(result) for result in shown]
    low = min(float(d.nodes.min()) for d in densities)
    high = max(float(d.nodes.max()) for d in densities)
    sigma = 0.006 * (high - low or 1.0)
    grid = torch.linspace(low - 6 * sigma, high + 6 * sigma, 2000, dtype=torch.float64)
    figure, ((axis,),) = new_figure(9, 4.5)
    floor = min(1 / d.size for d in densities) / (high - low or 1.0) / 10
    for i, (result, density) in enumerate(zip(shown, densities, strict=True)):
        colour = COLOURS[i % len(COLOURS)]
        axis.semilogy(grid, density.curve(grid, sigma).clamp(min=floor / 10), color=colour, label=result["subject"])
        for value in [*result["top"], *result["bottom"]]:
            axis.axvline(value, 0, 0.04, color=colour, linewidth=1.2)
    axis.axvline(0, color="0.8", linewidth=0.8, zorder=0)
    axis.set_ylim(bottom=floor)
    ticks = any([*result["top"], *result["bottom"]] for result in shown)
    axis.set_xlabel("eigenvalue of the Hessian" + (" (ticks: largest and most negative)" if ticks else ""))
    axis.set_ylabel("density")
    protocol = shown[0]["protocol"]
    axis.set_title(f"{protocol['loss']}; {protocol['group']} parameters, {protocol['images']} images", fontsize=10)
    axis.legend(frameon=False, fontsize=8)
    save(figure, path)


def as_density(result: dict[str, Any]) -> Density:
    """The density that a result holds."""
    nodes = torch.tensor(result["density"]["nodes"], dtype=torch.float64)
    weights = torch.tensor(result["density"]["weights"], dtype=torch.float64)
    return Density(nodes, weights, result["parameters"], nodes.numel())
