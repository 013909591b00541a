"""Runs that follow each other in one process are those of processes of their own."""

import json
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
from runs import assert_identical, outcome

from seal_fast.config import Config
from seal_fast.sweep.process import Process, environment, wait_until_free
from seal_fast.train import run

BASE = Config(
    generations=2, epochs=2, ascent_epochs=1, warmup_epochs=1, batch_size=8, eval_every=1, stem="small", width=0.125,
    dtype="float64", method="seal",
)  # fmt: skip


@pytest.fixture
def trial(image_folder, tmp_path):
    """Starts a trial by its name, in the process of an earlier one if that is given; ends the last one's."""
    begun = []

    def start(name, config=BASE, server=None):
        config = replace(config, data=str(image_folder))
        begun.append(Process(tmp_path / name, config, 1, tmp_path / "shared", server=server))
        return begun[-1]

    yield start
    begun[-1].server.end()


def await_rows(process, count):
    deadline = time.monotonic() + 120
    while len(process.folder.rows()) < count:
        assert time.monotonic() < deadline and process._poll(0) is None, process.message()
        time.sleep(0.02)


def alone(process, out):
    """The same run in this process."""
    from seal_fast.config import load

    run(replace(load(process.folder.config, Config()), out=out))
    return outcome(out)


def test_one_process_trains_run_after_run(trial, tmp_path):
    first = trial("first")
    assert first.join() == 0
    pid = first.server.process.pid
    other = replace(BASE, method="llf", layer_threshold="layer2", seed=1)
    second = trial("second", other, first.stop())
    assert second.join() == 0 and second.server.process.pid == pid
    longer = replace(BASE, generations=1, epochs=12, seed=2)
    third = trial("third", longer, second.stop())
    await_rows(third, 1)
    server = third.stop()  # as a sweep that stops it early
    assert (
        third._poll(0) == 128 + signal.SIGTERM and server.process.pid == pid and wait_until_free(tmp_path / "third", 0)
    )
    again = trial("third", longer, server)
    assert again.join() == 0 and again.server.process.pid == pid
    for process in (first, second):
        name = process.folder.path.name
        assert_identical(outcome(process.folder.path), alone(process, tmp_path / f"{name} alone"))
        said = (process.folder.path / "output.log").read_text()
        assert said.count("best val top-1") == 1 and str(process.folder.path) in said
    assert (
        again.folder.rows()[-1]["epoch"] == 11
        and "stopped by SIGTERM" in (again.folder.path / "output.log").read_text()
    )

    broken = trial("broken", replace(BASE, lr=1e300), again.stop())  # fails, and ends the process
    assert broken.join() == 1 and broken.message().startswith("the training loss is NaN or infinite")
    assert broken.stop() is None and again.server.process.wait() == 1


def test_another_shape_and_a_killed_process_begin_anew(trial):
    first = trial("first")
    server = first.server
    server.process.kill()  # while it imports
    assert first.join() == -signal.SIGKILL and first.stop() is None
    second = trial("second", BASE, server)
    assert second.server is not server
    third = trial("third", replace(BASE, batch_size=4), second.server)
    assert second.server.process.returncode is not None and third.server.process.poll() is None


@pytest.mark.long
def test_compiled_runs_share_their_graphs_and_keep_their_bits(trial, tmp_path):
    compiled = replace(BASE, dtype="float32", amp=True, compile=True)
    first = trial("first", compiled)
    assert first.join() == 0
    second = trial("second", replace(compiled, layer_threshold="layer2", seed=1), first.stop())
    assert second.join() == 0 and second.server is first.server
    graphs = [json.loads((tmp_path / name / "summary.json").read_text())["graphs"] for name in ("first", "second")]
    assert graphs == [2, 0]
    for process in (first, second):
        out = tmp_path / f"{process.folder.path.name} alone"
        out.mkdir()
        (out / "config.toml").write_text((process.folder.path / "config.toml").read_text())
        command = [sys.executable, "-m", "seal_fast.train", "--out", str(out), "--threads", "1"]
        subprocess.run(command, check=True, env=environment(tmp_path / "shared", 1), stdout=subprocess.DEVNULL)
        assert_identical(outcome(process.folder.path), outcome(out))
