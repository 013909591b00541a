import math
from pathlib import Path

import pytest

from seal_fast.config import Config
from seal_fast.methods import METHODS
from seal_fast.sweep import plan
from seal_fast.sweep.folder import SweepFolder
from seal_fast.sweep.space import read
from seal_fast.utils.errors import UsageError


@pytest.fixture
def space(tmp_path):
    def write(text):
        path = tmp_path / "space.toml"
        path.write_text(text, encoding="utf-8")
        return read(path)

    return write


def grid(space, seeds=None):
    return plan.make(space, search="grid", samples=1, seeds=seeds)


def test_a_grid_is_the_product_in_order_over_the_preset(space):
    made = grid(
        space(
            'preset = "demo"\nlr = 0.2\nmethod = { grid = ["seal", "llf"] }\n'
            'layer-threshold = { grid = ["layer2", "layer3"] }'
        )
    )
    assert [(t.config.method, t.config.layer_threshold) for t in made.trials] == [
        ("seal", "layer2"), ("seal", "layer3"), ("llf", "layer2"), ("llf", "layer3"),
    ]  # fmt: skip
    assert {(t.config.lr, t.config.data, t.config.generations) for t in made.trials} == {(0.2, "digits", 3)}
    assert made.trials[1].name == "0001-method=seal,layer-threshold=layer3"
    assert made.trials[1].settings == {"method": "seal", "layer_threshold": "layer3"}


def test_seeds_multiply_and_stand_in_the_settings(space):
    made = grid(space('data = "digits"\nmethod = { grid = ["seal", "restart"] }'), seeds=3)
    assert [(t.config.method, t.config.seed) for t in made.trials] == [
        (m, s) for s in range(3) for m in ("seal", "restart")
    ]
    assert made.varied == ["method", "seed"]


def test_a_union_overrides_what_stands_above_it(space):
    made = grid(
        space(
            'data = "digits"\nlayer_threshold = "layer2"\n[[union]]\nmethod = { grid = ["seal", "llf"] }\n'
            '[[union]]\nlayer-threshold = { grid = ["layer3", "layer4"] }'
        )
    )
    assert [(t.config.method, t.config.layer_threshold) for t in made.trials] == [
        ("seal", "layer2"), ("llf", "layer2"), ("seal", "layer3"), ("seal", "layer4"),
    ]  # fmt: skip


def test_settings_without_effect_on_their_method_make_no_second_run(space):
    methods = ", ".join(f'"{m}"' for m in METHODS)
    text = f"data = 'digits'\nmethod = {{ grid = [{methods}] }}\nascent_epochs = {{ grid = [8, 16] }}\n"
    text += "layer_threshold = { grid = ['layer2', 'layer3'] }"
    made = grid(space(text))
    runs = {m: sum(t.config.method == m for t in made.trials) for m in METHODS}
    both = dict.fromkeys(("seal", "seal+llf", "reverse", "reverse-keep-fc", "freeze-late"), 4)
    expected = dict.fromkeys(METHODS, 1) | both | {"llf": 2, "ascend-all": 2}  # no ascent; all layers alike
    assert runs == expected and made.repeated == 4 * len(METHODS) - sum(expected.values())


def test_settings_without_effect_stand_in_no_name_and_no_settings(space):
    made = grid(
        space(
            "data = 'digits'\nmethod = { grid = ['seal', 'llf', 'restart'] }\nascent_scale = { grid = [0.01, 0.6] }\n"
            "reinit = { grid = ['kaiming-uniform', 'he-normal'] }"
        ),
        seeds=2,
    )
    assert [t.name.partition("-")[2] for t in made.trials if t.config.seed == 1] == [
        "method=seal,ascent-scale=0.01,seed=1", "method=seal,ascent-scale=0.6,seed=1",
        "method=llf,reinit=kaiming-uniform,seed=1", "method=llf,reinit=he-normal,seed=1", "method=restart,seed=1",
    ]  # fmt: skip
    assert made.trials[-1].settings == {"method": "restart", "seed": 1}
    assert made.varied == ["method", "ascent_scale", "reinit", "seed"]


