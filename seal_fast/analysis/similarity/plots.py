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
    """Draw `similarity`, between layers, and `similarity_checkpoints`, between the checkpoints of runs with several."""
    last = {result["subject"].removesuffix(f" {result['stage']}"): result for result in results}
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in last.values():
        for one in result["maps"]:
            found.setdefault((result["group"], one["name"]), []).append(one)
    for file, inside in (("similarity", False), ("similarity_checkpoints", True)):
        shown = {key: maps for key, maps in found.items() if key[1].startswith(CHECKPOINTS) == inside}
        if shown:
            _draw(shown, path(file))


def _draw(found: dict[tuple[str, str], list[dict[str, Any]]], path: Path) -> None:
    """A row for each group; the mean is over maps with the first seed's rows and columns."""
    rows = [[key for key in found if key[0] == group] for group in dict.fromkeys(group for group, _ in found)]
    across = max(map(len, rows))
    figure, axes = new_figure(3.4 * across + 0.8, 3.2 * len(rows), len(rows), across)
    image = None
    for line, keys in zip(axes, rows, strict=True):
        for axis in line[len(keys) :]:
            axis.set_visible(False)
        for axis, (group, name) in zip(line, keys, strict=False):
            first = found[group, name][0]
            alike = [one for one in found[group, name] if all(one[key] == first[key] for key in ("rows", "columns"))]
            same = [one["values"] for one in alike]
            image = axis.imshow(np.mean(np.array(same, float), 0), vmin=0, vmax=1, cmap="magma", origin="lower")
            axis.set_xticks(range(len(first["columns"])), first["columns"], rotation=90, fontsize=6)
            axis.set_yticks(range(len(first["rows"])), first["rows"], fontsize=6)
            axis.set_title(f"{group}\n{name}", fontsize=8)
    figure.colorbar(image, ax=axes, label="CKA", fraction=0.02)
    save(figure, path)
