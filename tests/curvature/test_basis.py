"""Dot products and combinations of float32 vectors against sums that round once (math.fsum)."""

import math

import pytest
import torch

from seal_fast.curvature.basis import Basis

CPU = torch.device("cpu")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("count", "n"), [(1, 1), (3, 17), (9, 4097), (9, 30_011)])
def test_sums_are_float64(count, n, dtype):
    draw = torch.Generator().manual_seed(count * n)
    rows = torch.randn(count, n, generator=draw).to(dtype)
    vector = torch.randn(n, generator=draw, dtype=torch.float64)
    basis, left = Basis(n, dtype, CPU), vector.clone()
    for row in rows:
        basis.append(row)
    dots = torch.zeros(count, dtype=torch.float64)
    basis._subtract(left, 0, dots)
    for row, dot in zip(rows.double(), dots.tolist(), strict=True):
        terms = (row * vector).tolist()
        assert dot == pytest.approx(math.fsum(terms), abs=1e-15 * math.fsum(map(abs, terms)))
    terms = torch.cat([vector[None], -dots[:, None] * rows.double()])
    truth = torch.tensor([math.fsum(column) for column in terms.T.tolist()], dtype=torch.float64)
    assert bool(((left - truth).abs() <= 1e-15 * terms.abs().sum(0)).all())
    combined = basis.combine(dots[:, None])[0]
    assert bool(((combined - (vector - truth)).abs() <= 1e-14 * terms.abs().sum(0)).all())


def test_what_is_left_is_orthogonal_even_where_little_is():
    n = 2000
    basis, draw = Basis(n, torch.float64, CPU), torch.Generator().manual_seed(0)
    for vector in torch.linalg.qr(torch.randn(n, 12, generator=draw, dtype=torch.float64)).Q.T:
        basis.append(vector)
    along = torch.randn(12, generator=draw, dtype=torch.float64)
    vector = along @ basis.rows + 1e-8 * torch.randn(n, generator=draw, dtype=torch.float64)
    coefficients = basis.orthogonalise(vector)
    torch.testing.assert_close(coefficients, along, rtol=0, atol=1e-6)
    assert float((basis.rows @ (vector / vector.norm())).abs().max()) < 1e-14


def test_it_grows_and_can_be_replaced():
    basis = Basis(5, torch.float32, CPU)
    for i in range(20):
        basis.append(torch.full((5,), float(i)))
    assert len(basis) == 20 and basis.rows[:, 0].tolist() == list(range(20))
    basis.replace(torch.eye(5)[:2])
    assert len(basis) == 2 and torch.equal(basis.rows, torch.eye(5)[:2])
    assert Basis(5, torch.float32, CPU).orthogonalise(torch.ones(5, dtype=torch.float64)).shape == (0,)
