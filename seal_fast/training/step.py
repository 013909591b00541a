"""Forward pass, loss and counters: what is compiled, and which weights it reads."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from seal_fast.optim.annealed_sgd import AnnealedSGD
from seal_fast.training.runtime import Runtime


def true_class_rank(logits: Tensor, labels: Tensor) -> Tensor:
    """Rank of the true class: 0 is a top-1 hit, below 5 a top-5 hit.

    Among equal logits the lower class index comes first, as in argmax, so a constant network is not credited with all
    classes. Every comparison with NaN counts against the true class, and a NaN of the true class is no hit of any kind.
    """
    own = logits.gather(1, labels[:, None])
    lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    behind = (logits < own) | ((logits == own) & ~lower)
    return (~behind).sum(1) + 5 * own.isnan()[:, 0]


def forward_and_loss(
    model: nn.Module,
    runtime: Runtime,
    smoothing: float,
    weights: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    valid: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Forward pass, loss and counters: what is compiled, once in train and once in eval mode.

    Args:
        model: the network.
        runtime: where and in which types it computes.
        smoothing: of the labels.
        weights: by name, tensors that take the place of parameters; see `bf16_weight_overrides`.
        images: [B, 3, S, S].
        labels: int64 [B].
        valid: bool [B], False for padding; None without any.

    Returns:
        The mean loss, and float64 [4] sums of loss, top-1 hits, top-5 hits and images, padding left out.
    """
    with runtime.autocast():
        logits = functional_call(model, weights, (images,), tie_weights=False)
    logits = logits.to(runtime.dtype)
    losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
    rank = true_class_rank(logits, labels)
    weight = torch.ones_like(losses) if valid is None else valid.to(losses.dtype)
    sums = torch.stack([losses.detach() * weight, (rank < 1) * weight, (rank < 5) * weight, weight])
    return losses.mean(), sums.sum(1, dtype=torch.float64)


def bf16_weight_overrides(model: nn.Module, optimizer: AnnealedSGD) -> dict[str, Tensor]:
    """The optimiser's bfloat16 copies of what autocast would cast in every forward pass, by parameter name.

    Those are the parameters of convolutions and linear layers; BatchNorm's stay float32. The rounding is the same, so
    a step of one backward pass equals plain autocast's to the bit. Over several passes (`--accumulate`) both add
    gradients up in float32.
    """
    cast = {
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
        for parameter, _ in module.named_parameters(recurse=False)
    }
    return {name: weight for name, weight in optimizer.bf16_weights().items() if name in cast}
