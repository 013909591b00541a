"""The connection to Ray: one that a sweep starts for itself on its machine, or a cluster's."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from seal_fast.sweep.scheduling import head
from seal_fast.utils.errors import RunError

_SHUTDOWN_SECONDS = 8.0
_OBJECT_STORE_BYTES = 80 * 2**20  # nothing of size passes through Ray


def scratch(folder: Path) -> Path:
    """Where Ray keeps its sockets and logs while it runs on this machine for a sweep: one place for each sweep, so that
    what a killed one has left is found and removed. Paths of sockets are limited to 107 bytes, so it is not in DIR.
    """
    name = hashlib.sha256(str(folder.absolute()).encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"seal-{os.getuid()}-{name}"


@dataclass
class Session:
    """A connection to Ray.

    Attributes:
        exit_code: what the process will end with.
        quiet: ends the live table, should Ray be lost.
        confirm: to be asked when a worker has died: it returns where Ray lives, and ends the sweep where Ray does not,
            so that no run is said to have failed for that.
    """

    exit_code: int = 1
    quiet: Callable[[], None] = lambda: None
    confirm: Callable[[], None] = lambda: None


@contextlib.contextmanager
def connected(folder: Path, address: str | None, concurrent: int) -> Iterator[Session]:
    """Ray as a part of the cluster at `address`, or else on this machine alone, for so many trials at a time.

    Raises:
        RunError: it cannot be started or reached.
    """
    if address:
        _answers(address)
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    place = scratch(folder)
    shutil.rmtree(place, ignore_errors=True)
    try:
        if address:
            # the nodes' own environment is another
            name = "RAY_kill_child_processes_on_worker_exit"
            ray.init(address=address, runtime_env={"env_vars": {name: os.environ[name]}}, **quiet)
        else:
            ray.init(
                address="local",
                num_cpus=concurrent,
                object_store_memory=_OBJECT_STORE_BYTES,
                include_dashboard=False,
                _temp_dir=str(place),
                **quiet,
            )
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        what = f"reached at --address {address}" if address else "started"
        cure = "; start it there, with the same RAY_AUTH_MODE and token as here" if address else ""
        raise RunError(f"Ray could not be {what}: {reason[0].rstrip('.')}{cure}") from None
    session = Session()
    context = ray.get_runtime_context()
    found, own = context.gcs_address, context.get_node_id()

    def here() -> bool:
        try:
            return any(node["NodeID"] == own and node["Alive"] for node in ray.nodes())
        except Exception:
            return True  # the head does not say, and may be about to go

    telling = threading.Lock()

    def lost(what: str) -> None:
        telling.acquire()  # for good: whoever comes second waits for the end
        with contextlib.suppress(Exception):
            session.quiet()
        who, cure = "Ray", "continue"
        if address:
            who, cure = f"the Ray cluster at {found}", "start it again and continue"
        # in one piece, as Ray's threads write too
        sys.stderr.write(
            f"error: {who} has lost {what}; every run's results and checkpoint are kept in {folder}; "
            f"{cure} with --resume\n"
        )
        session.exit_code = RunError.exit_code
        _leave(session, place)

    def confirm() -> None:
        if dead := _dead():
            lost(f"its process on this machine ({dead})")
        while head.answers(found, head.PERIOD_SECONDS):
            time.sleep(1)  # whoever watches the head ends the sweep if this lasts

    session.confirm = confirm
    try:
        with head.watched(found, here, lost):
            yield session
    finally:
        # A signal to the whole process group, as Slurm sends it, ends Ray's own processes first. Ray then waits for
        # them, and after a minute aborts the program; what is to be said and written has been by now.
        leave = threading.Timer(_SHUTDOWN_SECONDS, _leave, (session, place))
        leave.daemon = True
        leave.start()
        ray.shutdown()
        leave.cancel()
        shutil.rmtree(place, ignore_errors=True)


def _dead() -> str | None:
    """A process that Ray here cannot do without, and that has ended; of those that `connected` has started."""
    import ray._private.worker as worker

    node: Any = worker._global_node
    with contextlib.suppress(AttributeError):  # the names are Ray's own affair: without them the watch notices, later
        ended = {name for name, _ in node.dead_processes()}
        return next(iter(sorted(ended & {"raylet", "gcs_server"})), None)


def _answers(address: str) -> None:
    """Ray would try for more than a minute."""
    if not address.rpartition(":")[2].isdigit():
        return  # "auto"
    if error := head.answers(address, 10):
        reason = error.strerror or error
        raise RunError(f"Ray could not be reached at --address {address}: {reason}; ray start --head there") from None


def _leave(session: Session, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(session.exit_code)


def slots(per_gpu: int, concurrent: int | None, threads: int | None, use_gpus: bool) -> tuple[int, int, float]:
    """Trials at a time, threads and share of a GPU of each, on the cluster that is connected.

    Threads are what the node with the fewest per trial has.
    """
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    gpus = [node for node in nodes if node.get("GPU")] if use_gpus else []
    if gpus:
        places = int(sum(node["GPU"] for node in gpus)) * per_gpu
        share = max(1, min(int(node["CPU"] // (node["GPU"] * per_gpu)) for node in gpus))
        return min(concurrent or places, places), min(threads or share, share), 1 / per_gpu
    cores = int(sum(node.get("CPU", 0) for node in nodes))
    each = threads or max(1, cores // (concurrent or cores))
    return concurrent or max(1, cores // each), each, 0.0
