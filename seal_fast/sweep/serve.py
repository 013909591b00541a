"""A process that trains run after run: `python -m seal_fast.sweep.serve`, started by `process.Server`.

A line of JSON on stdin starts a run: {"argv": flags of seal_fast.train, "log": file for its output}. Its exit code is
the answer, a line on stdout. Imports, data set, compiled graphs and the CUDA context stay for the next run. A run that
fails ends the process with the exit code that it would have had in a process of its own.
"""

from __future__ import annotations

import functools
import gc
import json
import os
import signal
import sys

_GO_ON = (0, 128 + signal.SIGTERM)  # trained to its end, or stopped by the sweep with a checkpoint
_MOST_GRAPHS = 3  # torch.compile refuses to make more than 8 of a function, and a run makes at most 4


def main() -> int:
    """Train what stdin asks for until it ends, a run fails or too many graphs are compiled; the exit code."""
    jobs, answers = os.fdopen(os.dup(0)), os.dup(1)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)

    from seal_fast import train  # before torch

    # isort: split
    import torch

    from seal_fast.kernels import torch_private

    opened = functools.lru_cache(maxsize=1)(train.open_images)
    gc.freeze()  # so that a collection looks at what runs leave behind and not at the libraries
    graphs = 0
    for job in map(json.loads, jobs):
        log = os.open(job["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        code = train.main(job["argv"], opened)
        sys.stdout.flush()
        if code not in _GO_ON:
            return code
        graphs += torch_private.take_compiled_graphs()
        try:
            os.write(answers, b"%d\n" % code)
        except BrokenPipeError:  # the sweep is gone
            return code
        if graphs > _MOST_GRAPHS:
            return 0
        gc.collect()
        torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    code = main()
    gc.freeze()  # as in train.py
    sys.exit(code)
