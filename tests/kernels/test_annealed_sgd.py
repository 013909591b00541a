"""`annealed_sgd_` against the rule written out with numpy in float64. Triton runs here where there is a GPU, and in its
interpreter in a process of its own (the interpreter is chosen when triton is imported)."""

import importlib
import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from seal_fast.kernels import native
from seal_fast.kernels.annealed_sgd import Buffers, annealed_sgd_, reference, segment_table, shard_table

INTERPRETING = os.environ.get("TRITON_INTERPRET") == "1"
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
BACKENDS = [
    pytest.param(("reference", "cpu"), id="reference"),
    pytest.param(
        ("native", "cpu"),
        id="native",
        marks=pytest.mark.skipif(not native.available(), reason="installed without native kernels"),
    ),
    pytest.param(
        ("triton", "cpu"),
        id="triton-interpreted",
        marks=pytest.mark.skipif(not INTERPRETING, reason="test_interpreted.py runs it in a process of its own"),
    ),
    pytest.param(("triton", "cuda"), id="triton", marks=[pytest.mark.gpu, GPU]),
]
# What a result may be off by, in units of the type's own precision, for values of order one.
TOLERANCE = {dtype: 32 * torch.finfo(dtype).eps for dtype in (torch.float32, torch.float64)}
FLOAT, HALF, DOUBLE = torch.float32, torch.bfloat16, torch.float64
# Of weights, and of gradients: all of one type, or taking turns as under autocast.
TYPES = [(FLOAT, [FLOAT]), (FLOAT, [HALF]), (FLOAT, [HALF, HALF, FLOAT]), (DOUBLE, [DOUBLE]), (DOUBLE, [DOUBLE, HALF])]
SIZES = [1, 17, 1000, 4097, 0, 1024]
DESCENT, ASCENT, FROZEN = (0.1, 0.9, 5e-4, 1, 1), (0.1, 0.9, 0, -1, 0.01), (0.1, 0.9, 5e-4, 1, 0)


def double(tensor):
    return tensor.detach().double().cpu().numpy().copy()  # expect() writes into it


def oracle(p, buf, grad, numbers, scale=1.0):
    """The rule for one parameter in float64: new p, new buffer, the unscaled gradient and the change of p."""
    lr, momentum, weight_decay, sign, strength = numbers
    g = grad / scale
    buf = momentum * buf + (g + weight_decay * p)
    change = np.zeros_like(p) if strength == 0 else sign * strength * lr * buf
    return p - change, buf, g, change


