"""NVIDIA MPS, which lets the processes that share a GPU compute at the same time instead of in turns."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator

from seal_fast.utils.terminal import say

_CONTROL = "nvidia-cuda-mps-control"
_ANSWER_SECONDS = 30.0
# A shell keeps the daemon until its stdin closes, which the end of the sweep does, SIGKILL included. It lives in a
# session of its own and outlives signals that reach every process of a job. `quit` lets the daemon's clients finish.
_KEEPER = f"""
trap : TERM INT HUP PIPE
cd "$CUDA_MPS_PIPE_DIRECTORY"
if {_CONTROL} -d </dev/null >output 2>&1; then
    echo 2>/dev/null
    cat
    echo quit | {_CONTROL}
else
    head -n 1 output | grep . || echo "no reason given"
fi
cd /
rm -rf "$CUDA_MPS_PIPE_DIRECTORY"
"""


def plan() -> tuple[bool, str]:
    """Whether a sweep that shares GPUs has to start a daemon, and a sentence about it."""
    if not shutil.which(_CONTROL):
        return False, f"MPS: {_CONTROL} is not installed, so runs that share a GPU compute in turns"
    with contextlib.suppress(subprocess.TimeoutExpired):
        ask = subprocess.run([_CONTROL], input=b"get_server_list\n", capture_output=True, timeout=_ANSWER_SECONDS)
        if ask.returncode == 0:
            return False, "MPS: the daemon that is running serves the runs that share a GPU"
    return True, "MPS: the sweep runs a daemon of its own for the runs that share a GPU"


@contextlib.contextmanager
def running() -> Iterator[None]:
    """MPS for the processes that are started meanwhile; prints what was done about it.

    A daemon of our own ends with this process, whatever ends it. Without one, the runs work all the same.
    """
    needed, sentence = plan()
    if not needed:
        say(sentence)
        yield
        return
    place = tempfile.mkdtemp(prefix="seal-mps-", dir="/tmp")  # short: the path of a socket is limited to 107 bytes
    ours = {"CUDA_MPS_PIPE_DIRECTORY": place, "CUDA_MPS_LOG_DIRECTORY": place}
    # the daemon would number the GPUs anew, but its clients keep the numbers of the machine
    env = {name: value for name, value in os.environ.items() if name != "CUDA_VISIBLE_DEVICES"} | ours
    pipe, command = subprocess.PIPE, ["sh", "-c", _KEEPER]
    keeper = subprocess.Popen(command, env=env, start_new_session=True, text=True, stdin=pipe, stdout=pipe)
    assert keeper.stdin and keeper.stdout
    before = {name: os.environ.get(name) for name in ours}
    try:
        if failure := keeper.stdout.readline().strip():
            sentence = f"MPS: its daemon did not start ({failure}), so runs that share a GPU compute in turns"
        else:
            os.environ.update(ours)
        say(sentence)
        yield
    finally:
        keeper.stdin.close()
        for name, value in before.items():
            os.environ.pop(name, None) if value is None else os.environ.update({name: value})
        with contextlib.suppress(subprocess.TimeoutExpired):
            keeper.wait(_ANSWER_SECONDS)
        keeper.stdout.close()
