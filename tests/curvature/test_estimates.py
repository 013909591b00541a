import math

import pytest
import torch
from dense import dense_hessian, images, resnet, smoothed, with_spectrum

from seal_fast.curvature import HessianOperator, density, lanczos, trace

VALUES = [50.0, 20, -8] + torch.linspace(-1, 2, 77).tolist()


def test_the_trace_s_interval_covers_the_truth():
    """95 % by Student's t; the normal distribution's 1.96 would cover 88 % with five probes."""
    operator, truth, covered, short = with_spectrum(torch.linspace(-1, 2, 80)), 40, 0, 0
    for seed in range(600):
        result = trace(operator, 5, seed=seed)
        assert result.probes == 5 and result.known == 0
        covered += abs(result.value - truth) <= result.half
        short += abs(result.value - truth) <= 1.96 * result.stderr
    assert 0.92 <= covered / 600 <= 0.975
    assert short / 600 < 0.91
    with pytest.raises(ValueError, match="at least two"):
        trace(operator, 1)


def test_known_eigenvectors_reduce_the_variance_of_the_trace():
    """The sum over them is exact, converged or not, and the probes see only the rest of the spectrum."""
    operator, truth, count = with_spectrum(VALUES), sum(VALUES), 40

    def errors(known):
        return torch.tensor([trace(operator, 24, known=known, seed=seed).value - truth for seed in range(count)])

    plain = errors(None).square().mean().sqrt()
    for tol, factor in ((1e-8, 3), (0.3, 1.5)):
        known = lanczos(operator, 2, tol=tol, vectors=True).top
        found = errors(known)
        spread = found.square().mean().sqrt()
        assert spread < plain / factor
        assert abs(found.mean()) < 3 * spread / math.sqrt(count)
        assert trace(operator, 24, known=known).known == 2
    known.vectors = known.vectors * 2
    with pytest.raises(ValueError, match="must be orthonormal"):
        trace(operator, 4, known=known)


def test_trace_of_a_diagonal_is_exact_and_blocks_change_nothing():
    class Diagonal:
        dtype, device, shape = torch.float64, torch.device("cpu"), (9, 9)

        def multiply(self, rows):
            return rows * torch.arange(9)

    one, several = (trace(Diagonal(), 7, block=block) for block in (1, 3))
    assert one.value == several.value == 36 and one.stderr == 0


def test_density_moments_of_one_probe_are_quadratic_forms():
    """The quadrature is exact for polynomials: moment k of a probe is v . H^k v."""
    operator = with_spectrum(VALUES)
    found = density(operator, 1, 8, seed=4)
    draw = torch.Generator().manual_seed(4)
    v = torch.randint(0, 2, (1, 80), generator=draw).double()[0] * 2 - 1
    assert found.weights.sum() == pytest.approx(1, abs=1e-12)
    power = v
    for order in range(1, 15):
        power = operator.matrix @ power
        assert found.moment(order) == pytest.approx(float(v @ power) / 80, rel=1e-8)


def test_density_of_many_probes_has_the_moments_of_the_spectrum():
    found = density(with_spectrum(VALUES), 300, 20)
    for order in (1, 2, 3):
        truth = sum(value**order for value in VALUES) / 80
        assert found.moment(order) == pytest.approx(truth, rel=0.2)
    grid = torch.linspace(-60, 80, 7001, dtype=torch.float64)
    curve = found.curve(grid, 0.5)
    assert float(curve.sum() * (grid[1] - grid[0])) == pytest.approx(1, abs=1e-6)
    below = float(curve[grid < -5].sum() * (grid[1] - grid[0]))
    assert below == pytest.approx(1 / 80, rel=0.3)  # the one eigenvalue at -8


def test_a_whole_krylov_space_gives_the_spectrum_itself():
    found = density(with_spectrum(torch.arange(12)), 1, 500)
    assert found.hvps == 12
    torch.testing.assert_close(found.nodes[0], torch.arange(12).double(), rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="at least one"):
        density(with_spectrum(VALUES), 0)


def test_a_network_s_trace_and_moments():
    model, names = resnet(), ["layer2.0.conv1.weight", "bn1.weight", "fc.weight"]
    truth = dense_hessian(model, smoothed, [images()], names)
    operator = HessianOperator(model, smoothed, [images()], names)
    plain = trace(operator, 100, block=20)
    known = lanczos(operator, 3, vectors=True).top
    deflated = trace(operator, 100, known=known, block=20)
    for found in (plain, deflated):
        assert abs(found.value - float(truth.trace())) < 2 * found.half
    assert deflated.half < plain.half / 2
    quadrature = density(operator, 20, 20)
    assert quadrature.moment(2) * operator.shape[0] == pytest.approx(float((truth @ truth).trace()), rel=0.4)


def test_stopped_early_they_give_what_they_have():
    assert trace(with_spectrum(VALUES), 50, stop=lambda hvps: hvps >= 5).probes == 5
    found = density(with_spectrum(VALUES), 5, 10, stop=lambda hvps: hvps >= 15)
    assert found.nodes.shape == (1, 10) and found.hvps == 15
