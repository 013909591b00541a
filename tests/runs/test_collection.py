import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from pretend import pretend_run

from seal_fast.config import Config
from seal_fast.runs.collection import group_by_training, open_run, open_runs
from seal_fast.utils.errors import UsageError

BASE = Config(data="/a/images.tar", generations=2, epochs=4, ascent_epochs=1, eval_every=1)


def groups(path):
    found = open_runs([path])
    left_out = dict(found.left_out)
    grouped = {g.label: g for g in group_by_training(found.kept)}
    left_out |= {str(run.path): why for g in grouped.values() for run, why in g.left_out}
    return {label: list(g.runs) for label, g in grouped.items()}, {Path(p).name: why for p, why in left_out.items()}


def test_runs_that_differ_by_their_seed_alone_are_one_group(tmp_path):
    for seed in (0, 1):
        for method in ("seal", "llf"):
            config = replace(BASE, method=method, seed=seed, data=f"/{seed}/images.tar", threads=seed + 1)
            pretend_run(tmp_path / f"{method}-{seed}", config, 50)
    assert groups(tmp_path) == ({"llf": [0, 1], "seal": [0, 1]}, {})


def test_other_images_and_other_initial_weights_are_other_groups(tmp_path):
    started = replace(BASE, init_weights=Path("/a/w.safetensors"))
    pretend_run(tmp_path / "a", started, 50, data="1" * 64, initial="a" * 64)
    pretend_run(tmp_path / "b", replace(started, seed=1), 50, data="2" * 64, initial="a" * 64)
    pretend_run(tmp_path / "c", replace(started, seed=2), 50, data="1" * 64, initial="b" * 64)
    found, _ = groups(tmp_path)
    assert list(found.values()) == [[0], [1], [2]]
    assert "data images.tar (11111111), init weights w.safetensors (bbbbbbbb)" in found


def test_a_seed_counts_once(tmp_path):
    pretend_run(tmp_path / "a", BASE, 50)
    shutil.copytree(tmp_path / "a", tmp_path / "b-copy")
    os.symlink(tmp_path / "a", tmp_path / "latest")
    found, left_out = groups(tmp_path)
    assert found == {"seal": [0]}
    assert left_out["b-copy"] == f"the same training and seed as {tmp_path / 'a'}"
    assert left_out["latest"] == f"the same folder as {tmp_path / 'a'}"


def test_of_two_runs_of_a_seed_the_finished_one_counts(tmp_path):
    pretend_run(tmp_path / "a", BASE, 50, generations=1)
    pretend_run(tmp_path / "b", BASE, 50)
    found, left_out = groups(tmp_path)
    assert found == {"seal": [0]} and left_out == {"a": "unfinished after 4 of 8 epochs"}


def test_a_sweep_says_which_runs_were_stopped_and_which_failed(tmp_path):
    names = ["done", "stopped", "failed", "waiting", "broken"]
    (tmp_path / "sweep.json").write_text(json.dumps({"trials": [{"name": name} for name in names]}))
    for seed, (name, generations) in enumerate((("done", None), ("stopped", 1), ("failed", 0))):
        pretend_run(tmp_path / "trials" / name, replace(BASE, seed=seed), 50, generations)
    events = [
        {"trial": "done", "state": "finished"},
        {"trial": "stopped", "state": "stopped"},
        {"trial": "failed", "state": "failed", "message": "out of memory"},
        {"trial": "broken", "state": "failed", "message": "no such layer"},
    ]
    lines = [json.dumps(event) for event in events]
    (tmp_path / "ledger.jsonl").write_text("\n".join([lines[0], '{"trial": "do', "[]", *lines[1:]]) + "\n")
    assert groups(tmp_path) == (
        {"seal": [0]},
        {
            "stopped": "stopped early after 4 of 8 epochs",
            "failed": "failed after 0 of 8 epochs: out of memory",
            "waiting": "not started",
            "broken": "failed: no such layer",
        },
    )
    assert open_run(tmp_path / "trials" / "stopped").state == "stopped early"


def damaged(lines):
    row = json.loads(lines[1])
    yield "a line cut in the middle", [lines[0], lines[1][:20], *lines[2:]], "line 2 of metrics.jsonl is damaged"
    missing = json.dumps({k: v for k, v in row.items() if k != "val_top1"})
    yield "no val_top1", [lines[0], missing, *lines[2:]], "no val_top1"
    yield "text", [lines[0], json.dumps(row | {"val_top1": "high"}), *lines[2:]], "val_top1 is no number"
    yield "null", [lines[0], json.dumps(row | {"seconds": None}), *lines[2:]], "seconds is no number"
    yield "a line twice", [lines[0], *lines], "generation 0, epoch 0 does not come next"
    yield "a line lost", [lines[0], *lines[2:]], "generation 0, epoch 2 does not come next"
    yield "too many", [*lines, lines[-1]], "does not come next"
    yield "no object", ["[]", *lines[1:]], "not an object"
    yield "no text", [lines[0], "\udcff\udcfe", *lines[2:]], "line 2"


def test_a_damaged_run_is_left_out_and_named(tmp_path):
    folder = pretend_run(tmp_path / "good", BASE, 50)
    lines = folder.metrics.read_text().splitlines()
    for name, changed, expected in damaged(lines):
        shutil.copytree(tmp_path / "good", tmp_path / name)
        text = "".join(line + "\n" for line in changed)
        (tmp_path / name / "metrics.jsonl").write_bytes(text.encode(errors="surrogateescape"))
        found, left_out = groups(tmp_path)
        assert found == {"seal": [0]} and expected in left_out[name]


def test_a_run_of_another_version_is_left_out_and_named(tmp_path):
    pretend_run(tmp_path / "a", BASE, 50)
    other = pretend_run(tmp_path / "b", replace(BASE, seed=1), 50)
    other.config.write_text(other.config.read_text() + "of_tomorrow = 1\n")
    found, left_out = groups(tmp_path)
    assert found == {"seal": [0]} and "unknown setting of_tomorrow" in left_out["b"]


def test_a_line_being_written_is_not_damage_and_nan_is_no_accuracy(tmp_path):
    folder = pretend_run(tmp_path / "a", BASE, 50)
    *lines, last = folder.metrics.read_text().splitlines(keepends=True)
    folder.metrics.write_text("".join(lines) + last[:30])
    assert len(open_run(folder.path).rows) == 7 and open_run(folder.path).state == "unfinished"
    row = json.loads(last)
    folder.metrics.write_text("".join(lines) + json.dumps(row | {"val_top1": float("nan")}) + "\n")
    run = open_run(folder.path)
    assert run.rows[-1]["val_top1"] is None and run.top1["last"] == json.loads(lines[-1])["val_top1"]
    nothing = [json.dumps(json.loads(line) | {"val_top1": float("nan")}) + "\n" for line in (*lines, last)]
    folder.metrics.write_text("".join(nothing))
    assert groups(tmp_path) == ({"seal": []}, {"a": "never evaluated to a finite accuracy"})


def test_a_path_without_runs_is_refused(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match="holds neither a sweep nor run folders"):
            open_runs([path])


def test_names_that_are_not_utf8_are_safe_to_print(tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/na\xefve"))
    pretend_run(path, BASE, 50)
    assert open_run(path).name == "na\\xefve"


def test_reading_and_grouping_import_no_torch():
    code = "import sys, seal_fast.runs.collection, seal_fast.runs.stats; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
