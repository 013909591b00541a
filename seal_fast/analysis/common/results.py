"""The results of the analyses: what each says of its network and of its protocol.

A command with `--out DIR` writes `DIR/<command>.json`, a list of one object per network, and plots beside it. Each
object holds a `protocol`: everything that decides its figures beside the weights. Figures are comparable only where
their protocols are equal.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.runs.identity import weights_sha256
from seal_fast.runs.stats import Interval, wilson

_LISTED = 20  # names of skipped images in a line


def identity(network: TrainedNetwork) -> dict[str, Any]:
    """What a result says of its network: `subject` (its name), `stage`, `weights_sha256`, `method`, `seed`, `model`.

    `method` and `seed` are None for a bare weights file. Results are of the same network where `weights_sha256`, taken
    over the tensors, is the same.
    """
    config = network.config
    return {
        "subject": network.name,
        "stage": network.stage,
        "weights_sha256": weights_sha256(network.weights),
        "method": config.method if config else None,
        "seed": config.seed if config else None,
        "model": network.model,
    }


def percent(hits: int, count: int) -> Interval:
    """The share of `hits` in percent, with Wilson's interval."""
    share = wilson(hits, count)
    return Interval(100 * share.mean, 100 * share.low, 100 * share.high, count)


def by_protocol(results: Iterable[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Results of equal protocols together, in the order of the first of each."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        parts.setdefault(json.dumps(result["protocol"], sort_keys=True), []).append(result)
    return list(parts.values())


def over_seeds(results: Iterable[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Title and results of each stage of a group that has several."""
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for result in results:
        found.setdefault((result["group"], result["stage"]), []).append(result)
    for (group, stage), same in found.items():
        if len(same) > 1:
            yield f"{group}, {len(same)} seeds" + ("" if stage == "last" else f", {stage}"), same


def left_out(results: Iterable[Mapping[str, Any]]) -> list[str]:
    """A line for each data set of which images were skipped because they cannot be read."""
    lines = []
    skipped = {data: names for result in results for data, names in result["skipped_images"].items() if names}
    for data, names in skipped.items():
        more = f" and {len(names) - _LISTED} more (all are in the JSON)" if len(names) > _LISTED else ""
        lines.append(f"{data}: left out {len(names)} unreadable images: {', '.join(names[:_LISTED])}{more}")
    return lines
