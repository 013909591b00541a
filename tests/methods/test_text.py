from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from timelines import timelines

from seal_fast.methods.operators import Mix, Scope, Source
from seal_fast.methods.text import describe, dumps, loads
from seal_fast.utils.errors import UsageError

TEXT = """
method = "mine"
lr = 0.1

[[generations]]
phases = [{ name = "descent", epochs = 3, rules = { all = {} } }]

[[generations]]
repeat = 2
[[generations.phases]]
name = "ascent"
epochs = 2
rules = { all = { weight_decay = 5e-4 }, early = { sign = -1, lr_multiplier = 0.01 } }
enter = [{ operator = "mix", scope = { start = "layer4" }, source = { kind = "draw" }, mask = { by = "wels" } }]
"""


def test_a_users_file():
    t = loads(TEXT)
    assert [t.epochs(g) for g in range(3)] == [3, 2, 2]
    assert t.rates(1, 0)["early"] == dict(lr=0.1, lr_multiplier=0.01, sign=-1, weight_decay=0.0)
    assert "g2 epochs 0-1 ascent: early ascends (lr up to 0.001" in describe(t)
    assert "first: weight from layer4 <- kaiming-uniform (0.5 by wels)" in describe(t)


def test_the_example():
    t = loads((Path(__file__).parents[2] / "examples" / "timeline.toml").read_text())
    assert t.method == "mine" and [t.epochs(g) for g in range(5)] == [40] * 5
    assert t.generations[4][0].enter == (Mix(Scope("layer4"), Source("initial"), 0.5, 0.5),)


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("epochs = 3", "epochs = 0", "generations[0].phases[0]: phase descent has 0 epochs"),
        ("epochs = 3", "epochs = 2.5", "generations[0].phases[0].epochs is 2.5: it must be a whole number"),
        ("epochs = 3, ", "", "generations[0].phases[0] has no epochs"),
        ('by = "wels"', 'by = "wels", share = 1.5', "generations[1].phases[0].enter[0].mask: a mask's share is 1.5"),
        ('by = "wels"', 'by = "odd"', "generations[1].phases[0].enter[0].mask.by is 'odd': choose one of"),
        (
            'operator = "mix"',
            'operator = "stir"',
            "operator is 'stir': choose one of mix, orthogonalise, align, rescale",
        ),
        ('kind = "draw"', 'kind = "snapshot"', "there is no snapshot yet"),
        ("early = {", "soon = {", "no group is called soon; the groups are early, late"),
        ("lr = 0.1\n", 'lr = "0.1"\n', "lr is '0.1': it must be a number"),
        ("lr = 0.1\n", "lr = 0.1\nmomentum = 1\n", "the timeline has no setting momentum"),
        ("repeat = 2", "repeat = 0", "generations[1].repeat is 0"),
        ("[[generations]]", "[[generations", "not a TOML file"),
    ],
)
def test_a_bad_file_ends_in_one_sentence(old, new, sentence):
    assert old in TEXT
    with pytest.raises(UsageError) as caught:
        loads(TEXT.replace(old, new, 1))
    assert sentence in str(caught.value)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(timelines())
def test_any_timeline_prints_and_reads_back(timeline):
    assert loads(dumps(timeline)) == timeline
    assert len(describe(timeline).splitlines()) == 1 + sum(map(len, timeline.generations))
    assert timeline.effective().effective() == timeline.effective()
