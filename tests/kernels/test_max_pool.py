"""max_pool's native kernel against torch's, to the last bit, and where it hands over to it."""

import pytest
import torch
import torch.nn.functional as F

from seal_fast.kernels import max_pool, native

needs_native = pytest.mark.skipif(not native.available(), reason="installed without native kernels")

# Images, channels, height, width, kernel, stride, padding.
CASES = [
    (2, 64, 8, 8, 3, 2, 1),
    (1, 1, 5, 7, 3, 2, 1),
    (3, 17, 6, 5, 3, 1, 1),
    (2, 100, 9, 4, 2, 2, 0),
    (1, 130, 7, 7, 3, 3, 0),
    (2, 3, 11, 6, 5, 2, 2),
    (4, 8, 3, 3, 2, 3, 1),
    (9, 64, 13, 11, 3, 2, 1),
]


def images(case, dtype):
    """Few distinct values, so that windows hold equals; and a gradient."""
    n, channels, height, width, kernel, stride, padding = case
    torch.manual_seed(channels)
    x = torch.randint(-9, 9, (n, channels, height, width)).to(dtype).contiguous(memory_format=torch.channels_last)
    y = F.max_pool2d(x, kernel, stride, padding)
    return x, torch.randint(-9, 9, y.shape).to(dtype).contiguous(memory_format=torch.channels_last)


@needs_native
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_torch_to_the_bit(case, dtype):
    x, grad = images(case, dtype)
    leaf, peer = x.clone().requires_grad_(), x.double().requires_grad_()
    y, expected = max_pool(leaf, *case[4:], backend="native"), F.max_pool2d(peer, *case[4:])
    y.backward(grad)
    expected.backward(grad.double())
    assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(y.double(), expected) and torch.equal(leaf.grad.double(), peer.grad)


@needs_native
def test_nan_and_infinity_come_through():
    x = torch.zeros(1, 17, 4, 4).contiguous(memory_format=torch.channels_last)
    x[0, 3, 1, 1], x[0, 4, 2, 2] = float("nan"), float("inf")
    x[0, 5] = -float("inf")
    for values in (x, x.bfloat16()):
        y = max_pool(values, 3, 1, 1, backend="native")
        assert torch.equal(y.isnan(), F.max_pool2d(values, 3, 1, 1).isnan())
        assert torch.equal(y.nan_to_num(), F.max_pool2d(values, 3, 1, 1).nan_to_num())


@needs_native
def test_differentiable_twice():
    def second(pool, dtype):
        x, grad = (t.to(dtype).requires_grad_() for t in images(CASES[2], torch.float32))
        (first,) = torch.autograd.grad(pool(x, 3, 1, 1), x, grad, create_graph=True)
        return torch.autograd.grad((first**3).sum(), grad)[0]

    assert torch.equal(second(max_pool, torch.float32).double(), second(F.max_pool2d, torch.float64))


@needs_native
def test_opcheck():
    x, grad = images(CASES[1], torch.float32)
    torch.library.opcheck(torch.ops.seal_fast.max_pool.default, (x.requires_grad_(), 3, 2, 1))
    taps = torch.ops.seal_fast.max_pool(x, 3, 2, 1)[1]
    arguments = grad, taps, *x.shape[2:], 3, 2, 1
    torch.library.opcheck(torch.ops.seal_fast.max_pool_backward.default, arguments)


def test_other_inputs_take_the_plain_way():
    x, _ = images(CASES[0], torch.float32)
    expected = F.max_pool2d(x, 3, 2, 1)
    for other in (x.contiguous(), x.double()):
        assert torch.equal(max_pool(other, 3, 2, 1).to(x.dtype), expected)
    assert torch.equal(max_pool(x, 3, 2, 1, backend="reference"), expected)
    with pytest.raises(RuntimeError, match="pad should be at most half"):
        max_pool(x, 3, 2, 2)
    if native.available():
        with pytest.raises(ValueError, match="max_pool: the native kernel takes"):
            max_pool(x.double(), 3, 2, 1, backend="native")
