from dataclasses import replace
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seal_fast.config import Config, Method
from seal_fast.methods import METHODS, timeline
from seal_fast.methods.operators import EVERYTHING, Loss, Mix, Scope, Source
from seal_fast.methods.schedule import Rule
from seal_fast.methods.text import describe, dumps, loads
from seal_fast.presets import PRESETS
from seal_fast.utils.errors import UsageError
from seal_fast.validation import check

PAPER = Config(generations=10, epochs=160)
DESCENT = Rule(+1, 1.0, 5e-4)
ASCENT = Rule(-1, 0.01, 0.0)
GROUPS = ("early", "late")
# those whose generations are all --epochs long
CYCLES = [m for m in METHODS if m not in "long zapping rifle hare-tortoise ac-dc sgdr swa sam asam".split()]


def at_start(method, **changes):
    """The phases of generation 1."""
    return timeline(replace(PAPER, method=method, **changes)).generations[1]


def test_every_method_is_a_flag_value():
    assert {*METHODS, "timeline"} == set(get_args(Method))


@pytest.mark.parametrize("method", METHODS)
def test_lengths_agree_and_the_text_reads_back(method):
    t = timeline(replace(PAPER, method=method))
    assert t.total_epochs() == 1600 and t.method == method
    assert loads(dumps(t)) == t
    assert len(describe(t).splitlines()) == 1 + sum(map(len, t.generations))
    if method in CYCLES:
        first = t.generations[0]
        assert [t.epochs(g) for g in range(10)] == [160] * 10
        assert not first[0].reset_momentum and not first[0].enter
        assert {rule for phase in first for rule in phase.by_group(t.groups).values()} == {DESCENT}


def test_seal_as_the_paper_tells_it():
    t = timeline(PAPER)
    for ascent, descent in t.generations[1:]:
        assert (ascent.name, ascent.epochs) == ("ascent", 40) and (descent.name, descent.epochs) == ("descent", 120)
        assert ascent.by_group(GROUPS) == {"early": ASCENT, "late": DESCENT}
        assert descent.by_group(GROUPS) == {"early": DESCENT, "late": DESCENT}
        assert ascent.reset_momentum == descent.reset_momentum == EVERYTHING
        assert not ascent.enter and not descent.enter and not t.needs()
    # the curve runs on through the switch: epoch 40 of a generation has the same rate in every method
    assert t.rates(3, 40)["late"]["lr"] == timeline(replace(PAPER, method="restart")).rates(3, 40)["late"]["lr"]


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
    ascent, descent = at_start(method)
    assert ascent.by_group(GROUPS) == {"early": early, "late": late}
    assert descent.by_group(GROUPS) == {"early": DESCENT, "late": DESCENT}


def test_reverse_keep_fc_has_a_classifier_that_never_ascends():
    t = timeline(replace(PAPER, method="reverse-keep-fc"))
    assert t.groups == ("early", "late", "fc") and t.cuts == ("layer3", "fc")
    assert t.generations[1][0].by_group(t.groups) == {"early": DESCENT, "late": ASCENT, "fc": DESCENT}


@pytest.mark.parametrize("method", ["llf", "seal+llf"])
def test_forgetting_happens_once_at_each_later_generation(method):
    t = timeline(replace(PAPER, method=method, reinit="he-normal"))
    draw = Mix(Scope("layer3"), Source("draw", "he-normal"))
    for phases in t.generations[1:]:
        assert [p.enter for p in phases] == [(draw,), *[()] * (len(phases) - 1)]
        assert phases[0].reset_momentum == EVERYTHING


def test_seal_llf_still_forgets_without_an_ascent():
    assert [len(p.enter) for p in at_start("seal+llf", ascent_epochs=0)] == [1]


def test_seals_options():
    t = timeline(replace(PAPER, generations=4, option="scale_end=0.001,thresholds=layer2/layer4,smoothing=0"))
    assert t.cuts == ("layer2", "layer4") and t.groups == ("stage0", "stage1", "stage2")
    assert [[t.rates(g, 0)[group]["sign"] for group in t.groups] for g in range(4)] == [
        [1, 1, 1],
        [-1, 1, 1],
        [-1, -1, 1],
        [-1, -1, 1],
    ]
    scales = [t.rates(1, e)["stage0"]["lr_multiplier"] for e in (0, 13, 39)]
    assert scales == pytest.approx([0.01, 0.007, 0.001])
    assert t.generations[1][0].loss == Loss(smoothing=0.0) and t.generations[1][1].loss is None
    assert at_start("seal", option="confidence=0.5")[0].loss == Loss(right=0.0, confidence=0.5)


def test_long_is_one_cosine():
    t = timeline(replace(PAPER, method="long"))
    assert len(t.generations) == 1 and t.epochs(0) == 1600
    assert t.rates(0, 19)["early"]["lr"] == pytest.approx(0.1)
    assert t.rates(0, 20 + 790)["early"]["lr"] == pytest.approx(0.05)


def test_sgdr_cycles_grow_and_share_the_epochs():
    t = timeline(replace(PAPER, method="sgdr", generations=4, epochs=15))
    assert [t.epochs(g) for g in range(4)] == [4, 8, 16, 32]
    assert all(t.rates(g, 0)["late"]["lr"] == 0.1 for g in range(4))


def test_lw_moves_up_block_by_block():
    t = timeline(replace(PAPER, method="lw"))
    assert [phases[0].enter[0].scope.start for phases in t.generations[1:]] == (
        ["layer1.0", "layer1.1", "layer2.0", "layer2.1", "layer3.0", "layer3.1", "layer4.0", "layer4.1", "fc"]
    )


@pytest.mark.parametrize(
    ("method", "option", "sentence"),
    [
        ("ke-wels", "kep=0.5", "--option kep=0.5: not an option of --method ke-wels; its options are keep=0.5, anew=f"),
        ("llf", "keep=0.5", "--option keep=0.5: not an option of --method llf; it has none"),
        ("ke-wels", "keep=half", "--option keep=half: must be a number"),
        ("ke-wels", "anew=1", "--option anew=1: must be true or false"),
        ("shrink-perturb", "kind=other", "--option kind=other: must be one of ash-adams, initial, noise"),
        ("zapping", "rows=1.5", "--option rows=1.5: must be a whole number"),
        ("swa", "start=nan", "--option start=nan: must be a number"),
        ("sgdr", "growth=inf", "--option growth=inf: must be a number"),
        ("sgdr", "growth=1e200", "--option growth=1e+200: the first cycle has no epoch; lower it"),
    ],
)
def test_wrong_options_end_in_one_sentence(method, option, sentence):
    with pytest.raises(UsageError) as caught:
        check(replace(PAPER, method=method, option=option))
    assert str(caught.value).startswith(sentence)


def test_a_share_of_more_than_all_is_refused():
    with pytest.raises(UsageError, match="--option keep is 1.5: it must be from 0 to 1"):
        check(replace(PAPER, method="ke-kels", option="keep=1.5"))


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
