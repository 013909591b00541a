"""Which groups a report compares, and their differences paired by seed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

from seal_fast.runs.collection import Group
from seal_fast.runs.identity import pair_by_seed
from seal_fast.runs.stats import Interval, holm, paired, paired_p, student
from seal_fast.utils.errors import UsageError

Pairs = Sequence[tuple[int, int]]
"""Groups to compare, by their places."""
FIGURES = ("best", "last")


def choose_pairs(groups: Sequence[Group], baseline: str | None = None) -> Pairs:
    """Every other group against the one whose label or method is `baseline`.

    Without it, groups of different methods that agree in all other settings that act on both; or, where there are none,
    the group with the best mean against every other one.

    Raises:
        UsageError: the baseline is no group, or the method of several.
    """
    known = [i for i, group in enumerate(groups) if group.runs]
    if baseline is not None:
        named = [i for i in known if groups[i].label == baseline] or [
            i for i in known if groups[i].first.config.method == baseline
        ]
        if len(named) != 1:
            among = "; ".join(groups[i].label for i in named or known)
            raise UsageError(f"--baseline {baseline}: {'is' if named else 'no group is'} one of: {among}; name one")
        return [(i, named[0]) for i in known if i != named[0]]

    def comparable(a: dict[str, Any], b: dict[str, Any]) -> bool:
        both = (a.keys() & b.keys()) - {"method"}
        return a.get("method") != b.get("method") and all(a[name] == b[name] for name in both)

    pairs = [(i, j) for i, j in itertools.combinations(known, 2) if comparable(groups[i].settings, groups[j].settings)]
    if pairs or not known:
        return pairs
    best = max(known, key=lambda i: mean_top1(groups[i], "best").mean)
    return [(best, other) for other in known if other != best]


def mean_top1(group: Group, which: str) -> Interval:
    """Top-1 in percent over the group's runs that have it; NaN where none has."""
    values = [run.top1[which] for run in group.runs.values() if which in run.top1]
    return student(values) if values else Interval(math.nan, math.nan, math.nan, 0)


def accuracy_differences(groups: Sequence[Group], pairs: Pairs) -> list[dict[str, Any]]:
    """A row for each pair with a common seed: points of top-1 of each of `FIGURES`, and slope; the smallest p first."""
    best, last = (
        adjusted(differences(pairs, [{seed: run.top1[which] for seed, run in g.runs.items()} for g in groups]))
        for which in FIGURES
    )
    slopes = [{s: run.slope for s, run in g.runs.items() if run.slope is not None} for g in groups]
    slope = {(row["first"], row["second"]): row for row in adjusted(differences(pairs, slopes))}
    rows = []
    for a, b in zip(best, last, strict=True):
        sides = {"first": a["first"], "second": a["second"]}
        rows.append(sides | {"best": a, "last": b, "slope": slope.get(tuple(sides.values()))})
    return sorted(rows, key=lambda row: row["best"]["p"] if row["best"]["count"] > 1 else 2.0)


def differences(pairs: Pairs, values: Sequence[Mapping[int, float]]) -> list[dict[str, Any]]:
    """First minus second over common seeds, with 95 % interval and p of the paired t-test; values by group and seed."""
    rows = []
    for first, second in pairs:
        if common := pair_by_seed(values[first], values[second]):
            a, b = zip(*common, strict=True)
            rows.append({"first": first, "second": second, **paired(a, b).json(), "p": paired_p(a, b)})
    return rows


def adjusted(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with `holm`, p adjusted for their number."""
    return [row | {"holm": p} for row, p in zip(rows, holm([row["p"] for row in rows]), strict=True)]
