"""The engine's step before and after its process's small pages were put together into huge ones.

That cannot be undone, so contenders cannot take turns within a process. Processes that gather take turns with others
that do not, and each compares its own later epochs with its earlier ones.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys

from bench_step import LONG, engines, steps

from seal_fast.kernels.pages import gather_into_huge_pages

PROCESSES, EPOCHS = 6 if LONG else 3, 5


def one_process(data: str, gather: bool) -> dict[str, float]:
    """Milliseconds a step, before and after: medians over epochs of 16 steps of ResNet-18 on 32x32 images."""
    with engines(data) as engine_of:
        engine = engine_of(32, image_size=32, limit_train=512)
        steps(engine)
        before = statistics.median(steps(engine) for _ in range(EPOCHS))
        if gather:
            gather_into_huge_pages()
        after = statistics.median(steps(engine) for _ in range(EPOCHS))
    return {"before": 1e3 * before, "after": 1e3 * after}


def test_memory_gathered_into_huge_pages(benchmark, data):
    found: dict[bool, list[dict[str, float]]] = {True: [], False: []}

    def one_round() -> None:
        for gather, results in found.items():
            command = [sys.executable, __file__, data, str(int(gather))]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            results.append(json.loads(done.stdout.splitlines()[-1]))

    benchmark.pedantic(one_round, rounds=PROCESSES)
    for gather, results in found.items():
        ratios = [r["before"] / r["after"] for r in results]
        what = "gathered" if gather else "left as they are"
        benchmark.extra_info[f"earlier / later epochs, pages {what}"] = statistics.median(ratios)
        benchmark.extra_info[f"earlier / later epochs, pages {what}, range"] = f"{min(ratios):.3f} to {max(ratios):.3f}"
        benchmark.extra_info[f"ms a step, pages {what}"] = statistics.median(r["after"] for r in results)
    benchmark.extra_info["n"] = f"{PROCESSES} processes of each, {EPOCHS} epochs of 16 steps before and after"


if __name__ == "__main__":
    print(json.dumps(one_process(sys.argv[1], sys.argv[2] == "1")))
