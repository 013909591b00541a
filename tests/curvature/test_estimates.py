import math

import pytest
import torch
from dense import dense_hessian, images, resnet, smoothed, with_spectrum

from seal_fast.curvature import HessianOperator, density, trace

VALUES = [50.0, 20, -8] + torch.linspace(-1, 2, 77).tolist()


def test_trace_is_within_its_standard_error():
    truth = sum(VALUES)
    errors = [(found := trace(with_spectrum(VALUES), 24, seed=seed)).value - truth for seed in range(40)]
    spread = math.sqrt(sum(e * e for e in errors) / 40)
    assert found.hvps == 24
    assert spread == pytest.approx(trace(with_spectrum(VALUES), 2000).stderr * math.sqrt(2000 / 24), rel=0.25)
    assert abs(sum(errors)) / 40 < 3 * spread / math.sqrt(40)
    with pytest.raises(ValueError, match="two at least"):
        trace(with_spectrum(VALUES), 1)


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
    found = trace(operator, 100, block=20)
    assert abs(found.value - float(truth.trace())) < 4 * found.stderr
    quadrature = density(operator, 20, 20)
    assert quadrature.moment(2) * operator.shape[0] == pytest.approx(float((truth @ truth).trace()), rel=0.4)


def test_stopped_early_they_give_what_they_have():
    assert trace(with_spectrum(VALUES), 50, stop=lambda hvps: hvps >= 5).hvps == 5
    found = density(with_spectrum(VALUES), 5, 10, stop=lambda hvps: hvps >= 15)
    assert found.nodes.shape == (1, 10) and found.hvps == 15
