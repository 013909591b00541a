"""`norm_act`: BatchNorm, then a residual added, then ReLU.

On the CPU in training it is one native op of two passes over the activations, forward and backward, where torch makes
up to seven; compiled graphs call it too. Everywhere else it is the plain composition, which Inductor fuses on a GPU.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seal_fast.kernels.backend import is_native
from seal_fast.kernels.native import address, channels_last, function
from seal_fast.kernels.norm_act.reference import norm_act as _reference
from seal_fast.kernels.torch_private import transforming

_DTYPES = torch.bfloat16, torch.float32


def norm_act(
    x: Tensor,
    weight: Tensor,
    bias: Tensor,
    running_mean: Tensor,
    running_var: Tensor,
    training: bool,
    momentum: float,
    eps: float,
    residual: Tensor | None = None,
    act: bool = True,
    backend: str = "auto",
) -> Tensor:
    """Batch normalisation (Ioffe and Szegedy, ICML 2015, algorithm 1), plus `residual`, through ReLU.

    In training the statistics are the batch's, taken over N, H and W, and the running ones move by `momentum` towards
    them (the variance towards the unbiased one, N*H*W - 1), as in `torch.nn.functional.batch_norm`. Statistics are
    float32 for bfloat16 input too. Differentiable twice.

    Args:
        x: [N, C, H, W]. The native kernel takes bfloat16 and float32 in channels-last memory; other inputs are welcome
            and take the plain composition.
        weight: [C], of the statistics' type.
        bias: [C].
        running_mean: [C], updated in place in training.
        running_var: [C], updated in place in training.
        training: normalise by the batch's statistics, or by the running ones.
        momentum: of the running statistics, in [0, 1].
        eps: added to the variance.
        residual: [N, C, H, W] of x's type, or None.
        act: whether ReLU follows.
        backend: "auto"; "reference" for the plain composition; "native" to refuse any other way.

    Returns:
        [N, C, H, W] in x's type and memory format.

    Raises:
        ValueError: training on one value per channel; or `backend="native"` for input that it does not take.
        BackendUnavailable: `backend="native"` where the native kernels are not installed.
    """
    native = is_native("norm_act", backend, x.device.type) and training and not transforming()
    if not native or not _fits(x, residual, (weight, bias, running_mean, running_var)):
        if backend == "native":
            raise ValueError(
                "norm_act: the native kernel takes channels-last bfloat16 or float32 input in training, float32 "
                "weights and a residual like the input, outside torch.func and forward-mode AD; choose backend 'auto' "
                "for anything else"
            )
        return _reference(x, weight, bias, running_mean, running_var, training, momentum, eps, residual, act)
    y, mean, var = torch.ops.seal_fast.norm_act(x, weight, bias, residual, eps, act)
    with torch.no_grad():
        count = x.numel() // x.shape[1]
        running_mean.lerp_(mean, momentum)
        running_var.lerp_(var * (count / (count - 1)), momentum)
    return y


def _fits(x: Tensor, residual: Tensor | None, vectors: tuple[Tensor, ...]) -> bool:
    """Whether the native kernel can run: it sees a matrix [N*H*W, C] without gaps, and more than one row of it."""
    return (
        x.dim() == 4
        and x.dtype in _DTYPES
        and x.numel() > x.shape[1]
        and x.is_contiguous(memory_format=torch.channels_last)
        and (residual is None or (residual.shape == x.shape and residual.dtype == x.dtype))
        and all(v.shape == x.shape[1:2] and v.dtype == torch.float32 and v.device == x.device for v in vectors)
    )


_library = torch.library.Library("seal_fast", "FRAGMENT")
_library.define(
    "norm_act(Tensor x, Tensor weight, Tensor bias, Tensor? residual, float eps, bool act) "
    "-> (Tensor y, Tensor mean, Tensor var)",
    tags=(torch.Tag.pt2_compliant_tag,),
)
# y is given only where ReLU's mask cannot be had from x: after a residual. grad_residual is empty otherwise.
_library.define(
    "norm_act_backward(Tensor grad, Tensor x, Tensor? y, Tensor weight, Tensor bias, Tensor mean, Tensor var, "
    "float eps, bool act) -> (Tensor grad_x, Tensor grad_residual, Tensor grad_weight, Tensor grad_bias)",
    tags=(torch.Tag.pt2_compliant_tag,),
)


def _forward(x: Tensor, weight: Tensor, bias: Tensor, residual: Tensor | None, eps: float, act: bool):
    x, weight, bias = channels_last(x), weight.contiguous(), bias.contiguous()
    residual = None if residual is None else channels_last(residual)
    y, mean, var = torch.empty_like(x), torch.empty_like(weight), torch.empty_like(weight)
    tensors = x, residual, weight, bias, y, mean, var
    channels = x.shape[1]
    function("norm_act", x.dtype)(*map(address, tensors), x.numel() // channels, channels, eps, act)
    return y, mean, var


def _backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor,
    bias: Tensor,
    mean: Tensor,
    var: Tensor,
    eps: float,
    act: bool,
):
    grad, x, weight, bias = channels_last(grad), channels_last(x), weight.contiguous(), bias.contiguous()
    grad_x = torch.empty_like(x)
    grad_residual = x.new_empty(0) if y is None else torch.empty_like(x)
    grad_weight, grad_bias = torch.empty_like(weight), torch.empty_like(weight)
    tensors = grad, x, y, weight, bias, mean, var, grad_x, grad_residual, grad_weight, grad_bias
    channels = x.shape[1]
    function("norm_act_backward", x.dtype)(*map(address, tensors), x.numel() // channels, channels, eps, act)
    return grad_x, grad_residual, grad_weight, grad_bias


_library.impl("norm_act", _forward, "CPU")
_library.impl("norm_act_backward", _backward, "CPU")


def _fake_forward(x: Tensor, weight: Tensor, *_: object):
    y = torch.empty_like(x, memory_format=torch.channels_last)
    return y, torch.empty_like(weight), torch.empty_like(weight)


def _fake_backward(grad: Tensor, x: Tensor, y: Tensor | None, weight: Tensor, *_: object):
    grad_x = torch.empty_like(x, memory_format=torch.channels_last)
    grad_residual = x.new_empty(0) if y is None else torch.empty_like(grad_x)
    return grad_x, grad_residual, torch.empty_like(weight), torch.empty_like(weight)


torch.library.register_fake("seal_fast::norm_act", _fake_forward, lib=_library)
torch.library.register_fake("seal_fast::norm_act_backward", _fake_backward, lib=_library)


def _save(ctx, inputs, output) -> None:
    x, weight, bias, residual, eps, act = inputs
    y, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(x, weight, bias, residual, y if act and residual is not None else None, mean, var)
    ctx.eps, ctx.act = eps, act


def _differentiate(ctx, grad: Tensor | None, *_of_statistics):
    x, weight, bias, residual, y, mean, var = ctx.saved_tensors
    if grad is None:
        return (None,) * 6
    if torch.is_grad_enabled() or transforming():  # create_graph, or derivatives of the gradient in another mode
        slots = x, weight, bias, residual
        wanted = [t for t in slots if t is not None and t.requires_grad]
        with torch.enable_grad():
            again = _reference(x, weight, bias, mean.clone(), var.clone(), True, 0.0, ctx.eps, residual, ctx.act)
            found = iter(torch.autograd.grad(again, wanted, grad, create_graph=True))
        return *(next(found) if t is not None and t.requires_grad else None for t in slots), None, None
    grad_x, grad_residual, grad_weight, grad_bias = torch.ops.seal_fast.norm_act_backward(
        grad, x, y, weight, bias, mean, var, ctx.eps, ctx.act
    )
    # Without ReLU the residual's gradient is the incoming one.
    to_residual = None if residual is None else (grad_residual if ctx.act else grad)
    return grad_x, grad_weight, grad_bias, to_residual, None, None


torch.library.register_autograd("seal_fast::norm_act", _differentiate, setup_context=_save, lib=_library)
