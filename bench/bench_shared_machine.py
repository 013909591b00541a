"""Training beside a busy neighbour: images per second alone, and beside a process whose two threads multiply matrices.

`pytest bench/bench_shared_machine.py --benchmark-only`; the ratios stand in extra_info. "default" is libgomp's own
waiting, for comparison; "bounded" is what seal_fast sets. Alone and beside take turns, in processes of their own.
"""

import json
import os
import signal
import statistics
import subprocess
import sys
import time

ROUNDS = 3
STEPS = 12

TRAIN = """
import sys, tempfile, time, json
from pathlib import Path
import seal_fast.train as train
from seal_fast.config import Config
from image_folders import write_images

steps = int(sys.argv[1])
with tempfile.TemporaryDirectory() as folder:
    root = Path(folder)
    for part, count in (("train", 32 * steps // 4), ("val", 1)):
        write_images(root / "data" / part, 4, count, 64, seed=0)
    config = Config(data=str(root / "data"), generations=1, epochs=2, ascent_epochs=0, batch_size=32, eval_every=9)
    train.plots.draw = lambda *_: None
    train.run(Config(**{**vars(config), "out": root / "run"}))
    rows = [json.loads(line) for line in (root / "run" / "metrics.jsonl").read_text().splitlines()]
    print(json.dumps(rows[-1]["images_per_s"]))
"""

NEIGHBOUR = """
import torch
torch.set_num_threads(2)
a = torch.randn(1024, 1024)
while True:
    a @ a
"""


def images_per_s(environment):
    """Of a run's second epoch."""
    script = f"import sys; sys.path[:0] = {sys.path}\n{TRAIN}"
    command = [sys.executable, "-c", script, str(STEPS)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ | environment)
    return json.loads(done.stdout.splitlines()[-1])


def beside(environment):
    neighbour = subprocess.Popen([sys.executable, "-c", NEIGHBOUR])
    try:
        time.sleep(3)  # it is past its imports
        return images_per_s(environment)
    finally:
        neighbour.send_signal(signal.SIGKILL)
        neighbour.wait()


def compare(environment):
    pairs = [(images_per_s(environment), beside(environment)) for _ in range(ROUNDS)]
    alone, shared = (statistics.median(side) for side in zip(*pairs, strict=True))
    return {"alone_images_per_s": alone, "beside_images_per_s": shared, "ratio": shared / alone, "rounds": pairs}


def test_beside_a_busy_neighbour(benchmark):
    def both():
        bounded = compare({})
        # 300,000 is libgomp's own count where neither variable is set
        return {"bounded": bounded, "default": compare({"GOMP_SPINCOUNT": "300000"})}

    found = benchmark.pedantic(both, rounds=1)
    benchmark.extra_info.update(found)
    for name, figures in found.items():
        print(f"{name}: {figures['ratio']:.2f} of alone ({figures['alone_images_per_s']:.0f} images/s)")
