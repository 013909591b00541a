"""Analyses whose results are numbers by section and name: their table, and their curves over stages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.command import Analysis
from seal_fast.analysis.common.stage_plots import Curves, by_stage, draw, several_stages
from seal_fast.runs.stats import Interval, student
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


class FigureAnalysis(Analysis):
    """An analysis whose results hold `figures`; the report shows them under the same names."""

    def title(self, result: dict[str, Any]) -> str:
        """What stands above the table of results with the protocol of this one."""
        raise NotImplementedError

    def table(self, results: Sequence[dict[str, Any]]) -> str:
        """A row for each network and section, and one for each group of several seeds."""
        names = list(dict.fromkeys(name for r in results for found in r["figures"].values() for name in found))
        rows = [("network", "section", *names)]
        for section in _sections(results):
            for result in results:
                if found := result["figures"].get(section):
                    shown = (Interval(**found[name]).show(_digits(name)) if name in found else "-" for name in names)
                    rows.append((result["subject"], section, *shown))
            for seeds, same in _over_seeds(results, section):
                values = ([found[name]["mean"] for found in same if name in found] for name in names)
                shown = (student(v).show(_digits(name)) if v else "-" for name, v in zip(names, values, strict=True))
                rows.append((seeds, section, *shown))
        return f"{self.title(results[0])}\n\n{table(rows, left=2)}"

    def plot(self, results: Sequence[dict[str, Any]], path: Callable[[str], Path]) -> None:
        """Draw `<command>_generations`: a row of panels for each section, where the results are of several stages."""
        if not several_stages(results):
            return
        panels = []
        for section in _sections(results):
            names = dict.fromkeys(name for r in results for name in r["figures"].get(section, ()))
            panels.append([(f"{name}, {section}", curves(results, section, name)) for name in names])
        draw(panels, path(f"{self.name}_generations"))


def _sections(results: Sequence[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(section for result in results for section in result["figures"]))


def _digits(name: str) -> int:
    return 2 if "%" in name else 4


def _over_seeds(results: Sequence[dict[str, Any]], section: str) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Name and figures of each stage of a group with several seeds."""
    for group, stage in dict.fromkeys((result["group"], result["stage"]) for result in results):
        same = [r["figures"] for r in results if (r["group"], r["stage"]) == (group, stage)]
        found = [figures[section] for figures in same if section in figures]
        if len(found) > 1:
            yield f"{group}, {len(found)} seeds" + ("" if stage == "last" else f", {stage}"), found
