"""MPS by a stand-in for its control program, which notes what it is asked and from where."""

import contextlib
import os
import signal
import subprocess
import sys
import time

import pytest
import torch

from seal_fast.__main__ import main
from seal_fast.sweep import estimate, mps

CONTROL = """#!/bin/sh
pipe=${{CUDA_MPS_PIPE_DIRECTORY:-{root}/default}}
if [ "$1" = -d ]; then
    [ -e {root}/refuse ] && echo no permission && exit 1
    : > $pipe/daemon
    echo "start $pipe $CUDA_VISIBLE_DEVICES" >> {root}/log
else
    read command
    [ -e $pipe/daemon ] || exit 1
    [ $command = quit ] && rm $pipe/daemon && echo "quit $pipe" >> {root}/log
    exit 0
fi
"""


@pytest.fixture
def control(tmp_path, monkeypatch):
    """A folder with `log`, what the program was asked; `refuse` in it lets no daemon start."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "default").mkdir()
    program = tmp_path / "bin" / "nvidia-cuda-mps-control"
    program.write_text(CONTROL.format(root=tmp_path))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    for name in ("CUDA_MPS_PIPE_DIRECTORY", "CUDA_MPS_LOG_DIRECTORY"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def asked(control):
    return (control / "log").read_text().splitlines() if (control / "log").exists() else []


def test_a_daemon_runs_in_a_private_folder_and_is_told_to_quit(control, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    with pytest.raises(ZeroDivisionError), mps.running():
        place = os.environ["CUDA_MPS_PIPE_DIRECTORY"]
        assert asked(control) == [f"start {place} "]  # the daemon numbers the GPUs as its clients do
        assert os.stat(place).st_mode & 0o777 == 0o700 and len(place) < 40
        raise ZeroDivisionError
    assert asked(control)[1:] == [f"quit {place}"]
    assert not os.path.exists(place) and "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert capsys.readouterr().out == "MPS: the sweep runs a daemon of its own for the runs that share a GPU\n"


def test_a_daemon_that_is_there_is_used_and_left(control, capsys):
    (control / "default" / "daemon").touch()
    with mps.running():
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert asked(control) == [] and "the daemon that is running serves" in capsys.readouterr().out


def test_without_mps_the_sweep_goes_on(control, monkeypatch, capsys):
    (control / "refuse").touch()
    with mps.running():
        assert "CUDA_MPS_PIPE_DIRECTORY" not in os.environ
    assert "did not start (no permission), so runs that share a GPU compute in turns\n" in capsys.readouterr().out
    monkeypatch.setenv("PATH", "/nowhere")
    with mps.running():
        pass
    assert capsys.readouterr().out.count("nvidia-cuda-mps-control is not installed") == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
@pytest.mark.parametrize("group", [False, True])
def test_whatever_ends_the_sweep_ends_its_daemon(control, number, group):
    code = "import time; from seal_fast.sweep import mps\nwith mps.running(): time.sleep(60)"
    sweep = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 30
    while not asked(control):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (os.killpg if group else os.kill)(sweep.pid, number)
    sweep.wait()
    while len(asked(control)) < 2:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    (_, place, *_), end = (line.split() for line in asked(control))
    assert end == ["quit", place]
    while os.path.exists(place):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_runs_that_share_a_gpu_have_it_and_others_do_not(control, image_folder, monkeypatch, capsys):
    pytest.importorskip("ray", reason="Ray is an optional extra")
    from seal_fast.sweep.scheduling import connection, tune

    def stop(*_, **__):
        places.append(os.environ.get("CUDA_MPS_PIPE_DIRECTORY"))
        raise tune.Stopped(signal.SIGTERM)

    places = []
    monkeypatch.setattr(tune, "run", stop)
    session = connection.Session([], [{"CPU": 4.0, "GPU": 1.0}])
    monkeypatch.setattr(connection, "connected", lambda *_: contextlib.nullcontext(session))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(estimate, "measure", lambda *_: estimate.Speed(100.0, 10.0, 0.0))
    space = control / "space.toml"
    space.write_text(f"data = '{image_folder}'\nbatch_size = 8\nepochs = 2\nascent_epochs = 1\nwarmup_epochs = 0\n")
    said = []
    for flags in (["--per-gpu", "2"], [], ["--per-gpu", "2", "--address", "a:1"]):
        assert main(["sweep", str(space), "--out", str(control / "out"), *flags, "--dry-run"]) == 0
        said.append(capsys.readouterr().out.count("MPS: the sweep runs a daemon of its own"))
        assert main(["sweep", str(space), "--out", str(control / f"out{len(said)}"), *flags]) == 128 + signal.SIGTERM
        said[-1] += capsys.readouterr().out.count("MPS: the sweep runs a daemon of its own")
    assert said == [2, 0, 0] and places[1:] == [None, None]
    assert [line.split()[:2] for line in asked(control)] == [["start", places[0]], ["quit", places[0]]]
