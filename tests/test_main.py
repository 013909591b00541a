import argparse
import errno
import importlib
import json
import logging
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from seal_fast import train
from seal_fast.__main__ import COMMANDS, main
from seal_fast.config import Config
from seal_fast.runs import logger
from seal_fast.runs.folder import RunFolder
from seal_fast.runs.logger import to_terminal


def test_timeline_prints_the_phases(capsys):
    assert main("timeline --method seal --epochs 160 --generations 2".split()) == 0
    text = capsys.readouterr().out
    assert "g1 epochs 0-39 ascent: early ascends (lr up to 0.001, weight decay 0)" in text


def test_presets_are_listed(capsys):
    assert main(["presets"]) == 0
    assert "tiny-imagenet-seal: model resnet50" in capsys.readouterr().out


def test_unknown_command_and_usage_error_exit_2(capsys):
    assert main(["tarin"]) == 2
    assert "choose one of " + ", ".join(COMMANDS) in capsys.readouterr().err
    assert main(["timeline", "--preset", "nothing"]) == 2
    assert "error: --preset nothing" in capsys.readouterr().err
    assert main([]) == 2 and main(["--help"]) == 0


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - {"train", "timeline"}))
def test_help_tells_every_default(command, monkeypatch):
    seen = []

    def look(parser, *_):
        seen.append(parser)
        raise SystemExit

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", look)
    with pytest.raises(SystemExit):
        main([command])
    for action in seen[0]._actions:
        assert action.help, action.dest
        told = isinstance(action.default, bool) or action.default in (None, [], argparse.SUPPRESS)
        assert told or "default: " in action.help, action.dest


@pytest.mark.parametrize("command", ["timeline", "train"])
def test_help_of_the_settings(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "300")
    with pytest.raises(SystemExit) as end:
        main([command, "--help"])
    text = capsys.readouterr().out
    assert end.value.code == 0 and text.startswith(f"usage: python -m seal_fast{' .'[command == 'train']}{command}")
    assert COMMANDS[command][1].split(" (")[0].removesuffix(".") in text and "None" not in text
    assert "--image-size INT" in text and "densenet121, densenet169" in text and "(default: cosine)" in text


def test_help_ends_quietly_when_its_reader_has():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "seal_fast.train", "--help"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 0 and not done.stderr


def test_a_whole_run_from_the_command_line(image_folder, tmp_path):
    out = tmp_path / "run"
    flags = "--generations 2 --epochs 2 --batch-size 8 --image-size 16 --profile --no-shuffle --limit-train 12"
    command = [sys.executable, "-m", "seal_fast", "train", "--data", str(image_folder), "--out", str(out)]
    done = subprocess.run([*command, *flags.split()], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "early conv1 to layer2.1.bn2" in done.stdout and "best val top-1" in done.stdout
    summary = json.loads((out / "summary.json").read_text())
    assert summary["finished"] and summary["environment"]["compute"] == "float32"
    assert summary["generations"][0]["phases"][0]["images_per_s"] > 0
    # the configuration it wrote runs again as it is
    assert main(["train", "--config", str(out / "config.toml"), "--out", str(tmp_path / "2")]) == 0

    # TensorBoard finds the scalars, and its profiler plugin the trace
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert {"train/loss", "val/top1", "lr/early", "run/images_per_s"} <= set(events.Tags()["scalars"])
    assert [e.step for e in events.Scalars("train/loss")] == [1, 2, 3, 4]
    from torch_tb_profiler.io.cache import Cache
    from torch_tb_profiler.profiler.loader import RunLoader

    assert list((out / "profile").glob("*.pt.trace.json"))
    assert RunLoader("profile", str(out / "profile"), Cache()).load().profiles


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--layer-threshold", "layer9"], "--layer-threshold layer9: the model has no such layer"),
        (["--device", "cuda"], "--device cuda: this machine has no CUDA device"),
        (["--init-weights", "missing.safetensors"], "missing.safetensors"),
    ],
)
def test_wrong_settings_end_in_one_sentence(flags, message, image_folder, tmp_path, capsys):
    from seal_fast.train import main as train

    code = train(["--data", str(image_folder), "--batch-size", "8", "--out", str(tmp_path / "run"), *flags])
    errors = capsys.readouterr().err
    assert code == 2 and message in errors and errors.count("\n") == 1


def test_weights_and_biases_offline(image_folder, tmp_path, small_network, monkeypatch):
    pytest.importorskip("wandb", reason="Weights & Biases is an optional extra")
    from seal_fast.config import Config
    from seal_fast.train import run

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    out = tmp_path / "run"
    run(Config(data=str(image_folder), out=out, generations=1, epochs=2, batch_size=8, wandb=True))
    assert list(out.glob("wandb/offline-run-*/*.wandb"))


