"""--profile: a trace of a few steps, in TensorBoard's format."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from seal_fast.utils.memory import free_bytes

_WAIT, _STEPS = 4, 5


@contextmanager
def profiler(folder: Path, device: torch.device) -> Iterator[Callable[[], None]]:
    """Record steps 6 to 10 into `folder`; what is yielded must be called after every step."""
    from torch.profiler import ProfilerActivity, profile, schedule, tensorboard_trace_handler

    before = _resident_bytes()

    def step() -> None:
        if recorder.step_num == _WAIT - 1 and device.type == "cpu":
            # Events stay in the heap between a step's tensors, so each recorded step takes new memory for its own. The
            # heap keeps what is freed (`keep_freed_memory`): faulted in here, it costs the recorded steps no time.
            size = (1 + _STEPS) * (_resident_bytes() - before)
            torch.zeros(max(0, min(size, free_bytes(device) // 2)), dtype=torch.uint8)
        recorder.step()

    with profile(
        activities=[ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * (device.type == "cuda"),
        schedule=schedule(wait=_WAIT, warmup=1, active=_STEPS, repeat=1),
        on_trace_ready=tensorboard_trace_handler(str(folder)),
        record_shapes=True,
        profile_memory=True,
    ) as recorder:
        yield step


def _resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
