import pytest
import torch
from dense import with_spectrum

from seal_fast.curvature import NotConverged, lanczos, power

INDEFINITE = [40.0, 30, 20, -60, -25] + torch.linspace(-1, 1, 60).tolist()


def test_finds_both_ends_of_an_indefinite_spectrum():
    """The dominant eigenvalue is negative: the iteration must be shifted to see the top."""
    found = power(with_spectrum(INDEFINITE), top=3, bottom=2, tol=1e-10, vectors=True)
    assert found.top.values == pytest.approx([40, 30, 20], rel=1e-9)
    assert found.bottom.values == pytest.approx([-60, -25], rel=1e-9)
    operator = with_spectrum(INDEFINITE)
    for pairs in (found.top, found.bottom):
        for value, vector in zip(pairs.values, pairs.vectors, strict=True):
            assert float((vector @ operator.matrix - value * vector).norm()) < 1e-3


def test_one_vector_is_the_classic():
    """Each step multiplies and normalises; the estimate is the Rayleigh quotient."""
    operator, seen = with_spectrum([5.0, 4, 3, 2, 1]), []
    start = torch.tensor([1.0, 2, 3, 4, 5], dtype=torch.float64)
    power(operator, 1, start=start, tol=1e-6, watch=lambda hvps, values, errors: seen.append(values[0]))
    x = start / start.norm()
    for value in seen:
        y = operator.matrix @ x
        assert value == pytest.approx(float(x @ y), rel=1e-12)
        x = y / y.norm()
    assert seen[-1] == pytest.approx(5, rel=1e-5)


def test_repeated_eigenvalues_come_out_repeated():
    values = [5.0, 5, 5, 3, -2, -2] + [0.0] * 30
    found = power(with_spectrum(values), top=4, bottom=2, tol=1e-8, max_hvps=3000)
    assert found.top.values == pytest.approx([5, 5, 5, 3], rel=1e-7)
    assert found.bottom.values == pytest.approx([-2, -2], rel=1e-7)


def test_lanczos_needs_fewer_products():
    iterated, krylov = with_spectrum(INDEFINITE), with_spectrum(INDEFINITE)
    first, second = power(iterated, top=2, tol=1e-6), lanczos(krylov, top=2, tol=1e-6)
    assert first.hvps == iterated.hvps and second.hvps == krylov.hvps
    assert second.hvps < first.hvps


def test_what_cannot_be_is_said():
    operator = with_spectrum(torch.linspace(0, 1, 300))
    with pytest.raises(NotConverged, match="after 40 Hessian-vector products") as caught:
        power(operator, top=2, tol=1e-9, max_hvps=40)
    assert len(caught.value.spectrum.top.values) == 2
    with pytest.raises(ValueError, match="the operator has 300"):
        power(operator, top=301)
    stopped = power(operator, top=1, bottom=1, tol=1e-12, watch=lambda hvps, values, errors: hvps >= 5)
    assert stopped.hvps == 5 and not stopped.converged and stopped.bottom.values == []
