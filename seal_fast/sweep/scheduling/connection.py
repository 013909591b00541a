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
from dataclasses import dataclass, field
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
        servers: (host, port) of the processes that Ray needs.
        nodes: resources of each node, by Ray's names.
        exit_code: of this program, if Ray does not shut down in time and the program is ended.
    """

    servers: list[tuple[str, int]]
    nodes: list[dict[str, float]] = field(default_factory=list)
    exit_code: int = 1

    def check_alive(self) -> None:
        """Raises RunError if a process that Ray needs takes no connection any more: Ray would wait for it forever."""
        for host, port in self.servers:
            if why := _refusal(host, port):
                raise RunError(f"Ray has lost its process at {host}:{port} ({why}); continue with --resume")


@contextlib.contextmanager
def connected(folder: Path, address: str | None, concurrent: int) -> Iterator[Session]:
    """Join the cluster at `address`, or start Ray here for so many trials at a time; RunError if that fails."""
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    place = scratch(folder)
    shutil.rmtree(place, ignore_errors=True)
    if address and address.rpartition(":")[2].isdigit() and (why := _refusal(*_split(address))):
        # ray.init would try for more than a minute
        raise RunError(f"Ray could not be reached at --address {address}: {why}; ray start --head there")
    try:
        if address:
            name = "RAY_kill_child_processes_on_worker_exit"  # the nodes were started without it
            ray.init(address=address, runtime_env={"env_vars": {name: os.environ[name]}}, **quiet)
        else:
            local: dict[str, Any] = {"object_store_memory": _OBJECT_STORE_BYTES, "include_dashboard": False}
            ray.init(address="local", num_cpus=concurrent, _temp_dir=str(place), **local, **quiet)
    except Exception as error:
        reason = str(error).strip().splitlines() or [type(error).__name__]
        what = f"reached at --address {address}" if address else "started"
        cure = "; start it there, with the same RAY_AUTH_MODE and token as here" if address else ""
        raise RunError(f"Ray could not be {what}: {reason[0].rstrip('.')}{cure}") from None
    context, nodes = ray.get_runtime_context(), [node for node in ray.nodes() if node["Alive"]]
    here = next(node for node in nodes if node["NodeID"] == context.get_node_id())
    servers = [_split(context.gcs_address), (here["NodeManagerAddress"], here["NodeManagerPort"])]
    session = Session(servers, [node["Resources"] for node in nodes])
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


def _refusal(host: str, port: int) -> str:
    """Why nothing takes a connection there; empty if something does."""
    try:
        socket.create_connection((host, port), timeout=_CONNECT_SECONDS).close()
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _exit(session: Session, place: Path) -> None:
    shutil.rmtree(place, ignore_errors=True)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(session.exit_code)
