from dataclasses import fields, replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seal_fast.arguments import parse
from seal_fast.config import Config, difference, dumps, load, override
from seal_fast.methods import timeline
from seal_fast.methods.text import dumps as timeline_text
from seal_fast.presets import PRESETS
from seal_fast.utils.errors import UsageError
from seal_fast.validation import check


def test_precedence_is_flag_then_file_then_preset_then_default(tmp_path):
    file = tmp_path / "c.toml"
    file.write_text("epochs = 5\nbatch-size = 16\n")
    config = parse(["--preset", "demo", "--config", str(file), "--batch-size", "8"])
    assert (config.batch_size, config.epochs, config.stem, config.momentum) == (8, 5, "small", 0.9)


def test_the_augmentation_of_older_runs_and_flags_is_understood(tmp_path):
    file = tmp_path / "config.toml"
    for text, flag, augmentation in (("false", "--no-augment", "none"), ("true", "--augment", "auto")):
        file.write_text(f"augment = {text}\n")
        assert load(file, Config(augmentation="pad-crop")).augmentation == augmentation
        assert parse([flag]).augmentation == augmentation


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        (Config(ascent_epochs=float("inf")), "--ascent-epochs inf: must be a whole number"),
        (Config(warmup_epochs=float("nan")), "--warmup-epochs nan: must be a whole number"),
        (
            Config(epochs=4, ascent_epochs=1, warmup_epochs=5),
            "--warmup-epochs 5: longer than a generation of --epochs 4",
        ),
        (Config(method="long", epochs=4, generations=2, warmup_epochs=9), "--warmup-epochs 9: longer than"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_phases_of_no_or_endless_length_are_refused(config, sentence):
    with pytest.raises(UsageError, match=sentence):
        check(config)
    assert check(Config(method="long", epochs=4, ascent_epochs=1, generations=2, warmup_epochs=5))


def test_a_folder_alone_continues_a_run_and_starts_none(tmp_path):
    with pytest.raises(UsageError, match="there is no such folder"):
        parse(["--out", str(tmp_path / "mistyped")])
    with pytest.raises(UsageError, match=r"config.toml is missing there"):
        parse(["--out", str(tmp_path)])
    assert parse(["--out", str(tmp_path), "--method", "llf"]).method == "llf"


def test_every_switch_has_its_no_form():
    for field in fields(Config):
        if isinstance(field.default, bool):
            name = field.name.replace("_", "-")
            assert getattr(parse([f"--{name}"]), field.name) is True
            assert getattr(parse([f"--no-{name}"]), field.name) is False


@given(
    st.builds(
        Config,
        method=st.sampled_from(["seal", "llf", "long"]),
        epochs=st.integers(2, 500),
        lr=st.floats(0, 10),
        image_size=st.none() | st.integers(1, 512),
        init_weights=st.none() | st.just(Path("some/weights.safetensors")),
        data=st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1),
        amp=st.booleans(),
    )
)
def test_toml_round_trip(config):
    import tomllib

    assert override(Config(), tomllib.loads(dumps(config)), "here") == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("epoch = 3", "unknown setting epoch; did you mean epochs?"),
        ("epochs = 'three'", "must be a whole number"),
        ("lr = true", "must be a number"),
        ("method = 'sael'", "must be one of seal, llf"),
        ("epochs = ", "not a TOML file"),
    ],
)
def test_a_wrong_file_is_named_with_its_setting(tmp_path, text, message):
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(UsageError) as caught:
        load(file, Config())
    assert str(file) in str(caught.value) and message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "--epochs 0: must be at least 1"),
        ({"batch_size": 1}, "--batch-size 1: must be at least 2"),
        ({"lr": float("nan")}, "--lr nan: must be a finite number"),
        ({"momentum": 1.0}, "--momentum 1.0: must be at least 0 and below 1"),
        ({"ascent_epochs": 2.5}, "whole number of epochs or a fraction"),
        ({"epochs": 4, "ascent_epochs": 4}, "leaves no descent"),
        ({"dtype": "float64", "amp": True}, "excludes --amp"),
        ({"seed": -1}, "--seed -1"),
    ],
)
def test_impossible_numbers_are_refused(changes, message):
    with pytest.raises(UsageError) as caught:
        check(replace(Config(), **changes))
    assert message in str(caught.value)


@pytest.mark.parametrize("flag", [["--epoks", "3"], ["--method", "sael"], ["--epochs", "x"]])
def test_wrong_flags_exit_2_without_a_traceback(flag, capsys):
    with pytest.raises(SystemExit) as caught:
        parse(flag)
    assert caught.value.code == 2
    assert "Traceback" not in capsys.readouterr().err


def test_unknown_preset_lists_the_known_ones():
    with pytest.raises(UsageError, match="choose one of demo, tiny-imagenet-seal"):
        parse(["--preset", "dmeo"])


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_valid(name):
    check(override(Config(), PRESETS[name], name))


