"""conv2d's products against torch's convolution in float64, and where it hands over to the library."""

import pytest
import torch
import torch.nn.functional as F

from seal_fast.kernels import conv2d
from seal_fast.kernels.conv2d import conv2d_backward, ways
from seal_fast.kernels.conv2d.products import Shape
from seal_fast.kernels.torch_private import has_bf16_matmul
from seal_fast.models.resnet import resnet18

needs_bf16 = pytest.mark.skipif(not has_bf16_matmul(), reason="no bfloat16 matrix products on this CPU")

# Relative to the largest value. A bfloat16 result is a float32 sum rounded once, a sum of columns or of taps twice.
TOLERANCE = {torch.float64: 1e-14, torch.float32: 2e-6, torch.bfloat16: 2**-7}

# Images, channels in and out, height, width, kernel, stride, padding; the ways of output and gradients in bfloat16.
CASES = [
    (5, 7, 3, 2, 2, 3, 1, 1, ("columns", "columns", "columns")),
    (1, 17, 33, 1, 1, 3, 1, 1, ("whole", "whole", "whole")),
    (3, 4, 6, 2, 1, 3, 1, 1, ("whole", "whole", "whole")),
    (4, 8, 16, 2, 2, 3, 2, 1, ("whole", "whole", "whole")),
    (2, 5, 5, 3, 2, 5, 1, 2, ("columns", "columns", "columns")),
    (6, 16, 8, 4, 4, 3, 2, 1, ("columns", "columns", "columns")),
    (6, 16, 8, 4, 4, 1, 2, 0, ("columns", "columns", "columns")),
    (3, 9, 4, 3, 5, 3, 2, 1, ("library", "library", "columns")),
    (2, 6, 10, 2, 2, 1, 1, 0, ("columns", "columns", "columns")),
    (2, 8, 8, 4, 3, 3, 1, 1, ("library", "library", "columns")),
    (2, 8, 8, 16, 15, 3, 2, 1, ("library", "library", "columns")),
    (2, 3, 4, 7, 7, 2, 3, 0, ("columns", "columns", "columns")),
]


def tensors(case, dtype):
    n, inputs, outputs, height, width, kernel, stride, padding, _ = case
    torch.manual_seed(n)
    x, weight = torch.randn(n, inputs, height, width), torch.randn(outputs, inputs, kernel, kernel)
    grad = torch.randn_like(F.conv2d(x, weight, None, stride, padding))
    return [t.to(dtype).contiguous(memory_format=torch.channels_last) for t in (x, weight, grad)]


