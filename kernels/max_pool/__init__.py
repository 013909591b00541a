"""`max_pool`: torch's own max-pooling, which Inductor may not rewrite on a CPU.

Inductor's C++ for the backward pass is a scatter into float32, several times as slow as ATen's kernel.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def max_pool(x: Tensor, kernel: int, stride: int, padding: int = 0) -> Tensor:
    """`torch.nn.functional.max_pool2d` of [N, C, H, W] with a square kernel; compiled for a CPU it stays one op."""
    if x.device.type == "cpu" and torch.compiler.is_compiling():
        return torch.ops.seal_fast.max_pool(x, kernel, stride, padding)[0]
    return F.max_pool2d(x, kernel, stride, padding)


_library = torch.library.Library("seal_fast", "FRAGMENT")
_WINDOWS = "int kernel, int stride, int padding"
_TAGS = (torch.Tag.pt2_compliant_tag,)
_library.define(f"max_pool(Tensor x, {_WINDOWS}) -> (Tensor y, Tensor indices)", tags=_TAGS)
_library.define(f"max_pool_backward(Tensor grad, Tensor x, Tensor indices, {_WINDOWS}) -> Tensor", tags=_TAGS)


def _forward(x: Tensor, kernel: int, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    return torch.ops.aten.max_pool2d_with_indices(x, [kernel] * 2, [stride] * 2, [padding] * 2)


def _backward(grad: Tensor, x: Tensor, indices: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    windows = [kernel] * 2, [stride] * 2, [padding] * 2, [1, 1], False
    return torch.ops.aten.max_pool2d_with_indices_backward(grad, x, *windows, indices)


for _name, _op in {"max_pool": _forward, "max_pool_backward": _backward}.items():
    _library.impl(_name, _op, "CPU")
    torch.library.register_fake(f"seal_fast::{_name}", _op, lib=_library)


def _save(ctx, inputs, output) -> None:
    x, *ctx.windows = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, output[1])


def _differentiate(ctx, grad: Tensor, _of_indices: Tensor):
    return torch.ops.seal_fast.max_pool_backward(grad, *ctx.saved_tensors, *ctx.windows), None, None, None


torch.library.register_autograd("seal_fast::max_pool", _differentiate, setup_context=_save, lib=_library)
