"""What a report shows, as plain values and as a page: groups of seeds, paired differences, curves, throughput."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib import resources
from typing import Any

from seal_fast.report.analyses import Analyses
from seal_fast.report.pairs import FIGURES, accuracy_differences, choose_pairs, mean_top1
from seal_fast.runs.collection import Group, Run, Runs
from seal_fast.runs.plots import ascents
from seal_fast.runs.stats import student
from seal_fast.runs.summary import throughput
from seal_fast.utils.files import to_json
from seal_fast.utils.terminal import shown

_POINTS = 160  # of a learning curve: about two pixels each
_PAIRS = 40


def content(
    found: Runs, groups: Sequence[Group], analyses: Analyses, title: str, baseline: str | None = None
) -> dict[str, Any]:
    """The page as plain values; groups are named by their place in the list. `baseline`: see `choose_pairs`."""
    left_out = [*found.left_out, *((shown(run.path), why) for g in groups for run, why in g.left_out)]
    pairs = choose_pairs(groups, baseline)
    rows = accuracy_differences(groups, pairs)
    return {
        "title": shown(title),
        "runs": sum(len(group.runs) for group in groups),
        "same_start": _same_start(groups),
        "varied": list(dict.fromkeys(name for group in groups for name in group.settings)),
        "chosen_on": _chosen_on(groups),
        "groups": [_group(group) for group in groups],
        "pairs": rows[:_PAIRS],
        "more_pairs": max(0, len(rows) - _PAIRS),
        "analyses": analyses.content(len(groups), pairs),
        "left_out": [*left_out, *analyses.left_out],
    }


def _chosen_on(groups: Sequence[Group]) -> str:
    held = [group.label for group in groups if group.first.config.holdout]
    where = "held-out training images" if len(held) == len(groups) else "the test set, as in the papers"
    some = f", but on held-out training images in {'; '.join(held)}" if 0 < len(held) < len(groups) else ""
    return f"Best epochs are chosen on {where}{some}."


def _same_start(groups: Sequence[Group]) -> str:
    """Whether the runs of one seed are equal at the end of generation 0, where they have more generations than that."""
    seeds: dict[int, list[tuple[float, float]]] = {}
    for group in groups:
        for seed, run in group.runs.items():
            if len(run.ends) > 1 and (row := run.ends.get(0)):
                seeds.setdefault(seed, []).append((row["val_top1"], row["val_loss"]))
    several = {seed: ends for seed, ends in seeds.items() if len(ends) > 1}
    if not several:
        return ""
    other = [str(seed) for seed, ends in several.items() if len(set(ends)) > 1]
    where = f"not equal between groups (seeds {', '.join(other)})" if other else "equal in all groups, seed by seed"
    return f"The end of generation 0 is {where}."


def _group(group: Group) -> dict[str, Any]:
    runs = list(group.runs.values())
    rows = [row for run in runs for row in run.rows]
    seconds = sum(row["seconds"] for row in rows)
    return {
        "label": group.label,
        "method": group.first.config.method,
        "settings": group.settings,
        "seeds": list(group.runs),
        "left_out": len(group.left_out),
        **{which: mean_top1(group, which).json() for which in (*FIGURES, "test")},
        "epochs": max((len(run.rows) for run in runs), default=0),
        "images_per_s": sum(row["images"] for row in rows) / seconds if seconds else None,
        "curve": _curve(runs),
        **_generations(runs),
        "ascents": ascents(runs[0].rows) if runs else [],
        "throughput": _throughput(runs),
    }


def _curve(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Validation top-1 over epochs: mean, least and most over the runs."""
    values: dict[int, list[float]] = {}
    for run in runs:
        for i, row in enumerate(run.rows):
            if row["val_top1"] is not None:
                values.setdefault(i + 1, []).append(row["val_top1"])
    epochs = sorted(values)
    if len(epochs) > _POINTS:
        epochs = [epochs[(i * (len(epochs) - 1)) // (_POINTS - 1)] for i in range(_POINTS)]
    parts = [values[epoch] for epoch in epochs]
    curve = {"epoch": epochs, "mean": [round(sum(p) / len(p), 2) for p in parts]}
    if len(runs) > 1:
        curve |= {"low": [round(min(p), 2) for p in parts], "high": [round(max(p), 2) for p in parts]}
    return curve


def _generations(runs: Sequence[Run]) -> dict[str, Any]:
    """Top-1 at the generations' ends, its gain since generation 0, its slope, and how well generation 0 fits."""
    ends = sorted(set[int]().union(*(run.ends for run in runs)))
    if len(ends) < 2:
        return {"ends": None}
    columns = [[run.ends[g]["val_top1"] for run in runs if g in run.ends] for g in ends]
    whole = [run.ends for run in runs if {0, ends[-1]} <= run.ends.keys()]
    gains = [rows[ends[-1]]["val_top1"] - rows[0]["val_top1"] for rows in whole]
    slopes = [run.slope for run in runs if run.slope is not None]
    fits = [run.ends[0]["train_top1"] for run in runs if 0 in run.ends]
    return {
        "ends": {"at": ends, "points": [student(values).json() for values in columns]},
        "gain": student(gains).json() if gains else None,
        "slope": student(slopes).json() if slopes else None,
        "fit": sum(fits) / len(fits) if fits else None,
    }


def _throughput(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Training images per second of every generation, mean over the runs."""
    rates: dict[int, list[float]] = {}
    for run in runs:
        for part in throughput(run.rows):
            rates.setdefault(part["generation"], []).append(part["images_per_s"])
    return {"generation": list(rates), "images_per_s": [round(sum(v) / len(v), 1) for v in rates.values()]}


def page(content: dict[str, Any]) -> str:
    """One HTML file without anything outside it; the content is in it as JSON, where it cannot execute."""
    part = resources.files("seal_fast.report")
    style, script, body = ((part / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html"))
    data = json.dumps(to_json(content), separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{html.escape(content['title'])}</title><style>{style}</style></head><body>{body}"
        f'<script type="application/json" id="data">{data}</script><script>{script}</script></body></html>\n'
    )
