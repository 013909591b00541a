"""max_pool, eager and compiled, against torch's own in float64, to the last bit."""

import pytest
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from seal_fast.kernels import max_pool

# Images, channels, height, width, kernel, stride, padding.
CASES = [(2, 64, 8, 8, 3, 2, 1), (1, 1, 5, 7, 3, 2, 1), (3, 17, 6, 5, 3, 1, 1), (2, 100, 9, 4, 2, 2, 0)]


def images(case, dtype):
    """Few distinct values, so that windows hold equals; and a gradient."""
    n, channels, height, width, kernel, stride, padding = case
    torch.manual_seed(channels)
    x = torch.randint(-9, 9, (n, channels, height, width)).to(dtype).contiguous(memory_format=torch.channels_last)
    y = F.max_pool2d(x, kernel, stride, padding)
    return x, torch.randint(-9, 9, y.shape).to(dtype).contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("case", CASES, ids=str)
def test_equals_torch_to_the_bit(case, dtype):
    x, grad = images(case, dtype)
    peer = x.double().requires_grad_()
    expected = F.max_pool2d(peer, *case[4:])
    expected.backward(grad.double())
    for pool in (max_pool, lambda *inputs: torch.ops.seal_fast.max_pool(*inputs)[0]):
        leaf = x.clone().requires_grad_()
        y = pool(leaf, *case[4:])
        y.backward(grad)
        assert y.dtype == dtype and y.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(y.double(), expected) and torch.equal(leaf.grad.double(), peer.grad)


def test_compiled_it_is_one_op_that_inductor_leaves_alone():
    counter = CompileCounterWithBackend("aot_eager")
    x, grad = images(CASES[0], torch.float32)
    leaf = x.clone().requires_grad_()
    y = torch.compile(max_pool, backend=counter, fullgraph=True)(leaf, 3, 2, 1)
    y.backward(grad)
    peer = x.double().requires_grad_()
    F.max_pool2d(peer, 3, 2, 1).backward(grad.double())
    assert torch.equal(leaf.grad.double(), peer.grad)
    assert [str(n.target) for n in counter.graphs[0].graph.nodes if "pool" in str(n.target)] == ["seal_fast.max_pool"]


def test_opcheck():
    x, grad = images(CASES[1], torch.float32)
    torch.library.opcheck(torch.ops.seal_fast.max_pool.default, (x.requires_grad_(), 3, 2, 1))
    indices = torch.ops.seal_fast.max_pool(x, 3, 2, 1)[1]
    torch.library.opcheck(torch.ops.seal_fast.max_pool_backward.default, (grad, x.detach(), indices, 3, 2, 1))
