"""Where and how the network computes: device, precision, threads, compilation."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import logging
import os
import platform
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import torch

from seal_fast.config import Config
from seal_fast.kernels import torch_private
from seal_fast.utils.cpus import cpu_count
from seal_fast.utils.errors import UsageError, reason

log = logging.getLogger(__name__)


class Compiled:
    """A function and its compiled form, which is given up at the first graph break.

    Attributes:
        whole: whether it has not met a graph break.
    """

    def __init__(self, function: Callable, compiled: Callable | None = None) -> None:
        self.function, self.call, self.whole = function, compiled or function, True

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The function's result."""
        try:
            return self.call(*args, **kwargs)
        except Exception as error:
            if not (why := torch_private.graph_break(error)):
                raise
            log.warning("--compile: this network is no whole graph (%s), so it is trained uncompiled", why)
            self.call, self.whole = self.function, False
            return self.function(*args, **kwargs)


@dataclass(frozen=True)
class Runtime:
    """Device and precision of a run. dtype: of parameters. compute: of activations (the autocast type under --amp)."""

    device: torch.device
    dtype: torch.dtype
    compute: torch.dtype
    amp: bool
    compile: bool

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of the network's forward pass."""
        return torch.autocast(self.device.type, self.compute, enabled=self.amp)

    @property
    def bf16_weights(self) -> bool:
        """Whether the network reads bfloat16 copies of its float32 weights, which autocast then need not cast."""
        return self.dtype == torch.float32 and self.compute == torch.bfloat16

    def scaler(self, kind: type[torch.amp.GradScaler] = torch.amp.GradScaler) -> torch.amp.GradScaler:
        """The gradient scaler, enabled under float16 only."""
        return kind(self.device.type, enabled=self.compute == torch.float16)

    def compiled(self, function: Callable) -> Compiled:
        """`function` compiled as one whole graph per mode (train, eval), or itself without --compile."""
        if not self.compile:
            return Compiled(function)
        keep_traced_graphs()
        check_compile_cache()
        if self.device.type == "cuda":
            torch_private.keep_reductions_whole()
        return Compiled(function, torch.compile(function, fullgraph=True, dynamic=False))

    def synchronize(self) -> None:
        """Wait for the device, so that a clock read afterwards is true."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    def peak_memory(self) -> int:
        """Most bytes ever held: of the device's memory on a GPU, of the process on a CPU."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def wants_gpu(config: Config) -> bool:
    """Whether a run of this configuration computes on a GPU here."""
    return config.device != "cpu" and torch.cuda.is_available()


def start(config: Config, processes: int = 1) -> Runtime:
    """Set threads and numerical modes for this process, one of so many on this machine, and pick the device.

    Raises UsageError for --device cuda where there is none.
    """
    on_gpu = wants_gpu(config)
    if config.device == "cuda" and not on_gpu:
        raise UsageError(
            "--device cuda: this machine has no CUDA device that torch can use; drop the flag to use the CPU"
        )
    keep_freed_memory()
    cores = cpu_count()
    # torchrun sets OMP_NUM_THREADS to 1 for each of several processes, which would leave cores idle
    threads = min(torch.get_num_threads(), cores) if processes == 1 else max(1, cores // processes)
    torch.set_num_threads(config.threads or threads)
    if config.dtype == "float32":
        torch.set_float32_matmul_precision("high")  # TF32 for what is left in fp32 on a GPU
    if on_gpu:
        repeat_bits(config.deterministic)
        torch.cuda.reset_peak_memory_stats()  # an earlier run of this process had its own
    dtype = getattr(torch, config.dtype)
    compute = getattr(torch, config.amp_dtype) if config.amp else dtype
    return Runtime(torch.device("cuda" if on_gpu else "cpu"), dtype, compute, config.amp, config.compile)


def repeat_bits(wanted: bool) -> None:
    """Make a GPU add up in the same order every time, or not; an operation that cannot then raises RuntimeError.

    Source: PyTorch's notes on reproducibility.
    """
    # Otherwise cuDNN tries its algorithms once per shape and takes the fastest; shapes never change here.
    torch.backends.cudnn.benchmark = not wanted
    torch.use_deterministic_algorithms(wanted)
    if not wanted:
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS is first used
    # Nothing here reads memory that was not written.
    torch.utils.deterministic.fill_uninitialized_memory = False  # pyright: ignore[reportAttributeAccessIssue]


@functools.cache
def keep_freed_memory() -> None:
    """Have glibc keep freed memory, in huge pages where Linux grants them; nothing with another C library.

    A step frees and allocates the same hundreds of megabytes. By default large blocks go back to the kernel, which
    clears and faults in each of their pages anew.
    """
    libc = ctypes.CDLL(None)
    if platform.libc_ver()[0] != "glibc" or not hasattr(libc, "mallopt"):
        return
    libc.mallopt(-1, -1)  # M_TRIM_THRESHOLD: never
    libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping for any block
    # The heap grows now, in addresses and not in memory, so that the range that tensors will lie in is known.
    libc.malloc.argtypes, libc.malloc.restype = [ctypes.c_size_t], ctypes.c_void_p
    libc.free.argtypes = [ctypes.c_void_p]
    size, huge = 4 << 30, 2 << 20
    if block := libc.malloc(size):
        libc.madvise(ctypes.c_void_p(-(-block // huge) * huge), ctypes.c_size_t(size - huge), 14)  # MADV_HUGEPAGE
        libc.free(block)


def check_compile_cache() -> None:
    """Use another folder if the one in TORCHINDUCTOR_CACHE_DIR cannot be written (its default is temporary)."""
    folder = os.environ.get("TORCHINDUCTOR_CACHE_DIR")
    try:
        if folder:
            os.makedirs(folder, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = other = tempfile.mkdtemp(prefix="torchinductor-")
        log.warning(
            "TORCHINDUCTOR_CACHE_DIR %s cannot be written (%s): compiling into %s", folder, reason(error), other
        )


def keep_traced_graphs() -> None:
    """Let torch cache traced forward and backward graphs of a function that enters autocast, for other processes.

    torch does so only for calls on its list of those that their arguments describe. Autocast's arguments, device and
    type, are constants in the graph and hence part of the cache's key.
    """
    import torch._inductor.config as inductor

    calls = ("_enter_autocast", "_exit_autocast")
    inductor.unsafe_marked_cacheable_functions |= {f"torch.amp.autocast_mode.{call}": "" for call in calls}


def graphs(runtime: Runtime) -> int:
    """Graphs that torch.compile has made in this process."""
    return torch_private.compiled_graphs() if runtime.compile else 0


def compile_seconds(runtime: Runtime) -> float:
    """Seconds torch.compile has spent in this process, backward graphs included."""
    return torch_private.compile_seconds() if runtime.compile else 0.0


def environment(runtime: Runtime) -> dict[str, Any]:
    """Processor, threads and versions: what a measured number needs beside it."""

    def version(package: str) -> str | None:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(package)
        return None

    gpu = torch.cuda.get_device_name(runtime.device) if runtime.device.type == "cuda" else None
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": version("triton"),
        "dali": version("nvidia-dali-cuda130"),
        "seal_fast": version("seal-fast"),
        "compute": str(runtime.compute).removeprefix("torch."),
        "compile": runtime.compile,
    }


def cpu_name() -> str:
    """The processor's model name."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
