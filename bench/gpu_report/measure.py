"""On a machine with a GPU: the update measured, beside torch's own optimisers and a copy of as many bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from seal_fast.models import build
from seal_fast.optim.annealed_sgd import AnnealedSGD
from seal_fast.utils.table import table

# Read and written an element: weight and momentum both ways, the gradient once, all float32.
_BYTES = 20


def gpu_seconds(function: Callable[[], Any]) -> float:
    """Median time of a call, by CUDA events, the L2 cache cleared before each."""
    from triton.testing import do_bench

    milliseconds: Any = do_bench(function, return_mode="median")
    return milliseconds / 1e3


def updates(
    device: torch.device,
    seconds: Callable[[Callable[[], Any]], float],
    networks: Sequence[str] = ("resnet18", "resnet50"),
) -> list[dict[str, Any]]:
    """One row for each network and way to update it: its time in microseconds, and its share of a copy's bandwidth.

    Args:
        device: where.
        seconds: measures a call.
        networks: names of models, at 1000 classes.
    """
    return [row for network in networks for row in _of_network(network, device, seconds)]


def _of_network(
    network: str, device: torch.device, seconds: Callable[[Callable[[], Any]], float]
) -> list[dict[str, Any]]:
    model = build(network, 1000).to(device).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    named = list(model.named_parameters())
    annealed = AnnealedSGD([{"name": "all", "params": named}], torch.tensor(1e-3), 0.9, 5e-4)
    for p in model.parameters():
        p.grad = torch.randn_like(p)

    def sgd(**how: bool) -> Callable[[], Any]:
        return torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9, weight_decay=5e-4, **how).step

    source = torch.zeros(sum(p.numel() for p in model.parameters()) * _BYTES // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    ways = {
        "copy of as many bytes": lambda: target.copy_(source),
        "AnnealedSGD": annealed.step,
        "torch.optim.SGD(fused=True)": sgd(fused=True),
        "torch.optim.SGD(foreach=True)": sgd(foreach=True),
    }
    times = {way: seconds(step) for way, step in ways.items()}
    copy = times["copy of as many bytes"]
    return [{"model": network, "way": way, "us": t * 1e6, "of_copy": copy / t} for way, t in times.items()]


def text(rows: Sequence[dict[str, Any]]) -> str:
    """The measurements as a table."""
    if not rows:
        return "No GPU here: nothing was measured, and every time above is predicted."
    cells = [[r["model"], r["way"], f"{r['us']:.1f}", f"{r['of_copy']:.0%}"] for r in rows]
    return f"Measured on {torch.cuda.get_device_name()}:\n" + table(
        [["model", "update", "us", "of a copy's bandwidth"], *cells], left=2
    )
