import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from image_folders import write_images
from runs import BASE, Killed, assert_identical, die_at, outcome, trainer_of

from seal_fast.config import Config, load
from seal_fast.runs.folder import RunFolder
from seal_fast.train import main, run
from seal_fast.training import checkpoint
from seal_fast.utils.errors import RunError, UsageError


def broken_off(config, monkeypatch, steps, error=Killed, between=False):
    """Run to an error again and again, each time so many steps further; the positions of the checkpoints left."""
    positions = []
    for step in steps:
        with monkeypatch.context() as patch:
            die_at(patch, step, error, between)
            with pytest.raises(error):
                run(config)
        positions.append(checkpoint.load(RunFolder(config.out).checkpoint).position)
    return positions


@pytest.fixture(scope="module")
def kept(tmp_path_factory):
    """What uninterrupted runs came to, and a folder for them."""
    return {"folder": tmp_path_factory.mktemp("whole")}


def whole(config, kept, name):
    if name not in kept:
        run(replace(config, out=kept["folder"] / name))
        kept[name] = outcome(kept["folder"] / name)
    return kept[name]


# In step 1, in 12, the switch to descent, and in 18, the start of a generation, with a checkpoint after every step; in
# 9, the start of an ascent, and in 26, the last step, with one at the generations' ends.
@pytest.mark.parametrize(("further", "often"), [((1, 11, 6), 0.0), ((9, 17), 1e9)])
def test_a_kill_changes_nothing(further, often, image_folder, tmp_path, monkeypatch, shallow_network, kept):
    config = replace(BASE, method="seal+llf", data=str(image_folder), keep="ascents", checkpoint_seconds=often)
    expected, config = whole(config, kept, "seal+llf"), replace(config, out=tmp_path / "run")
    broken_off(config, monkeypatch, further)
    run(config)
    assert_identical(expected, outcome(config.out))


# Of each kind of state and of operator one that is wrong when done twice: 6 steps a generation, so the entries of
# later phases come before step 6 or, of one whole run, in its middle.
KINDS = {
    "shrink-perturb": dict(),
    "hare-tortoise": dict(option="decay=0.9,every=2"),  # an average
    "imp": dict(),  # a snapshot, held weights
    "born-again": dict(),  # a teacher
    "swa": dict(option="start=0.5"),  # an average of epochs
    "ac-dc": dict(option="warm=2,sparse=1,dense=1"),
    "dash": dict(),  # scores
    "asam": dict(),
}


@pytest.mark.parametrize("method", KINDS)
def test_what_is_entered_is_not_entered_again(method, image_folder, tmp_path, monkeypatch, shallow_network, kept):
    """Interrupted after the entry and before the first step, and again after that step; the state is saved there."""
    config = replace(BASE, data=str(image_folder), generations=2, epochs=2, eval_every=100, stem="small")
    config = replace(config, method=method, **KINDS[method])
    expected, config = whole(config, kept, method), replace(config, out=tmp_path / "run")
    positions = broken_off(config, monkeypatch, (6, 1), ZeroDivisionError, between=True)
    assert [position.step for position in positions] == [0, 1]
    run(config)
    assert_identical(expected, outcome(config.out))


def test_a_run_whose_timeline_has_changed_is_refused(image_folder, tmp_path, shallow_network):
    config = replace(BASE, data=str(image_folder), out=tmp_path / "run", generations=1, epochs=1, ascent_epochs=0)
    config = replace(config, warmup_epochs=0)
    run(config)
    folder = RunFolder(config.out)
    folder.timeline.write_text(folder.timeline.read_text().replace("lr = 0.1", "lr = 0.2"))
    with pytest.raises(UsageError, match="--method seal: not the timeline that the run in"):
        run(config)


@pytest.mark.parametrize("method", ["seal+llf", "born-again"])
def test_a_finished_run_goes_on_for_more_generations(method, image_folder, tmp_path, shallow_network, kept, capsys):
    """The same bits as a run that was long from the start; fewer generations than are trained are refused."""
    config = replace(BASE, data=str(image_folder), generations=3, epochs=2, eval_every=100, stem="small")
    config = replace(config, method=method)
    expected, config = whole(config, kept, f"{method} of 3"), replace(config, out=tmp_path / "run")
    run(replace(config, generations=2))
    assert main(["--out", str(config.out), "--generations", "3"]) == 0
    assert_identical(expected, outcome(config.out))
    here, there = RunFolder(config.out), RunFolder(kept["folder"] / f"{method} of 3")
    assert load(here.config, Config()) == load(there.config, Config())
    assert here.timeline.read_text() == there.timeline.read_text()
    assert main(["--out", str(config.out)]) == 0  # finished
    assert main(["--out", str(config.out), "--generations", "2"]) == 2
    assert "holds a run with other settings (--generations: 3 -> 2)" in capsys.readouterr().err


