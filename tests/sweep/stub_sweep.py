"""A sweep of trials that only pretend, as a process that tests may kill: stub_sweep.py FOLDER TRIALS CONCURRENT [RUNG].

Each trial leaves a line in FOLDER/steps/NAME for every generation that it trained, as a run folder would.
"""

import os
import sys
import time
from pathlib import Path

from seal_fast.config import Config
from seal_fast.sweep import tune
from seal_fast.sweep.ledger import Ledger
from seal_fast.sweep.plan import Trial

GENERATIONS = 3


class Stub(tune.tune.Trainable):
    def setup(self, config):
        self.name = config["trial"]["name"]
        self.steps = Path(config["folder"]) / "steps" / self.name
        self.done = len(self.steps.read_text().splitlines()) if self.steps.exists() else 0
        self.reported = 0

    def reset_config(self, new_config):
        self.setup(new_config)
        return True

    def step(self):
        number = int(self.name)
        if self.reported == self.done:
            if number % 10 == 7 and not self.steps.exists():  # a worker that dies before its first generation's end
                self.steps.touch()
                os.kill(os.getpid(), 9)
            if number % 10 == 3:
                raise tune.RunError(f"number {number} is unlucky")
            time.sleep(0.01)
            with self.steps.open("a") as file:
                file.write(f"{os.getpid()}\n")
            self.done += 1
        self.reported += 1
        result = {"generation": self.reported, "val_top1": float(number)}
        return result if self.reported < GENERATIONS else result | {"finished": True, "done": True}

    def save_checkpoint(self, checkpoint_dir):
        pass

    def load_checkpoint(self, checkpoint):
        pass


def main(folder, count, concurrent, rungs=None):
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    trials = {f"{i:04d}": Trial(f"{i:04d}", {}, Config(generations=GENERATIONS)) for i in range(count)}
    ledger = Ledger.open(folder / "ledger.jsonl", trials)
    job = tune.Job(folder, concurrent, 1, retries=1, rungs=rungs)
    with tune.connected(None, concurrent):
        start = time.time()
        tune.run(job, trials, ledger, trainable=Stub)
        print("fit", time.time() - start)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), (int(sys.argv[4]), 2) if len(sys.argv) > 4 else None)