def test_a_space_is_utf8_and_replaces_variables(space, monkeypatch, tmp_path):
    monkeypatch.setenv("SEAL_FAST_DATA", "/bilder")
    made = grid(space("\ufeff# größer\ndata = '$SEAL_FAST_DATA/katzenöl.tar'\nlr = { grid = [0.1, 0.2] }"))
    assert made.trials[0].config.data == "/bilder/katzenöl.tar"
    monkeypatch.delenv("SEAL_FAST_DATA")
    with pytest.raises(UsageError, match=r"data = '.SEAL_FAST_DATA/x.tar': that variable is not set"):
        grid(space("data = '$SEAL_FAST_DATA/x.tar'"))


def test_the_studies_are_spaces(monkeypatch):
    monkeypatch.setenv("SEAL_FAST_DATA", "/data")
    studies = Path(__file__).parents[2] / "studies"
    plans = {path.stem: grid(read(path)) for path in studies.glob("*.toml") if path.stem != "recipe"}
    study, pilot = plans["a"], plans["a-pilot"]
    counts = {"a-family": 5 * 10, "a-ablations": 3 * (4 + 2 + 2 + 2), "a-noise": 5 * 3, "a-64": 5 * 3, "c": 5 * 2 * 5}
    assert {name: len(made.trials) for name, made in plans.items()} == counts | {"a": 25, "a-pilot": 8}
    assert {t.epochs for made in (study, plans["a-family"], plans["a-ablations"]) for t in made.trials} == {400}
    assert {t.epochs for t in pilot.trials} == {200}
    assert not {t.config.seed for t in study.trials} & {t.config.seed for t in pilot.trials}


def test_draws_stay_in_range_are_shared_over_the_grid_and_repeat(space):
    made = space(
        'data = "digits"\nmethod = { grid = ["seal", "llf"] }\nlr = { loguniform = [0.001, 1.0] }\n'
        "momentum = { uniform = [0.5, 0.9] }\nbatch_size = { int = [8, 12] }\nlabel_smoothing = { choice = [0.0, 0.1] }"
    )
    trials = plan.make(made, search="random", samples=200, seeds=None, search_seed=1).trials
    assert trials[:4] != plan.make(made, search="random", samples=2, seeds=None, search_seed=2).trials
    lrs = [t.config.lr for t in trials if t.config.method == "seal"]
    assert lrs == [t.config.lr for t in trials if t.config.method == "llf"] and len(set(lrs)) == 200
    # a third of a log-uniform draw lies in each decade: 200 draws, 4 standard deviations are 27
    for decade in (-3, -2, -1):
        assert abs(sum(decade <= math.log10(lr) < decade + 1 for lr in lrs) - 200 / 3) < 27
    assert {t.config.batch_size for t in trials} == {8, 9, 10, 11, 12}
    assert {t.config.label_smoothing for t in trials} == {0.0, 0.1}
    assert all(0.5 <= t.config.momentum <= 0.9 for t in trials)
    # the same draws again; the first samples do not depend on how many there are
    assert [t.config for t in plan.make(made, search="random", samples=3, seeds=None, search_seed=1).trials] == [
        t.config for t in trials[:6]
    ]


