"""With which earlier checkpoints of its run a checkpoint is compared."""

from __future__ import annotations

import re
from collections.abc import Sequence

from seal_fast.analysis.common.network import TrainedNetwork

KINDS = {"start": "from the start", "generation": "across a generation", "ascent": "across the ascent"}


def earlier(network: TrainedNetwork, networks: Sequence[TrainedNetwork]) -> dict[str, TrainedNetwork]:
    """By kind, the checkpoint of the same run that `network`, the end of a generation or ascent, is compared with.

    `start` is the first kept one; `generation` and `ascent` the end of the generation before, from which the end of a
    generation and the end of its ascent came.

    Args:
        network: a checkpoint.
        networks: among others those of its run, in the order of training.
    """
    run = network.weights.parent.resolve()
    kept = {other.stage: other for other in networks if other.weights.parent.resolve() == run}
    if not (match := re.fullmatch(r"generation-(\d+)(-ascent)?", network.stage)):
        return {}
    found = {}
    if network is not (first := next(iter(kept.values()))):
        found["start"] = first
    if before := kept.get(f"generation-{int(match[1]) - 1}"):
        found["ascent" if match[2] else "generation"] = before
    return found
