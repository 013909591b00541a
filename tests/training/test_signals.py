import os
import signal
import threading
from dataclasses import replace

import torch
from runs import BASE, assert_identical, outcome

from seal_fast.distributed.world import World
from seal_fast.runs.folder import RunFolder
from seal_fast.train import run
from seal_fast.training import signals
from seal_fast.training.signals import Interrupted, StopFlags, stop_signals


class Others(World):
    """A world of two in which the other process adds what the test wants."""

    other = torch.zeros(9, dtype=torch.float64)

    def sum(self, tensor):
        return tensor + self.other


def test_flags_travel_with_the_counters(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(signals.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(Others, "other", torch.tensor([1, 2, 3, 4, 0, 1, 0, 0, 0], dtype=torch.float64))
    flags = StopFlags(Others(0, 2), 50, 60.0)
    assert not flags.pending() and flags.steps_left == 1
    now[0] += 0.5
    flags.steps_left -= 1
    assert flags.exchange(torch.ones(4, dtype=torch.float64)) == [2, 3, 4, 5]
    assert flags.stop == signal.SIGINT and flags.pending() and not flags.due
    assert flags.steps_left == 10  # half a second a step: five seconds
    monkeypatch.setattr(Others, "other", torch.zeros(9, dtype=torch.float64))
    now[0] += 0.1
    flags.steps_left -= 10
    flags.exchange(torch.zeros(4, dtype=torch.float64))
    assert flags.stop is None and flags.steps_left == 50  # never more than log_every
    now[0] += 61
    flags.steps_left -= 1
    flags.exchange(torch.zeros(4, dtype=torch.float64))
    assert flags.due and flags.steps_left == 1  # a slow step: every one


def test_rank_0_decides_on_checkpoints(monkeypatch):
    for rank, due in ((0, True), (1, False)):
        flags = StopFlags(Others(rank, 2), 50, -1.0)
        flags.exchange(torch.zeros(4, dtype=torch.float64))
        assert flags.due == due


def test_one_process_obeys_at_once():
    flags = StopFlags(World(), 50, 1e9)
    assert not flags.pending() and flags.steps_left == 50
    flags.signal = signal.SIGHUP
    assert flags.pending() and flags.stop == signal.SIGHUP


def test_a_hang_up_stops_unless_it_is_ignored():
    came = []
    with stop_signals(came.append):
        os.kill(os.getpid(), signal.SIGHUP)
    assert came == [signal.SIGHUP]
    old = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_signals(came.append):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, old)
    assert came == [signal.SIGHUP]


def test_the_command_to_continue_is_quoted_for_the_shell(tmp_path):
    error = Interrupted(signal.SIGTERM, signals.Position(), tmp_path / "a run; rm", "mine:net(depth=2)")
    assert str(error).endswith(f"python -m seal_fast.train --out '{tmp_path}/a run; rm' --model 'mine:net(depth=2)'")


def test_a_run_in_a_thread_is_the_same_run(image_folder, tmp_path, shallow_network):
    config = replace(BASE, data=str(image_folder), generations=1, epochs=2)
    run(replace(config, out=tmp_path / "main"))
    errors = []

    def target():
        try:
            run(replace(config, out=tmp_path / "thread"))
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    assert errors == []
    assert_identical(outcome(tmp_path / "main"), outcome(tmp_path / "thread"))
    assert RunFolder(tmp_path / "thread").rows()
