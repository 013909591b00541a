"""The whole way: killed under torchrun, restarted by it, stopped by SIGTERM, and finished by one process."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from runs import assert_close, await_checkpoint

from seal_fast.arguments import parse
from seal_fast.runs.folder import RunFolder
from seal_fast.train import run
from seal_fast.training import checkpoint

FLAGS = (
    "--stem small --generations 2 --epochs 4 --ascent-epochs 1 --warmup-epochs 1 --batch-size 10 --lr 0.001 "
    "--dtype float64 --sync-batchnorm --checkpoint-seconds 0 --eval-every 4 --keep none --dist-timeout 60"
).split()


def worker(launcher: int, rank: int) -> int:
    for pid in Path(f"/proc/{launcher}/task/{launcher}/children").read_text().split():
        if f"LOCAL_RANK={rank}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            return int(pid)
    raise AssertionError(f"torchrun has no process {rank}")


@pytest.mark.long
def test_killed_restarted_stopped_and_finished(image_folder, tmp_path):
    folder = RunFolder(tmp_path / "run")
    flags = [*FLAGS, "--data", str(image_folder), "--out", str(folder.path)]
    command = "-m torch.distributed.run --standalone --nproc-per-node 2 --max-restarts 1 -m seal_fast.train".split()
    with open(tmp_path / "printed", "w") as printed:
        launcher = subprocess.Popen([sys.executable, *command, *flags], stdout=printed, stderr=printed)
    try:
        await_checkpoint(folder.checkpoint)
        os.kill(worker(launcher.pid, 1), signal.SIGKILL)
        text, patience = "", time.monotonic() + 60
        while "continuing from" not in text:
            assert launcher.poll() is None and time.monotonic() < patience, text
            time.sleep(0.05)
            text = (tmp_path / "printed").read_text()
        launcher.send_signal(signal.SIGTERM)
        assert launcher.wait(60) != 0
    finally:
        launcher.kill()
    text = (tmp_path / "printed").read_text()
    position = checkpoint.load(folder.checkpoint).position
    assert text.count("error: another process ended, or did not answer") == 1
    assert text.count("stopped by SIGTERM") == text.count(f"stopped by SIGTERM before {position}") == 1
    assert position.generation < 2

    config = replace(parse(flags), checkpoint_seconds=1e9)
    run(config)
    run(replace(config, out=tmp_path / "whole"))
    assert_close(folder.path, tmp_path / "whole")
