"""`conv2d`: a convolution that on a CPU becomes matrix products where the map is small.

The last layers of a ResNet see maps of a few pixels and hundreds of channels. There matrix products are faster than the
CPU library's convolutions, above all for the gradients of weights (docs/kernels.md). Everywhere else, and always on a
GPU, it is `torch.nn.functional.conv2d`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seal_fast.kernels.conv2d import products
from seal_fast.kernels.conv2d.products import Shape
from seal_fast.kernels.native import channels_last
from seal_fast.kernels.torch_private import has_bf16_matmul, transforming

_MANY = 48  # images, from which a filled matrix is faster than windows copied out


def conv2d(
    x: Tensor,
    weight: Tensor,
    stride: int = 1,
    padding: int = 0,
    backend: str = "auto",
    *,
    bias: Tensor | None = None,
) -> Tensor:
    """Cross-correlation of images and a square kernel, without dilation or groups.

    Under autocast it computes in autocast's type, as `torch.nn.functional.conv2d` does; a weight that is of that type
    already gives the same numbers to the bit. Differentiable twice.

    Args:
        x: [N, C, H, W]. Products take bfloat16, float32 and float64 in channels-last memory.
        weight: [O, C, k, k] in x's type, or any under autocast.
        stride: of both directions.
        padding: zeros on all four sides.
        backend: "auto"; "reference" for `torch.nn.functional.conv2d`; "products" to refuse any other way.
        bias: [O], added to the result.

    Returns:
        [N, O, H', W'] in the type computed in and, from products, in channels-last memory.

    Raises:
        ValueError: `backend` is unknown; or it is "products" and they do not take this input.
    """
    if backend not in ("auto", "reference", "products"):
        raise ValueError(f"conv2d: backend must be one of auto, reference, products, not {backend!r}")
    if backend != "reference" and _takes(x, weight, stride, padding):
        compute = _compute_type(x)
        y = torch.ops.seal_fast.conv2d(x.to(compute), weight.to(compute), stride, padding)
        return y if bias is None else y + bias.to(compute)[:, None, None]
    if backend == "products":
        raise ValueError(
            "conv2d: products take channels-last bfloat16, float32 or float64 on the CPU, a square kernel and a small "
            "map (see seal_fast.kernels.conv2d.ways); choose backend 'auto' for anything else"
        )
    return F.conv2d(x, weight, bias, stride, padding)


def conv2d_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: int = 1,
    padding: int = 0,
    *,
    of_x: bool = True,
    of_weight: bool = True,
) -> tuple[Tensor | None, Tensor | None]:
    """Gradients of `conv2d`'s x and weight, as far as they are wanted, without autograd.

    Args:
        grad: [N, O, H', W'], that of the result.
        x: [N, C, H, W]; only its size, type and memory format count for its own gradient.
        weight: [O, C, k, k]; likewise.
        stride: of both directions.
        padding: zeros on all four sides.
        of_x: whether x's is wanted; None is returned otherwise.
        of_weight: whether the weight's is.
    """
    if _takes(x, weight, stride, padding):
        grad_x, grad_weight = torch.ops.seal_fast.conv2d_backward(grad, x, weight, stride, padding, of_x, of_weight)
        return grad_x if of_x else None, grad_weight if of_weight else None
    return _library_backward(grad, x, weight, stride, padding, of_x, of_weight)


def ways(shape: Shape, dtype: torch.dtype, images: int) -> tuple[str, str, str]:
    """How output, gradient of x and gradient of the weight are computed: each "library", "whole" or "columns".

    Products were measured to be faster on maps of few pixels, first of all for the weight and in bfloat16. To fill a
    matrix from all pixels to all pixels that is larger than the weight takes time, which few images do not win back.
    """
    if shape.whole():
        height, width = shape.output()
        small = height * width * shape.height * shape.width <= shape.kernel**2
        way = "whole" if small or images >= _MANY else "columns"
        return way, way, way
    if dtype == torch.float64:  # the library's gradient of a weight takes an image at a time
        return "library", "library", "columns" if shape.kernel > 1 else "library"
    height, width = shape.output()
    pixels = height * width
    if pixels <= 4:
        return "columns", "columns", "columns"
    if dtype == torch.bfloat16 and pixels <= (16 if shape.stride == 1 else 64):
        return "library", "library", "columns"
    return "library", "library", "library"


def _compute_type(x: Tensor) -> torch.dtype:
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype


def _takes(x: Tensor, weight: Tensor, stride: int, padding: int) -> bool:
    """Whether products can and should compute it."""
    if x.device.type != "cpu" or transforming():
        return False
    compute = _compute_type(x)
    cast_from = {compute, torch.float32} if torch.is_autocast_enabled("cpu") else {compute}
    return (
        x.dim() == 4
        and {x.dtype, weight.dtype} <= cast_from
        and (compute in (torch.float32, torch.float64) or (compute == torch.bfloat16 and has_bf16_matmul()))
        and weight.shape[1:] == (x.shape[1], weight.shape[3], weight.shape[3])
        and min(x.shape[2:]) + 2 * padding >= weight.shape[3]
        and x.is_contiguous(memory_format=torch.channels_last)
        and weight.is_contiguous(memory_format=torch.channels_last)
        and ways(_shape(x, weight, stride, padding), compute, len(x)) != ("library",) * 3
    )


def _shape(x: Tensor, weight: Tensor, stride: int, padding: int) -> Shape:
    return Shape(x.shape[2], x.shape[3], weight.shape[2], stride, padding)


_library = torch.library.Library("seal_fast", "FRAGMENT")
_library.define(
    "conv2d(Tensor x, Tensor weight, int stride, int padding) -> Tensor", tags=(torch.Tag.pt2_compliant_tag,)
)
# A gradient that nobody wants comes empty.
_library.define(
    "conv2d_backward(Tensor grad, Tensor x, Tensor weight, int stride, int padding, bool of_x, bool of_weight) "
    "-> (Tensor grad_x, Tensor grad_weight)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    x, weight = channels_last(x), channels_last(weight)
    shape = _shape(x, weight, stride, padding)
    way, _, _ = ways(shape, x.dtype, len(x))
    if way == "whole":
        return products.whole_forward(x, weight, shape)
    if way == "columns":
        return products.columns_forward(x, weight, shape)
    return channels_last(F.conv2d(x, weight, None, stride, padding))


def _backward(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, of_x: bool, of_weight: bool):
    grad, x, weight = channels_last(grad), channels_last(x), channels_last(weight)
    shape = _shape(x, weight, stride, padding)
    _, way_x, way_weight = ways(shape, x.dtype, len(x))
    grad_x, grad_weight = x.new_empty(0), weight.new_empty(0)
    if of_x and way_x == "whole":
        grad_x = products.whole_grad_x(grad, weight, shape)
    elif of_x and way_x == "columns":
        grad_x = products.columns_grad_x(grad, weight, shape)
    if of_weight and way_weight == "whole":
        grad_weight = products.whole_grad_weight(grad, x, weight, shape)
    elif of_weight and way_weight == "columns":
        grad_weight = products.columns_grad_weight(grad, x, weight, shape)
    mask = of_x and way_x == "library", of_weight and way_weight == "library"
    if any(mask):
        found = _library_backward(grad, x, weight, stride, padding, *mask)
        grad_x = channels_last(found[0]) if mask[0] else grad_x
        grad_weight = channels_last(found[1]) if mask[1] else grad_weight
    return grad_x, grad_weight


def _library_backward(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, of_x: bool, of_weight: bool):
    if weight.dtype == torch.float64:  # what the library has for it on a CPU takes no other memory format
        weight = weight.contiguous()
    return torch.ops.aten.convolution_backward(
        grad, x, weight, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], 1, [of_x, of_weight, False]
    )[:2]


_library.impl("conv2d", _forward, "CPU")
_library.impl("conv2d_backward", _backward, "CPU")


@torch.library.register_fake("seal_fast::conv2d", lib=_library)
def _fake_forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    size = x.shape[0], weight.shape[0], *_shape(x, weight, stride, padding).output()
    return x.new_empty(size).to(memory_format=torch.channels_last)


@torch.library.register_fake("seal_fast::conv2d_backward", lib=_library)
def _fake_backward(grad: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int, of_x: bool, of_weight: bool):
    return tuple(
        torch.empty_like(t, memory_format=torch.channels_last) if wanted else t.new_empty(0)
        for t, wanted in ((x, of_x), (weight, of_weight))
    )


def _save(ctx, inputs, output) -> None:
    x, weight, ctx.stride, ctx.padding = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx, grad: Tensor):
    x, weight = ctx.saved_tensors
    wanted = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled() or transforming():  # create_graph, or derivatives of the gradient in another mode
        with torch.enable_grad():
            y = F.conv2d(x, weight, None, ctx.stride, ctx.padding)
            slots = [t for t, want in zip((x, weight), wanted, strict=True) if want]
            found = iter(torch.autograd.grad(y, slots, grad, create_graph=True))
        return *(next(found) if want else None for want in wanted), None, None
    grads = torch.ops.seal_fast.conv2d_backward(grad, x, weight, ctx.stride, ctx.padding, *wanted)
    return *(g if want else None for g, want in zip(grads, wanted, strict=True)), None, None


torch.library.register_autograd("seal_fast::conv2d", _differentiate, setup_context=_save, lib=_library)
