import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from seal_fast.config import Config
from seal_fast.training import runtime
from seal_fast.utils.errors import UsageError


def test_precision_follows_the_flags():
    plain = runtime.start(Config())
    assert (plain.dtype, plain.compute, plain.amp) == (torch.float32, torch.float32, False)
    assert runtime.start(Config(dtype="float64")).compute == torch.float64
    amp = runtime.start(Config(amp=True))
    assert (amp.dtype, amp.compute) == (torch.float32, torch.bfloat16) and not amp.scaler().is_enabled()
    assert runtime.start(Config(amp=True, amp_dtype="float16")).scaler().is_enabled()
    with amp.autocast():
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == torch.bfloat16


def test_threads_are_set_or_those_of_the_processors_that_may_be_used(monkeypatch):
    before = torch.get_num_threads()
    monkeypatch.setattr(runtime, "cpu_count", lambda: 3)
    try:
        for config, processes, threads in ((Config(), 1, 3), (Config(), 2, 1), (Config(threads=2), 2, 2)):
            torch.set_num_threads(4)
            runtime.start(config, processes)
            assert torch.get_num_threads() == threads
    finally:
        torch.set_num_threads(before)


HERE = Path(__file__).parents[1] / "helpers"  # of smaps.py

# In a process of its own: a long-lived one has freed blocks elsewhere in the heap.
HEAP = """
import resource, smaps, torch
from seal_fast.config import Config
from seal_fast.training import runtime
runtime.start(Config())
middle = torch.empty(1 << 26, dtype=torch.uint8).data_ptr() + (1 << 25)
print("hg" in smaps.about(middle)["VmFlags"])
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(10):
    torch.empty(1 << 24, dtype=torch.uint8).fill_(1)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library has other habits")
@pytest.mark.skipif(not Path("/sys/kernel/mm/transparent_hugepage").exists(), reason="no huge pages on request")
def test_freed_memory_stays_and_is_offered_huge_pages():
    """A block freed and asked for again brings no new pages: they would be 4,096 each time."""
    done = subprocess.run([sys.executable, "-c", HEAP], cwd=HERE, capture_output=True, text=True, check=True)
    huge, faults = done.stdout.split()
    assert huge == "True" and int(faults) < 2 * 4096


def test_a_compile_cache_that_cannot_be_written_is_replaced(tmp_path, monkeypatch, caplog):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "file" / "cache"))
    runtime.check_compile_cache()
    other = Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])
    assert other.is_dir() and f"cannot be written (Not a directory): compiling into {other}" in caplog.text
    runtime.check_compile_cache()
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == str(other)
    other.rmdir()


def test_cuda_asked_for_and_missing_is_refused():
    with pytest.raises(UsageError, match="--device cuda"):
        runtime.start(Config(device="cuda"))


def test_environment_says_what_a_number_needs():
    plate = runtime.environment(runtime.start(Config()))
    assert plate["torch"] == torch.__version__ and plate["cores"] == len(os.sched_getaffinity(0))
    assert plate["triton"] and plate["dali"] and plate["cpu"]


def test_without_compile_nothing_of_dynamo_is_asked():
    machine = runtime.start(Config())
    assert runtime.graphs(machine) == 0 and runtime.compile_seconds(machine) == 0.0
    function = len
    assert machine.compiled(function).call is function


@pytest.mark.long
def test_what_is_traced_under_autocast_is_kept_for_other_processes():
    """And found again under the same type only."""
    from torch._dynamo.utils import counters
    from torch._inductor.utils import fresh_cache

    x = torch.linspace(-2, 2, 64).reshape(8, 8)
    with fresh_cache():
        for amp_dtype, found in (("bfloat16", 0), ("bfloat16", 1), ("float16", 0)):
            torch._dynamo.reset()  # all that another process would not know
            counters.clear()
            machine = runtime.start(Config(amp=True, amp_dtype=amp_dtype, compile=True))

            def product(x, machine=machine):
                with machine.autocast():
                    return x @ x

            result = machine.compiled(product)(x.clone().requires_grad_())
            assert counters["aot_autograd"]["autograd_cache_hit"] == found
            assert result.dtype == machine.compute and torch.equal(result, product(x))
            result.sum().backward()  # both directions are kept together, once there are both
