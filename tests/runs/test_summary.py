import math
import shlex
import sys

import pytest
from PIL import Image

from seal_fast.runs.plots import ascents, draw
from seal_fast.runs.summary import summarise

AVERAGED = (42, 143, 109)  # plots.EMA


def row(generation, epoch, phase, images, seconds, wait, top1=None):
    sign = -1 if phase == "ascent" else 1
    return {
        "generation": generation,
        "epoch": epoch,
        "phase": phase,
        "images": images,
        "seconds": seconds,
        "input_wait_seconds": wait,
        "compile_seconds": 1.0,
        "train_loss": 1.0,
        "train_top1": 50.0,
        "val_loss": None if top1 is None else 1.0,
        "val_top1": top1,
        "val_top5": top1,
        "lr_early": 0.1,
        "lr_late": 0.1,
        "direction_early": sign,
        "direction_late": 1,
    }


ROWS = [
    row(0, 0, "descent", 100, 2.0, 0.1),
    row(0, 1, "descent", 100, 3.0, 0.4, 60.0),
    row(1, 0, "ascent", 100, 1.0, 0.0, 55.0),
    row(1, 1, "descent", 100, 1.0, 0.0, 58.0),
]


def test_figures_by_hand():
    summary = summarise(ROWS, method="seal")
    assert summary["best"]["val_top1"] == 60.0 and summary["best"]["epoch"] == 1
    assert summary["last"]["val_top1"] == 58.0
    first, second = summary["generations"]
    assert first["images_per_s"] == pytest.approx(200 / 5) and first["input_wait"] == pytest.approx(0.1)
    assert [p["phase"] for p in second["phases"]] == ["ascent", "descent"]
    assert summary["compile_seconds"] == 4.0 and summary["method"] == "seal"


def test_a_run_stopped_before_its_first_evaluation_has_no_outcome():
    assert summarise(ROWS[:1])["best"] is None
    assert summarise([])["generations"] == []


def test_an_accuracy_that_is_not_finite_is_no_outcome():
    rows = [ROWS[1], ROWS[2] | {"val_top1": math.nan}, ROWS[3] | {"val_top1": None}]
    summary = summarise(rows)
    assert summary["best"]["val_top1"] == summary["last"]["val_top1"] == 60.0


def test_averaged_weights_stand_beside_the_raw_ones(tmp_path):
    """In the same row: `best` is the best epoch of the raw weights."""
    averages = [{f"val_ema_{name}": value for name in ("loss", "top1", "top5")} for value in (None, 61.0, 62.0, 63.0)]
    rows = [row | average for row, average in zip(ROWS, averages, strict=True)]
    summary = summarise(rows)
    assert (summary["best"]["val_top1"], summary["best"]["val_ema_top1"], summary["best"]["val_ema_loss"]) == (
        60,
        61,
        61,
    )
    assert (summary["last"]["val_top1"], summary["last"]["val_ema_top5"]) == (58, 63)
    assert set(summarise(ROWS)["last"]) == {"generation", "epoch", "val_loss", "val_top1", "val_top5"}
    draw(rows, "title", tmp_path / "curves.png")
    picture = Image.open(tmp_path / "curves.png").convert("RGB")
    assert sum(p == AVERAGED for p in picture.get_flattened_data()) > 100


def test_the_command_is_quoted_for_the_shell(monkeypatch):
    words = ["python", "-m", "seal_fast.train", "--data", "my images.tar", "--out", "$x"]
    monkeypatch.setattr(sys, "orig_argv", words)
    assert shlex.split(summarise(ROWS)["command"]) == words and "'my images.tar'" in summarise(ROWS)["command"]


def test_ascents_are_shaded_where_they_were(tmp_path):
    assert ascents(ROWS) == [(2, 3)]
    assert ascents([ROWS[2], ROWS[2], ROWS[3], ROWS[2]]) == [(0, 2), (3, 4)]
    draw(ROWS, "title", tmp_path / "curves.png")
    picture = Image.open(tmp_path / "curves.png").convert("RGB")
    assert picture.size == (1080, 840)
    assert AVERAGED not in picture.get_flattened_data()
    pale_red = [p for p in picture.get_flattened_data() if p[0] > 240 and 200 < p[1] < 230 and 200 < p[2] < 235]
    assert len(pale_red) > 1000  # the shade of the ascent
