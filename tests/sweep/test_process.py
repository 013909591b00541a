"""One attempt of a trial: an ordinary run, whatever ends the process that watches it."""

import signal
import subprocess
import sys
import time

import pytest

from seal_fast.runs.folder import RunFolder
from seal_fast.sweep.process import diverged, wait_until_free
from seal_fast.training import checkpoint
from seal_fast.utils.errors import last_message

WATCH = (
    "import sys; from pathlib import Path; from seal_fast.config import Config\n"
    "from seal_fast.sweep.process import Process\ndata, out = sys.argv[1:]\n"
    "config = Config(data=data, generations=1, epochs=1000, batch_size=8, stem='small', checkpoint_seconds=1e9)\n"
    "Process(Path(out), config, 1, Path(out).parent / 'shared').wait(0)"
)


@pytest.mark.long
def test_when_its_watcher_is_killed_it_writes_its_checkpoint_and_goes(image_folder, tmp_path):
    out = tmp_path / "run"
    watcher = subprocess.Popen([sys.executable, "-c", WATCH, str(image_folder), str(out)])
    deadline = time.monotonic() + 120
    while len(RunFolder(out).rows()) < 2:
        assert time.monotonic() < deadline and watcher.poll() is None
        time.sleep(0.05)
    assert not RunFolder(out).checkpoint.exists() and not wait_until_free(out, 0)
    watcher.send_signal(signal.SIGKILL)
    watcher.wait()
    assert wait_until_free(out, 60)
    at = checkpoint.load(RunFolder(out).checkpoint).position
    assert (at.generation, at.epoch) >= (0, 2) and "stopped by SIGTERM" in last_message(out / "output.log")


def test_a_diverged_run_is_final_and_other_failures_are_not():
    """The trainer's own sentence about a diverged run is tried in test_sweep_command.py."""
    for message in ("the weights are not finite", "the training loss is NaN or infinite"):
        assert diverged(message)
    for message in ("out of memory", "signal SIGKILL: g0 e000", "an image of information is damaged"):
        assert not diverged(message)
