import math

import pytest
import torch
from dense import Matrix, dense_hessian, images, resnet, smoothed, with_spectrum

from seal_fast.curvature import HessianOperator, density, lanczos, trace

VALUES = [50.0, 20, -8] + torch.linspace(-1, 2, 77).tolist()


@pytest.fixture(scope="module")
def network_hessian():
    """A network, some of its parameters, and the dense Hessian of its loss in them."""
    model, names = resnet(), ["layer2.0.conv1.weight", "bn1.weight", "fc.weight"]
    return model, names, dense_hessian(model, smoothed, [images()], names)


@pytest.mark.parametrize(("count", "tol", "gain"), [(0, 0, 3), (2, 0.3, 3), (8, 1e-3, 6)])
def test_the_trace_is_unbiased_covers_the_truth_and_beats_hutchinson(network_hessian, count, tol, gain):
    """Over seeds, at equal products; whether the known eigenvectors have converged or not."""
    operator, probes, seeds = Matrix(network_hessian[2]), 24, 150
    truth = float(operator.matrix.trace())
    known = lanczos(operator, count, tol=tol, vectors=True).top if count else None
    before = operator.hvps
    found = [trace(operator, probes, known=known, seed=seed, block=8) for seed in range(seeds)]
    assert operator.hvps - before == probes * seeds
    sketch = 8 - count
    assert {(result.known, result.probes) for result in found} == {(8, probes - 2 * sketch)}
    errors = torch.tensor([result.value - truth for result in found], dtype=torch.float64)
    assert abs(errors.mean()) < 3 * errors.std() / math.sqrt(seeds)
    covered = sum(abs(result.value - truth) <= result.half for result in found) / seeds
    assert 0.9 <= covered <= 0.99
    v = torch.randint(0, 2, (seeds, probes, len(operator.matrix)), generator=torch.Generator().manual_seed(0)) * 2.0 - 1
    hutchinson = ((v.double() @ operator.matrix) * v).sum(2).mean(1) - truth
    assert errors.square().mean() < hutchinson.square().mean() / gain


def test_what_the_trace_cannot_use_is_said():
    operator = with_spectrum(VALUES)
    known = lanczos(operator, 2, vectors=True).top
    known.vectors = known.vectors * 2
    with pytest.raises(ValueError, match="must be orthonormal"):
        trace(operator, 4, known=known)
    with pytest.raises(ValueError, match="at least two"):
        trace(operator, 1)


def test_few_probes_have_student_s_interval():
    """The normal distribution's 1.96 would cover 81 % with three probes."""
    operator, covered, short = with_spectrum(torch.linspace(-1, 2, 80)), 0, 0
    for seed in range(400):
        result = trace(operator, 5, seed=seed)
        assert result.probes == 3 and result.known == 1
        covered += abs(result.value - 40) <= result.half
        short += abs(result.value - 40) <= 1.96 * result.stderr
    assert 0.92 <= covered / 400 <= 0.975
    assert short / 400 < 0.88


def test_the_trace_of_a_low_rank_is_exact():
    """The sketch ends where it spans the range; the products that it saves go to the complement."""
    operator = with_spectrum([5.0, -3, 2] + [0.0] * 40)
    result = trace(operator, 30)
    assert result.value == pytest.approx(4, abs=1e-10) and result.known == 3 and result.half < 1e-10
    assert operator.hvps == 30


def test_trace_of_a_diagonal_is_exact_and_blocks_change_nothing():
    class Diagonal:
        dtype, device, shape = torch.float64, torch.device("cpu"), (9, 9)

        def multiply(self, rows):
            return rows * torch.arange(9)

    one, several = (trace(Diagonal(), 2, block=block) for block in (1, 3))
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
    found = density(with_spectrum(VALUES), 120, 20)
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


def test_a_network_s_trace_and_moments(network_hessian):
    model, names, truth = network_hessian
    operator = HessianOperator(model, smoothed, [images()], names)
    one, several = (trace(operator, 24, block=block, seed=1) for block in (1, 5))
    for found in (one, several):
        assert abs(found.value - float(truth.trace())) < 2 * found.half
    assert one.value == pytest.approx(trace(Matrix(truth), 24, seed=1).value, rel=1e-9)
    quadrature = density(operator, 20, 20)
    assert quadrature.moment(2) * operator.shape[0] == pytest.approx(float((truth @ truth).trace()), rel=0.4)


def test_stopped_early_they_give_what_they_have():
    in_sketch = trace(with_spectrum(VALUES), 50, stop=lambda hvps: hvps >= 5)
    assert (in_sketch.known, in_sketch.probes) == (3, 2)
    in_probes = trace(with_spectrum(VALUES), 50, stop=lambda hvps: hvps >= 40)
    assert (in_probes.known, in_probes.probes) == (16, 8)
    found = density(with_spectrum(VALUES), 5, 10, stop=lambda hvps: hvps >= 15)
    assert found.nodes.shape == (1, 10) and found.hvps == 15
