"""curves.png: accuracy, loss and learning rate of a run over its epochs, ascent phases shaded."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, groupby
from pathlib import Path
from typing import Any

from seal_fast.utils.files import write_atomically

EARLY, LATE, VAL, TRAIN, EMA = "#d1495b", "#30638e", "#003d5b", "#8fb8de", "#2a8f6d"


def ascents(rows: Sequence[dict[str, Any]]) -> list[tuple[int, int]]:
    """Ascent phases as half-open ranges of epochs counted over the whole run."""
    phases = [(name, len(list(part))) for name, part in groupby(row["phase"] for row in rows)]
    ends = list(accumulate(length for _, length in phases))
    return [(end - length, end) for (name, length), end in zip(phases, ends, strict=True) if name == "ascent"]


def draw(rows: Sequence[dict[str, Any]], title: str, path: Path) -> None:
    """Draw metrics rows into a PNG file; RunError if it cannot be written."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7))
    # set here, as a layout engine takes as long as drawing
    margins = {"left": 0.11, "right": 0.99, "top": 0.95, "bottom": 0.07, "hspace": 0.08}
    accuracy, loss, lr = figure.subplots(3, 1, sharex=True, height_ratios=(3, 2, 1.5), gridspec_kw=margins)
    epochs = [i + 1 for i in range(len(rows))]
    seen = [(i + 1, row) for i, row in enumerate(rows) if row["val_top1"] is not None]
    evaluated = [i for i, _ in seen]

    for axis, name, text in ((accuracy, "top1", "top-1"), (loss, "loss", "loss")):
        axis.plot(epochs, [row[f"train_{name}"] for row in rows], color=TRAIN, label=f"train {text}")
        axis.plot(evaluated, [row[f"val_{name}"] for _, row in seen], color=VAL, label=f"val {text}")
        if averaged := [(i, row) for i, row in seen if row.get(f"val_ema_{name}") is not None]:
            at, values = [i for i, _ in averaged], [row[f"val_ema_{name}"] for _, row in averaged]
            axis.plot(at, values, color=EMA, linestyle="--", label=f"val {text}, averaged weights")
        if tested := [(i, row[f"test_{name}"]) for i, row in seen if f"test_{name}" in row]:
            axis.plot(*zip(*tested, strict=True), "o", color=VAL, label=f"test {text}")
    accuracy.set_ylabel("accuracy (%)")
    loss.set_ylabel("loss")
    groups = [name.removeprefix("lr_") for name in rows[0] if name.startswith("lr_")]
    for i, group in enumerate(groups):
        signed = [row[f"direction_{group}"] * row[f"lr_{group}"] for row in rows]
        colour = {"early": EARLY, "late": LATE}.get(group, f"C{i}")
        lr.step(epochs, signed, where="mid", color=colour, label=f"{group} layers")
    lr.axhline(0, color="0.7", linewidth=0.8)
    lr.set_ylabel("learning rate\n(< 0 ascends)")
    lr.set_xlabel("epoch")

    for axis in (accuracy, loss, lr):
        for i, (start, end) in enumerate(ascents(rows)):
            label = "ascent" if axis is accuracy and i == 0 else None
            axis.axvspan(start + 0.5, end + 0.5, color=EARLY, alpha=0.15, linewidth=0, label=label)
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(loc="best", frameon=False, fontsize=8)
    accuracy.set_title(title)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))


def stage_place(stage: str) -> float:
    """Where weights stand on an axis of generations: those of the end of an ascent between two generations."""
    number = stage.removeprefix("generation-").removesuffix("-ascent")
    return int(number) - 0.5 * stage.endswith("-ascent") if number.isdecimal() else 0.0
