"""`python -m seal_fast sweep` as a user types it."""

import contextlib
import csv
import json
import os
import re
import shlex
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from pretend import pretend_rows, pretend_run
from safetensors.torch import load_file

from seal_fast.__main__ import main
from seal_fast.config import Config, load
from seal_fast.runs.folder import RunFolder
from seal_fast.sweep import command, estimate, plan
from seal_fast.sweep import space as spaces
from seal_fast.sweep.folder import SweepFolder
from seal_fast.sweep.ledger import Ledger
from seal_fast.sweep.process import wait_until_free
from seal_fast.train import run
from seal_fast.utils import cpus

SPACE = """
data = "{data}"
generations = 2
epochs = 2
ascent_epochs = 1
warmup_epochs = 0
batch_size = 8
stem = "small"
width = 0.125
eval_every = 1
method = {{ grid = ["seal", "restart"] }}
"""


@pytest.fixture
def space(image_folder, tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(SPACE.format(data=image_folder))
    return path


@pytest.fixture
def known_speed(monkeypatch):
    """100 images a second and 10 s to start, without the short runs that measure it."""
    monkeypatch.setattr(estimate, "measure", lambda *_: estimate.Speed(100.0, 10.0, 0.0))


def test_speed_is_measured_on_data_whose_path_is_not_utf8(tmp_path, monkeypatch):
    data = os.fsdecode(b"/images-\xff")

    def trained(command, **_):
        folder = RunFolder(Path(command[command.index("--out") + 1]))
        config = load(folder.config, Config())
        assert config.data == data
        for row in pretend_rows(config, 50.0):
            folder.append(row)
        return subprocess.CompletedProcess(command, 0)

    monkeypatch.setattr(subprocess, "run", trained)
    trial = plan.Trial("0000", {}, Config(data=data, batch_size=8))
    assert estimate.measure(trial, 100, 1, tmp_path).rate > 0


def test_a_dry_run_prints_the_runs_and_predicts_the_hours(space, tmp_path, capsys):
    assert main(["sweep", str(space), "--out", str(tmp_path / "out"), "--seeds", "2", "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "0003-method=restart,seed=1" in text and "4 runs, 16 epochs" in text
    hours = float(text.split("predicted: ")[1].split()[0])
    starting = float(re.search(r"and (\d+) s to start", text)[1])
    assert starting >= 1 and hours >= 0.99 * (starting - 1) / 3600  # every later run finds a process that is warm
    assert not (tmp_path / "out").exists()


def test_a_containers_quota_bounds_the_runs_at_a_time(space, tmp_path, capsys, monkeypatch, known_speed):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)))
    monkeypatch.setattr(cpus, "cpu_quota", lambda: 3.0)
    assert main(["sweep", str(space), "--out", str(tmp_path / "out"), "--dry-run"]) == 0
    text = capsys.readouterr().out
    assert "3 at a time, 1 thread each" in text
    # 4 epochs of 20 images, evaluations of 12 at a third of the price: 0.96 s, and 10 s to start
    assert f"predicted: {10.96 / 3600:.2g} hours, from 100 images/s and 10 s to start" in text


def test_a_sweep_outlives_its_terminal(space, tmp_path, monkeypatch, known_speed):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr("sys.stdout", full)
        assert main(["sweep", str(space), "--out", str(tmp_path / "out"), "--dry-run"]) == 0


