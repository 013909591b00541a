"""The cost model against what can be known without it: counted bytes, limits, and orders."""

from dataclasses import replace

import pytest
from processes import together

from bench.gpu_report import scaling
from bench.gpu_report.datasheet import CARDS
from bench.gpu_report.scaling import Work, exchange_seconds, least_batch, network_seconds, speed_up, wire_bytes

A100 = CARDS[80]
WORK = Work("a network", 10_000_000, 0.9, 0.5, 8e6, 1e9, 200)


@pytest.mark.parametrize("size", [4])
def test_wire_bytes_are_those_that_are_counted(size):
    from test_sharded import traffic

    for parameters, _, _, sent, _, _ in together(size, traffic, machines=2):
        assert sent == pytest.approx(wire_bytes(parameters / 4, size), rel=1e-3)  # padding is sent too


def test_a_step_is_bound_by_memory_arithmetic_or_launches():
    assert WORK.seconds(1000, A100) == pytest.approx((1000 * 8e6 + 26 * 1e7) / 2.04e12)
    assert replace(WORK, bytes_an_image=1.0).seconds(1000, A100) == pytest.approx(1000 * 1e9 / 312e12)
    assert WORK.seconds(2, A100) == pytest.approx(200e-6)  # a node of the graph a microsecond
    assert WORK.seconds(2, A100, processes=2) == pytest.approx(200 * 7e-6)


def test_exchanges_cross_the_slowest_link():
    within, between = exchange_seconds(1e7, 8, 0), exchange_seconds(1e7, 16, 8)
    assert within == pytest.approx(4e7 * 7 / 8 / 240e9 + 7 * 3e-6)
    assert between == pytest.approx(4e7 * 15 / 16 / 160e9 + 15 * 10e-6)
    assert exchange_seconds(1e7, 16, 1) > between > within


def test_overlap_hides_the_late_gradients_only():
    plain, hidden = (network_seconds(WORK, 4096, 8, 0, A100, overlap) for overlap in (False, True))
    assert hidden == pytest.approx(exchange_seconds(1e6, 8, 0) + exchange_seconds(1e7, 8, 0)) and hidden < plain
    assert network_seconds(replace(WORK, launches=0), 0, 8, 0, A100, True) > hidden


def test_the_batch_found_is_the_least():
    batch = least_batch(WORK, 8, 0, A100, False, 0.05)
    assert batch is not None

    def share(b):
        network = network_seconds(WORK, b, 8, 0, A100, False)
        return network / (network + WORK.seconds(b, A100, 8))

    assert share(batch) <= 0.05 < share(batch // 2)
    assert least_batch(WORK, 64, 1, A100, False, 1e-6) is None


def test_speed_up():
    assert speed_up(WORK, 32, 1, 0, A100) == 1
    assert speed_up(WORK, 32, 32, 8, A100) is None  # BatchNorm needs two images
    gain = speed_up(WORK, 65536, 8, 0, A100)
    assert gain is not None and 7 < gain < 8


def test_shares_of_a_network():
    late, early_backward = scaling._shares("resnet18", 64)
    assert late == pytest.approx(10_495_688 / 11_279_112, abs=0.02) and 0.5 < early_backward < 0.6
    assert "speed-up at batch 32" in scaling.text([WORK], A100, 0.05)