def test_runs_of_one_name_are_runs_of_their_own_to_weights_and_biases(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setitem(sys.modules, "wandb", SimpleNamespace(init=lambda **settings: asked.append(settings)))
    for place in ("a", "b", "a"):
        logger._wandb(RunFolder(tmp_path / place / "run"), Config())
    assert [settings["name"] for settings in asked] == ["run"] * 3
    assert asked[0]["id"] == asked[2]["id"] != asked[1]["id"]


@pytest.mark.parametrize("program", [train.main, lambda argv: main(["presets", *argv])], ids=["train", "command"])
def test_what_the_machine_refuses_ends_in_one_sentence(program, monkeypatch, capsys):
    def refused(*_):
        raise OSError(errno.EMFILE, "x", "/a/b")

    monkeypatch.setattr(train, "run", refused)
    monkeypatch.setitem(COMMANDS, "presets", (refused, ""))
    assert program([]) == 1
    assert capsys.readouterr().err == "error: /a/b: Too many open files: raise the limit on open files (ulimit -n)\n"


def test_training_and_the_logger_outlive_their_terminal(image_folder, tmp_path, shallow_network, monkeypatch):
    def train_shortly():
        flags = "--generations 1 --epochs 1 --ascent-epochs 0 --batch-size 8 --keep none".split()
        return train.main(["--data", str(image_folder), "--out", str(tmp_path / "run"), *flags])

    to_terminal()
    for speak in (lambda: logging.getLogger("seal_fast").info("x"), train_shortly):
        with open("/dev/full", "w") as full:
            monkeypatch.setattr(sys, "stdout", full)
            assert not speak()


def test_a_user_without_a_home_trains(image_folder, tmp_path, small_network, monkeypatch):
    """As in a container: no HOME, and a user id without an entry in the list of users."""
    from seal_fast.config import Config
    from seal_fast.sweep import scheduling
    from seal_fast.train import run

    def missing(_uid):
        raise KeyError("getpwuid(): uid not found")

    monkeypatch.setattr("pwd.getpwuid", missing)
    for name in ("HOME", "XDG_CACHE_HOME", "USER", "LOGNAME", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(RuntimeError):
        Path.home()
    importlib.reload(scheduling)
    out = tmp_path / "run"
    config = Config(data=str(image_folder), out=out, generations=1, epochs=1, ascent_epochs=0, batch_size=8)
    assert run(config)["finished"]


def test_import_is_light():
    """Nothing heavy is imported, and no device touched, before it is needed."""
    code = (
        "import sys, torch, seal_fast.train; heavy = {'nvidia.dali', 'sklearn', 'matplotlib', 'ray', 'wandb', "
        "'tensorboard', 'triton', 'torch._inductor'} & set(sys.modules); assert not heavy, heavy; "
        "assert not torch.cuda.is_initialized()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_corrupt_image_is_named_or_skipped(image_folder, tmp_path, capsys, small_network):
    import shutil

    from seal_fast.train import main as train

    data = tmp_path / "data"
    shutil.copytree(image_folder, data)
    bad = data / "train" / "class1" / "002.png"
    bad.write_bytes(bad.read_bytes()[:200])
    flags = "--generations 1 --epochs 1 --batch-size 8 --stem small --ascent-epochs 0 --threads 1".split()
    assert train(["--data", str(data), "--out", str(tmp_path / "a"), *flags]) == 1
    assert str(bad) in capsys.readouterr().err
    assert train(["--data", str(data), "--out", str(tmp_path / "b"), *flags, "--on-bad-image", "skip"]) == 0
    assert json.loads((tmp_path / "b" / "summary.json").read_text())["skipped_images"] == ["train/class1/002.png"]
    bad.write_bytes(b"")
    assert train(["--data", str(data), "--out", str(tmp_path / "c"), *flags]) == 1
    assert f"{bad} is empty (0 bytes)" in capsys.readouterr().err
    assert train(["--data", str(data), "--out", str(tmp_path / "c"), *flags, "--on-bad-image", "skip"]) == 0
    assert json.loads((tmp_path / "c" / "summary.json").read_text())["skipped_images"] == ["train/class1/002.png"]


def test_initial_weights_are_found_from_any_folder(image_folder, tmp_path, small_network, monkeypatch):
    from seal_fast.config import Config, load
    from seal_fast.train import run

    base = Config(data=str(image_folder), generations=1, epochs=1, ascent_epochs=0, batch_size=8)
    run(replace(base, out=tmp_path / "first"))
    monkeypatch.chdir(tmp_path)
    run(replace(base, out=Path("second"), init_weights=Path("first/weights/last.safetensors")))
    written = load(tmp_path / "second" / "config.toml", Config())
    assert written.init_weights == (tmp_path / "first/weights/last.safetensors").resolve()
