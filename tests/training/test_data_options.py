"""Runs with --holdout, --per-class and --label-noise: what they record, and that seeds of them are one training."""

import json
import tomllib
from dataclasses import replace

import pytest
from image_files import image_folder_files, write
from runs import BASE, trainer_of

from seal_fast import train
from seal_fast.__main__ import main
from seal_fast.data import open_images, select
from seal_fast.runs.collection import group_by_training, open_run
from seal_fast.runs.folder import RunFolder
from seal_fast.utils.errors import UsageError

OPTIONS = {"holdout": 0.2, "per_class": 4, "label_noise": 0.25}
CONFIG = replace(BASE, generations=2, epochs=2, method="restart", width=0.125, threads=1, **OPTIONS)


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    files = image_folder_files(train=10, val=5)
    return replace(CONFIG, data=str(write(tmp_path_factory.mktemp("sets") / "pets", files)))


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / "run"
    return out, train.run(replace(config, out=out))


def test_the_test_set_is_looked_at_once_a_generation(run):
    out, summary = run
    rows = RunFolder(out).rows()
    assert [row["val_top1"] is not None for row in rows] == [True] * 4
    for name in ("test_loss", "test_top1", "test_top5", "clean_loss", "clean_top1", "clean_top5"):
        assert [name in row for row in rows] == [False, True, False, True]
    best = max((row for row in rows if "test_top1" in row), key=lambda row: row["val_top1"])
    assert summary["test"] == {k: v for k, v in best.items() if k.startswith(("val_", "test_", "generation", "epoch"))}
    assert summary["best_chosen_on"] == "held-out training images"
    assert json.loads((out / "summary.json").read_text())["test"] == summary["test"]
    assert open_run(out).top1["test"] == best["test_top1"]


def test_its_figures_are_those_of_the_images_and_labels(run, config, tmp_path):
    """Top-1 of the last row, counted image by image with the last weights."""
    from safetensors.torch import load_file

    out, _ = run
    images = open_images(config.data)
    chosen = select(images, **OPTIONS)
    with trainer_of(config, tmp_path / "other") as trainer:
        assert trainer.input.train_size == 12 and trainer.input.val_size == len(chosen.val)
        model = trainer.state.model
        model.load_state_dict(load_file(out / "weights" / "last.safetensors"))
        model.eval()
        row = RunFolder(out).rows()[-1]
        for name, split in (("val", chosen.val), ("test", images.val), ("clean", chosen.others["clean"])):
            hits, labels = [], []
            for batch in trainer.input.evaluation(name):
                hits += model(batch.images)[batch.valid].argmax(1).tolist()
                labels += batch.labels[batch.valid].tolist()
            assert labels == split.labels.tolist()
            right = sum(hit == label for hit, label in zip(hits, split.labels.tolist(), strict=True))
            assert row[f"{name}_top1"] == pytest.approx(100 * right / len(split))


def test_the_options_are_part_of_the_run(run, config):
    out, _ = run
    known = tomllib.loads((out / "config.toml").read_text())
    assert {name: known[name] for name in OPTIONS} == OPTIONS
    for change in ({"label_noise": 0.5}, {"per_class": 5}, {"per_class": None}, {"holdout": 0.1}):
        with pytest.raises(UsageError, match="holds a run with other settings"):
            train.run(replace(config, out=out, **change))
    first = open_run(out)
    same, noisier = (replace(first, config=replace(first.config, seed=4, **c)) for c in ({}, {"label_noise": 0.5}))
    groups = group_by_training([first, same, noisier])
    assert [len(group.runs) for group in groups] == [2, 1]
    assert [group.settings for group in groups] == [{"label_noise": 0.25}, {"label_noise": 0.5}]


def test_evaluate_takes_the_test_set_and_the_true_labels(run, tmp_path, capsys):
    out, _ = run
    assert main(["evaluate", str(out), "--splits", "val", "test", "clean", "--out", str(tmp_path)]) == 0
    (found,) = json.loads((tmp_path / "evaluate.json").read_text())
    row = RunFolder(out).rows()[-1]
    for split in ("val", "test", "clean"):
        assert found["figures"][split]["top-1 (%)"]["mean"] == pytest.approx(row[f"{split}_top1"])


def test_without_held_out_images_best_is_said_to_be_chosen_on_the_test_set(config, tmp_path, capsys):
    none = {"holdout": 0.0, "per_class": None, "label_noise": 0.0, "generations": 1}
    summary = train.run(replace(config, **none, out=tmp_path))
    assert summary["best_chosen_on"] == "the test set" and "test" not in summary
    assert "; chosen on the test set)" in capsys.readouterr().out
    assert main(["evaluate", str(tmp_path), "--splits", "test"]) == 2
    assert "was trained without --holdout, so that val is its test set" in capsys.readouterr().err
