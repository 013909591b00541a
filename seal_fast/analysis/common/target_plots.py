"""Pictures of transfer and few-shot accuracy: bars by target, and curves over a run's generations."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from seal_fast.analysis.common.stage_plots import COLOURS, by_stage, draw, several_stages
from seal_fast.runs.stats import student
from seal_fast.utils.files import write_atomically

Value = Callable[[dict[str, Any]], float | None]
"""A figure out of one network's results; None where it has none."""


def draw_transfer(results: Sequence[dict[str, Any]], out: Path) -> list[Path]:
    """Write transfer.png, or transfer_generations.png where several stages of a run are among the results.

    Raises:
        RunError: the file cannot be written.
    """
    titles = {"linear": "linear probe", "knn": "k-NN", "fine_tune": "fine-tuned"}
    first = next(iter(results[0]["targets"].values()))
    panels = [
        (title, {target: _at(target, probe, "top1") for target in results[0]["targets"]})
        for probe, title in titles.items()
        if probe in first
    ]
    return [_draw(results, panels, out, "transfer", "test top-1 (%)")]


def draw_fewshot(results: Sequence[dict[str, Any]], out: Path) -> list[Path]:
    """Write fewshot.png, or fewshot_generations.png where several stages of a run are among the results.

    Raises:
        RunError: the file cannot be written.
    """
    panels = [
        (
            f"{target}, {title}",
            {f"{shots} shots": _at(target, shots, head, "mean") for shots in shown},
        )
        for target, shown in results[0]["targets"].items()
        for head, title in {"linear": "linear head", "centroid": "nearest centroid"}.items()
    ]
    return [_draw(results, panels, out, "fewshot", "accuracy (%)")]


def _at(*path: str) -> Value:
    def value(result: dict[str, Any]) -> float | None:
        found: Any = result["targets"]
        for key in path:
            found = found.get(key) if found is not None else None
        return found

    return value


def _draw(
    results: Sequence[dict[str, Any]], panels: Sequence[tuple[str, dict[str, Value]]], out: Path, name: str, unit: str
) -> Path:
    from matplotlib.figure import Figure

    if several_stages(results):
        return _draw_curves(results, panels, out, name, unit)
    groups = list(dict.fromkeys(result["group"] for result in results))
    width = max(6.0, 1.6 * max(len(values) for _, values in panels) + 2)
    figure = Figure(figsize=(width, 2.8 * len(panels)), layout="constrained")
    axes = figure.subplots(len(panels), 1, squeeze=False)[:, 0]
    for axis, (title, values) in zip(axes, panels, strict=True):
        _bars(axis, results, groups, values)
        axis.set_title(title, fontsize=10)
        axis.set_ylabel(unit)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axes[0].get_legend_handles_labels(), frameon=False, fontsize=8, ncols=4, loc="outside lower center")
    path = out / f"{name}.png"
    write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=100, format="png"))
    return path


def _draw_curves(
    results: Sequence[dict[str, Any]], panels: Sequence[tuple[str, dict[str, Value]]], out: Path, name: str, unit: str
) -> Path:
    rows = [
        [
            (f"{label}, {title}: {unit}", by_stage((r["group"], r["stage"], value(r)) for r in results))
            for label, value in values.items()
        ]
        for title, values in panels
    ]
    return draw(rows, out / f"{name}_generations.png")


def _bars(axis: Any, results: Sequence[dict[str, Any]], groups: Sequence[str], values: dict[str, Value]) -> None:
    """One bar a group at each label: the mean over its runs, with the interval where there are several."""
    wide = 0.8 / len(groups)
    for i, group in enumerate(groups):
        for place, value in enumerate(values.values()):
            known = [v for r in results if r["group"] == group and (v := value(r)) is not None]
            if not known:
                continue
            mean = student(known)
            error = mean.half if len(known) > 1 else None
            x = place + (i - (len(groups) - 1) / 2) * wide
            label = f"{group} ({len(known)})" if place == 0 else None
            axis.bar(x, mean.mean, wide * 0.92, yerr=error, capsize=2, color=COLOURS[i % len(COLOURS)], label=label)
    axis.set_xticks(range(len(values)), list(values), fontsize=8)
