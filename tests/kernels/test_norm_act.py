"""norm_act's native kernel against the plain composition in float64, and where it hands over to that composition."""

import pytest
import torch
import torch.nn.functional as F

from seal_fast.kernels import native, norm_act

needs_native = pytest.mark.skipif(not native.available(), reason="installed without native kernels")

# Relative to the largest value. bfloat16 results are rounded once: 2**-8 at most, wherever the value lies.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2**-8}
MOMENTUM, EPS = 0.1, 1e-5


def batch(channels, dtype, n=6, h=5, w=3, offset=3.0):
    torch.manual_seed(channels)
    x, residual, grad = (torch.randn(n, channels, h, w) for _ in range(3))
    x = x * 2 + offset
    parameters = torch.rand(channels) + 0.5, torch.randn(channels)
    last = [t.to(dtype).contiguous(memory_format=torch.channels_last) for t in (x, residual, grad)]
    return *last, *parameters


def run(x, residual, grad, weight, bias, act, backend, training=True):
    """Output, gradients and running statistics; every input is a fresh leaf."""
    leaves = [t.detach().clone().requires_grad_() for t in (x, weight, bias)]
    extra = None if residual is None else residual.detach().clone().requires_grad_()
    mean, var = torch.full_like(weight, 0.5), torch.full_like(weight, 2.0)
    y = norm_act(*leaves, mean, var, training, MOMENTUM, EPS, extra, act, backend=backend)
    y.backward(grad)
    return [y.detach(), *(t.grad for t in leaves), mean, var] + ([] if extra is None else [extra.grad])


def assert_close(found, expected, dtype):
    for i, (a, b) in enumerate(zip(found, expected, strict=True)):
        tolerance = TOLERANCE[dtype] if a.dtype == dtype else TOLERANCE[torch.float32]
        error = (a.double() - b).abs().max() / b.abs().max().clamp_min(1e-3)
        assert error < tolerance, f"result {i}: {error:.1e}"


@needs_native
@pytest.mark.parametrize("act", [True, False], ids=["relu", "linear"])
@pytest.mark.parametrize("with_residual", [True, False], ids=["residual", "plain"])
@pytest.mark.parametrize("channels", [1, 5, 16, 17, 64, 100, 512])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_values_and_gradients(dtype, channels, with_residual, act):
    x, residual, grad, weight, bias = batch(channels, dtype)
    residual = residual if with_residual else None
    found = run(x, residual, grad, weight, bias, act, "native")
    assert found[0].dtype == dtype and found[0].is_contiguous(memory_format=torch.channels_last)
    doubles = [None if t is None else t.double() for t in (x, residual, grad, weight, bias)]
    assert_close(found, run(*doubles, act, "reference"), dtype)


@needs_native
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_many_rows_on_all_threads(dtype):
    # More than one block of rows a thread, and a number of rows that no thread count divides.
    x, residual, grad, weight, bias = batch(64, dtype, n=37, h=11, w=13)
    found = run(x, residual, grad, weight, bias, True, "native")
    assert_close(found, run(*(t.double() for t in (x, residual, grad, weight, bias)), True, "reference"), dtype)
    again = run(x, residual, grad, weight, bias, True, "native")
    assert all(torch.equal(a, b) for a, b in zip(found, again, strict=True))


@needs_native
def test_bfloat16_is_within_a_rounding_of_torch():
    x, _, _, weight, bias = batch(64, torch.bfloat16, n=32, h=8, w=8)
    mean, var = torch.zeros(64), torch.ones(64)
    plain = F.relu(F.batch_norm(x, mean.clone(), var.clone(), weight, bias, True, MOMENTUM, EPS))
    ours = norm_act(x, weight, bias, mean, var, True, MOMENTUM, EPS, backend="native")
    assert ((ours - plain).abs() <= 2**-7 * plain.abs() + 1e-3).all()


@needs_native
def test_variance_of_data_far_from_zero():
    x, _, _, weight, bias = batch(32, torch.float32, n=64, h=8, w=8, offset=1e4)
    mean, var = torch.zeros(32), torch.zeros(32)
    norm_act(x, weight, bias, mean, var, True, 1.0, EPS, backend="native")
    torch.testing.assert_close(var.double(), x.double().var((0, 2, 3)), rtol=2e-6, atol=0)
    torch.testing.assert_close(mean.double(), x.double().mean((0, 2, 3)), rtol=1e-7, atol=0)