def run(x, weight, grad, stride, padding, backend):
    leaves = [t.detach().clone(memory_format=torch.preserve_format).requires_grad_() for t in (x, weight)]
    y = conv2d(*leaves, stride, padding, backend)
    y.backward(grad)
    return [y.detach(), *(t.grad for t in leaves)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_values_and_gradients(case, dtype):
    n, *_, height, width, kernel, stride, padding, expected_ways = case
    assert ways(Shape(height, width, kernel, stride, padding), torch.bfloat16, n) == expected_ways
    x, weight, grad = tensors(case, dtype)
    found = run(x, weight, grad, stride, padding, "auto")
    expected = run(*(t.double() for t in (x, weight, grad)), stride, padding, "reference")
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype and a.shape == b.shape and a.is_contiguous(memory_format=torch.channels_last)
        assert (a.double() - b).abs().max() <= TOLERANCE[dtype] * b.abs().max()
    again = run(x, weight, grad, stride, padding, "auto")
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


def test_many_images_of_a_small_map_are_one_product():
    assert {ways(Shape(2, 2, 3, 1, 1), torch.float32, n) for n in (1, 47)} == {("columns",) * 3}
    test_values_and_gradients((48, 7, 3, 2, 2, 3, 1, 1, ("whole",) * 3), torch.float32)


@needs_bf16
@pytest.mark.parametrize("case", CASES, ids=str)
def test_autocast_casts_the_weight_first_and_computes_the_same_to_the_bit(case):
    *_, stride, padding, _ = case
    x, weight, grad = tensors(case, torch.bfloat16)
    master = weight.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        y = conv2d(x, master, stride, padding, "products")
    y.backward(grad)
    expected = run(x, weight, grad, stride, padding, "products")
    assert y.dtype == torch.bfloat16 and master.grad.dtype == torch.float32
    assert torch.equal(y, expected[0]) and torch.equal(master.grad, expected[2].float())


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", [CASES[0], CASES[5], CASES[9], CASES[11]], ids=str)
def test_written_out_with_a_bias(case, dtype):
    """What autograd does, step by step; and the bias."""
    *_, stride, padding, _ = case
    x, weight, grad = tensors(case, dtype)
    bias = torch.linspace(-1, 1, len(weight), dtype=dtype)
    doubles = [t.double().requires_grad_() for t in (x, weight)]
    y = F.conv2d(*doubles, bias.double(), stride, padding)
    expected = y, *torch.autograd.grad(y, doubles, grad.double())
    found = conv2d(x, weight, stride, padding, bias=bias), *conv2d_backward(grad, x, weight, stride, padding)
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == dtype
        assert (a.double() - b).abs().max() <= TOLERANCE[dtype] * b.abs().max()
    assert conv2d_backward(grad, x, weight, stride, padding, of_x=False)[0] is None
    assert conv2d_backward(grad, x, weight, stride, padding, of_weight=False)[1] is None


@pytest.mark.parametrize("wanted", ["x", "weight"])
def test_only_one_gradient_wanted(wanted):
    x, weight, grad = tensors(CASES[0], torch.float32)
    leaf = {"x": x, "weight": weight}[wanted].requires_grad_()
    conv2d(x, weight, 1, 1, "products").backward(grad)
    other = F.conv2d(x.double(), weight.double(), None, 1, 1)
    (expected,) = torch.autograd.grad(other, leaf, grad.double())
    assert (leaf.grad - expected).abs().max() <= 2e-6 * expected.abs().max()


def test_differentiable_twice():
    def second(backend, dtype):
        x, weight, grad = (t.to(dtype) for t in tensors(CASES[5], torch.float32))
        leaves = x.requires_grad_(), weight.requires_grad_()
        y = conv2d(*leaves, 2, 1, backend)
        first = torch.autograd.grad(y, leaves, grad, create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), leaves)

    for a, b in zip(second("products", torch.float32), second("reference", torch.float64), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize("case", [CASES[0], CASES[5]], ids=str)
def test_opcheck(case):
    x, weight, _ = tensors(case, torch.float32)
    *_, stride, padding, _ = case
    arguments = x.requires_grad_(), weight.requires_grad_(), stride, padding
    torch.library.opcheck(torch.ops.seal_fast.conv2d.default, arguments)


def test_other_inputs_take_the_library():
    x, weight, _ = tensors(CASES[0], torch.float32)
    expected = F.conv2d(x.double(), weight.double(), None, 1, 1)
    half = conv2d(x.half(), weight.half(), 1, 1)
    assert torch.equal(half, F.conv2d(x.half(), weight.half(), None, 1, 1))
    torch.testing.assert_close(conv2d(x.contiguous(), weight, 1, 1).double(), expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="conv2d: products take channels-last"):
        conv2d(x.half(), weight.half(), 1, 1, "products")
    with pytest.raises(ValueError, match="conv2d: backend must be one of"):
        conv2d(x, weight, 1, 1, "native")
    with pytest.raises(RuntimeError, match="channels"):
        conv2d(x[:, :3], weight, 1, 1)
    with pytest.raises(RuntimeError):  # as torch: mixed types without autocast
        conv2d(x.bfloat16(), weight, 1, 1)


@needs_bf16
def test_the_network_asks_for_products_where_maps_are_small():
    network = resnet18(10).to(memory_format=torch.channels_last)
    x = torch.randn(2, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    with torch.profiler.profile() as recorder, torch.autocast("cpu", torch.bfloat16):
        network(x.bfloat16()).sum().backward()
    calls = {event.key: event.count for event in recorder.key_averages()}
    # 3x3 and 1x1 of stride 2 in layers 2, 3 and 4; the three other 3x3 in layers 3 and 4
    assert calls["seal_fast::conv2d"] == calls["seal_fast::conv2d_backward"] == 12
