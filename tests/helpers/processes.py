"""Several processes of one run, as torchrun starts them, forked from a server that has imported everything already."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
import traceback
from pathlib import Path

CONTEXT = multiprocessing.get_context("forkserver")
PRELOADED = """seal_fast.train seal_fast.runs.plots torch.utils.tensorboard small_resnet seal_fast.__main__
torch._dynamo torch.distributed nvidia.dali nvidia.dali.math"""
CONTEXT.set_forkserver_preload(PRELOADED.split())
PATIENCE = 300


def together(size, function, *args, machines=1):
    """What `function(*args)` returns on each of `size` processes, by rank; fails with the traceback of any of them.

    With `machines` they are told that they are spread over so many, which all are this one.
    """
    port, running = free_port(), []
    for rank in range(size):
        ours, theirs = CONTEXT.Pipe()
        process = CONTEXT.Process(target=_work, args=(theirs, variables(rank, size, port, machines), function, args))
        process.start()
        theirs.close()
        running.append((process, ours))
    answers = []
    try:
        for rank, (process, pipe) in enumerate(running):
            assert pipe.poll(PATIENCE), f"process {rank} hangs"
            value, failure = pipe.recv()
            assert failure is None, f"process {rank} of {size}:\n{failure}"
            answers.append(value)
            process.join(PATIENCE)
    finally:
        for process, _ in running:
            process.kill()
    return answers


class Commands:
    """`python -m seal_fast.train ARGS` as several processes, on the small network.

    Args:
        folder: where what it prints is kept.
        args: of each process.
        environment: more variables, or None for those to leave out.
        absent: ranks that are never started.
    """

    def __init__(self, folder: Path, args: list[list[str]], environment=None, absent=()):
        port, size = free_port(), len(args)
        self.printed = [folder / f"printed-{port}-{rank}" for rank in range(size)]
        self.processes = []
        for rank in set(range(size)) - set(absent):
            settings = variables(rank, size, port) | (environment or {})
            process = CONTEXT.Process(target=_command, args=(args[rank], settings, self.printed[rank]))
            process.start()
            self.processes.append(process)

    def kill(self, number: int, *ranks: int) -> None:
        """Send a signal to some processes."""
        for rank in ranks:
            os.kill(self.processes[rank].pid, number)

    def wait(self) -> tuple[list[int | None], list[str]]:
        """Exit codes, and lines printed to stderr by all processes."""
        for process in self.processes:
            process.join(PATIENCE)
            process.kill()
        lines = [line for path in self.printed if path.exists() for line in path.read_text().splitlines()]
        return [process.exitcode for process in self.processes], lines


def variables(rank: int, size: int, port: int, machines: int = 1) -> dict[str, str]:
    """What torchrun sets."""
    local = -(-size // machines)
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank % local),
        "LOCAL_WORLD_SIZE": str(local),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def _prepare(settings):
    os.environ.update({name: value for name, value in settings.items() if value is not None})
    for name, value in settings.items():
        if value is None:
            os.environ.pop(name, None)
    from small_resnet import build_shallow

    from seal_fast.runs import plots
    from seal_fast.training import assembly

    assembly.build = build_shallow
    plots.draw = lambda *_: None  # half of a short run's time


def _work(pipe, settings, function, args):
    try:
        _prepare(settings)
        pipe.send((function(*args), None))
    except BaseException:
        pipe.send((None, traceback.format_exc()))


def _command(args, settings, printed):
    with open(printed, "wb") as file:
        os.dup2(file.fileno(), 2)
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    _prepare(settings)
    from seal_fast.train import main

    sys.exit(main(args))
