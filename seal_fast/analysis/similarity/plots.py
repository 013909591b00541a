"""Heat maps of similarity, mean over the seeds of each group."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seal_fast.analysis.common.stage_plots import new_figure, save

CHECKPOINTS = "checkpoints"
"""What the names of maps between the checkpoints of a run begin with."""


def draw(results: Sequence[dict[str, Any]], path: Callable[[str], Path]) -> None:
    """Draw `similarity`, between layers, and `similarity_checkpoints`, between the checkpoints of runs with several.

    Raises:
        RunError: a file cannot be written.
    """
    last = {result["subject"].removesuffix(f" {result['stage']}"): result for result in results}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in last.values():
        for one in result["maps"]:
            found.setdefault((result["group"], one["name"]), []).append(one)
    inside = [name for _, name in found if name.startswith(CHECKPOINTS)]
    for file, names in (
        ("similarity", [name for _, name in found if name not in inside]),
        ("similarity_checkpoints", inside),
    ):
        if columns := list(dict.fromkeys(names)):
            shown = {key: maps for key, maps in found.items() if key[1] in columns}
            _draw(shown, columns, path(file))


def _draw(found: dict[tuple[str, str], list[dict[str, Any]]], columns: Sequence[str], path: Path) -> None:
    """A row for each group, a column for each name; the mean is over maps with the first seed's rows and columns."""
    groups = list(dict.fromkeys(group for group, _ in found))
    figure, axes = new_figure(3.4 * len(columns) + 0.8, 3.2 * len(groups), len(groups), len(columns))
    image = None
    for axis, (group, name) in zip(axes.flat, ((g, n) for g in groups for n in columns), strict=True):
        if not (maps := found.get((group, name))):
            axis.set_visible(False)
            continue
        first = maps[0]
        same = [one["values"] for one in maps if all(one[k] == first[k] for k in ("rows", "columns"))]
        image = axis.imshow(np.mean(same, 0, dtype=float), vmin=0, vmax=1, cmap="magma", origin="lower")
        axis.set_xticks(range(len(first["columns"])), first["columns"], rotation=90, fontsize=6)
        axis.set_yticks(range(len(first["rows"])), first["rows"], fontsize=6)
        axis.set_title(f"{group}\n{name}", fontsize=8)
    figure.colorbar(image, ax=axes, label="CKA", fraction=0.02)
    save(figure, path)