def test_a_configuration_file_is_found_beside_the_space(space, tmp_path):
    (tmp_path / "base.toml").write_text("epochs = 7\nascent_epochs = 2\n")
    assert grid(space('config = "base.toml"\ndata = "digits"')).trials[0].config.epochs == 7


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lrr = 0.1", "unknown setting lrr; did you mean lr"),
        ("layr_threshold = { grid = ['layer2'] }", "unknown setting layr_threshold; did you mean layer_threshold"),
        ("method = { grid = ['seal', 'sael'] }", "method = 'sael' must be one of seal"),
        ("method = { grib = ['seal'] }", "method must be a value or one of { grid = [...] }"),
        ("method = { grib = ['seal'] }", "did you mean grid?"),
        ("[[unions]]\nlr = 0.1", "unknown setting unions; did you mean union?"),
        ("[[union]]\nlearning_rate_ = 0.1\nmomentun = 0.1", "unknown setting learning_rate_"),
        ("[[union]]\nmomentun = 0.1", "unknown setting momentun; did you mean momentum?"),
        ("presets = 'demo'", "unknown setting presets; did you mean preset?"),
        ("preset = 'tiny-imagenet-sael'", "did you mean tiny-imagenet-seal?"),
        ("lr = { grid = [] }", "grid needs a list"),
        ("lr = { grid = [0.1, 0.1] }", "grid names 0.1 twice"),
        ("lr = { uniform = [1.0, 0.1] }", "uniform needs two numbers, the lower first"),
        ("lr = { loguniform = [0, 1] }", "loguniform needs numbers above 0"),
        ("lr = { int = [0.5, 1] }", "int needs whole numbers"),
        ("epochs = { uniform = [1, 4] }", "epochs = 2.5 must be a whole number"),
        ("lr = 'high'", "lr = 'high' must be a number"),
        ("preset = 'nothing'", "preset 'nothing' is unknown"),
        ("config = 'missing.toml'", "missing.toml: cannot be read"),
        ("out = 'x'", "out cannot be swept over"),
        ("threads = { grid = [1, 2] }", "threads cannot be swept over"),
        ("union = 3", "[[union]]"),
        ("lr = ", "not a TOML file"),
    ],
)
def test_what_no_run_has_is_refused_by_name(space, text, message):
    with pytest.raises(UsageError) as caught:
        space(text)
    assert message in str(caught.value) and "space.toml" in str(caught.value) or "config" in text


def test_a_combination_that_cannot_run_is_named(space):
    with pytest.raises(UsageError, match=r"ascent_epochs = 20.*leaves no descent in a generation of --epochs 10"):
        grid(space("epochs = { grid = [10, 40] }\nascent_epochs = { grid = [5, 20] }"))
    with pytest.raises(UsageError, match="--search grid: .* draws lr from a range"):
        grid(space("lr = { uniform = [0, 1] }"))
    with pytest.raises(UsageError, match="names the seeds already"):
        grid(space("seed = { grid = [3, 4] }"), seeds=2)


def test_a_plan_is_read_back_as_it_was(space, tmp_path):
    made = grid(space('data = "digits"\nlr = { grid = [0.1, 0.3] }\ninit_weights = "w.safetensors"'), seeds=2)
    folder = SweepFolder(tmp_path / "out")
    folder.write_plan(made, threads=1)
    trials, metadata = folder.read_plan()
    assert tuple(trials.values()) == made.trials and metadata["threads"] == 1
    assert made.trials[0].config.init_weights.is_absolute() and made.trials[0].config != Config()


def test_the_papers_ablations_are_a_space():
    made = grid(read(Path(__file__).parents[2] / "docs" / "ablations.toml"))
    # nine methods, two more thresholds, lengths and scales, the weight decay, two lengths of a generation; three seeds
    assert len(made.trials) == 3 * (9 + 2 + 2 + 2 + 1 + 2) and made.repeated == 3 * 3
    assert {t.epochs for t in made.trials} == {1600} and {t.config.model for t in made.trials} == {"resnet50"}


def test_a_refusal_names_what_varies_and_not_what_every_run_has(space):
    made = space('data = "digits"\nmomentum = 0.5\nbatch_size = { grid = [8, 1] }')
    with pytest.raises(UsageError, match=r"space\.toml: batch_size = 1: --batch-size 1: must be at least 2$"):
        grid(made)
    with pytest.raises(UsageError, match=r"space\.toml: --lr -1\.0: must be a finite number"):
        grid(space('data = "digits"\nlr = -1'))


def test_a_missing_configuration_names_the_space_and_its_key(space):
    with pytest.raises(UsageError, match=r"space\.toml: config = 'none\.toml': .*none\.toml: cannot be read"):
        space('config = "none.toml"')