def close(actual, expected, dtype):
    np.testing.assert_allclose(double(actual), expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


class Case:
    """Random weights, momentum, gradients and all the optional buffers over a flat layout."""

    def __init__(self, sizes, groups, hyper, dtype=torch.float64, grad_dtypes=(), device="cpu", missing=(), seed=0):
        draw = torch.Generator().manual_seed(seed)

        def normal(n, kind=dtype):
            return torch.randn(n, generator=draw, dtype=torch.float64).to(kind).to(device)

        self.sizes, self.groups, self.dtype = sizes, groups, dtype
        self.segments, self.n = segment_table(sizes, groups)
        self.param, self.momentum, self.ema = normal(self.n), normal(self.n), normal(self.n)
        self.bf16 = torch.full((self.n,), 7.0, dtype=torch.bfloat16, device=device)
        kinds = itertools.cycle(grad_dtypes or [dtype])
        self.grads = [None if i in missing else normal(n, kind) for i, (n, kind) in enumerate(zip(sizes, kinds))]  # noqa: B905
        self.hyper = torch.tensor(hyper, dtype=torch.float64, device=device)
        self.norms = torch.zeros(len(hyper), 2, dtype=torch.float64, device=device)
        self.scale = torch.tensor(4.0, device=device)
        self.clean = torch.zeros((), device=device)
        self.decay = torch.tensor(0.9, dtype=torch.float64, device=device)

    def optional(self):
        return dict(ema=self.ema, ema_decay=self.decay, bf16=self.bf16, norms=self.norms)

    def scaling(self):
        return dict(grad_scale=self.scale, found_inf=self.clean)

    def buffers(self):
        return {"param": self.param, "momentum": self.momentum, "ema": self.ema, "bf16": self.bf16, "norms": self.norms}

    def given(self, **optional):
        return Buffers(self.param, self.momentum, self.segments, self.hyper, **optional)

    def run(self, backend, **optional):
        annealed_sgd_(self.given(**optional), self.grads, backend=backend)

    def run_with_everything(self, backend):
        annealed_sgd_(self.given(**self.optional()), self.grads, backend=backend, **self.scaling())

    def expect(self, scaled):
        """The buffers' expected values after one step, in float64; what lies between segments stays as it is."""
        want = {name: double(tensor) for name, tensor in self.buffers().items()}
        for (begin, length, group, *_), grad in zip(self.segments.tolist(), self.grads, strict=True):
            if grad is None:
                continue
            here = slice(begin, begin + length)
            p, buf, g, change = oracle(
                want["param"][here],
                want["momentum"][here],
                double(grad),
                self.hyper[group].tolist(),
                4 if scaled else 1,
            )
            want["param"][here], want["momentum"][here] = p, buf
            want["ema"][here] = 0.9 * want["ema"][here] + 0.1 * p
            want["norms"][group] += [(g**2).sum(), (change**2).sum()]
        return want


@pytest.mark.parametrize("dtype, grad_dtypes", TYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_plain_steps_through_all_phases(backend, dtype, grad_dtypes):
    case = Case(SIZES, [0, 1, 0, 1, 0, 1], [DESCENT, DESCENT], dtype, grad_dtypes, backend[1])
    for numbers in (DESCENT, ASCENT, FROZEN):
        case.hyper[0] = torch.tensor(numbers, dtype=torch.float64)
        want = case.expect(scaled=False)
        case.run(backend[0])
        close(case.param, want["param"], dtype)
        close(case.momentum, want["momentum"], dtype)


@pytest.mark.parametrize("dtype, grad_dtypes", TYPES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_everything_in_one_pass(backend, dtype, grad_dtypes):
    case = Case(SIZES, [0, 1, 0, 1, 2, 2], [DESCENT, ASCENT, FROZEN], dtype, grad_dtypes, backend[1], missing=[1])
    between = torch.ones(case.n, dtype=torch.bool)
    for (begin, length, *_), grad in zip(case.segments.tolist(), case.grads, strict=True):
        between[begin : begin + length] = grad is None
    for _ in range(2):
        want = case.expect(scaled=True)
        case.run_with_everything(backend[0])
        for name in ("param", "momentum", "ema"):
            close(case.buffers()[name], want[name], dtype)
        np.testing.assert_allclose(case.norms.cpu(), want["norms"], rtol=1e-6 if dtype == torch.float32 else 1e-12)
    rounded = torch.where(between.to(backend[1]), torch.tensor(7, dtype=torch.bfloat16), case.param.bfloat16())
    if backend == ("triton", "cpu"):  # the interpreter cuts off where the hardware rounds to nearest even
        torch.testing.assert_close(case.bf16, rounded, rtol=2**-7, atol=0)
    else:
        assert torch.equal(case.bf16, rounded)


@pytest.mark.parametrize("backend", BACKENDS)
def test_found_inf_makes_it_no_operation(backend):
    case = Case([70, 5], [0, 0], [DESCENT], device=backend[1])
    case.clean.fill_(1)
    case.grads[0][3] = float("inf")
    before = {name: tensor.clone() for name, tensor in case.buffers().items()}
    case.run_with_everything(backend[0])
    assert all(torch.equal(before[name], tensor) for name, tensor in case.buffers().items())


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.filterwarnings("ignore:invalid value")
def test_a_frozen_group_keeps_its_bits(backend):
    case = Case([70], [0], [FROZEN], torch.float32, device=backend[1])
    case.param[:3] = torch.tensor([-0.0, 1e-42, 3e38])
    case.momentum[:3] = torch.tensor([float("inf"), float("nan"), -1.0])
    before = case.param.clone()
    case.run(backend[0], norms=case.norms)
    assert torch.equal(before.view(torch.int32), case.param.view(torch.int32))
    assert case.norms[0, 1] == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_comes_through(backend):
    case = Case([40], [0], [DESCENT], torch.float32, device=backend[1])
    case.grads[0][[0, 39]] = float("nan")
    case.run(backend[0], bf16=case.bf16)
    for tensor in (case.param, case.momentum, case.bf16):
        assert torch.isnan(tensor[:40]).nonzero().flatten().tolist() == [0, 39]


@pytest.mark.parametrize("backend", BACKENDS)
def test_shards_together_do_what_the_whole_does(backend):
    sizes, groups = [1, 17, 1000, 130], [0, 1, 0, 1]
    whole = Case(sizes, groups, [DESCENT, ASCENT], device=backend[1])
    parts = Case(sizes, groups, [DESCENT, ASCENT], device=backend[1])
    flat = torch.full_like(parts.param, float("nan"))  # what lies between the segments must not be read
    for (begin, length, *_), grad in zip(parts.segments.tolist(), parts.grads, strict=True):
        flat[begin : begin + length] = grad
    whole.run_with_everything(backend[0])
    cuts = [0, 128, 131, 700, parts.n]  # aligned, not aligned, within a parameter
    for begin, end in zip(cuts[:-1], cuts[1:], strict=True):
        slices = {name: tensor[begin:end] for name, tensor in parts.buffers().items() if name != "norms"}
        shard = Buffers(
            segments=shard_table(parts.segments, begin, end),
            hyper=parts.hyper,
            ema_decay=parts.decay,
            norms=parts.norms,
            **slices,
        )
        annealed_sgd_(shard, [flat[begin:end]], backend=backend[0], **parts.scaling())
    for name, tensor in parts.buffers().items():
        torch.testing.assert_close(tensor, whole.buffers()[name], rtol=1e-13, atol=1e-13)


@st.composite
def cases(draw):
    groups = draw(st.integers(1, 3))
    number = st.floats(0, 1)
    hyper = [
        (draw(number), draw(number), draw(number), draw(st.sampled_from([1, -1])), draw(st.sampled_from([0, 0.01, 1])))
        for _ in range(groups)
    ]
    sizes = draw(st.lists(st.integers(0, 300), min_size=1, max_size=6))
    group_of = [draw(st.integers(0, groups - 1)) for _ in sizes]
    missing = draw(st.sets(st.integers(0, len(sizes) - 1)))
    dtype, grad_dtypes = draw(st.sampled_from(TYPES))
    return Case(sizes, group_of, hyper, dtype, grad_dtypes, missing=missing, seed=draw(st.integers(0, 1000)))


@pytest.mark.parametrize("backend", BACKENDS[:3])
@settings(max_examples=8 if INTERPRETING else 100, deadline=None)
@given(case=cases())
def test_any_layout_and_numbers(backend, case):
    want = case.expect(scaled=True)
    case.run_with_everything(backend[0])
    for name in ("param", "momentum", "ema"):
        close(case.buffers()[name], want[name], case.dtype)


class Syncs(TorchDispatchMode):
    """Refuses to take a value from the device to the host."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function is not torch.ops.aten._local_scalar_dense.default
        return function(*args, **(kwargs or {}))


def test_the_reference_does_not_wait_for_the_device():
    case = Case([5, 70], [0, 1], [DESCENT, FROZEN])
    with Syncs():
        reference.annealed_sgd_(case.given(**case.optional()), case.grads, case.scale, case.clean)


@pytest.mark.skipif(not native.available(), reason="installed without native kernels")
def test_native_result_does_not_depend_on_threads():
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            case = Case([100001, 20011], [0, 1], [DESCENT, ASCENT], torch.float32)
            case.run_with_everything("native")
            results.append(case)
    finally:
        torch.set_num_threads(before)
    for other in results[1:]:
        assert all(torch.equal(tensor, other.buffers()[name]) for name, tensor in results[0].buffers().items())


@pytest.mark.skipif(not native.available(), reason="installed without native kernels")
@pytest.mark.parametrize("name", ["ema", "bf16", "norms"])
def test_native_weights_do_not_depend_on_what_else_is_asked_for(name):
    plain, more = (Case([100001], [0], [DESCENT], torch.float32) for _ in range(2))
    plain.run("native")
    wanted = (name, "ema_decay") if name == "ema" else (name,)
    more.run("native", **{key: value for key, value in more.optional().items() if key in wanted})
    assert torch.equal(plain.param, more.param) and torch.equal(plain.momentum, more.momentum)


@pytest.mark.parametrize("level", native.levels() if native.available() else ())
def test_every_module_that_this_cpu_runs(level, monkeypatch):
    module = importlib.import_module(f"seal_fast.kernels.{level}")
    monkeypatch.setattr(native, "module", lambda: module)
    case = Case([70, 40000], [0, 1], [DESCENT, ASCENT], torch.float32)
    want = case.expect(scaled=True)
    case.run_with_everything("native")
    for name in ("param", "momentum", "ema"):
        close(case.buffers()[name], want[name], torch.float32)


@pytest.mark.parametrize("backend", BACKENDS[:2])
def test_opcheck(backend):
    case = Case([5, 70], [0, 1], [DESCENT, ASCENT], missing=[0])
    arguments = (case.param, case.momentum, case.grads, case.segments, case.hyper)
    op = torch.ops.seal_fast.annealed_sgd_.default
    torch.library.opcheck(op, arguments, case.optional() | case.scaling() | {"backend": backend[0]})
    torch.library.opcheck(op, arguments, {"backend": backend[0]})


def test_traced_into_a_graph_it_still_writes_in_place():
    eager, graph = (Case([5, 70], [0, 1], [DESCENT, ASCENT]) for _ in range(2))
    compiled = torch.compile(annealed_sgd_, backend="aot_eager", fullgraph=True)
    for case, run in ((eager, annealed_sgd_), (graph, compiled)):
        run(case.given(**case.optional()), case.grads, **case.scaling())
    assert all(torch.equal(tensor, graph.buffers()[name]) for name, tensor in eager.buffers().items())


@pytest.mark.parametrize(
    "message, change",
    [
        ("param must be float32", dict(param=lambda c: c.param.half())),
        ("param must be a contiguous", dict(param=lambda c: c.param[None])),
        ("momentum must be", dict(momentum=lambda c: c.momentum[:-1])),
        ("hyper must be", dict(hyper=lambda c: c.hyper.float())),
        ("norms must be", dict(norms=lambda c: torch.zeros(1, 1))),
        ("bf16 must be", dict(bf16=lambda c: c.param.half())),
        ("ema and ema_decay together", dict(ema=lambda c: c.ema)),
        ("grad_scale must be one", dict(grad_scale=lambda c: torch.ones(2))),
        ("gradients must be torch.float32 or bfloat16", dict(grads=lambda c: [c.grads[0].double(), None])),
        ("gradients must be torch.float32 or bfloat16", dict(grads=lambda c: [c.grads[0], c.grads[1].half()])),
        ("gradient 1 must be dense, with at least 6", dict(grads=lambda c: [None, torch.ones(5)])),
        ("gradient 1 must be dense", dict(grads=lambda c: [None, torch.ones(1).expand(6)])),
        ("gradient 1 must be dense", dict(grads=lambda c: [None, torch.ones(12)[::2]])),
        ("1 gradients given", dict(grads=lambda c: c.grads[:1])),
        ("segments must be an int64", dict(segments=lambda c: c.segments.int())),
        ("point outside", dict(segments=lambda c: c.segments + 100)),
        ("segments overlap", dict(segments=lambda c: c.segments[[0, 0]])),
    ],
)
def test_refuses_what_does_not_fit(message, change):
    case = Case([5, 6], [0, 0], [DESCENT], torch.float32)
    values = {name: value(case) for name, value in change.items()}
    tensors = dict(param=case.param, momentum=case.momentum, segments=case.segments, hyper=case.hyper)
    grads = values.pop("grads", case.grads)
    tensors |= {name: values.pop(name) for name in change if name in Buffers.__dataclass_fields__}
    with pytest.raises(ValueError, match=message):
        annealed_sgd_(Buffers(**tensors), grads, **values)
