"""Sweeps by Ray: killed, resumed, retried, stopped early. The trials train nothing (stub_sweep.py)."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

pytest.importorskip("ray", reason="Ray is an optional extra")

import stub_sweep
from stub_sweep import COUNT, DIES, POOR, UNLUCKY, top1

from seal_fast.__main__ import main
from seal_fast.sweep.ledger import Ledger
from seal_fast.sweep.scheduling import connection, tune
from seal_fast.sweep.scheduling.worker import Worker
from seal_fast.utils.errors import RunError

STUB = Path(stub_sweep.__file__)


def start(folder, *arguments):
    command = [sys.executable, str(STUB), str(folder), *map(str, arguments)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, start_new_session=True)


def ended(folder):
    events = [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]
    return [event for event in events if event["state"] in ("finished", "failed", "stopped")]


def wait_for(folder, count, process):
    deadline = time.monotonic() + 300
    while not (folder / "ledger.jsonl").exists() or len(ended(folder)) < count:
        assert time.monotonic() < deadline and process.poll() is None, process.stderr.read().decode()
        time.sleep(0.2)


def remains(folder):
    """Ray's processes of a sweep that still run."""
    running = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in running if str(connection.scratch(folder)) in line]


@pytest.mark.long
def test_of_a_thousand_trials_killed_twice_nothing_is_lost_or_done_twice(tmp_path):
    """SIGKILL of the driver, then SIGTERM; a worker that dies, a trial that fails, some stopped early."""
    for number, count in ((signal.SIGKILL, COUNT // 4), (signal.SIGTERM, COUNT // 2)):
        process = start(tmp_path, COUNT, 2, 1)
        wait_for(tmp_path, count, process)
        if number == signal.SIGKILL:
            process.kill()
        else:  # to Ray's own processes too, as Slurm sends it
            os.killpg(process.pid, number)
        assert process.wait() == (-9 if number == signal.SIGKILL else 128 + number)
        deadline = time.monotonic() + 30
        while remains(tmp_path):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert len(ended(tmp_path)) < COUNT
    process = start(tmp_path, COUNT, 2, 1)
    assert process.wait() == 0, process.stderr.read().decode()

    outcome = {event["trial"]: event for event in ended(tmp_path)}
    assert len(outcome) == len(ended(tmp_path)) == COUNT  # each ended once
    entries = Ledger.open(tmp_path / "ledger.jsonl", outcome).entries
    for i, (name, event) in enumerate(sorted(outcome.items())):
        state, generations = ("stopped", 1) if i >= POOR else ("finished", 3)
        if i == UNLUCKY:
            state, generations = "failed", 0
            assert event["message"] == f"number {i} is unlucky" and event["failures"] == 2
        assert (event["state"], entries[name].values) == (state, [top1(i)] * generations), name
        if generations:  # none trained twice
            assert len((tmp_path / "steps" / name).read_text().splitlines()) == generations, name
    assert entries[f"{DIES:04d}"].failures == 1  # a worker that died took nothing with it
    assert not remains(tmp_path) and not connection.scratch(tmp_path).exists()


@pytest.mark.long
def test_a_sweep_whose_ray_is_killed_says_so_and_goes_on(tmp_path):
    count = 600  # Ray is not missed at once: actors that live go on
    process = start(tmp_path, count, 2)
    wait_for(tmp_path, 20, process)
    found = subprocess.run(["pgrep", "-P", str(process.pid), "raylet"], capture_output=True, text=True, check=True)
    os.kill(int(found.stdout), signal.SIGKILL)
    _, said = process.communicate(timeout=120)
    assert process.returncode == 1 and len(ended(tmp_path)) < count
    last = said.decode().splitlines()[-1]
    assert re.fullmatch(r"error: Ray has lost its process at \S+ \(Connection refused\); continue with --resume", last)
    process = start(tmp_path, count, 2)
    assert process.wait() == 0, process.stderr.read().decode()
    assert sorted(event["trial"] for event in ended(tmp_path)) == [f"{i:04d}" for i in range(count)]
    steps = {path.name: len(path.read_text().splitlines()) for path in (tmp_path / "steps").iterdir()}
    assert steps == {f"{i:04d}": 3 for i in range(count) if i != UNLUCKY}


def test_no_run_is_blamed_for_the_end_of_ray(tmp_path):
    """A worker may have died because Ray did: the ledger is written only after a check that Ray lives."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        session = connection.Session([server.getsockname()])
        session.check_alive()
    ledger = Ledger.open(tmp_path / "ledger.jsonl", ["0"])
    trial = SimpleNamespace(config={"trial": {"name": "0"}}, error_file=None)
    recorder = tune._Recorder(ledger, lambda: None, session.check_alive)
    for event in (recorder.on_trial_recover, recorder.on_trial_error):
        with pytest.raises(
            RunError, match=r"lost its process at 127.0.0.1:\d+ .Connection refused.; continue with --resume"
        ):
            event(0, [], trial)
    assert ledger.left() == ["0"] and ledger.entries["0"].failures == 0
    recorder.check_alive = lambda: None
    recorder.on_trial_error(0, [], trial)
    assert (ledger.entries["0"].state, ledger.entries["0"].failures) == ("failed", 1)


@pytest.mark.parametrize(
    ("code", "message", "final"),
    [
        (1, "the training loss is NaN or infinite", True),
        (2, "--lr -1: no", True),
        (1, "disk full", False),
    ],
)
def test_what_would_fail_again_is_not_tried_again(code, message, final):
    worker = Worker.__new__(Worker)
    worker.begun, worker.reported = True, 0
    worker.process = SimpleNamespace(wait=lambda generation: code, message=lambda: message)
    if final:
        assert worker.step() == {"failed": message, "done": True}
    else:
        with pytest.raises(RunError, match=message):
            worker.step()


def decisions(scheduler, results):
    """What a scheduler says to (trial, generation, value), in order; what it stops says no more."""
    stopped, said = set(), []
    for name, generation, value in results:
        trial = SimpleNamespace(trial_id=name)
        if generation == 1 and name not in scheduler._trial_info:
            scheduler.on_trial_add(None, trial)
        if name not in stopped:
            action = scheduler.on_trial_result(None, trial, {"generation": generation, "val_top1": value})
            said.append((name, generation, action))
            if action == "STOP":
                stopped.add(name)
    return said


def test_early_stopping_has_its_rungs_at_generation_ends_and_goes_on_after_a_kill(tmp_path):
    draw = random.Random(0)
    values = {f"{i:02d}": sorted(draw.uniform(0, 100) for _ in range(9)) for i in range(27)}
    results = [(name, g, value) for name, vs in values.items() for g, value in enumerate(vs, 1)]
    whole = decisions(tune.asha(Ledger(tmp_path / "none"), (1, 3), 9), results)
    stops = [(name, g) for name, g, action in whole if action == "STOP"]
    assert {g for _, g in stops} <= {1, 3, 9} and 9 < len(stops) < 27

    # the first trials end, the sweep is killed in the middle of the next, and its rows are told again
    ledger = Ledger.open(tmp_path / "ledger.jsonl", values)
    first = [said for said in whole if said[0] < "13"]
    for name, generation, action in first:
        ledger.record(name, "running", generation=generation, value=values[name][generation - 1])
        if action == "STOP" or generation == 9:
            ledger.record(name, "stopped" if action == "STOP" else "finished")
    ledger.record("13", "running", generation=1, value=values["13"][0])
    again = decisions(
        tune.asha(Ledger.open(tmp_path / "ledger.jsonl", values), (1, 3), 9), [r for r in results if r[0] >= "13"]
    )
    assert first + again == whole


def test_an_address_at_which_nothing_answers_is_one_sentence(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    with pytest.raises(RunError, match=f"--address 127.0.0.1:{free}: Connection refused; ray start --head there"):
        with connection.connected(tmp_path, f"127.0.0.1:{free}", 1):
            pass


def test_missing_ray_is_one_sentence_and_import_does_without(tmp_path, monkeypatch, capsys):
    space = tmp_path / "space.toml"
    space.write_text('data = "digits"\nlr = { grid = [0.1, 0.2] }\n')
    for name in [name for name in sys.modules if name.startswith("seal_fast.sweep.scheduling")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.delattr("seal_fast.sweep.scheduling")
    monkeypatch.setitem(sys.modules, "ray", None)
    assert main(["sweep", str(space), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "sweeps need Ray Tune" in said and "pip install 'seal-fast[sweep]'" in said
    assert not (tmp_path / "out").exists()
