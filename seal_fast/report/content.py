"""Everything a report shows, as plain numbers: the page only draws them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

from seal_fast.report.runs import Group, Run, groups, varied
from seal_fast.runs.plots import ascents
from seal_fast.runs.stats import Interval, paired, student
from seal_fast.runs.summary import summarise, throughput

_POINTS = 160  # of a learning curve: about two pixels each
_PAIRS = 40
FIGURES = {"best": "best epoch", "last": "last epoch"}


def content(runs: Sequence[Run], title: str) -> dict[str, Any]:
    """The page as plain values."""
    names = varied(runs)
    found = groups(runs)
    top1 = {run.name: _top1(run) for run in runs}
    states: dict[str, int] = {}
    for run in runs:
        states[run.state] = states.get(run.state, 0) + 1
    return {
        "title": title,
        "runs": len(runs),
        "states": {state: count for state, count in states.items() if state},
        "varied": names,
        "groups": [_group(group, top1) for group in found],
        "pairs": pairs(found, top1),
        "throughput": _throughput(runs),
        "failed": [{"name": run.name, "message": run.message} for run in runs if run.state == "failed"],
    }


def pairs(found: Sequence[Group], top1: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Differences of methods over runs that agree in seed and in every other setting that both methods vary.

    A setting that only one of the two varies makes a row for each of its values. Where all groups train by one method,
    the best group is compared with the others.
    """
    methods = list(dict.fromkeys(group.runs[0].config.method for group in found))
    rows: list[dict[str, Any]] = []
    if len(methods) > 1:
        sides = {m: [group for group in found if group.runs[0].config.method == m] for m in methods}
        names = {m: [n for n in found[0].settings if _varies(side, n)] for m, side in sides.items()}
        for first, second in itertools.combinations(methods, 2):
            shared = [n for n in names[first] if n in names[second]]
            one, other = (
                _parts(m, sides[m], [n for n in names[m] if n not in shared], shared) for m in (first, second)
            )
            for a, b in itertools.product(one, other):
                rows += _difference(a, b, one[a], other[b], top1)
        return {"what": "methods", "rows": rows[:_PAIRS], "more": max(0, len(rows) - _PAIRS)}
    scored = [group for group in found if any(top1[run.name] for run in group.runs)]
    if len(scored) > 1:
        best = max(scored, key=lambda g: _interval([top1[r.name].get("best") for r in g.runs]).mean)
        for other in scored:
            if other is not best:
                rows += _difference(label(best), label(other), _keyed([best], []), _keyed([other], []), top1)
    return {"what": "groups", "rows": rows[:_PAIRS], "more": max(0, len(rows) - _PAIRS)}


def label(group: Group) -> str:
    """A group's name: what it alone has among groups."""
    said = [str(v) if n == "method" else f"{n.replace('_', ' ')} {_short(v)}" for n, v in group.settings.items()]
    return ", ".join(said) or group.runs[0].config.method


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _top1(run: Run) -> dict[str, float]:
    summary = summarise(run.rows)
    return {which: summary[which]["val_top1"] for which in FIGURES if summary[which]}


def _interval(values: Sequence[float | None]) -> Interval:
    known = [value for value in values if value is not None]
    return student(known) if known else Interval(float("nan"), float("nan"), float("nan"), 0)


def _group(group: Group, top1: dict[str, dict[str, float]]) -> dict[str, Any]:
    seconds = [sum(row["seconds"] for row in run.rows) for run in group.runs if run.rows]
    images = [sum(row["images"] for row in run.rows) for run in group.runs if run.rows]
    stopped = sum(run.state == "stopped" for run in group.runs)
    return {
        "label": label(group),
        "method": group.runs[0].config.method,
        "settings": group.settings,
        "seeds": [run.config.seed for run in group.runs if top1[run.name]],
        "stopped": stopped,
        **{which: _interval([top1[run.name].get(which) for run in group.runs]).json() for which in FIGURES},
        "epochs": max((len(run.rows) for run in group.runs), default=0),
        "images_per_s": sum(images) / sum(seconds) if sum(seconds) else None,
        "curve": _curve(group.runs),
        "ascents": ascents(max((run.rows for run in group.runs), key=len)),
    }


def _curve(runs: Sequence[Run]) -> dict[str, list[float]]:
    """Validation top-1 over epochs: mean, least and most over the runs that have come so far."""
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


def _throughput(runs: Sequence[Run]) -> list[dict[str, Any]]:
    """Images per second of every generation, by method."""
    rates: dict[str, dict[int, list[float]]] = {}
    for run in runs:
        for part in throughput(run.rows):
            rates.setdefault(run.config.method, {}).setdefault(part["generation"], []).append(part["images_per_s"])
    return [
        {"method": method, "generation": list(by), "images_per_s": [round(sum(v) / len(v), 1) for v in by.values()]}
        for method, by in rates.items()
    ]


def _varies(side: Sequence[Group], name: str) -> bool:
    return len({group.settings[name] for group in side}) > 1


def _parts(method: str, side: Sequence[Group], own: Sequence[str], shared: Sequence[str]) -> dict[str, dict]:
    """A method's runs, `_keyed` by what it shares, for each combination of the settings that it alone varies."""
    parts: dict[str, list[Group]] = {}
    for group in side:
        said = ", ".join(f"{name.replace('_', ' ')} {_short(group.settings[name])}" for name in own)
        parts.setdefault(f"{method}, {said}" if said else method, []).append(group)
    return {name: _keyed(groups, shared) for name, groups in parts.items()}


def _keyed(side: Sequence[Group], names: Sequence[str]) -> dict[tuple[Any, ...], str]:
    """Run names by seed and settings."""
    keyed: dict[tuple[Any, ...], str] = {}
    for group in side:
        for run in group.runs:
            keyed.setdefault((run.config.seed, *(group.settings[name] for name in names)), run.name)
    return keyed


def _difference(first: str, second: str, a: dict, b: dict, top1: dict[str, dict[str, float]]) -> list[dict[str, Any]]:
    """One row, or none where nothing can be paired."""
    common = [key for key in a if key in b and top1[a[key]] and top1[b[key]]]
    if not common:
        return []
    row: dict[str, Any] = {"first": first, "second": second}
    for which in FIGURES:
        row[which] = paired([top1[a[key]][which] for key in common], [top1[b[key]][which] for key in common]).json()
    return [row]
