"""Every private name of torch that this package uses: why, and the version that it was checked with (2.13)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad

T = TypeVar("T", bound=Callable)


def constant(function: T) -> T:
    """Mark a function whose value torch.compile takes as a constant of the process, without tracing into it.

    torch.compiler.assume_constant_result sets the same mark, but only after importing all of dynamo and Inductor, which
    a run without --compile never needs.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function


@constant
def has_bf16_matmul() -> bool:
    """Whether oneDNN multiplies bfloat16 matrices on this CPU. torch has no public query for it."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


def has_avx512_bf16() -> bool:
    """Whether this CPU has bfloat16 dot products. torch.backends.cpu.get_cpu_capability() does not tell."""
    return torch.cpu._is_avx512_bf16_supported()


@constant
def transforming() -> bool:
    """Whether torch.func (grad, jvp, vmap) or a forward-mode dual level is active, which the native ops do not serve.

    torch has no public query for either. A compiled graph is guarded against both, so the answer is a constant of it.
    """
    return torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0


def foreach_add_(tensors: Sequence[Tensor], value: float) -> None:
    """Add a number to each tensor in one launch. The public torch API has no multi-tensor operations."""
    torch._foreach_add_(tensors, value)  # pyright: ignore


def foreach_copy_(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target in one launch. The public torch API has no multi-tensor operations."""
    if targets:  # a network without BatchNorm has no buffers
        torch._foreach_copy_(targets, sources)  # pyright: ignore


def foreach_lerp_(targets: Sequence[Tensor], ends: Sequence[Tensor], weight: float) -> None:
    """Move each target by `weight` towards its end in one launch. Public torch has no multi-tensor operations."""
    if targets:  # a network may have no buffers
        torch._foreach_lerp_(targets, ends, weight)  # pyright: ignore


def foreach_mul_(targets: Sequence[Tensor], factors: Sequence[Tensor]) -> None:
    """Multiply each target by its factor in one launch. The public torch API has no multi-tensor operations."""
    if targets:
        torch._foreach_mul_(targets, factors)  # pyright: ignore


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over the default process group; traceable and differentiable, unlike torch.distributed.all_reduce."""
    from torch.distributed._functional_collectives import all_reduce

    return all_reduce(tensor, "sum", torch.distributed.group.WORLD)  # pyright: ignore[reportArgumentType]


def graph_break(error: Exception) -> str:
    """Why torch.compile cannot take a function as one graph, in a line; "" for other errors. No public type."""
    import sys

    exc = sys.modules.get("torch._dynamo.exc")  # nothing was compiled without it
    if exc is None or not isinstance(error, (exc.Unsupported, exc.UserError)):
        return ""
    return str(error).strip().splitlines()[0]


def compiled_graphs() -> int:
    """Graphs that torch.compile has made in this process. torch publishes no counter."""
    import torch._dynamo.utils as dynamo

    return dynamo.counters["stats"]["unique_graphs"]


def take_compiled_graphs() -> int:
    """As `compiled_graphs`, which then counts from 0 again, for the next run of this process."""
    import sys

    dynamo = sys.modules.get("torch._dynamo.utils")  # nothing was compiled without it
    return dynamo.counters["stats"].pop("unique_graphs", 0) if dynamo else 0


def compile_seconds() -> float:
    """Seconds torch.compile has spent in this process, backward graphs included. torch publishes no clock."""
    import torch._dynamo.utils as dynamo

    return dynamo.calculate_time_spent().get("total_wall_time", 0.0)


def keep_reductions_whole() -> None:
    """Have Inductor sum over a small map in one kernel on a GPU; a torch of another version keeps its own choice.

    Sums over up to 8,192 rows of 256 channels and more, BatchNorm's, are split into two launches by default, for
    parallelism that so many channels have anyway. In a CUDA graph each launch counts. No public switch tells these sums
    apart.
    """
    if not torch.__version__.startswith("2.13."):
        return
    from torch._inductor import choices, config

    class Whole(choices.InductorChoices):
        def uuid(self) -> str:
            return "seal_fast, reductions 1"  # part of the key of Inductor's caches

        @staticmethod
        def reduction_split_factor(
            device: torch.device, reduction_numel_hint: int, numel_hint: int, inner_reduction: bool
        ) -> int:
            rows, channels = reduction_numel_hint, numel_hint
            if device.type == "cuda" and not inner_reduction and channels >= 256 and rows <= 8192:
                return 1
            return choices.InductorChoices.reduction_split_factor(device, rows, channels, inner_reduction)

    config.inductor_choices_class = Whole
