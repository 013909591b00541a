from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seal_fast.config import Config, Method
from seal_fast.methods import METHODS, timeline
from seal_fast.methods.schedule import Forget, Rule
from seal_fast.presets import PRESETS

PAPER = Config(generations=10, epochs=160)
DESCENT = Rule(+1, 1.0, 5e-4)
ASCENT = Rule(-1, 0.01, 0.0)


def test_every_method_is_a_flag_value():
    assert set(METHODS) == set(get_args(Method))


@pytest.mark.parametrize("method", METHODS)
def test_generation_0_is_plain_and_lengths_agree(method):
    t = timeline(replace(PAPER, method=method))
    assert t.total_epochs() == 1600
    first = t.generations[0]
    assert len(first) == 1 and first[0].name == "descent"
    assert not first[0].reset_momentum and first[0].forget is None
    assert set(first[0].rules().values()) == {DESCENT}


def test_seal_as_the_paper_tells_it():
    t = timeline(PAPER)
    for ascent, descent in t.generations[1:]:
        assert (ascent.name, ascent.epochs, ascent.early, ascent.late) == ("ascent", 40, ASCENT, DESCENT)
        assert (descent.name, descent.epochs, descent.early, descent.late) == ("descent", 120, DESCENT, DESCENT)
        assert ascent.reset_momentum and descent.reset_momentum
        assert ascent.forget is None and descent.forget is None
    # the curve runs on through the switch: epoch 40 of a generation has the same rate in every method
    assert t.learning_rate(3, 40) == timeline(replace(PAPER, method="restart")).learning_rate(3, 40)


@pytest.mark.parametrize(
    ("method", "early", "late"),
    [
        ("reverse", DESCENT, ASCENT),
        ("freeze-late", ASCENT, Rule(lr_multiplier=0.0)),
        ("ascend-all", ASCENT, ASCENT),
        ("seal+llf", ASCENT, DESCENT),
    ],
)
def test_ablations_differ_in_the_ascent_only(method, early, late):
    t = timeline(replace(PAPER, method=method))
    for ascent, descent in t.generations[1:]:
        assert (ascent.early, ascent.late) == (early, late)
        assert (descent.early, descent.late) == (DESCENT, DESCENT)


def test_reverse_keep_fc_has_a_classifier_that_never_ascends():
    t = timeline(replace(PAPER, method="reverse-keep-fc"))
    assert t.groups == ("early", "late", "fc")
    assert t.generations[1][0].late == ASCENT and t.generations[1][0].fc == DESCENT


@pytest.mark.parametrize("method", ["llf", "seal+llf"])
def test_forgetting_happens_once_at_each_later_generation(method):
    t = timeline(replace(PAPER, method=method, reinit="he-normal"))
    for phases in t.generations[1:]:
        assert [p.forget for p in phases] == [Forget("late", "he-normal"), *[None] * (len(phases) - 1)]
        assert phases[0].reset_momentum


def test_seal_llf_still_forgets_without_an_ascent():
    t = timeline(replace(PAPER, method="seal+llf", ascent_epochs=0))
    assert [p.forget for p in t.generations[1]] == [Forget("late")]


def test_long_is_one_cosine():
    t = timeline(replace(PAPER, method="long"))
    assert len(t.generations) == 1 and t.epochs(0) == 1600
    assert t.learning_rate(0, 19) == pytest.approx(0.1)
    assert t.learning_rate(0, 20 + 790) == pytest.approx(0.05)


@given(st.integers(2, 300), st.floats(0.01, 0.99))
def test_a_fractional_ascent_is_never_empty_nor_everything(epochs, share):
    k = Config(epochs=epochs, ascent_epochs=share).ascent()
    assert 1 <= k <= epochs - 1
    assert abs(k - share * epochs) <= 1


def test_papers_presets_resolve_to_the_papers_numbers():
    for name, settings in PRESETS.items():
        if name.startswith("tiny-imagenet"):
            config = replace(Config(), **settings)
            assert config.model == "resnet50" and config.warmup() == 20
            assert timeline(config).total_epochs() == 1600
