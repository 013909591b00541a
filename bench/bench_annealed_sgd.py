"""The native update beside torch's optimisers and beside the memory: ratios in one run, contenders taking turns.

Every contender has its own weights, momentum and gradients (ResNet-18's or ResNet-50's shapes, channels-last, float32),
far more than any cache holds. A whole `step()` is timed, the optimisers' own work in Python included.
"""

from __future__ import annotations

import ctypes
import random
import shutil
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from seal_fast.config import Config
from seal_fast.kernels import native
from seal_fast.kernels.annealed_sgd.layout import tagged_addresses
from seal_fast.kernels.pages import gather_into_huge_pages
from seal_fast.models import build
from seal_fast.optim.annealed_sgd import AnnealedSGD
from seal_fast.training import runtime

ROUNDS, WARMUP = 40, 5
LR, MOMENTUM, WEIGHT_DECAY, DECAY = 0.1, 0.9, 5e-4, 0.999

pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernels are not installed")

# The plain update reads weights, momentum and gradients and writes the first two. So does this, and nothing else: no
# pass over the same bytes can be faster by more than what a loop in C++ loses to the memory.
MOVE = """
#include <cstdint>
extern "C" void move(float *__restrict p, float *__restrict buf, const float *__restrict g, int64_t n) {
#pragma omp parallel for simd schedule(static)
  for (int64_t i = 0; i < n; ++i) {
    float old = p[i];
    p[i] = buf[i];
    buf[i] = old + g[i];
  }
}
"""


@pytest.fixture(scope="module")
def move(tmp_path_factory) -> Callable[[Tensor, Tensor, Tensor], None]:
    """The copy loop, compiled here for this CPU."""
    compiler = shutil.which("c++") or pytest.skip("no C++ compiler for the copy loop")
    folder: Path = tmp_path_factory.mktemp("move")
    (folder / "move.cpp").write_text(MOVE)
    flags = ["-O3", "-march=native", "-mprefer-vector-width=512", "-fopenmp", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, "move.cpp", "-o", "libmove.so"], cwd=folder, check=True)
    function = ctypes.CDLL(str(folder / "libmove.so")).move
    function.argtypes = [ctypes.c_void_p] * 3 + [ctypes.c_int64]
    return lambda p, buf, g: function(p.data_ptr(), buf.data_ptr(), g.data_ptr(), p.numel())


def parameters(name: str, classes: int = 200, device: str = "cpu") -> list[nn.Parameter]:
    """The network's parameters with a gradient each, in memory kept as in training."""
    runtime.start(Config(device=device))
    model = build(name, classes).to(device).to(memory_format=torch.channels_last)
    for p in model.parameters():
        p.grad = torch.randn_like(p) * 1e-3
    return list(model.parameters())


def scaled(optimizer: torch.optim.Optimizer) -> None:
    """What GradScaler sets around a step; a scale of 1, because torch's SGD writes its gradients back."""
    device = optimizer.param_groups[0]["params"][0].device
    optimizer.grad_scale, optimizer.found_inf = torch.ones((), device=device), torch.zeros((), device=device)  # type: ignore[attr-defined]


def everything_in_torch_ops(weights: list[nn.Parameter]) -> Callable[[], None]:
    """The update with all its extras: fused SGD and torch's multi-tensor operations."""
    grads = [p.grad for p in weights]
    peer = torch.optim.SGD(weights, LR, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)
    average, half = [p.detach().clone() for p in weights], [p.detach().bfloat16() for p in weights]
    scaled(peer)

    @torch.no_grad()
    def run() -> None:
        peer.step()
        momentum = [peer.state[p]["momentum_buffer"] for p in weights]
        for tensors, factor in ((grads, 1.0), (momentum, LR)):
            torch.stack(torch._foreach_norm(tensors)).mul_(factor).square_().sum()
        torch._foreach_lerp_(average, weights, 1 - DECAY)
        torch._foreach_copy_(half, weights)

    return run


