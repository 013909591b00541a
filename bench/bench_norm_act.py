"""BatchNorm, residual and ReLU in one operation beside ATen's three: ratios in one run, contenders taking turns.

The shapes of ResNet-18 at 64x64, batch 128: every call that a step makes, channels-last, each with its own tensors, so
that a step's worth of them is far more than any cache holds.
"""

from __future__ import annotations

import functools
import statistics
import time

import pytest
import torch
from torch import Tensor

from seal_fast.config import Config
from seal_fast.kernels import native, norm_act
from seal_fast.training import runtime

BATCH, ROUNDS, WARMUP = 128, 30, 3
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
# Channels, side, whether a residual is added and whether ReLU follows: the stem, then each layer's first and second
# block, whose downsampling comes before the residual is added.
SHAPES = [(64, 32, False, True)]
for channels, side in ((64, 16), (128, 8), (256, 4), (512, 2)):
    down = [(channels, side, False, False)] * (channels > 64)
    SHAPES += [(channels, side, False, True), *down, (channels, side, True, True)]
    SHAPES += [(channels, side, False, True), (channels, side, True, True)]

pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernels are not installed")


class Call:
    """One call's tensors."""

    def __init__(self, channels: int, side: int, residual: bool, act: bool, dtype: torch.dtype) -> None:
        def image() -> Tensor:
            return torch.randn(BATCH, channels, side, side).to(dtype).contiguous(memory_format=torch.channels_last)

        self.x, self.gradient = image().requires_grad_(), image()
        self.residual = image().requires_grad_() if residual else None
        self.weight, self.bias = (torch.ones(channels, requires_grad=True), torch.zeros(channels, requires_grad=True))
        self.mean, self.var, self.act = torch.zeros(channels), torch.ones(channels), act

    def forward(self, backend: str) -> Tensor:
        vectors = self.weight, self.bias, self.mean, self.var
        return norm_act(self.x, *vectors, True, 0.1, 1e-5, self.residual, self.act, backend=backend)

    def backward(self, y: Tensor) -> None:
        wanted = [t for t in (self.x, self.residual, self.weight, self.bias) if t is not None]
        torch.autograd.grad(y, wanted, self.gradient)


@pytest.mark.parametrize("name", DTYPES)
def test_against_aten(benchmark, name):
    runtime.start(Config())  # memory is kept as in training
    calls = [Call(*shape, DTYPES[name]) for shape in SHAPES]
    times: dict[tuple[str, str], list[float]] = {}

    def step(backend: str) -> None:
        begin = time.perf_counter()
        results = [call.forward(backend) for call in calls]
        between = time.perf_counter()
        for call, y in zip(reversed(calls), reversed(results), strict=True):
            call.backward(y)
        end = time.perf_counter()
        times.setdefault((backend, "forward"), []).append(between - begin)
        times.setdefault((backend, "backward"), []).append(end - between)
        times.setdefault((backend, "both"), []).append(end - begin)

    for _ in range(WARMUP + ROUNDS):
        for backend in ("native", "reference"):
            step(backend)
    times = {key: values[WARMUP:] for key, values in times.items()}
    info = benchmark.extra_info
    for part in ("forward", "backward", "both"):
        ours, aten = times["native", part], times["reference", part]
        info[f"{part}, ms"] = 1e3 * statistics.median(ours)
        info[f"{part}: ATen / ours"] = statistics.median(aten) / statistics.median(ours)
        info[f"{part}: ATen / ours, fastest rounds"] = min(aten) / min(ours)
    info["n"] = f"{ROUNDS} rounds of {len(SHAPES)} calls"
    benchmark.pedantic(functools.partial(step, "native"), rounds=10)
