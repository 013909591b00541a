"""Figures of the records of single training examples, and how well they find wrong labels, in float64."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from seal_fast.analysis.common.figures import number
from seal_fast.analysis.common.results import percent
from seal_fast.runs.stats import student

Records = Mapping[str, np.ndarray]
"""As `training.examples.Examples.records` describes them."""
MEASURES: tuple[str, ...] = ("learnt in epoch", "forgetting events", "area under the margin", "last agreement in epoch")


def per_example(records: Records) -> dict[str, np.ndarray]:
    """The `MEASURES` of each example, float64 [N]; NaN where it was never right, or never shown."""
    never = records["learnt"] < 0
    with np.errstate(invalid="ignore"):
        margin = records["margin_sum"] / np.where(records["seen"] > 0, records["seen"], np.nan)
    values = records["learnt"], records["forgotten"], margin, records["agreed"]
    found = dict(zip(MEASURES, (value.astype(np.float64) for value in values), strict=True))
    for name in set(MEASURES) - {"area under the margin"}:
        found[name][never] = np.nan
    return found


def summarise(records: Records, rows: np.ndarray) -> dict[str, dict[str, float]]:
    """Means over the examples in `rows`, bool [N], with Student's interval, and shares with Wilson's."""
    found = {name: values[rows & np.isfinite(values)] for name, values in per_example(records).items()}
    learnt, count = rows & (records["learnt"] >= 0), int(rows.sum())
    figures = {"learnt (%)": percent(int(learnt.sum()), count).json()}
    figures |= {name: student(values).json() for name, values in found.items() if len(values)}
    if learnt.any():
        unforgotten = int((records["forgotten"][learnt] == 0).sum())
        figures["never forgotten (%)"] = percent(unforgotten, int(learnt.sum())).json()
    return figures | {"right the last time (%)": percent(int(records["right"][rows].sum()), count).json()}


def across(records: Records, phases: Sequence[str]) -> dict[str, dict[str, float]]:
    """Of the examples right as a generation began, the shares that its ascent, and the whole of it, made wrong.

    Also the share of those forgotten by the ascent that are right again at the end. Empty where no example was right.
    """
    before, *ends = records["ends"]
    shares: dict[str, tuple[np.ndarray, np.ndarray]] = {}
    if "ascent" in phases:
        gone = before & ~ends[len(phases) - 1 - list(phases)[::-1].index("ascent")]
        shares = {"forgotten by the ascent (%)": (before, gone), "of these right again (%)": (gone, ends[-1])}
    shares["wrong at the end (%)"] = before, ~ends[-1]
    return {
        name: percent(int((base & part).sum()), int(base.sum())).json()
        for name, (base, part) in shares.items()
        if base.any()
    }


def find_wrong(records: Records, wrong: np.ndarray) -> dict[str, dict[str, float]]:
    """How well each measure finds the wrong labels, bool [N]: the area under the ROC curve; empty without both kinds.

    Wrongly labelled examples are expected to be learnt late or never, forgotten often, and to have a small margin. One
    that was never right counts as the latest, and as the most often forgotten (Toneva et al., section 3).
    """
    from sklearn.metrics import roc_auc_score

    if wrong.all() or not wrong.any():
        return {}
    found = per_example(records)
    shown = ~np.isnan(found["area under the margin"])
    figures = {}
    for name, values in found.items():
        late = name in ("learnt in epoch", "forgetting events")
        scores = np.where(np.isnan(values), np.nanmax([0, *values]) + 1 if late else -1.0, values)
        finite = np.nan_to_num(scores if late else -scores)[shown]
        if len(np.unique(wrong[shown])) == 2:
            figures[f"AUROC, {name}"] = number(float(roc_auc_score(wrong[shown], finite)))
    return figures


def profile(records: Records, epochs: int, rows: np.ndarray) -> dict[str, list[float]]:
    """What the plot shows of the examples in `rows`.

    `learnt`: the share learnt by the end of each epoch; `forgotten`: the share with 0, 1, ... events, of those ever
    right; `margins`: the percentiles 0 to 100 of the area under the margin.
    """
    learnt = records["learnt"][rows]
    margin = per_example(records)["area under the margin"][rows]
    events = np.bincount(records["forgotten"][rows][learnt >= 0], minlength=1)
    margin = margin[np.isfinite(margin)]
    return {
        "learnt": (np.cumsum(np.bincount(learnt[learnt >= 0], minlength=epochs)) / max(1, len(learnt))).tolist(),
        "forgotten": (events / max(1, events.sum())).tolist(),
        "margins": np.percentile(margin, range(101)).tolist() if len(margin) else [],
    }


def table_of(records: Records, names: Sequence[str], classes: Sequence[str], wrong: np.ndarray) -> str:
    """A line for each example as CSV."""
    import csv
    import io

    memory = io.StringIO()
    writer = csv.writer(memory, lineterminator="\n")
    writer.writerow(["image", "label", "wrong label", "learnt", "forgotten", "area under the margin", "last agreement"])
    margin = per_example(records)["area under the margin"].tolist()
    columns: list[Any] = [names, [classes[label] for label in records["labels"]], wrong.astype(int).tolist()]
    columns += [records["learnt"].tolist(), records["forgotten"].tolist(), margin, records["agreed"].tolist()]
    writer.writerows(zip(*columns, strict=True))
    return memory.getvalue()