def test_more_generations_that_change_those_trained_are_refused(image_folder, tmp_path, shallow_network):
    config = replace(BASE, data=str(image_folder), generations=1, method="long", out=tmp_path / "run")
    run(config)
    before = (config.out / "config.toml").read_text(), (config.out / "timeline.toml").read_text()
    with pytest.raises(UsageError, match="--method long --generations 2: not the timeline that the run in"):
        run(replace(config, generations=2))
    assert before == ((config.out / "config.toml").read_text(), (config.out / "timeline.toml").read_text())


def test_a_file_is_trained_and_continued_from_the_runs_own_copy(image_folder, tmp_path, shallow_network):
    """The same bits as the method that wrote it; then the file is lost and the folder moves."""
    config = replace(BASE, data=str(image_folder), generations=2, epochs=2, stem="small", eval_every=100)
    run(replace(config, method="shrink-perturb", out=tmp_path / "method"))
    file = tmp_path / "mine.toml"
    file.write_text((tmp_path / "method" / "timeline.toml").read_text())
    run(replace(config, timeline=file, out=tmp_path / "file"))
    (first, _, rows, _), (second, _, others, _) = outcome(tmp_path / "method"), outcome(tmp_path / "file")
    assert all(torch.equal(first[f][name], second[f][name]) for f in first for name in first[f])
    assert rows == others and json.loads((tmp_path / "file" / "summary.json").read_text())["method"] == "shrink-perturb"
    assert {"weight_norm_early", "weight_norm_late"} <= rows[2].keys() and "weight_norm_early" not in rows[3]
    file.unlink()
    moved = (tmp_path / "file").rename(tmp_path / "moved")
    assert main(["--out", str(moved)]) == 0


def test_amp_float16_resumes_with_its_scaler(image_folder, tmp_path, monkeypatch, shallow_network):
    config = replace(BASE, data=str(image_folder), amp=True, amp_dtype="float16", generations=2, checkpoint_seconds=0)
    config = replace(config, epochs=2)
    run(replace(config, out=tmp_path / "whole"))
    config = replace(config, out=tmp_path / "run")
    broken_off(config, monkeypatch, [7])
    run(config)
    assert checkpoint.load(RunFolder(tmp_path / "run").checkpoint).plain["scaler"]["_growth_tracker"] > 0
    assert_identical(outcome(tmp_path / "whole"), outcome(tmp_path / "run"))


