"""--profile: a trace of a few steps, in TensorBoard's format."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch


@contextmanager
def profiler(folder: Path, device: torch.device) -> Iterator[Callable[[], None]]:
    """Record steps 6 to 10 into `folder`; what is yielded must be called after every step."""
    from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

    with profile(
        activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda"),
        schedule=schedule(wait=4, warmup=1, active=5, repeat=1),
        on_trace_ready=tensorboard_trace_handler(str(folder)),
        record_shapes=True,
        profile_memory=True,
    ) as recorder:
        yield recorder.step
