"""A sweep of trials that train nothing, in a process to kill: stub_sweep.py FOLDER TRIALS CONCURRENT [RUNG].

Each trial writes a line to FOLDER/steps/NAME for every generation.
"""

import os
import sys
import time
from pathlib import Path

from seal_fast.config import Config
from seal_fast.sweep.ledger import Ledger
from seal_fast.sweep.plan import Trial
from seal_fast.sweep.scheduling import connection, tune
from seal_fast.sweep.scheduling.worker import Worker
from seal_fast.sweep.slots import Slots
from seal_fast.utils.errors import RunError

GENERATIONS, UNLUCKY, DIES, COUNT = 3, 3, 11, 1000
POOR = COUNT * 2 // 3  # and all after it


def top1(number):
    """What early stopping must keep, and what it must stop."""
    return 50.0 if number < POOR else 0.0


class Stub(Worker):
    def begin(self):
        self.steps = self.sweep / "steps" / self.name
        self.trained = len(self.steps.read_text().splitlines()) if self.steps.exists() else 0
        self.reported = 0

    def advance(self):
        number = int(self.name)
        if number == UNLUCKY:
            raise RunError(f"number {number} is unlucky")
        if self.reported == self.trained:
            if number == DIES and not self.steps.exists():  # the worker dies before the first generation's end
                self.steps.touch()
                os.kill(os.getpid(), 9)
            time.sleep(0.01)
            with self.steps.open("a") as file:
                file.write(f"{os.getpid()}\n")
            self.trained += 1
        self.reported += 1
        last = {"finished": True} if self.reported == GENERATIONS else {}
        return {"generation": self.reported, "val_top1": top1(number)} | last


def main(folder, count, concurrent, rungs=None):
    (folder / "steps").mkdir(parents=True, exist_ok=True)
    trials = {f"{i:04d}": Trial(f"{i:04d}", {}, Config(generations=GENERATIONS)) for i in range(count)}
    ledger = Ledger.open(folder / "ledger.jsonl", trials)
    scheduler = tune.asha(ledger, rungs, GENERATIONS) if rungs else None
    with connection.connected(folder, None, concurrent) as session:
        start = time.time()
        try:
            order = (trials[name] for name in ledger.left())
            tune.run(folder, order, ledger, session, Slots(concurrent, 1), retries=1, scheduler=scheduler, worker=Stub)
            session.exit_code = 0
        except tune.Stopped as stopped:
            session.exit_code = 128 + stopped.number
        except RunError as error:
            print(f"error: {error}", file=sys.stderr, flush=True)
        print("fit", time.time() - start)
    return session.exit_code


if __name__ == "__main__":
    first_rung = (int(sys.argv[4]), 2) if len(sys.argv) > 4 else None
    sys.exit(main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), first_rung))
