"""Analyses whose results are numbers by section and name: their table, and their curves over stages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.command import Analysis
from seal_fast.analysis.common.stage_plots import Curves, by_stage, draw, several_stages
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
    draw(panels, path(f"{results[0]['protocol']['analysis']}_generations"))


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
                found = [(r["subject"], r["figures"][section]) for r in results if section in r["figures"]]
                digits = [_digits(name, [one[name]["mean"] for _, one in found if name in one]) for name in names]
                shown = [(name, _intervals(one, names)) for name, one in found]
                for name, intervals in [*shown, *_over_seeds(results, section, names)]:
                    cells = (one.show(n) if one else "-" for one, n in zip(intervals, digits, strict=True))
                    rows.append((name, section, *cells))
            parts.append(table(rows, left=2))
        return "\n\n".join(parts)

    plot = staticmethod(draw_generations)


def _sections(results: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(section for result in results for section in result["figures"]))


def _names(results: Sequence[dict[str, Any]], section: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for result in results for name in result["figures"].get(section, ())))


def _digits(name: str, values: Sequence[float]) -> int:
    return 2 if "%" in name else max(4, decimals(values, 3))


def _intervals(figures: dict[str, Any], names: Iterable[str]) -> list[Interval | None]:
    return [Interval(**figures[name]) if name in figures else None for name in names]


def _over_seeds(
    results: Sequence[dict[str, Any]], section: str, names: Sequence[str]
) -> Iterator[tuple[str, list[Interval | None]]]:
    """Name and means of each stage of a group with several seeds."""
    for group, stage in dict.fromkeys((result["group"], result["stage"]) for result in results):
        same = [r["figures"] for r in results if (r["group"], r["stage"]) == (group, stage)]
        found = [figures[section] for figures in same if section in figures]
        if len(found) > 1:
            values = ([one[name]["mean"] for one in found if name in one] for name in names)
            title = f"{group}, {len(found)} seeds" + ("" if stage == "last" else f", {stage}")
            yield title, [student(some) if some else None for some in values]
