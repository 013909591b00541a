import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seal_fast.methods.operators import Average, Loss, Mask, Mix, Scope, Source
from seal_fast.methods.schedule import Curve, Phase, Rule, Timeline, rules
from seal_fast.utils.errors import UsageError


def test_papers_curve_by_hand():
    rate = [Curve(warmup_epochs=20).rate(0.1, e, 160) for e in range(160)]
    assert rate[0] == pytest.approx(0.005)
    assert rate[19] == pytest.approx(0.1)
    assert rate[20] == pytest.approx(0.1)
    assert rate[90] == pytest.approx(0.05)  # half way down the cosine
    assert rate[159] == pytest.approx(0.05 * (1 + math.cos(math.pi * 139 / 140)))


@given(st.integers(1, 400), st.data())
def test_curve_rises_then_falls_and_stays_in_range(epochs, data):
    warmup = data.draw(st.integers(0, epochs - 1))
    rate = [Curve(warmup_epochs=warmup).rate(0.1, e, epochs) for e in range(epochs)]
    assert all(0 < r <= 0.1 + 1e-12 for r in rate)
    assert rate[:warmup] == sorted(rate[:warmup])
    assert rate[warmup:] == sorted(rate[warmup:], reverse=True)


def phases(*lengths):
    return tuple(Phase("descent", n, rules(all=Rule())) for n in lengths)


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=4))
def test_walk_visits_every_epoch_once_in_order(lengths):
    timeline = Timeline("t", tuple(phases(*row) for row in lengths), 0.1)
    walked = list(timeline.walk())
    assert walked == [(g, e) for g, row in enumerate(lengths) for e in range(sum(row))]
    assert [timeline.index(*position) for position in walked] == list(range(timeline.total_epochs()))
    for g, e in walked:
        phase, start = timeline.phase(g, e)
        assert start <= e < start + phase.epochs
        assert phase in timeline.generations[g]


def test_phase_outside_the_generation_is_refused():
    with pytest.raises(IndexError, match="generation 0 has 3 epochs"):
        Timeline("t", (phases(1, 2),), 0.1).phase(0, 3)


@pytest.mark.parametrize(
    ("phase", "sentence"),
    [
        (dict(rules=rules(early=Rule())), "generation 0, phase p: group late has no rule"),
        (dict(rules=rules(all=Rule(), fc=Rule())), "no group is called fc; the groups are early, late"),
        (dict(enter=(Mix(Scope(), Source("snapshot")),)), "there is no snapshot yet; take one with snapshot = true"),
        (dict(enter=(Mix(Scope(), Source("average")),)), "there is no average yet"),
        (dict(loss=Loss(distil=1.0)), "distillation needs a snapshot"),
        (dict(epochs=0), "phase p has 0 epochs"),
    ],
)
def test_a_bad_phase_ends_in_one_sentence(phase, sentence):
    with pytest.raises(UsageError, match=sentence):
        Timeline("t", ((Phase(**dict(name="p", epochs=1, rules=rules(all=Rule())) | phase),),), 0.1)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Mask("wels", 1.5), "a mask's share is 1.5: it must be from 0 to 1"),
        (lambda: Average(1.0), "an average's decay is 1"),
        (lambda: Rule(sign=0), "a rule's sign is 0"),
        (lambda: Timeline("t", (), 0.1), "no generations"),
        (lambda: Timeline("t", (phases(1),), 0.1, cuts=()), "0 cuts make one group more"),
        (lambda: Timeline("t", (phases(3),), 0.1, Curve(warmup_epochs=4)), "3 epochs, fewer than the warm-up"),
    ],
)
def test_a_bad_part_ends_in_one_sentence(make, sentence):
    with pytest.raises(UsageError, match=sentence):
        make()


def test_constant_and_stepped_curves():
    assert [Curve("constant", 2).rate(1.0, e, 9) for e in range(4)] == [0.5, 1.0, 1.0, 1.0]
    stepped = Curve("step", steps=(2, 4), factor=0.5)
    assert [stepped.rate(1.0, e, 9) for e in range(6)] == [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]


def test_rules_of_their_own_curve_and_an_annealed_multiplier():
    rule = Rule(curve=Curve(), lr_multiplier=1.0, lr_multiplier_end=0.0)
    t = Timeline("t", (tuple(Phase("p", 2, rules(all=Rule(), late=rule)) for _ in range(2)),), 1.0)
    assert [t.rates(0, e)["late"]["lr"] for e in range(4)] == [1.0, 0.5, 1.0, 0.5]
    assert [t.rates(0, e)["late"]["lr_multiplier"] for e in range(4)] == [1.0, 0.0, 1.0, 0.0]
    assert t.rates(0, 2)["early"]["lr"] == 0.5


def test_importing_the_science_needs_no_torch():
    import subprocess
    import sys

    code = "import sys, seal_fast.methods, seal_fast.presets, seal_fast.config; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_an_average_of_decay_zero_is_kept_too():
    """It is the weights themselves; 0 is not "no average"."""
    average = Average(0.0)
    timeline = Timeline("t", ((Phase("descent", 1, rules(all=Rule()), average=average),),), 0.1)
    assert "average" in timeline.needs() and timeline.ema_decay(0.0) == 0.0
    without = Timeline("t", ((Phase("descent", 1, rules(all=Rule())),),), 0.1)
    assert without.ema_decay(0.0) is None and without.ema_decay(0.9) == 0.9
