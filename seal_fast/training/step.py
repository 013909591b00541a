"""Forward pass, loss and counters: what is compiled, and which weights it reads."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from seal_fast.kernels.torch_private import foreach_copy_
from seal_fast.methods.operators import Loss, Sharpness
from seal_fast.optim.annealed_sgd import AnnealedSGD
from seal_fast.training.examples import margins
from seal_fast.training.runtime import Runtime

T = TypeVar("T")


def true_class_rank(logits: Tensor, labels: Tensor) -> Tensor:
    """Rank of the true class: 0 is a top-1 hit, below 5 a top-5 hit.

    Among equal logits the lower class index comes first, as in argmax, so a constant network is not credited with all
    classes. Every comparison with NaN counts against the true class, and a NaN of the true class is no hit of any kind.
    """
    own = logits.gather(1, labels[:, None])
    lower = torch.arange(logits.shape[1], device=logits.device) < labels[:, None]
    behind = (logits < own) | ((logits == own) & ~lower)
    return (~behind).sum(1) + 5 * own.isnan()[:, 0]


def loss_numbers(loss: Loss, smoothing: float) -> Tensor:
    """What `shaped_losses` reads, float64 [6]; `smoothing` where the loss has none of its own."""
    own = smoothing if loss.smoothing is None else loss.smoothing
    numbers = (own, loss.right, loss.wrong, loss.confidence, loss.distil, loss.temperature)
    return torch.tensor(numbers, dtype=torch.float64)


def shaped_losses(logits: Tensor, labels: Tensor, right: Tensor, numbers: Tensor, teacher: Tensor | None) -> Tensor:
    """The losses of a phase with a `Loss`, whose numbers lie on the device so that no phase compiles anything.

    Args:
        logits: [B, C].
        labels: int64 [B].
        right: bool [B], whether the prediction is.
        numbers: from `loss_numbers`.
        teacher: logits [B, C] of the snapshot; None without distillation.
    """
    smoothing, weight_right, weight_wrong, confidence, distil, temperature = numbers.to(logits.dtype).unbind()
    log = logits.log_softmax(1)
    losses = F.nll_loss(log, labels, reduction="none") * (1 - smoothing) - smoothing * log.mean(1)
    losses = losses * torch.where(right, weight_right, weight_wrong) * (log.amax(1).exp() >= confidence)
    if teacher is not None:
        soft = (teacher / temperature).softmax(1)
        losses = losses - distil * temperature**2 * (soft * (logits / temperature).log_softmax(1)).sum(1)
    return losses


def forward_and_loss(
    model: nn.Module,
    runtime: Runtime,
    smoothing: float,
    weights: dict[str, Tensor],
    images: Tensor,
    labels: Tensor,
    valid: Tensor | None = None,
    numbers: Tensor | None = None,
    teacher: Tensor | None = None,
    share: Tensor | None = None,
    record: bool = False,
) -> tuple[Tensor, ...]:
    """Forward pass, loss and counters: what is compiled, once in train and once in eval mode.

    Args:
        model: the network.
        runtime: where and in which types it computes.
        smoothing: of the labels.
        weights: by name, tensors that take the place of parameters; see `bf16_weight_overrides`.
        images: [B, 3, S, S].
        labels: int64 [B]; with a share [2, B], of both images of each mixture.
        valid: bool [B], False for padding; None without any.
        numbers: of a phase's `Loss`; None for the cross entropy.
        teacher: logits of the snapshot, for distillation.
        share: of the first images in mixtures, float64 []; losses and hits are those of both labels in these parts.
        record: whether to return the margins of training images.

    Returns:
        The mean loss, float64 [4] sums of loss, top-1 hits, top-5 hits and images, padding left out, and with `record`
        in training the margins [B].
    """
    with runtime.autocast():
        logits = functional_call(model, weights, (images,), tie_weights=False)
    logits = logits.to(runtime.dtype)

    def measures(labels: Tensor) -> tuple[Tensor, ...]:
        rank = true_class_rank(logits, labels)
        if numbers is None:
            losses = F.cross_entropy(logits, labels, reduction="none", label_smoothing=smoothing)
        else:
            losses = shaped_losses(logits, labels, rank < 1, numbers, teacher)
        return losses, rank < 1, rank < 5

    if share is None:
        losses, top1, top5 = measures(labels)
    else:
        both = zip(*map(measures, labels.unbind()), strict=True)
        losses, top1, top5 = (share * first + (1 - share) * second for first, second in both)
    weight = torch.ones_like(losses) if valid is None else valid.to(losses.dtype)
    sums = torch.stack([losses.detach() * weight, top1 * weight, top5 * weight, weight])
    found = losses.mean(), sums.sum(1, dtype=torch.float64)
    return (*found, margins(logits, labels)) if record and model.training else found


def two_passes(
    model: nn.Module,
    optimizer: AnnealedSGD,
    sharpness: Sharpness,
    first: Callable[[], T],
    second: Callable[[], object],
) -> T:
    """SAM: gradients by `first` at p, then by `second` at p + e; result and running statistics are the first's."""
    result = first()
    buffers = [*model.buffers()]
    kept = [buffer.clone() for buffer in buffers]
    optimizer.perturb(sharpness.rho, sharpness.adaptive)
    second()
    foreach_copy_(buffers, kept)
    optimizer.step_back()
    return result


def bf16_weight_overrides(model: nn.Module, optimizer: AnnealedSGD) -> dict[str, Tensor]:
    """The optimiser's bfloat16 copies of what autocast would cast in every forward pass, by parameter name.

    Those are the parameters of convolutions and linear layers; BatchNorm's stay float32. The rounding is the same, so
    a step of one backward pass equals plain autocast's to the bit. Over several passes (`--accumulate`) both add
    gradients up in float32.
    """
    cast = (
        f"{name}.{parameter}"
        for name, module in model.named_modules()
        if isinstance(module, (nn.Conv2d, nn.Linear))
        for parameter, _ in module.named_parameters(recurse=False)
    )
    copies = optimizer.bf16_weights()
    # in the network's order, not the groups', so that a compiled graph serves every threshold
    return {name: copies[name] for name in cast if name in copies}
