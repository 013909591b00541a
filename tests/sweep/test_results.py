"""What a sweep shows and writes, from ledgers and run folders made by hand."""

import csv
import json
import shutil
from dataclasses import replace

import pytest
from pretend import pretend_run

from seal_fast.config import Config
from seal_fast.runs.logger import clock
from seal_fast.sweep import results
from seal_fast.sweep.display import Display
from seal_fast.sweep.folder import SweepFolder
from seal_fast.sweep.ledger import Ledger
from seal_fast.sweep.plan import Plan, Trial

BASE = Config(data="digits", generations=3, epochs=4, ascent_epochs=1, eval_every=1)


@pytest.fixture
def sweep(tmp_path):
    """Finished, stopped after one generation but trained for two, running, failed, waiting."""
    folder = SweepFolder(tmp_path)
    trials = {f"{i}": Trial(f"{i}", {"seed": i, "lr": 0.1}, replace(BASE, seed=i)) for i in range(5)}
    folder.write_plan(Plan(tuple(trials.values())))
    ledger = Ledger.open(folder.ledger, trials)
    for i, (level, generations) in enumerate(((60, 3), (70, 2), (40, 1))):
        pretend_run(folder.trials / f"{i}", trials[f"{i}"].config, level, generations)
    ledger.record("0", "finished")
    ledger.record("1", "running", generation=1, value=1.0)
    ledger.record("1", "stopped")
    ledger.record("2", "running")
    ledger.record("3", "failed", failures=3, message="out of memory")
    return folder, trials, ledger


def test_rows_hold_what_was_known_when_a_run_was_stopped(sweep):
    folder, trials, ledger = sweep
    results.write(folder, trials, ledger)
    rows = results.collect(folder, trials, ledger)
    assert [row["state"] for row in rows] == ["finished", "stopped", "running", "failed", "waiting"]
    assert [row["epochs"] for row in rows] == [12, 4, 4, 0, 0]
    metrics = folder.run("0").rows()
    assert rows[0]["best_top1"] == max(row["val_top1"] for row in metrics)
    assert rows[0]["last_top1"] == metrics[-1]["val_top1"] and rows[0]["seed"] == 0
    assert rows[0]["images_per_s"] == pytest.approx(sum(row["images"] for row in metrics) / 24)
    assert rows[1]["last_top1"] == folder.run("1").rows()[3]["val_top1"]
    assert (rows[3]["failures"], rows[3]["message"], rows[3]["best_top1"]) == (3, "out of memory", None)
    assert json.loads(folder.json.read_text()) == rows
    with folder.csv.open() as file:
        assert [row["best_top1"] for row in csv.DictReader(file)][3] == ""


def test_rows_may_have_settings_of_their_own(tmp_path):
    """A setting without effect on a run stands in its row no more than in its name, whichever run comes first."""
    folder = SweepFolder(tmp_path)
    settings = (
        {"method": "restart"},
        {"method": "seal", "ascent_scale": 0.1},
        {"method": "llf", "reinit": "he-normal"},
    )
    trials = {f"{i}": Trial(f"{i}", s, replace(BASE, **s)) for i, s in enumerate(settings)}
    results.write(folder, trials, Ledger.open(folder.ledger, trials))
    with folder.csv.open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0])[:6] == ["trial", "state", "method", "ascent_scale", "reinit", "best_top1"]
    assert [(row["ascent_scale"], row["reinit"]) for row in rows] == [("", ""), ("0.1", ""), ("", "he-normal")]


def test_the_display_counts_and_says_once_what_has_ended(sweep, capsys, monkeypatch):
    folder, trials, ledger = sweep
    display = Display(folder, trials, ledger)
    display.tick()
    assert capsys.readouterr().out == ""  # all of that ended before
    bests = {row["trial"]: row["best_top1"] for row in results.collect(folder, trials, ledger)}
    head, *running = display.text().splitlines()
    # the run that was stopped trained on to a better accuracy, which does not count
    counts = "5 runs: 1 running, 1 waiting, 1 finished, 1 stopped, 1 failed"
    assert head == f"{counts}; best val top-1 {bests['0']:.2f} % (0)"
    assert running[0].split() == ["running", "at", "done", "val", "top-1"]
    assert running[2].split()[:5] == ["2", "g0", "e3", "descent", "33%"]
    ledger.record("2", "failed", failures=1, message="a bad [image]")
    display.tick()
    display.tick()
    said = f"failed   2  best val top-1 {bests['2']:.2f} %  a bad [image]\n"
    assert capsys.readouterr().out == said
    # two of five runs of 12 epochs are left; none of them has trained since
    later = display._begin + 61
    monkeypatch.setattr("time.monotonic", lambda: later)
    pretend_run(folder.trials / "4", trials["4"].config, 30, 1)
    ledger.record("4", "running")
    display.tick()
    display.tick()
    text = capsys.readouterr().out
    assert text.count("5 runs: 1 running, 1 finished") == 1 and "g0 e3 descent" in text
    # 8 epochs of the failed run are done with, 4 of the new one are trained: 12 in 61 s, and 8 are left
    assert f"; {clock(61 / 12 * 8)} left" in text


def test_the_display_shows_the_bests_that_results_csv_holds(sweep, capsys):
    """A run was seen while it was running, and went on: what was best then is best no more."""
    folder, trials, ledger = sweep
    display = Display(folder, trials, ledger)
    display.text()
    shutil.rmtree(folder.run("2").path)
    pretend_run(folder.trials / "2", trials["2"].config, 90)
    ledger.record("2", "finished")
    display.stop()
    row = results.collect(folder, trials, ledger)[2]
    text = capsys.readouterr().out
    assert f"finished 2  best val top-1 {row['best_top1']:.2f} %" in text and row["best_top1"] > 70
    assert f"best val top-1 {row['best_top1']:.2f} % (2)" in text.splitlines()[-1]
