"""The connection to Ray: on this machine, started for the sweep, or a cluster's."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import shutil
import socket
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray

from seal_fast.utils.errors import RunError

_CONNECT_SECONDS = 10.0
_SHUTDOWN_SECONDS = 8.0
_OBJECT_STORE_BYTES = 80 * 2**20  # only configurations and metrics pass through Ray


def scratch(folder: Path) -> Path:
    """Folder for Ray's sockets and logs. Not in the sweep's folder: the path of a socket is limited to 107 bytes."""
    name = hashlib.sha256(os.fsencode(folder.absolute())).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"seal-{os.getuid()}-{name}"


@dataclass
class Session:
    """A connection to Ray.

    Attributes:
        servers: (host, port) of the processes that Ray needs, by name.
        exit_code: of this program, if Ray does not shut down in time and the program is ended.
    """

    servers: dict[str, tuple[str, int]]
    exit_code: int = 1

    def check_alive(self) -> None:
        """Raises RunError if a process that Ray needs takes no connection any more: Ray would wait for it forever."""
        for name, address in self.servers.items():
            if error := _refusal(address):
                raise RunError(f"Ray has lost {name} ({error.strerror or error}); continue with --resume")


@contextlib.contextmanager
def connected(folder: Path, address: str | None, concurrent: int) -> Iterator[Session]:
    """Join the cluster at `address`, or start Ray on this machine for so many trials at a time.

    Raises:
        RunError: Ray cannot be started or reached.
    """
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    place = scratch(folder)
    shutil.rmtree(place, ignore_errors=True)
    if address and address.rpartition(":")[2].isdigit() and (error := _refusal(_split(address))):
        reason = error.strerror or error  # ray.init would try for more than a minute
        raise RunError(f"Ray could not be reached at --address {address}: {reason}; ray start --head there")
    try:
        if address:
            name = "RAY_kill_child_processes_on_worker_exit"  # the nodes were started without it
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
    context = ray.get_runtime_context()
    here = next(node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    session = Session(
        {
            "its head": _split(context.gcs_address),
            "its process on this machine": (here["NodeManagerAddress"], here["NodeManagerPort"]),
        }
    )
    try:
        yield session
    finally:
        # Slurm sends its signal to Ray's processes too. Ray then waits for them for a minute and aborts this program.
        leave = threading.Timer(_SHUTDOWN_SECONDS, _exit, (session, place))
        leave.daemon = True
        leave.start()
        ray.shutdown()
        leave.cancel()
        shutil.rmtree(place, ignore_errors=True)


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host.strip("[]"), int(port)


def _refusal(address: tuple[str, int]) -> OSError | None:
    """Why nothing takes a connection at an address; None if something does."""
    try:
        socket.create_connection(address, timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        return error
    return None


def _exit(session: Session, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(session.exit_code)


def slots(per_gpu: int, concurrent: int | None, threads: int | None, use_gpus: bool) -> tuple[int, int, float]:
    """Trials at a time, threads and share of a GPU of each, on the connected cluster.

    The threads are those of the node that has the fewest per trial.
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
