"""The native update beside torch's optimisers and a copy: ratios in one run, contenders taking turns.

Every contender has its own weights, momentum and gradients (ResNet-18's or ResNet-50's shapes, channels-last, float32),
far more than any cache holds. A whole `step()` is timed, the optimisers' own work in Python included.
"""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable

import pytest
import torch
from torch import nn

from seal_fast.config import Config
from seal_fast.kernels import native
from seal_fast.models import build
from seal_fast.optim.annealed_sgd import AnnealedSGD
from seal_fast.training import runtime

ROUNDS, WARMUP = 40, 5
LR, MOMENTUM, WEIGHT_DECAY, DECAY = 0.1, 0.9, 5e-4, 0.999

pytestmark = pytest.mark.skipif(not native.available(), reason="the native kernels are not installed")


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


@pytest.mark.parametrize("model", ["resnet18", "resnet50"])
def test_plain_update(benchmark, model):
    ours = AnnealedSGD(parameters(model), torch.tensor(LR), MOMENTUM, WEIGHT_DECAY, backend="native")
    fused, foreach = (
        torch.optim.SGD(parameters(model), LR, MOMENTUM, weight_decay=WEIGHT_DECAY, **{kind: True})
        for kind in ("fused", "foreach")
    )
    n = ours._momentum.numel()
    source, target = (torch.randn(n) for _ in range(2))
    times = interleaved(
        {
            "ours": ours.step,
            "torch.optim.SGD(fused=True)": fused.step,
            "torch.optim.SGD(foreach=True)": foreach.step,
            "copy": lambda: target.copy_(source),
        }
    )
    for name in ("torch.optim.SGD(fused=True)", "torch.optim.SGD(foreach=True)"):
        report(benchmark, name, times[name], times["ours"])
    # weights, momentum and gradients are read, the first two written: 20 bytes an element; a copy moves 8
    benchmark.extra_info["GB/s"] = 20 * n / statistics.median(times["ours"]) / 1e9
    share = (20 * n / min(times["ours"])) / (8 * n / min(times["copy"]))
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
    benchmark.extra_info["GB/s"] = 30 * ours._momentum.numel() / statistics.median(times["ours"]) / 1e9
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