@needs_native
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("row", [0, 5000])
def test_variance_of_a_nearly_constant_channel_with_an_outlier(row, dtype):
    x, _, _, weight, bias = batch(20, dtype, n=64, h=16, w=16, offset=0.0)
    x *= torch.logspace(-4, 0, 20).to(dtype)[:, None, None]
    matrix = x.permute(0, 2, 3, 1).flatten(0, 2)
    matrix[row] = 1000.0
    mean, var = torch.zeros(20), torch.zeros(20)
    norm_act(x, weight, bias, mean, var, True, 1.0, EPS, backend="native")
    torch.testing.assert_close(mean.double(), matrix.double().mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(var.double(), matrix.double().var(0), rtol=2e-6, atol=0)


@needs_native
def test_nan_and_infinity_come_through():
    for bad in (float("nan"), float("inf")):
        x, _, _, weight, bias = batch(17, torch.float32)
        x[2, 3, 1, 1] = bad
        y = norm_act(x, weight, bias, torch.zeros(17), torch.ones(17), True, MOMENTUM, EPS, backend="native")
        assert y[:, 3].isnan().all()
        assert y[:, :3].isfinite().all() and y[:, 4:].isfinite().all()


@needs_native
def test_differentiable_twice():
    x, residual, grad, weight, bias = batch(5, torch.float32)

    def second(backend, up):
        leaves = [up(t.detach().clone()).requires_grad_() for t in (x, weight, bias, residual)]
        statistics = up(torch.zeros(5)), up(torch.ones(5))
        y = norm_act(*leaves[:3], *statistics, True, MOMENTUM, EPS, leaves[3], backend=backend)
        first = torch.autograd.grad(y, leaves, up(grad.clone()), create_graph=True)
        return torch.autograd.grad(sum((g**2).sum() for g in first), leaves[:3])

    for a, b in zip(second("native", lambda t: t), second("reference", torch.Tensor.double), strict=True):
        assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@needs_native
@pytest.mark.parametrize("act", [True, False])
@pytest.mark.parametrize("with_residual", [True, False])
def test_opcheck(with_residual, act):
    x, residual, _, weight, bias = batch(17, torch.float32)
    leaves = [t.requires_grad_() for t in (x, weight, bias)]
    extra = residual.requires_grad_() if with_residual else None
    torch.library.opcheck(torch.ops.seal_fast.norm_act.default, (*leaves, extra, EPS, act))


@needs_native
def test_compiled_graph_holds_the_op_and_agrees():
    x, residual, grad, weight, bias = batch(16, torch.bfloat16)
    seen = []

    def keep(graph, _):
        seen.extend(str(node.target) for node in graph.graph.nodes)
        return graph

    compiled = torch.compile(
        lambda x, r, w, b, m, v: norm_act(x, w, b, m, v, True, MOMENTUM, EPS, r), backend=keep, fullgraph=True
    )
    statistics = torch.full_like(weight, 0.5), torch.full_like(weight, 2.0)
    y = compiled(x, residual, weight, bias, *statistics)
    expected = run(x, residual, grad, weight, bias, True, "native")
    assert torch.equal(y, expected[0])
    assert torch.equal(statistics[0], expected[4]) and torch.equal(statistics[1], expected[5])
    assert any("seal_fast" in name for name in seen)


def test_other_inputs_take_the_plain_composition():
    x, residual, grad, weight, bias = batch(8, torch.float32)
    expected = run(*(t.double() for t in (x, residual, grad, weight, bias)), True, "auto")
    nchw = [t.contiguous() for t in (x, residual, grad)]
    assert_close(run(*nchw, weight, bias, True, "auto"), expected, torch.float32)
    assert_close(run(x, residual, grad, weight, bias, True, "reference"), expected, torch.float32)
    evaluated = run(x, None, grad, weight, bias, False, "auto", training=False)
    plain = (x - 0.5) / (2.0 + EPS) ** 0.5 * weight[:, None, None] + bias[:, None, None]
    torch.testing.assert_close(evaluated[0], plain)
    assert (evaluated[4] == 0.5).all() and (evaluated[5] == 2.0).all()


def test_refusals():
    x, _, _, weight, bias = batch(8, torch.float32)
    mean, var = torch.zeros(8), torch.ones(8)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        norm_act(x[:1, :, :1, :1], weight, bias, mean, var, True, MOMENTUM, EPS)
    with pytest.raises(RuntimeError, match="running_mean should contain 8 elements"):
        norm_act(x, weight, bias, mean[:4], var, True, MOMENTUM, EPS)
    with pytest.raises(ValueError, match="backend must be one of"):
        norm_act(x, weight, bias, mean, var, True, MOMENTUM, EPS, backend="fast")
    if native.available():
        with pytest.raises(ValueError, match="norm_act: the native kernel takes channels-last"):
            norm_act(x.contiguous(), weight, bias, mean, var, True, MOMENTUM, EPS, backend="native")
