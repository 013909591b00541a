"""Analyses whose results are numbers by section and name: their table, and their curves over stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.command import Analysis
from seal_fast.analysis.common.results import over_seeds
from seal_fast.analysis.common.stage_plots import Curves, by_stage, draw_rows, several_stages
from seal_fast.runs.stats import Interval, decimals, student
from seal_fast.utils.table import table

Figures = dict[str, dict[str, dict[str, float]]]
"""By section (a split, a group of parameters, a layer) and name, an `Interval` as JSON."""


def number(value: float) -> dict[str, float]:
    """A figure without an interval."""
    return student([value]).json()


def curves(results: Sequence[dict[str, Any]], section: str, name: str) -> Curves:
    """A figure over the stages of each group."""

    def read(result: Any) -> Interval | None:
        found = result["figures"].get(section, {}).get(name)
        return found and Interval(**found)

    return by_stage(results, read)


def draw_generations(results: Sequence[dict[str, Any]], path: Callable[[str], Path]) -> None:
    """Draw `<command>_generations`: a row of panels for each section, where the results are of several stages."""
    if not several_stages(results):
        return
    panels = []
    for section in _sections(results):
        names = _names(results, section)
        panels.append([(f"{name}, {section}", curves(results, section, name)) for name in names])
    draw_rows(panels, path(f"{results[0]['protocol']['analysis']}_generations"))


class FigureAnalysis(Analysis):
    """An analysis whose results hold `figures`; the report shows them under the same names."""

    def title(self, protocol: dict[str, Any]) -> str:
        """What stands above the table of results of a protocol."""
        raise NotImplementedError

    def table(self, results: Sequence[dict[str, Any]]) -> str:
        """Sections of the same figures together: a row for each network, and one for each group of several seeds."""
        alike: dict[tuple[str, ...], list[str]] = {}
        for section in _sections(results):
            alike.setdefault(_names(results, section), []).append(section)
        parts = [self.title(results[0]["protocol"])]
        for names, sections in alike.items():
            rows = [("network", "section", *names)]
            for section in sections:
                found = [result for result in results if section in result["figures"]]
                means = ([r["figures"][section][n]["mean"] for r in found if n in r["figures"][section]] for n in names)
                digits = [2 if "%" in n else max(4, decimals(m, 3)) for n, m in zip(names, means, strict=True)]
                for title, same in [*((r["subject"], [r]) for r in found), *over_seeds(found)]:
                    shown = (_over(same, section, name) for name in names)
                    cells = (one.show(n) if one else "-" for one, n in zip(shown, digits, strict=True))
                    rows.append((title, section, *cells))
            parts.append(table(rows, left=2))
        return "\n\n".join(parts)

    plot = staticmethod(draw_generations)


def _sections(results: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(section for result in results for section in result["figures"]))


def _names(results: Sequence[dict[str, Any]], section: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for result in results for name in result["figures"].get(section, ())))


def _over(results: Sequence[dict[str, Any]], section: str, name: str) -> Interval | None:
    """A figure of one network, or its mean over several that have it."""
    found = [r["figures"][section][name] for r in results if name in r["figures"][section]]
    if len(results) == 1:
        return Interval(**found[0]) if found else None
    return student([one["mean"] for one in found]) if found else None
