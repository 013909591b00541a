import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seal_fast.methods.schedule import Phase, Rule, Timeline, learning_rate


def test_papers_curve_by_hand():
    rate = [learning_rate(0.1, e, 160, 20) for e in range(160)]
    assert rate[0] == pytest.approx(0.005)
    assert rate[19] == pytest.approx(0.1)
    assert rate[20] == pytest.approx(0.1)
    assert rate[90] == pytest.approx(0.05)  # half way down the cosine
    assert rate[159] == pytest.approx(0.05 * (1 + math.cos(math.pi * 139 / 140)))


@given(st.integers(1, 400), st.data())
def test_curve_rises_then_falls_and_stays_in_range(epochs, data):
    warmup = data.draw(st.integers(0, epochs - 1))
    rate = [learning_rate(0.1, e, epochs, warmup) for e in range(epochs)]
    assert all(0 < r <= 0.1 + 1e-12 for r in rate)
    assert rate[:warmup] == sorted(rate[:warmup])
    assert rate[warmup:] == sorted(rate[warmup:], reverse=True)


def phases(*lengths):
    return tuple(Phase("descent", n, Rule(), Rule()) for n in lengths)


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=4))
def test_walk_visits_every_epoch_once_in_order(lengths):
    timeline = Timeline("t", tuple(phases(*row) for row in lengths), 0.1, 0)
    walked = list(timeline.walk())
    assert walked == [(g, e) for g, row in enumerate(lengths) for e in range(sum(row))]
    assert [timeline.index(*position) for position in walked] == list(range(timeline.total_epochs()))
    for g, e in walked:
        phase, start = timeline.phase(g, e)
        assert start <= e < start + phase.epochs
        assert phase in timeline.generations[g]


def test_phase_outside_the_generation_is_refused():
    with pytest.raises(IndexError, match="generation 0 has 3 epochs"):
        Timeline("t", (phases(1, 2),), 0.1, 0).phase(0, 3)


def test_groups_are_fixed_for_life():
    other = Phase("descent", 1, Rule(), Rule(), fc=Rule())
    with pytest.raises(ValueError, match="fixed for life"):
        Timeline("t", ((*phases(1), other),), 0.1, 0)


def test_importing_the_science_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, seal_fast.methods, seal_fast.presets, seal_fast.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
