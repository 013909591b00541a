"""Every autograd mode: the native ops serve it, fall back to plain torch, or refuse; none drops a derivative.

The truth is plain torch in float64: finite differences, or its own derivatives.
"""

import pytest
import torch
from torch.autograd import forward_ad

from seal_fast.kernels import conv2d, norm_act


def normalised(x, weight, bias, residual, backend="auto"):
    mean, var = torch.zeros_like(weight), torch.ones_like(weight)
    return norm_act(x, weight, bias, mean, var, True, 0.1, 1e-5, residual, True, backend)


# Whole maps, columns, and the library with columns for the weight's gradient; then the others.
OPS = {
    "conv2d whole": (lambda *t, backend="auto": conv2d(*t, 1, 1, backend), [(3, 7, 2, 2), (5, 7, 3, 3)]),
    "conv2d columns": (lambda *t, backend="auto": conv2d(*t, 2, 1, backend), [(4, 6, 4, 4), (5, 6, 3, 3)]),
    "norm_act": (normalised, [(4, 17, 3, 5), (17,), (17,), (4, 17, 3, 5)]),
}


@pytest.fixture(params=OPS)
def case(request):
    """The op, its inputs and as many directions: float32, channels-last where they are images."""
    op, shapes = OPS[request.param]
    torch.manual_seed(1)

    def draw():
        tensors = [torch.randn(shape) for shape in shapes]
        return [t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 else t for t in tensors]

    return op, draw(), draw()


def doubles(tensors):
    return [t.double() for t in tensors]


def close(found, expected, tolerance=1e-5):
    assert (found.double() - expected.double()).abs().max() <= tolerance * expected.abs().max()


def gradients(op, inputs, grad, **options):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    return torch.autograd.grad(op(*leaves), leaves, grad, **options), leaves


def test_forward_mode_against_finite_differences(case):
    op, inputs, directions = case
    step = 1e-6
    for chosen in range(len(inputs)):
        moved = []
        for sign in (1, -1):
            point = doubles(inputs)
            point[chosen] += sign * step * directions[chosen].double()
            moved.append(op(*point))
        with forward_ad.dual_level():
            dual = list(inputs)
            dual[chosen] = forward_ad.make_dual(inputs[chosen], directions[chosen])
            tangent = forward_ad.unpack_dual(op(*dual)).tangent
        assert tangent is not None
        close(tangent, (moved[0] - moved[1]) / (2 * step))


def test_torch_func_jvp_and_grad(case):
    op, inputs, directions = case
    expected = torch.func.jvp(op, tuple(doubles(inputs)), tuple(doubles(directions)))
    for a, b in zip(torch.func.jvp(op, tuple(inputs), tuple(directions)), expected, strict=True):
        close(a, b)
    grad = torch.func.grad(lambda x: op(x, *inputs[1:]).square().sum())(inputs[0])
    x = inputs[0].double().requires_grad_()
    close(grad, torch.autograd.grad(op(x, *doubles(inputs[1:])).square().sum(), x)[0])


def test_forward_over_reverse(case):
    """Tangents through the backward pass of a graph that the native op made before the dual level."""
    op, inputs, _ = case
    leaves = [t.requires_grad_() for t in inputs]
    y = op(*leaves)
    grad, direction = torch.randn_like(y), torch.randn_like(y)
    with forward_ad.dual_level():
        found = torch.autograd.grad(y, leaves, forward_ad.make_dual(grad, direction))
        tangents = [forward_ad.unpack_dual(g).tangent for g in found]
    expected, _ = gradients(op, doubles(inputs), direction.double())  # linear in the incoming gradient
    for tangent, b in zip(tangents, expected, strict=True):
        assert tangent is not None
        close(tangent, b)


def test_batched_gradients(case):
    op, inputs, _ = case
    y = op(*inputs)
    grads = torch.randn(3, *y.shape)
    found, _ = gradients(op, inputs, grads, is_grads_batched=True)
    for i, grad in enumerate(grads):
        expected, _ = gradients(op, doubles(inputs), grad.double())
        for a, b in zip(found, expected, strict=True):
            close(a[i], b)


def test_vmap_over_images(case):
    op, inputs, _ = case
    stack = torch.stack([inputs[0], 2 * inputs[0]])
    if op is normalised:  # its running statistics cannot be moved by two networks
        with pytest.raises(RuntimeError, match="running_mean"):
            torch.vmap(lambda x: op(x, *inputs[1:]))(stack)
        return
    found = torch.vmap(lambda x: op(x, *inputs[1:]))(stack)
    for a, x in zip(found, stack, strict=True):
        close(a, op(x.double(), *doubles(inputs[1:])))


def test_second_derivatives(case):
    op, inputs, directions = case

    def second(inputs, directions):
        y = op(*inputs)
        first, leaves = gradients(op, inputs, torch.ones_like(y).cumsum(0), create_graph=True)
        mixed = sum((g.square() * d).sum() for g, d in zip(first, directions, strict=True))
        if not mixed.requires_grad:  # the first derivatives do not depend on the inputs at all
            return [torch.zeros_like(leaf) for leaf in leaves]
        return torch.autograd.grad(mixed, leaves, allow_unused=True, materialize_grads=True)

    for a, b in zip(second(inputs, directions), second(doubles(inputs), doubles(directions)), strict=True):
        close(a, b)


def test_inference_mode(case):
    op, inputs, _ = case
    with torch.inference_mode():
        found = op(*inputs)
    assert torch.equal(found, op(*inputs))


def test_an_empty_batch_is_as_torchs(case):
    op, inputs, _ = case
    empty = [t[:0] if t.dim() == 4 and (op is normalised or i == 0) else t for i, t in enumerate(inputs)]

    def outcome(backend):
        leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in empty]
        y = op(*leaves, backend=backend)
        y.sum().backward()
        return [y, *(t.grad for t in leaves)]

    for a, b in zip(outcome("auto"), outcome("reference"), strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)
