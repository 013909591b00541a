"""The training step as one CUDA graph: recorded once, replayed with one launch from the host instead of hundreds.

A replay repeats the recorded work on the same memory. Learning rate, sign, scale and weight decay lie in a tensor
that the update reads (`AnnealedSGD.set_hyperparameters`), so a replay obeys every phase; weights, momentum, statistics
and counters are changed in place. What comes from outside is written into fixed buffers beforehand.

Source: PyTorch's notes on CUDA graphs, "whole-network capture".
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from seal_fast.training.runtime import Runtime

# Steps before the recording: they compile, choose algorithms and fill caches, which a recording may not do.
WARM_UP_STEPS = 3


def possible(runtime: Runtime) -> bool:
    """Whether steps are replayed: on CUDA under --compile.

    A `GradScaler` keeps scale and growth tracker in tensors that it changes in place, and the update's kernel skips a
    step by the infinities it finds; what it keeps on the host begins anew in every step.
    """
    return runtime.device.type == "cuda" and runtime.compile


class StepGraph:
    """Takes the place of a step on batches of one size. Its warm-up steps are real, so nothing has to be undone.

    Args:
        step: changes tensors in place, from a batch. After `WARM_UP_STEPS` calls it is called once more, to be
            recorded, and never again.
        buffers: for the tensors of a batch; a caller that writes a batch there itself saves a copy.
        device: where all of that is.
    """

    def __init__(self, step: Callable[..., None], buffers: Sequence[Tensor], device: torch.device) -> None:
        self.step, self.buffers = step, buffers
        self.recorder = Recorder(device)
        self.warm_ups = 0
        self.replay: Callable[[], None] | None = None

    def __call__(self, *batch: Tensor) -> None:
        """One step on this batch."""
        for buffer, tensor in zip(self.buffers, batch, strict=True):
            if tensor is not buffer:
                buffer.copy_(tensor)
        if self.warm_ups < WARM_UP_STEPS:
            self.warm_ups += 1
            return self.recorder.run(self._step)
        if self.replay is None:
            self.replay = self.recorder.record(self._step)
        self.replay()

    def _step(self) -> None:
        self.step(*self.buffers)


class Recorder:
    """The lines that need a GPU.

    Warm-up and recording share a side stream: autograd and cuBLAS tie what they make to the stream of its first use.
    """

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def run(self, work: Callable[[], None]) -> None:
        """Run `work` on the side stream, after what was launched before and before what is launched next."""
        current = torch.cuda.current_stream(self.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            work()
        current.wait_stream(self.stream)

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record `work` without running it; what comes back runs it on the current stream."""
        graph = torch.cuda.CUDAGraph()
        # The input's thread goes on decoding: what it asks of the driver must not end the recording.
        with torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            work()
        return graph.replay