def test_difference_names_what_changes_the_training_only():
    old = Config(image_size=64, input="resident")
    assert difference(old, replace(old, threads=1, profile=True, image_size=None, input="auto")) == []
    assert difference(old, replace(old, lr=0.2, seed=3)) == ["--lr: 0.1 -> 0.2", "--seed: 0 -> 3"]
    assert difference(replace(old, per_class=5), old) == ["--per-class: 5 -> None"]
    assert difference(replace(old, limit_train=8), old) == ["--limit-train: 8 -> None"]


def test_options_of_a_method_add_up_and_are_kept(tmp_path):
    config = parse("--method ke-wels --option keep=0.6 --option=anew=true --epochs 5".split())
    assert config.option == "keep=0.6,anew=true"
    assert parse("--method ke-wels --option keep=0.6,keep=0.5".split()).option == ""  # the default
    (tmp_path / "config.toml").write_text(dumps(config))
    assert parse(["--out", str(tmp_path)]).option == config.option
    assert parse(["--out", str(tmp_path), "--option", "anew=true"]).option == config.option
    with pytest.raises(UsageError, match="other settings .--option: keep=0.6,anew=true -> keep=0.7,anew=true"):
        parse(["--out", str(tmp_path), "--option", "keep=0.7"])
    assert parse(["--config", str(tmp_path / "config.toml"), "--method", "llf"]).option == ""
    with pytest.raises(UsageError, match="--option kep=1: not an option of --method ke-wels; its options are keep=0.5"):
        parse("--method ke-wels --option kep=1".split())


def test_a_timeline_file_takes_the_place_of_a_method(tmp_path):
    file = tmp_path / "mine.toml"
    file.write_text(timeline_text(timeline(Config(generations=2))))
    assert parse(["--timeline", str(file)]).method == "timeline"
    with pytest.raises(UsageError, match="--method timeline: needs --timeline FILE.toml"):
        parse(["--method", "timeline"])
    with pytest.raises(UsageError, match="--timeline nowhere.toml: cannot be read"):
        parse(["--timeline", "nowhere.toml"])
    file.write_text('method = "mine"')
    with pytest.raises(UsageError, match=r"--timeline .*mine.toml: the timeline has no lr"):
        parse(["--timeline", str(file)])


def test_presets_at_224_pixels_are_the_released_recipe():
    for name, generations in (("ke-flowers102", 10), ("ke-aircraft", 5), ("llf-224", 11), ("dnr-224", 11)):
        config = override(Config(), PRESETS[name], name)
        assert (config.model, config.image_size, config.augmentation) == ("resnet18", 224, "resized-crop")
        assert (config.momentum, config.weight_decay, config.label_smoothing) == (0.9, 1e-4, 0.1)
        rate, batch, warmup = (0.253, 256, 20) if name == "dnr-224" else (0.256, 32, 5)
        assert (config.lr, config.batch_size, config.warmup()) == (rate, batch, warmup)
        assert timeline(config).total_epochs() == 200 * generations
    assert timeline(override(Config(), PRESETS["llf-224-long"], "")).total_epochs() == 2200


def test_presets_with_steps_are_the_released_schedules():
    config = override(Config(), PRESETS["llf-tiny-imagenet"], "")
    rates = [timeline(config).rates(1, epoch)["late"]["lr"] for epoch in (0, 79, 80, 119, 120, 159)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    line = timeline(override(Config(), PRESETS["dash-cifar"], ""))
    rates = [line.rates(0, epoch)["late"]["lr"] for epoch in (59, 60, 120, 160, 200, 259)]
    assert rates == pytest.approx([0.1, 0.02, 0.004, 0.0008, 0.00016, 0.00016])


@pytest.mark.parametrize(("settings", "message"), [
    ({"lr_curve": "0.1@80,120", "epochs": 120}, "--lr-curve 0.1@80,120: its last step comes after the cycle of 120 ep"),
    ({"lr_curve": "steps"}, "--lr-curve steps: must be cosine, constant, or as 0.1@80,120"),
    ({"lr_curve": "0.1@80,80"}, "steps must be epochs from 1 on, each later than the one before"),
    ({"lr_curve": "constant", "method": "sgdr"}, "--lr-curve constant: sgdr has a curve of its own; drop the flag"),
    ({"holdout": 1.0}, "--holdout 1.0: must be at least 0 and below 1"),
    ({"label_noise": -0.1}, "--label-noise -0.1: must be at least 0 and below 1"),
    ({"per_class": 0}, "--per-class 0: must be at least 1"),
])  # fmt: skip
def test_settings_are_checked(settings, message):
    with pytest.raises(UsageError, match=message):
        check(override(Config(), settings, ""))
