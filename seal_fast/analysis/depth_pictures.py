"""Pictures of prediction depth: histograms, accuracy by depth, and the curve over generations."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seal_fast.curves import EARLY
from seal_fast.files import write_atomically

COLOURS = ("#003d5b", "#d1495b", "#edae49", "#00798c", "#6a4c93", "#8a8d91", "#2e933c", "#b5651d")


def draw(results: Sequence[dict[str, Any]], out: Path) -> list[Path]:
    """Write depth.png, and depth_generations.png where several stages of one run are among the results.

    Raises:
        RunError: a file cannot be written.
    """
    written = [out / "depth.png"]
    _distributions(results, written[0])
    runs = by_run(results)
    if any(len(members) > 1 for members in runs.values()):
        written.append(out / "depth_generations.png")
        _generations(runs, written[1])
    return written


def by_run(results: Sequence[dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """Results of the same run, whose names differ by their stage, in the order they came."""
    runs: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        runs.setdefault(result["subject"].removesuffix(f" {result['stage']}"), []).append(result)
    return runs


def _distributions(results: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    splits, first = list(results[0]["splits"]), results[0]
    figure = Figure(figsize=(11, 3.6 * len(splits)), layout="constrained")
    figure.suptitle(
        f"{first['k']} nearest of {first['bank']:,} training images, reference: {first['reference']}, "
        f"pooling: {first['pooling']}",
        fontsize=9,
    )
    axes = figure.subplots(len(splits), 2, squeeze=False)
    for (shares, accuracies), split in zip(axes, splits, strict=True):
        for i, result in enumerate(results):
            found, probes = result["splits"][split], result["probes"]
            places = [*range(len(probes)), len(probes) + 0.5]
            counts = [*found["histogram"], found["examples"] - sum(found["histogram"])]
            style = {"color": COLOURS[i % len(COLOURS)], "marker": "o", "markersize": 3, "linewidth": 1.2}
            share = [100 * count / found["examples"] for count in counts]
            shares.plot(places[:-1], share[:-1], label=result["subject"], **style)
            shares.plot(places[-1], share[-1], **style)
            known = [(x, y) for x, y in zip(places, found["top1_by_depth"], strict=False) if y is not None]
            accuracies.plot(*zip(*known, strict=True) if known else ((), ()), **style)
            if found["top1_without_depth"] is not None:
                accuracies.plot(places[-1], found["top1_without_depth"], **style)
        shares.set_ylabel(f"share of {split} images (%)")
        accuracies.set_ylabel(f"top-1 of {split} images (%)")
        for axis in (shares, accuracies):
            axis.set_xticks([*range(len(probes)), len(probes) + 0.5], [*probes, "none"], rotation=60, fontsize=8)
            axis.set_xlabel("prediction depth")
            axis.set_ylim(bottom=0)
            axis.spines[["top", "right"]].set_visible(False)
        shares.legend(frameon=False, fontsize=7, ncols=1 + len(results) // 9)
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))


def _generations(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    from matplotlib.figure import Figure

    splits = list(next(iter(runs.values()))[0]["splits"])
    figure = Figure(figsize=(9, 3.2 * len(splits)), layout="constrained")
    axes = figure.subplots(len(splits), 1, squeeze=False)[:, 0]
    for axis, split in zip(axes, splits, strict=True):
        places = {}
        for i, (name, members) in enumerate(runs.items()):
            colour = COLOURS[i % len(COLOURS)]
            x = [stage_place(member["stage"]) for member in members]
            places |= dict(zip(x, (member["stage"] for member in members), strict=True))
            found = [member["splits"][split]["mean_depth"] for member in members]
            # Results that were written and read again hold None where there is no mean.
            y, low, high = ([_number(f[key]) for f in found] for key in ("mean", "low", "high"))
            axis.plot(x, y, color=colour, marker="o", markersize=3, linewidth=1.2, label=name)
            axis.fill_between(x, low, high, color=colour, alpha=0.15, linewidth=0)
        for place, stage in places.items():
            if stage.endswith("-ascent"):
                axis.axvline(place, color=EARLY, alpha=0.3, linewidth=6)
        names = [stage.removeprefix("generation-").replace("-ascent", "\nascent") for stage in places.values()]
        axis.set_xticks(list(places), names)
        axis.set_ylabel(f"mean prediction depth, {split}")
        axis.spines[["top", "right"]].set_visible(False)
        axis.legend(frameon=False, fontsize=7)
    axes[-1].set_xlabel("generation (its end, or the end of its ascent)")
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=120, format="png"))


def stage_place(stage: str) -> float:
    """Where a stage stands on an axis of generations: an ascent half-way between two of their ends."""
    number = stage.removeprefix("generation-").removesuffix("-ascent")
    if not number.isdecimal():
        return 0.0
    return int(number) - 0.5 * stage.endswith("-ascent")


def _number(value: float | None) -> float:
    return float("nan") if value is None else value