def interleaved(contenders: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Seconds a step of each contender, round by round, each round in another order.

    What a contender has written lies in the caches when the next one begins, which waits for it to be written back.
    """
    gather_into_huge_pages()  # as in training, and for all contenders
    times: dict[str, list[float]] = {name: [] for name in contenders}
    order, deal = list(contenders), random.Random(0)
    for _ in range(WARMUP + ROUNDS):
        deal.shuffle(order)
        for name in order:
            start = time.perf_counter()
            contenders[name]()
            times[name].append(time.perf_counter() - start)
    return {name: t[WARMUP:] for name, t in times.items()}


def report(benchmark, name: str, peer: list[float], own: list[float]) -> None:
    benchmark.extra_info[f"times as fast as {name}"] = statistics.median(peer) / statistics.median(own)
    benchmark.extra_info[f"times as fast as {name}, fastest rounds"] = min(peer) / min(own)


def flat_buffers(optimizer: AnnealedSGD) -> int:
    return optimizer._momentum.numel()


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_plain_update(benchmark, model, move):
    ours, alone = (
        AnnealedSGD(parameters(model), torch.tensor(LR), MOMENTUM, WEIGHT_DECAY, backend="native") for _ in range(2)
    )
    addresses = tagged_addresses(alone._flat.gradients())
    fused, foreach = (
        torch.optim.SGD(parameters(model), LR, MOMENTUM, weight_decay=WEIGHT_DECAY, **{kind: True})
        for kind in ("fused", "foreach")
    )
    n = flat_buffers(ours)
    p, buf, g, source, target = (torch.randn(n) for _ in range(5))
    times = interleaved(
        {
            "ours": ours.step,
            "torch.optim.SGD(fused=True)": fused.step,
            "torch.optim.SGD(foreach=True)": foreach.step,
            "copy loop": lambda: move(p, buf, g),
            "the kernel alone": lambda: native.require().annealed_sgd(alone._native.plan, addresses, 1, 0, 0),
            "copy": lambda: target.copy_(source),
        }
    )
    own = times["ours"]
    for name in ("torch.optim.SGD(fused=True)", "torch.optim.SGD(foreach=True)"):
        report(benchmark, name, times[name], own)
    report(benchmark, "a copy loop of the same bytes", times["copy loop"], own)
    report(benchmark, "a copy loop, the kernel alone", times["copy loop"], times["the kernel alone"])
    benchmark.extra_info["GB/s"] = 20 * n / statistics.median(own) / 1e9
    share = (20 * n / min(own)) / (8 * n / min(times["copy"]))
    benchmark.extra_info["percent of a copy's bandwidth, fastest rounds"] = 100 * share
    benchmark.extra_info["native module"] = native.require().__name__.split(".")[-1]
    benchmark.pedantic(ours.step, rounds=30, warmup_rounds=3)


@pytest.mark.parametrize("elements", [1, 17, 1000, 4097, 25_000_000])
def test_one_parameter(benchmark, elements):
    """From the host's own time, for a single element, to the memory's."""
    weights = [nn.Parameter(torch.randn(elements)) for _ in range(2)]
    for p in weights:
        p.grad = torch.randn(elements)
    ours = AnnealedSGD(weights[:1], torch.tensor(LR), MOMENTUM, WEIGHT_DECAY, backend="native")
    peer = torch.optim.SGD(weights[1:], LR, MOMENTUM, weight_decay=WEIGHT_DECAY, fused=True)
    times = interleaved({"ours": ours.step, "peer": peer.step})
    report(benchmark, "torch.optim.SGD(fused=True)", times["peer"], times["ours"])
    benchmark.extra_info["microseconds"] = 1e6 * statistics.median(times["ours"])
    benchmark.pedantic(ours.step, rounds=30, warmup_rounds=3)


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_update_with_everything(benchmark, model):
    """Unscaling, squared norms, weight average and bfloat16 copy too, beside the same in torch's multi-tensor ops."""
    ours = AnnealedSGD(
        parameters(model), torch.tensor(LR), MOMENTUM, WEIGHT_DECAY,
        backend="native", ema_decay=DECAY, bf16_copy=True, norms=True,
    )  # fmt: skip
    scaled(ours)
    times = interleaved({"ours": ours.step, "torch ops": everything_in_torch_ops(parameters(model))})
    report(benchmark, "the same in torch ops", times["torch ops"], times["ours"])
    benchmark.extra_info["GB/s"] = 30 * flat_buffers(ours) / statistics.median(times["ours"]) / 1e9
    benchmark.pedantic(ours.step, rounds=30, warmup_rounds=3)


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_host_time_of_a_step(benchmark, model):
    """What a step costs the host beside the kernel: as many parameters, of one element each."""
    tiny = [nn.Parameter(torch.zeros(1)) for _ in parameters(model)]
    for p in tiny:
        p.grad = torch.zeros(1)
    ours = AnnealedSGD(tiny, torch.tensor(LR), MOMENTUM, WEIGHT_DECAY, backend="native")
    peer = torch.optim.SGD([nn.Parameter(p.detach().clone()) for p in tiny], LR, MOMENTUM, fused=True)
    for p in peer.param_groups[0]["params"]:
        p.grad = torch.zeros(1)
    times = interleaved({"ours": ours.step, "peer": peer.step})
    report(benchmark, "torch.optim.SGD(fused=True)", times["peer"], times["ours"])
    benchmark.extra_info["microseconds"] = 1e6 * statistics.median(times["ours"])
    benchmark.pedantic(ours.step, rounds=100, warmup_rounds=10)
