"""The measurement that a GPU machine adds, run on the CPU with a clock that is not one."""

import pytest
import torch

from bench.gpu_report import measure


def test_every_way_to_update_is_called_and_set_against_the_copy():
    taken = iter([2e-6, 4e-6, 8e-6, 16e-6])

    def seconds(step):
        step()
        return next(taken)

    rows = measure.updates(torch.device("cpu"), seconds, networks=["resnet18"])
    assert [(r["way"], r["us"], r["of_copy"]) for r in rows] == [
        ("copy of as many bytes", pytest.approx(2), 1),
        ("AnnealedSGD", pytest.approx(4), pytest.approx(1 / 2)),
        ("torch.optim.SGD(fused=True)", pytest.approx(8), pytest.approx(1 / 4)),
        ("torch.optim.SGD(foreach=True)", pytest.approx(16), pytest.approx(1 / 8)),
    ]
    assert "nothing was measured" in measure.text([])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu():
    rows = measure.updates(torch.device("cuda"), measure.gpu_seconds, networks=["resnet18"])
    assert all(0 < r["of_copy"] < 2 for r in rows)
    assert "of a copy's bandwidth" in measure.text(rows)
