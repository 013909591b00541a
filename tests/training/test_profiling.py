import resource
import subprocess
import sys

CODE = """
import sys
from pathlib import Path
import torch
from seal_fast.training.profiling import profiler
from seal_fast.training.runtime import keep_freed_memory

keep_freed_memory()
torch.set_num_threads(1)
resident = []
with profiler(Path(sys.argv[1]), torch.device("cpu")) as after_step:
    for _ in range(11):
        tensors = []
        for _ in range(20):
            tensors.append(torch.ones(1 << 18) + 1)
            for _ in range(20):
                torch.ones(8).sum()
        resident.append(Path("/proc/self/statm").read_text().split()[1])
        del tensors
        after_step()
print(*resident)
"""


def test_recorded_steps_take_no_new_memory_on_a_cpu(tmp_path):
    """The profiler's events lie between a step's tensors in the heap that keeps freed memory."""
    done = subprocess.run([sys.executable, "-c", CODE, str(tmp_path)], capture_output=True, text=True, check=True)
    pages = [int(word) for word in done.stdout.split()[-11:]]  # steps 6 to 10 are recorded, of 20 MiB each
    assert (pages[9] - pages[4]) * resource.getpagesize() < 40 << 20
    assert list(tmp_path.glob("*.pt.trace.json"))