@pytest.mark.parametrize(
    ("extra", "flags", "message"),
    [
        ("", ["--seeds", "0"], "--seeds 0: must be at least 1"),
        ("", ["--retry-failed"], "--retry-failed: only with --resume"),
        ("layer_threshold = { grid = ['layer2', 'layer9'] }", [], "layer9: the model has no such layer"),
        ("device = 'cuda'", [], "this machine has no CUDA device"),
        ("init_weights = 'missing.safetensors'", [], "missing.safetensors: no such file"),
        ("limit_train = 4", [], "--batch-size 8 is larger than the training set of 4 images"),
        ("lr = { uniform = [0.1, 0.2] }", ["--search", "grid"], "--search grid"),
    ],
)
def test_what_cannot_run_is_refused_before_anything_starts(space, tmp_path, capsys, extra, flags, message):
    space.write_text(space.read_text() + extra)
    pytest.importorskip("ray", reason="Ray is an optional extra")
    assert main(["sweep", str(space), "--out", str(tmp_path / "new" / "out"), *flags]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1
    assert not (tmp_path / "new").exists()


def test_resume_of_nothing_and_without_a_space_are_refused(space, tmp_path, capsys):
    pytest.importorskip("ray", reason="Ray is an optional extra")
    assert main(["sweep", "--out", str(tmp_path / "out")]) == 2
    assert main(["sweep", "--out", str(tmp_path / "out"), "--resume"]) == 2
    assert "holds no sweep" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_resume_with_another_space_is_refused(space, tmp_path, capsys):
    folder = SweepFolder(tmp_path / "out")
    made = plan.make(spaces.read(space), search="grid", samples=1, seeds=None)
    folder.write_plan(made, search="grid")
    space.write_text(space.read_text() + "lr = 0.2\n")
    assert main(["sweep", str(space), "--out", str(folder.path), "--resume"]) == 2
    assert "makes other runs than the sweep" in capsys.readouterr().err
    assert main(["sweep", str(space), "--out", str(folder.path)]) == 2
    assert "holds a sweep already; continue it with --resume" in capsys.readouterr().err


def test_more_generations_in_the_space_make_the_finished_runs_wait_again(
    space, tmp_path, capsys, monkeypatch, known_speed
):
    folder = SweepFolder(tmp_path / "out")
    trials = {t.name: t for t in plan.make(spaces.read(space), search="grid", samples=1, seeds=None).trials}
    folder.write_plan(plan.Plan(tuple(trials.values())), search="grid", samples=1)
    ledger = Ledger.open(folder.ledger, trials)
    for name in trials:
        ledger.record(name, "finished")
        pretend_run(folder.trials / name, trials[name].config, 60)
    flags = ["sweep", str(space), "--out", str(folder.path), "--resume"]
    assert main([*flags, "--dry-run"]) == 0
    assert "\n0 runs left, 0 epochs; " in capsys.readouterr().out
    space.write_text(space.read_text().replace("generations = 2", "generations = 5"))
    assert main([*flags, "--dry-run"]) == 0
    assert "\n2 runs left, 12 epochs; " in capsys.readouterr().out  # four of the ten of each are trained
    space.write_text(space.read_text().replace("generations = 5", "generations = 1"))
    assert main([*flags, "--dry-run"]) == 2
    assert "makes other runs than the sweep" in capsys.readouterr().err
    space.write_text(space.read_text().replace("generations = 1", "generations = 5").replace('"restart"', '"long"'))
    assert main(flags) == 2
    assert "makes other runs than the sweep" in capsys.readouterr().err


def rows(folder):
    times = {"images_per_s", "seconds", "input_wait_seconds", "compile_seconds"}
    return [{k: v for k, v in row.items() if k not in times} for row in RunFolder(folder).rows()]


def test_sharing_a_gpu_without_one_is_refused(space, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    flags = [str(space), "--out", str(tmp_path / "out"), "--per-gpu", "3"]
    assert main(["sweep", *flags]) == main(["sweep", *flags, "--dry-run"]) == 2
    said = "error: --per-gpu 3: this machine has no GPU that torch sees; say --concurrent 3 instead\n"
    assert capsys.readouterr().err.endswith(said)
    assert not (tmp_path / "out").exists()
    space.write_text(space.read_text() + 'device = "cpu"\n')
    assert main(["sweep", *flags]) == 2 and "every run has device = cpu" in capsys.readouterr().err


def test_a_dry_resume_lists_what_is_left(space, tmp_path, capsys, known_speed):
    folder = SweepFolder(tmp_path / "out")
    trials = {t.name: t for t in plan.make(spaces.read(space), search="grid", samples=1, seeds=2).trials}
    folder.write_plan(plan.Plan(tuple(trials.values())), search="grid", samples=1, threads=1)
    ledger = Ledger.open(folder.ledger, trials)
    names = list(trials)
    ledger.record(names[0], "finished")
    ledger.record(names[1], "failed", failures=3, message="out of memory")
    ledger.record(names[3], "running")
    pretend_run(folder.trials / names[3], trials[names[3]].config, 60, generations=1)
    before = {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}
    flags = ["sweep", "--out", str(folder.path), "--resume", "--dry-run"]
    assert main(flags) == 0
    text = capsys.readouterr().out
    assert [line.split()[0] for line in text.splitlines() if line.startswith("000")] == [names[3], names[2]]
    assert "2 runs left, 6 epochs; " in text and "1 thread each" in text  # two of the interrupted run's four are done
    assert main([*flags, "--retry-failed"]) == 0
    assert "3 runs left, 10 epochs; " in capsys.readouterr().out
    assert before == {path: path.read_bytes() for path in folder.path.rglob("*") if path.is_file()}


def test_a_printed_command_is_quoted_for_the_shell(tmp_path, capsys):
    assert command._conclude(SweepFolder(Path("my runs")), Ledger(tmp_path)) == 0
    assert "python -m seal_fast report 'my runs'\n" in capsys.readouterr().out


@pytest.mark.parametrize("given", [[], ["--concurrent", "3", "--per-gpu", "2", "--address", "a:1", "--retries", "0"]])
def test_a_stopped_sweep_prints_the_command_that_continues_it(space, tmp_path, capsys, monkeypatch, given):
    pytest.importorskip("ray", reason="Ray is an optional extra")
    from seal_fast.sweep.scheduling import connection, tune

    def stop(*_, **__):
        raise tune.Stopped(signal.SIGTERM)

    session = connection.Session([], [{"CPU": 4.0, "GPU": 2.0}])
    monkeypatch.setattr(connection, "connected", lambda *_: contextlib.nullcontext(session))
    monkeypatch.setattr(tune, "run", stop)
    out = tmp_path / "my runs"
    assert main(["sweep", str(space), "--out", str(out), "--threads", "1", *given]) == 128 + signal.SIGTERM
    said = capsys.readouterr().err.strip()
    start = "stopped by SIGTERM; continue with: "
    assert said.startswith(start)
    again = shlex.split(said.removeprefix(start))
    assert again == ["python", "-m", "seal_fast", "sweep", "--out", str(out), "--resume", *given]
    assert main(again[3:]) == 128 + signal.SIGTERM and capsys.readouterr().err.strip() == said
    assert SweepFolder(out).read_plan()[1]["threads"] == 1


def test_every_file_is_utf8_and_the_terminal_need_not_be(space, tmp_path):
    """Names in other letters, no module that opens text in the locale's encoding, and an ASCII terminal."""
    out = tmp_path / "größe"
    space.write_text(space.read_text() + "# größer\n", encoding="utf-8")
    trials = {t.name: t for t in plan.make(spaces.read(space), search="grid", samples=1, seeds=None).trials}
    for name, trial in trials.items():
        pretend_run(out / "trials" / name, trial.config, 60)
    code = (
        "import sys\nfrom seal_fast.sweep import command, results\nfrom seal_fast.sweep.ledger import Ledger\n"
        "def run(flags, folder, made, metadata):\n"
        "    folder.write_plan(made, **metadata)\n"
        "    trials, _ = folder.read_plan()\n"
        "    ledger = Ledger.open(folder.ledger, trials)\n"
        "    for name in trials: ledger.record(name, 'finished')\n"
        "    ledger = Ledger.open(folder.ledger, trials)\n"
        "    command.Display(folder, trials, ledger).stop()\n"
        "    results.write(folder, trials, ledger)\n"
        "    return command._conclude(folder, ledger)\n"
        "command._run = run\nfrom seal_fast.__main__ import main\nspace, out = sys.argv[1:]\n"
        "sys.exit(main(['sweep', space, '--out', out]) or main(['report', out]))"
    )
    ascii_only = os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"}
    strict = [sys.executable, "-X", "warn_default_encoding", "-c", code, str(space), str(out)]
    done = subprocess.run(strict, capture_output=True, env=ascii_only)
    assert done.returncode == 0, done.stderr.decode()
    assert not [line for line in done.stderr.splitlines() if b"/seal_fast/" in line and b"EncodingWarning" in line]
    assert done.stdout.count(b"gr\\xf6\\xdfe") == 3


@pytest.fixture(scope="module")
def real_sweep(image_folder, tmp_path_factory):
    """A run that finishes and one that diverges, trained by Ray; the folder, and what the program printed."""
    pytest.importorskip("ray", reason="Ray is an optional extra")
    folder = tmp_path_factory.mktemp("sweep")
    text = SPACE.format(data=image_folder).replace("method = ", "method = 'seal' #")
    (folder / "space.toml").write_text(text + "lr = { grid = [0.1, 1e30] }\n")
    command = [sys.executable, "-m", "seal_fast", "sweep", str(folder / "space.toml"), "--out", str(folder / "out")]
    return folder / "out", subprocess.run([*command, "--threads", "1"], capture_output=True, text=True)


def test_a_sweep_trains_its_runs_and_writes_their_results(real_sweep):
    out, done = real_sweep
    assert done.returncode == 1, done.stderr  # one has failed
    names = ["0000-lr=0.1", "0001-lr=1e+30"]
    assert sorted(path.name for path in (out / "trials").iterdir()) == names
    good, bad = json.loads((out / "results.json").read_text())
    assert [good[key] for key in ("trial", "state", "lr", "epochs", "failures")] == [names[0], "finished", 0.1, 4, 0]
    assert [bad[key] for key in ("trial", "state", "lr", "failures")] == [names[1], "failed", 1e30, 1]
    assert "is NaN or infinite" in bad["message"]
    assert good["best_top1"] == max(row["val_top1"] for row in rows(out / "trials" / names[0]))
    assert load(out / "trials" / names[0] / "config.toml", Config()).threads == 1
    lines = done.stdout.splitlines()
    assert lines[0] == f"2 of 2 runs to do, {min(8, cpus.cpu_count())} at a time, 1 thread each; {out}"
    best = f"best val top-1 {good['best_top1']:.2f} % ({names[0]})"
    assert lines[-2] == f"2 runs: 1 finished, 1 failed; {best}" and lines[-1].startswith("written: results.csv")
    assert f"failed after 1 attempts: {names[1]}: " in done.stderr
    assert not (out / "shared").exists() and not (out / ".ray").exists()


def test_a_report_of_a_sweep_shows_its_runs_and_names_the_failed_one(real_sweep):
    out, _ = real_sweep
    assert main(["report", str(out)]) == 0
    shown = json.loads((out / "report.json").read_text())
    assert {group["label"]: group["seeds"] for group in shown["groups"]} == {"lr 0.1": [0], "lr 1e+30": []}
    assert ["0001-lr=1e+30"] == [Path(name).name for name, why in shown["left_out"] if "NaN" in why]


@pytest.mark.long
def test_a_sweep_killed_and_resumed_trains_what_the_trainer_trains(space, tmp_path):
    """SIGKILL of the driver in the middle; every run is an ordinary one, to the bit."""
    pytest.importorskip("ray", reason="Ray is an optional extra")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "seal_fast", "sweep", "--out", str(out), "--concurrent", "2", "--threads", "1"]
    process = subprocess.Popen([*command, str(space)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(RunFolder(p).rows() for p in (out / "trials").glob("*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()

    done = subprocess.run([*command, "--resume"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 finished; best val top-1" in done.stdout

    names = ["0000-method=seal", "0001-method=restart"]
    assert sorted(p.name for p in (out / "trials").iterdir()) == names
    found = json.loads((out / "results.json").read_text())
    assert [(row["trial"], row["state"], row["method"], row["epochs"]) for row in found] == [
        (names[0], "finished", "seal", 4), (names[1], "finished", "restart", 4),
    ]  # fmt: skip
    with (out / "results.csv").open() as file:
        assert [row["trial"] for row in csv.DictReader(file)] == names
    for row in found:
        assert row["best_top1"] == max(r["val_top1"] for r in rows(out / "trials" / row["trial"]))
    assert not (out / "shared").exists() and not (out / ".ray").exists()

    # the run folder's configuration alone makes the same run
    trial, alone = out / "trials" / names[0], tmp_path / "alone"
    assert load(trial / "config.toml", Config()).threads == 1
    threads = torch.get_num_threads()
    run(replace(load(trial / "config.toml", Config()), out=alone))
    torch.set_num_threads(threads)
    assert rows(alone) == rows(trial)
    one, two = (load_file(p / "weights" / "last.safetensors") for p in (alone, trial))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)

    assert main(["report", str(out)]) == 0 and Path(out / "report.html").stat().st_size > 10_000

    # finished runs go on for more generations
    space.write_text(space.read_text().replace("generations = 2", "generations = 3"))
    done = subprocess.run([*command, str(space), "--resume"], capture_output=True, text=True)
    assert done.returncode == 0 and "2 of 2 runs to do" in done.stdout, done.stderr
    run(replace(load(trial / "config.toml", Config()), out=alone))
    torch.set_num_threads(threads)
    assert len(rows(alone)) == 6 and rows(alone) == rows(trial)


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_trainers_of_a_stopped_sweep_write_their_checkpoints(space, tmp_path, number):
    pytest.importorskip("ray", reason="Ray is an optional extra")
    space.write_text(space.read_text().replace("epochs = 2\nascent", "epochs = 5000\nascent"))
    out = tmp_path / "out"
    command = [sys.executable, "-m", "seal_fast", "sweep", str(space), "--out", str(out), "--concurrent", "1"]
    process = subprocess.Popen([*command, "--threads", "1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not any(RunFolder(p).rows() for p in (out / "trials").glob("*")):
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.05)
    process.send_signal(number)
    assert process.wait() == (-9 if number == signal.SIGKILL else 128 + number)
    trial = out / "trials" / "0000-method=seal"
    assert wait_until_free(trial, 60)
    assert "the checkpoint is written" in (trial / "output.log").read_text()
    assert list((trial / "checkpoint").iterdir())


@pytest.mark.long
def test_a_sweep_runs_on_a_cluster_that_ray_start_has_started(space, tmp_path):
    pytest.importorskip("ray", reason="Ray is an optional extra")
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    flags = f"start --head --port={port} --num-cpus=2 --include-dashboard=false --block --temp-dir".split()
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as place:  # short, for its sockets
        command = [sys.executable, "-m", "ray.scripts.scripts", *flags, place]
        head = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline = time.monotonic() + 60
            while socket.socket().connect_ex(("127.0.0.1", port)):
                assert time.monotonic() < deadline and head.poll() is None
                time.sleep(0.2)
            sweep = [sys.executable, "-m", "seal_fast", "sweep", str(space), "--out", str(tmp_path / "out")]
            done = subprocess.run([*sweep, "--address", f"127.0.0.1:{port}"], capture_output=True, text=True)
        finally:
            head.terminate()
            head.wait()
    assert done.returncode == 0, done.stderr
    assert "2 runs to do, 2 at a time, 1 thread each" in done.stdout and "2 runs: 2 finished" in done.stdout
    assert [len(rows(p)) for p in sorted((tmp_path / "out" / "trials").iterdir())] == [4, 4]
