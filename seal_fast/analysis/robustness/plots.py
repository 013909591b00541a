"""Plots of robustness: accuracy by strength for each kind of corruption, and curves over stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.figures import curves
from seal_fast.analysis.common.stage_plots import draw_line, draw_rows, legend, new_figure, save, several_stages
from seal_fast.analysis.robustness.corruptions import KINDS


def draw(results: Sequence[dict[str, Any]], path: Callable[[str], Path]) -> None:
    """Draw `robustness`, and `robustness_generations` where the results are of several stages."""
    protocol = results[0]["protocol"]
    kinds = {kind: [name for name in members if name in protocol["corruptions"]] for kind, members in KINDS.items()}
    kinds = {kind: names for kind, names in kinds.items() if names}
    if kinds:
        figure, axes = new_figure(2.9 * len(kinds), 3, 1, len(kinds))
        for axis, (kind, names) in zip(axes[0], kinds.items(), strict=True):
            for i, result in enumerate(results):
                rows = [result["by_strength"][name] for name in names]
                means = [sum(column) / len(column) for column in zip(*rows, strict=True)]
                values = [result["figures"]["clean"]["top-1 (%)"]["mean"], *means]
                draw_line(axis, zip([0, *protocol["strengths"]], values, strict=True), i, result["subject"])
            axis.set_title(kind, fontsize=9)
            axis.set_xlabel("strength, 0: clean", fontsize=8)
            axis.set_ylim(bottom=0)
        axes[0, 0].set_ylabel("top-1 (%)")
        legend(axes[0, 0], len(results))
        save(figure, path("robustness"))
    if several_stages(results):
        sections = [section for section in ("clean", "all corruptions") if section in results[0]["figures"]]
        rows = [[(f"top-1 (%), {section}", curves(results, section, "top-1 (%)")) for section in sections]]
        for section in (s for s in results[0]["figures"] if s.startswith("against ")):
            names = results[0]["figures"][section]
            rows.append([(f"{name}\n{section}", curves(results, section, name)) for name in names])
        draw_rows(rows, path("robustness_generations"))
