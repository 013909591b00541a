"""Images split over the processes that torchrun starts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Share:
    """This process's place among all: it takes every `processes`-th batch from `rank` on; `add` sums over all."""

    rank: int = 0
    processes: int = 1
    add: Callable[[Tensor], object] | None = None


@contextmanager
def joined(device: torch.device) -> Iterator[Share]:
    """Join the other processes, if torchrun started this one beside others."""
    processes = int(os.environ.get("WORLD_SIZE", "1"))
    if processes == 1:
        yield Share()
        return
    import torch.distributed as dist

    dist.init_process_group("gloo" if device.type == "cpu" else "nccl")
    try:
        yield Share(dist.get_rank(), processes, dist.all_reduce)
    finally:
        dist.destroy_process_group()
