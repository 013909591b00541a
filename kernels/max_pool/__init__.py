"""`max_pool`: max-pooling that on the CPU keeps a byte an output for the backward pass, compiled or not.

torch keeps an index of eight bytes, and Inductor writes the backward pass as a scatter into float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seal_fast.kernels.backend import is_native
from seal_fast.kernels.max_pool import reference
from seal_fast.kernels.native import channels_last, function
from seal_fast.kernels.torch_private import transforming


def max_pool(x: Tensor, kernel: int, stride: int, padding: int = 0, backend: str = "auto") -> Tensor:
    """The largest value of each window, as `torch.nn.functional.max_pool2d` with a square kernel and no dilation.

    Of equal values the first in row order takes the gradient; NaN counts as largest. Differentiable twice.

    Args:
        x: [N, C, H, W]. The native kernel takes bfloat16 and float32 in channels-last memory; other inputs are welcome
            and take the reference.
        kernel: side of a window, at most 15 for the native kernel.
        stride: between windows, in both directions.
        padding: on all four sides, at most half the kernel; never the largest.
        backend: "auto"; "reference" for `torch.nn.functional.max_pool2d`; "native" to refuse any other way.

    Returns:
        [N, C, H', W'] in x's type and memory format.

    Raises:
        ValueError: `backend="native"` for input that it does not take.
        BackendUnavailable: `backend="native"` where the native kernels are not installed.
    """
    if is_native("max_pool", backend, x.device.type) and not transforming() and _fits(x, kernel, stride, padding):
        return torch.ops.seal_fast.max_pool(x, kernel, stride, padding)[0]
    if backend == "native":
        raise ValueError(
            "max_pool: the native kernel takes channels-last bfloat16 or float32 no smaller than the window, a kernel "
            "of at most 15 and a padding of at most half of it, outside torch.func and forward-mode AD; choose backend "
            "'auto' for anything else"
        )
    return reference.max_pool(x, kernel, stride, padding)


def _fits(x: Tensor, kernel: int, stride: int, padding: int) -> bool:
    return (
        x.dim() == 4
        and x.dtype in (torch.bfloat16, torch.float32)
        and x.numel() > 0
        and 1 <= kernel <= 15
        and stride >= 1
        and 0 <= padding <= kernel // 2
        and min(x.shape[2:]) + 2 * padding >= kernel
        and x.is_contiguous(memory_format=torch.channels_last)
    )


_library = torch.library.Library("seal_fast", "FRAGMENT")
# taps [N, C, H', W'], uint8: which tap of its window, in row order, an output came from.
_library.define(
    "max_pool(Tensor x, int kernel, int stride, int padding) -> (Tensor y, Tensor taps)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
_library.define(
    "max_pool_backward(Tensor grad, Tensor taps, int height, int width, int kernel, int stride, int padding) -> Tensor",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _empty(x: Tensor, height: int, width: int, dtype: torch.dtype) -> Tensor:
    size = x.shape[0], x.shape[1], height, width
    return torch.empty(size, dtype=dtype, device=x.device, memory_format=torch.channels_last)


def _output(n: int, kernel: int, stride: int, padding: int) -> int:
    return (n + 2 * padding - kernel) // stride + 1


def _fake_forward(x: Tensor, kernel: int, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    size = [_output(n, kernel, stride, padding) for n in x.shape[2:]]
    return _empty(x, *size, dtype=x.dtype), _empty(x, *size, dtype=torch.uint8)


def _forward(x: Tensor, kernel: int, stride: int, padding: int) -> tuple[Tensor, Tensor]:
    x = channels_last(x)
    y, taps = _fake_forward(x, kernel, stride, padding)
    addresses = [t.data_ptr() for t in (x, y, taps)]
    function("max_pool", x.dtype)(*addresses, *x.shape, *y.shape[2:], kernel, stride, padding)
    return y, taps


def _fake_backward(grad: Tensor, taps: Tensor, height: int, width: int, *_of_windows: int) -> Tensor:
    return _empty(grad, height, width, grad.dtype)


def _backward(grad: Tensor, taps: Tensor, height: int, width: int, kernel: int, stride: int, padding: int) -> Tensor:
    grad, taps = channels_last(grad), channels_last(taps)
    grad_x = _fake_backward(grad, taps, height, width)
    addresses = [t.data_ptr() for t in (grad, taps, grad_x)]
    windows = *grad.shape[2:], kernel, stride, padding
    function("max_pool_backward", grad.dtype)(*addresses, *grad_x.shape, *windows)
    return grad_x


_library.impl("max_pool", _forward, "CPU")
_library.impl("max_pool_backward", _backward, "CPU")
torch.library.register_fake("seal_fast::max_pool", _fake_forward, lib=_library)
torch.library.register_fake("seal_fast::max_pool_backward", _fake_backward, lib=_library)


def _save(ctx, inputs, output) -> None:
    x, *ctx.windows = inputs
    ctx.size = x.shape[2:]
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _differentiate(ctx, grad: Tensor | None, _of_taps: Tensor | None):
    if grad is None:
        return (None,) * 4
    plain = torch.is_grad_enabled() or transforming()  # create_graph, or derivatives of the gradient in another mode
    backward = reference.backward if plain else torch.ops.seal_fast.max_pool_backward
    return backward(grad, *ctx.saved_tensors, *ctx.size, *ctx.windows), None, None, None


torch.library.register_autograd("seal_fast::max_pool", _differentiate, setup_context=_save, lib=_library)
