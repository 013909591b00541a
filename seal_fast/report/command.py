"""`python -m seal_fast report`: one page about many runs, and its figures as CSV, JSON and PNG."""

from __future__ import annotations

import argparse
import csv
import io
import math
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from seal_fast.report.analyses import Figure, read_analyses
from seal_fast.report.content import content, page
from seal_fast.report.plots import draw
from seal_fast.runs.collection import Group, group_by_training, open_runs
from seal_fast.runs.stats import Interval, decimals
from seal_fast.runs.summary import summarise
from seal_fast.utils.files import write_json, write_text
from seal_fast.utils.table import table

_LISTED = 10
_OUTCOMES = (
    ("best", "val", "of the best epoch"),
    ("last", "val", "of the last epoch"),
    ("test", "test", "on the test set"),
)


def main(argv: Sequence[str]) -> int:
    """Write the page, print its tables; returns the exit code.

    Raises:
        UsageError: there are no runs, or no results where --results says.
        RunError: a file cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m seal_fast report",
        description="Put runs on one HTML page that needs no network: means over seeds, paired differences, curves, "
        "and what the analyses found about them; the figures beside it as CSV and JSON, the first ones drawn as PNG.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN|DIR", help="run folders, sweeps, or folders of run folders")
    add("--results", nargs="+", type=Path, default=[], metavar="DIR", help="folders of results that lie elsewhere")
    add("--stage", default="last", help="weights that the tables of results are about; default: last")
    against = "compare every other group with this one only: its label in the table, or its method"
    add("--baseline", metavar="GROUP", help=against)
    add("--out", type=Path, metavar="FILE", help="page, or folder of report.html; default: DIR, or . for several")
    flags = parser.parse_args(list(argv))
    found = open_runs(flags.runs)
    groups = group_by_training(found.kept)
    places = [*flags.runs, *(run.path.parent for run in found.kept)]
    analyses = read_analyses(dict.fromkeys(places), flags.results, groups, flags.stage)
    alone = len(flags.runs) == 1 and not (flags.runs[0] / "config.toml").exists()
    path = flags.out or (flags.runs[0] if alone else Path())
    path = path if flags.out and path.suffix in (".html", ".htm") else path / "report.html"
    title = flags.runs[0].resolve().name if alone else f"{len(found.kept)} runs"
    shown = content(found, groups, analyses, title, flags.baseline)
    write_text(path, page(shown))
    write_json(path.with_suffix(".json"), shown)
    write_text(path.with_suffix(".csv"), _csv(groups, analyses.figures))
    drawn = draw(shown, path.with_suffix(".png"))
    _print(shown)
    kinds = ".csv, .json and .png" if drawn else ".csv and .json"
    print(f"written: {path} ({path.stat().st_size / 1e6:.1f} MB), and its figures as {kinds}")
    return 0


def _csv(groups: Sequence[Group], figures: Sequence[Figure]) -> str:
    """Every figure of every network that counts, one a line."""
    accuracies = [
        Figure("accuracy", 1, place, run.name, run.seed, which, f"{name} {what} (%)", summary[which][f"{split}_{key}"])
        for place, group in enumerate(groups)
        for run in group.runs.values()
        for summary in [summarise(run.rows)]
        for which, split, what in _OUTCOMES
        if which in summary
        for key, name in (("top1", "top-1"), ("top5", "top-5"))
    ]
    memory = io.StringIO()
    writer = csv.DictWriter(memory, [f.name for f in fields(Figure)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(f) | {"group": groups[f.group].label} for f in [*accuracies, *figures])
    return memory.getvalue()


def _print(content: dict[str, Any]) -> None:
    labels = [group["label"] for group in content["groups"]]
    tested = any(group["test"]["count"] for group in content["groups"])
    rows: list[Sequence[str]] = [("group", "seeds", "left out", "best epoch", "last epoch", *["test"] * tested)]
    for group in content["groups"]:
        counts = str(len(group["seeds"])), str(group["left_out"])
        cells = [_show(group[which]) for which in ("best", "last", *["test"] * tested)]
        rows.append((group["label"], *counts, *cells))
    print(f"top-1 in percent over finished runs, 95 % interval over seeds\n\n{table(rows)}\n\n{content['chosen_on']}\n")
    if content["pairs"]:
        tested = any(row["best"]["count"] > 1 for row in content["pairs"])  # a test needs two seeds in common
        p = ["p (Holm)"] * tested
        names = {"best": "best epoch", "last": "last epoch"}
        names |= {"slope": "slope"} if all(row["slope"] for row in content["pairs"]) else {}
        rows = [("first minus second", "pairs", *(cell for name in names.values() for cell in (name, *p)))]
        for row in content["pairs"]:
            found = [row[which] for which in names]
            cells = [text for one in found for text in (_show(one), *[_p(one["holm"])] * tested)]
            rows.append((f"{labels[row['first']]} - {labels[row['second']]}", str(row["best"]["count"]), *cells))
        print(f"{table(rows)}\n")
    if any(group["ends"] for group in content["groups"]):
        rows = [("over generations", "training, generation 0", "generation 0", "last", "gain", "slope")]
        for group in (group for group in content["groups"] if group["ends"]):
            points = group["ends"]["points"]
            cells = [_show(cell) if cell else "" for cell in (points[0], points[-1], group["gain"], group["slope"])]
            rows.append((group["label"], "" if group["fit"] is None else f"{group['fit']:.2f}", *cells))
        print(f"{table(rows)}\n\n{content['same_start']}\n")
    for section in content["analyses"]:
        rows = [("figure", "group", "seeds", "mean")]
        for figure in section["figures"]:
            digits = decimals([cell["mean"] for cell in figure["cells"]], 3)
            for cell in figure["cells"]:
                rows.append((figure["name"], labels[cell["group"]], str(cell["count"]), _show(cell, digits)))
        print(f"{section['title']}\n\n{table(rows, left=2)}\n")
    for name, why in content["left_out"][:_LISTED]:
        print(f"left out: {name}: {why}")
    if (more := len(content["left_out"]) - _LISTED) > 0:
        print(f"left out: {more} more; all are on the page")


def _p(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3g}"


def _show(cell: dict[str, Any], digits: int = 2) -> str:
    found = Interval(**{key: cell[key] for key in ("mean", "low", "high", "count")})
    return found.show(digits) if found.count else ""
