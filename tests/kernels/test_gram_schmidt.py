"""gram_schmidt: native and reference against sums that round once (math.fsum), at odd sizes and with hostile values."""

import math

import pytest
import torch

from seal_fast.kernels import native
from seal_fast.kernels.gram_schmidt import dots, subtract_

BACKENDS = ["reference", pytest.param("native", marks=pytest.mark.skipif(not native.available(), reason="no compiler"))]
DTYPES = [torch.float32, torch.float64]


def problem(count, n, dtype):
    draw = torch.Generator().manual_seed(count * n)
    rows = torch.randn(count, n, generator=draw).to(dtype)
    return rows, torch.randn(n, generator=draw, dtype=torch.float64)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 17, 1000, 4097, 30011])
@pytest.mark.parametrize("count", [1, 3, 4, 9])
def test_both_halves_are_float64(count, n, dtype, backend):
    rows, vector = problem(count, n, dtype)
    found = dots(rows, vector, backend)
    for row, dot in zip(rows.double(), found.tolist(), strict=True):
        terms = (row * vector).tolist()
        assert dot == pytest.approx(math.fsum(terms), abs=1e-15 * math.fsum(map(abs, terms)))
    left = vector.clone()
    subtract_(left, rows, found, backend)
    parts = torch.cat([vector[None], -found[:, None] * rows.double()])
    truth = torch.tensor([math.fsum(column) for column in parts.T.tolist()], dtype=torch.float64)
    assert bool(((left - truth).abs() <= 1e-15 * parts.abs().sum(0)).all())


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_rows_and_views_of_a_larger_array(backend):
    rows, vector = problem(8, 100, torch.float32)
    assert dots(rows[:0], vector, backend).shape == (0,)
    before = vector.clone()
    subtract_(vector, rows[:0], torch.zeros(0, dtype=torch.float64), backend)
    assert torch.equal(vector, before)
    inner = rows[2:5, 10:73]  # rows further apart than they are long
    torch.testing.assert_close(dots(inner, vector[10:73], backend), inner.double() @ vector[10:73])
    subtract_(vector[10:73], inner, torch.ones(3, dtype=torch.float64), backend)
    before[10:73] -= inner.double().sum(0)
    torch.testing.assert_close(vector, before)


@pytest.mark.skipif(not native.available(), reason="no compiler")
def test_threads_change_no_bit():
    rows, vector = problem(7, 50_000, torch.float32)
    before, found, left = torch.get_num_threads(), [], []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(dots(rows, vector, "native"))
        left.append(vector.clone())
        subtract_(left[-1], rows, found[-1], "native")
    torch.set_num_threads(before)
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])
    assert torch.equal(left[0], left[1]) and torch.equal(left[0], left[2])


@pytest.mark.parametrize("backend", BACKENDS)
def test_nan_and_infinity_come_through(backend):
    rows, vector = torch.ones(2, 20), torch.ones(20, dtype=torch.float64)
    rows[0, 3], rows[1, 19] = float("nan"), float("inf")
    found = dots(rows, vector, backend).tolist()
    assert math.isnan(found[0]) and found[1] == math.inf


def test_misuse_is_refused():
    rows, vector = problem(3, 10, torch.float32)
    with pytest.raises(ValueError, match="must be float64 and as long"):
        dots(rows, vector.float())
    with pytest.raises(ValueError, match="must be float64 and as long"):
        subtract_(vector[:9], rows, torch.zeros(3, dtype=torch.float64))
    with pytest.raises(ValueError, match="one for each row"):
        subtract_(vector, rows, torch.zeros(2, dtype=torch.float64))
    with pytest.raises(ValueError, match="backend must be one of"):
        dots(rows, vector, "best")
