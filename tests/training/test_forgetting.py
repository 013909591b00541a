import math

import pytest
import torch

from seal_fast.training.forgetting import reinitialise

FAN_IN = 32 * 9


def fresh():
    torch.manual_seed(0)
    return {
        "conv.weight": torch.randn(256, 32, 3, 3).contiguous(memory_format=torch.channels_last),
        "bn.weight": torch.randn(256),
        "fc.weight": torch.randn(100, 256),
        "fc.bias": torch.randn(100),
    }


def test_weights_are_drawn_and_the_rest_is_kept():
    before, after = fresh(), fresh()
    drawn = reinitialise(after, list(after), "kaiming-uniform", seed=1, generation=1)
    assert drawn == ["conv.weight", "fc.weight"]
    assert torch.equal(before["bn.weight"], after["bn.weight"]) and torch.equal(before["fc.bias"], after["fc.bias"])
    assert not torch.equal(before["conv.weight"], after["conv.weight"])
    assert after["conv.weight"].is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("distribution", "std"),
    [("kaiming-uniform", 1 / math.sqrt(3 * FAN_IN)), ("he-normal", math.sqrt(2 / FAN_IN))],
)
def test_distribution_has_its_closed_form_moments(distribution, std):
    parameters = fresh()
    reinitialise(parameters, ["conv.weight"], distribution, seed=1, generation=1)
    weight = parameters["conv.weight"].double()
    n = weight.numel()
    assert weight.mean().abs() < 5 * std / math.sqrt(n)
    assert weight.std().item() == pytest.approx(std, rel=5 / math.sqrt(n))
    kurtosis = (weight**4).mean().item() / std**4
    assert kurtosis == pytest.approx({"kaiming-uniform": 1.8, "he-normal": 3.0}[distribution], rel=0.05)


def test_released_code_is_sqrt_6_times_smaller():
    parameters = {"a.weight": torch.empty(512, 512), "b.weight": torch.empty(512, 512)}
    reinitialise(parameters, ["a.weight"], "kaiming-uniform", 0, 1)
    reinitialise(parameters, ["b.weight"], "he-normal", 0, 1)
    assert (parameters["b.weight"].std() / parameters["a.weight"].std()).item() == pytest.approx(math.sqrt(6), rel=0.01)


def test_a_draw_depends_on_seed_generation_and_name_only():
    def draw(names, seed=0, generation=1):
        parameters = {name: torch.zeros(8, 8) for name in names}
        reinitialise(parameters, names, "he-normal", seed, generation)
        return parameters["x.weight"]

    assert torch.equal(draw(["x.weight"]), draw(["y.weight", "x.weight"]))
    assert not torch.equal(draw(["x.weight"]), draw(["x.weight"], seed=1))
    assert not torch.equal(draw(["x.weight"]), draw(["x.weight"], generation=2))


@pytest.mark.parametrize("distribution", ["kaiming-uniform", "he-normal"])
def test_every_dtype_gets_the_same_draw(distribution):
    drawn = {dtype: {"x.weight": torch.zeros(16, 8, dtype=dtype)} for dtype in (torch.float32, torch.float64)}
    for parameters in drawn.values():
        reinitialise(parameters, ["x.weight"], distribution, 3, 1)
    single, double = (parameters["x.weight"] for parameters in drawn.values())
    assert double.dtype == torch.float64 and torch.equal(double, single.double())
