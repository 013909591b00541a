import pytest
import torch
from dense import Matrix, with_spectrum
from hypothesis import given, settings
from hypothesis import strategies as st

from seal_fast.curvature import NotConverged, lanczos


def test_a_known_spectrum_of_a_quadratic():
    values = [100.0, 50, 20, 10, 5] + [0.01 * i for i in range(-20, 40)] + [-3, -7]
    found = lanczos(with_spectrum(values), top=5, bottom=2, tol=1e-12, vectors=True)
    assert found.top.values == pytest.approx([100, 50, 20, 10, 5], rel=1e-10)
    assert found.bottom.values == pytest.approx([-7, -3], rel=1e-10)
    operator = with_spectrum(values)
    for pairs in (found.top, found.bottom):
        for value, vector in zip(pairs.values, pairs.vectors, strict=True):
            assert float((vector @ operator.matrix - value * vector).norm()) < 1e-5
            assert float(vector.norm()) == pytest.approx(1, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(
    values=st.lists(st.integers(-20, 20).map(float), min_size=2, max_size=24),
    top=st.integers(0, 4),
    bottom=st.integers(0, 4),
    seed=st.integers(0, 99),
)
def test_any_small_spectrum_to_the_end(values, top, bottom, seed):
    """Indefinite, degenerate, rank-deficient: the whole space gives every eigenvalue."""
    if not 1 <= top + bottom <= len(values):
        return
    found = lanczos(with_spectrum(values, seed), top, bottom, tol=1e-30, seed=seed)
    ordered, scale = sorted(values), max(map(abs, values)) + 1e-300
    assert found.top.values == pytest.approx(ordered[::-1][:top], abs=1e-6 * scale)
    assert found.bottom.values == pytest.approx(ordered[:bottom], abs=1e-6 * scale)
    assert found.converged and found.hvps <= len(values)


@pytest.mark.parametrize("tol", [1e-3, 1e-8])
def test_repeated_eigenvalues_come_out_repeated_where_the_space_closes(tol):
    values = [5.0, 5, 5, 4, 4, 3, 2, -1, -1] + [0.0] * 31
    found = lanczos(with_spectrum(values), top=5, bottom=2, tol=tol)
    assert found.top.values == pytest.approx([5, 5, 5, 4, 4], rel=1e-9)
    assert found.bottom.values == pytest.approx([-1, -1], rel=1e-9)
    assert found.hvps < 40


def test_a_repeated_eigenvalue_is_not_taken_for_an_old_one():
    """The newest of several closed spaces repeats an eigenvalue of an older one, and is still the newest."""
    values = [-8.0, -8, -8, -8, -8, 15, 15]
    for seed in range(100):
        found = lanczos(with_spectrum(values, seed), 0, 3, tol=1e-12, seed=seed)
        assert found.bottom.values == pytest.approx([-8, -8, -8], rel=1e-9), seed


def test_zero_and_low_rank():
    assert lanczos(Matrix(torch.zeros(6, 6, dtype=torch.float64)), 2, 1).top.values == [0, 0]
    found = lanczos(with_spectrum([3.0, 2] + [0.0] * 28), top=4, bottom=1)
    assert found.top.values == pytest.approx([3, 2, 0, 0], abs=1e-12)
    assert found.bottom.values == pytest.approx([0], abs=1e-12)


def test_no_more_products_than_the_tolerance_needs():
    values = torch.cat([1.5 ** -torch.arange(12, dtype=torch.float64) * 60, torch.linspace(-0.2, 0.2, 388)])
    truth = values.sort(descending=True).values.tolist()
    loose, tight = (lanczos(with_spectrum(values), top=5, tol=tol) for tol in (1e-3, 1e-8))
    assert loose.top.values == pytest.approx(truth[:5], rel=1e-3)
    assert tight.top.values == pytest.approx(truth[:5], rel=1e-8)
    assert loose.hvps <= 14 and loose.hvps + 2 <= tight.hvps


def test_a_near_neighbour_does_not_pass_for_the_end_of_the_spectrum():
    """An eigenvalue that has not shown yet must not be missed because a residual over a wide gap looks small."""
    values = [30.0, -1, -0.97, -0.5] + torch.linspace(-0.1, 0.1, 300).tolist()
    for seed in range(12):
        found = lanczos(with_spectrum(values, seed), 0, 1, seed=seed)
        assert found.bottom.values == pytest.approx([-1], rel=1e-3), seed
        assert found.hvps <= 10


def test_errors_and_residuals_are_true():
    operator = with_spectrum(torch.linspace(-1, 1, 60).double().pow(3) * 10)
    found = lanczos(operator, top=3, tol=1e-4, vectors=True)
    truth = torch.linalg.eigvalsh(operator.matrix).flip(0)[:3].tolist()
    pairs = zip(found.top.values, found.top.residuals, found.top.errors, found.top.vectors, truth, strict=True)
    for value, residual, error, vector, eigenvalue in pairs:
        assert float((vector @ operator.matrix - value * vector).norm()) == pytest.approx(residual, rel=1e-6, abs=1e-12)
        assert abs(value - eigenvalue) <= error + 1e-12


def test_restarts_when_the_basis_is_full():
    values = torch.linspace(0, 1, 300).double()
    plain = lanczos(with_spectrum(values), top=3, bottom=1, tol=1e-8, basis=300)
    small = lanczos(with_spectrum(values), top=3, bottom=1, tol=1e-8, basis=24, max_hvps=2000)
    assert plain.hvps > 24
    assert small.top.values == pytest.approx(values.flip(0)[:3].tolist(), rel=1e-7)
    assert small.top.values == pytest.approx(plain.top.values, rel=1e-7)
    assert small.bottom.values == pytest.approx([0], abs=1e-7)


def test_float32_storage_does_not_bias_the_ritz_values():
    """Dot products of 400,000 entries in float32 would."""
    n = 400_000
    diagonal = torch.linspace(0, 1, n).double()
    diagonal[:3] = torch.tensor([50.0, 30, 20])

    class Diagonal:
        dtype, device, shape = torch.float32, torch.device("cpu"), (n, n)

        def multiply(self, rows):
            return rows * diagonal

    found = lanczos(Diagonal(), top=3, tol=1e-7)
    assert found.top.values == pytest.approx([50, 30, 20], rel=2e-7)


def test_a_start_vector_in_the_wanted_space_helps():
    operator = with_spectrum([40.0, 30] + torch.linspace(-1, 1, 400).tolist())
    _, q = torch.linalg.eigh(operator.matrix)
    from_random = lanczos(with_spectrum([40.0, 30] + torch.linspace(-1, 1, 400).tolist()), top=2)
    assert lanczos(operator, top=2, start=q[:, -1] + q[:, -2]).hvps < from_random.hvps
    assert lanczos(operator, top=1, start=torch.zeros(402)).top.values == pytest.approx([40], rel=1e-3)


def test_what_cannot_be_is_said():
    operator = with_spectrum(torch.linspace(0, 1, 200))
    with pytest.raises(NotConverged, match="not converged after 9 Hessian-vector products.*--max-hvps") as caught:
        lanczos(operator, top=2, tol=1e-9, max_hvps=9)
    spectrum = caught.value.spectrum
    assert spectrum.hvps == 9 and not spectrum.converged and 0.9 < spectrum.top.values[0] <= 1
    with pytest.raises(ValueError, match="the operator has 200"):
        lanczos(operator, top=200, bottom=1)
    with pytest.raises(ValueError, match="too small for 6"):
        lanczos(operator, top=6, basis=10)


def test_the_watcher_sees_every_product_and_may_stop():
    seen = []

    def watch(hvps, values, errors):
        seen.append((hvps, len(values), len(errors)))
        return hvps == 7

    found = lanczos(with_spectrum(torch.linspace(0, 1, 200)), top=2, tol=1e-9, watch=watch)
    assert found.hvps == 7 and not found.converged and len(found.top.values) == 2
    assert seen[-1] == (7, 2, 2) and len(seen) == 7