def start(out, image_folder, *flags):
    command = [sys.executable, "-m", "seal_fast.train", "--data", str(image_folder), "--out", str(out)]
    command += "--width 0.125 --generations 2 --epochs 200 --batch-size 8 --image-size 8 --checkpoint-seconds 0".split()
    return subprocess.Popen([*command, *flags], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def wait_for_rows(out, count):
    deadline = time.monotonic() + 120
    while len(RunFolder(out).rows()) < count:
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_real_signals(image_folder, tmp_path):
    out = tmp_path / "run"
    process = start(out, image_folder)
    wait_for_rows(out, 2)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = len(RunFolder(out).rows())

    process = start(out, image_folder)
    wait_for_rows(out, done + 2)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert f"continue with: python -m seal_fast.train --out {out}" in errors and "Traceback" not in errors
    at = checkpoint.load(RunFolder(out).checkpoint).position
    assert json.loads((out / "summary.json").read_text())["finished"] is False
    assert [(r["generation"], r["epoch"]) for r in RunFolder(out).rows()] == [
        (g, e) for g in range(2) for e in range(200) if (g, e) < (at.generation, at.epoch)
    ]


def test_another_training_is_refused_with_the_difference(image_folder, tmp_path, shallow_network, capsys):
    out = tmp_path / "run"
    config = replace(BASE, data=str(image_folder), out=out, generations=1)
    run(config)
    with pytest.raises(UsageError, match=r"other settings: --lr: 0.1 -> 0.2"):
        run(replace(config, lr=0.2))
    with pytest.raises(UsageError, match="--resume never"):
        run(replace(config, resume="never"))
    with pytest.raises(UsageError, match="--label-smoothing 2.0: must be at least 0 and below 1"):
        run(replace(config, label_smoothing=2.0))
    assert main(["--out", str(out), "--seed", "9"]) == 2
    assert "--seed: 3 -> 9" in capsys.readouterr().err

    other = tmp_path / "other"
    write_images(other / "train", 4, 6, 16, seed=0)
    write_images(other / "val", 4, 3, 16, seed=1)
    with pytest.raises(UsageError, match="not the images that the run"):
        run(replace(config, data=str(other)))
    run(config)  # finished: nothing to do, and nothing lost
    assert len(RunFolder(out).rows()) == 3
    saved = checkpoint.load(RunFolder(out).checkpoint)
    saved.provenance["config"]["of_tomorrow"] = 1  # as a later version may leave it
    header = {"format": checkpoint.FORMAT, "state": json.dumps(saved.plain)}
    checkpoint.save_tensors(RunFolder(out).checkpoint, saved.tensors, header)
    with pytest.raises(UsageError, match="state.safetensors: unknown setting of_tomorrow"):
        run(config)


def test_a_checkpoint_of_another_model_or_a_damaged_one(image_folder, tmp_path, shallow_network):
    out = tmp_path / "run"
    config = replace(BASE, data=str(image_folder), out=out, generations=1)
    run(config)
    path = RunFolder(out).checkpoint
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(RunError, match="damaged"):
        run(config)
    saved_by_others = {"x": torch.zeros(3)}
    checkpoint.save_tensors(path, saved_by_others, {})
    with pytest.raises(RunError, match="not a checkpoint"):
        run(config)


def test_two_processes_do_not_share_a_folder(image_folder, tmp_path, shallow_network):
    with RunFolder(tmp_path / "run").locked(), pytest.raises(UsageError, match="another process is training there"):
        run(replace(BASE, data=str(image_folder), out=tmp_path / "run"))


def test_nan_loss_names_place_and_last_good_checkpoint(image_folder, tmp_path, shallow_network):
    out = tmp_path / "run"
    config = replace(BASE, data=str(image_folder), out=out, warmup_epochs=0, lr=0.05, log_every=1, checkpoint_seconds=0)
    with pytest.raises(RunError) as caught:
        run(replace(config, method="ascend-all", ascent_scale=1e30))
    message = str(caught.value)
    assert "generation 1, epoch 0, ascent phase" in message and "last good checkpoint is" in message
    assert str(RunFolder(out).checkpoint) in message
    saved = checkpoint.load(RunFolder(out).checkpoint)
    assert all(t.isfinite().all() for name, t in saved.tensors.items() if name.startswith("model."))


def test_weights_that_are_not_finite_are_no_checkpoint(image_folder, tmp_path, shallow_network):
    with trainer_of(replace(BASE, data=str(image_folder)), tmp_path / "run") as trainer:
        next(trainer.state.model.parameters()).data.fill_(float("nan"))
        with pytest.raises(RunError, match="the weights are NaN or infinite in generation 0"):
            trainer.checkpoint()
    assert not RunFolder(tmp_path / "run").checkpoint.exists()


def test_an_error_between_steps_costs_no_step(image_folder, tmp_path, shallow_network, monkeypatch):
    """The state of a step that broke off in its middle is not kept: the tests above kill runs there."""
    config = replace(BASE, data=str(image_folder), generations=2)
    run(replace(config, out=tmp_path / "whole"))
    config = replace(config, out=tmp_path / "run")
    places = {KeyboardInterrupt: (1, 1, 1), ZeroDivisionError: (1, 1, 2), OSError: (1, 2, 0)}
    for error, place in places.items():
        further = 13 if error is KeyboardInterrupt else 1
        assert broken_off(config, monkeypatch, [further], error, between=True) == [checkpoint.Position(*place)]
    run(config)
    assert_identical(outcome(tmp_path / "whole"), outcome(config.out))


def test_a_moved_data_set_is_remembered(image_folder, tmp_path, shallow_network):
    config = replace(BASE, data=str(image_folder), out=tmp_path / "run", generations=1)
    run(config)
    moved = shutil.copytree(image_folder, tmp_path / "moved")
    run(replace(config, data=str(moved)))
    assert load(RunFolder(config.out).config, Config()).data == str(moved)
    assert main(["--out", str(config.out)]) == 0  # as config.toml says


def test_a_checkpoint_that_cannot_be_read_is_not_called_damaged(image_folder, tmp_path, shallow_network, monkeypatch):
    path = tmp_path / "state.safetensors"
    checkpoint.save_tensors(path, {"a": torch.zeros(2)}, {"format": checkpoint.FORMAT, "state": "{}"})

    def refuse(*_):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(checkpoint, "read_tensors", refuse)
    with pytest.raises(RunError, match=r"could not be read \(Too many open files\); nothing was changed"):
        checkpoint.load(path)


def test_a_full_disk_leaves_what_was_there(image_folder, tmp_path, shallow_network, monkeypatch):
    out = tmp_path / "run"
    config = replace(BASE, data=str(image_folder), out=out, generations=2)
    from seal_fast.utils import files

    original = os.replace

    def replace_until_full(source, target):
        if str(target).endswith("state.safetensors") and os.path.exists(target):
            raise OSError(errno.ENOSPC, "No space left on device")
        original(source, target)

    monkeypatch.setattr(files.os, "replace", replace_until_full)
    with pytest.raises(RunError, match=r"state.safetensors could not be written \(No space left on device\)"):
        run(config)
    assert checkpoint.load(RunFolder(out).checkpoint).position == checkpoint.Position(1, 0, 0)
    assert not [p for p in (out / "checkpoint").iterdir() if p.suffix == ".tmp"]
