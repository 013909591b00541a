"""The learning search, asked and told without Ray."""

import math
import statistics

import pytest

from seal_fast.sweep import suggest
from seal_fast.sweep.ledger import Ledger
from seal_fast.sweep.space import read
from seal_fast.utils.errors import UsageError

pytest.importorskip("optuna", reason="Optuna is an optional extra")

SPACE = 'data = "digits"\nlr = { loguniform = [0.001, 1.0] }\nmethod = { grid = ["seal", "llf"] }\nmomentum = 0.5\n'


@pytest.fixture
def space(tmp_path):
    def write(text=SPACE):
        path = tmp_path / "space.toml"
        path.write_text(text)
        return read(path)

    return write


def good(trial):
    return 80 - 20 * abs(math.log10(trial.config.lr) + 1) - 10 * (trial.config.method == "llf")


def run(search, ledger, count):
    for _ in range(count):
        trial = next(search)
        ledger.record(trial.name, "running", generation=1, value=good(trial))
        ledger.record(trial.name, "finished")


def test_it_learns_where_to_look_and_goes_on_after_a_kill(space, tmp_path):
    made, trials, kept = space(), {}, []
    ledger = Ledger.open(tmp_path / "ledger.jsonl", [])
    search = suggest.proposals(made, 40, 0, trials, ledger, lambda: kept.append(len(trials)))
    run(search, ledger, 20)
    interrupted = next(search)
    ledger.record(interrupted.name, "running")
    assert kept == list(range(1, 22))

    again = Ledger.open(tmp_path / "ledger.jsonl", trials)
    search = suggest.proposals(made, 40, 0, trials, again, lambda: None)
    assert next(search) is interrupted
    again.record(interrupted.name, "failed", failures=3)
    run(search, again, 19)
    assert next(search, None) is None and len(trials) == 40

    values = [good(trial) for trial in trials.values()]
    assert statistics.mean(values[21:]) > statistics.mean(values[:10]) + 5
    assert {t.config.momentum for t in trials.values()} == {0.5}
    assert all(0.001 <= t.config.lr <= 1 and set(t.settings) == {"lr", "method"} for t in trials.values())
    assert list(trials)[3].startswith("0003-lr=") and len({t.config for t in trials.values()}) == 40


def test_what_is_known_is_not_proposed_again(space, tmp_path):
    made = space('data = "digits"\nmethod = { grid = ["seal", "llf"] }\n')
    trials = {}
    ledger = Ledger.open(tmp_path / "ledger.jsonl", [])
    search = suggest.proposals(made, 3, 0, trials, ledger, lambda: None)
    run(search, ledger, 2)
    assert {t.config.method for t in trials.values()} == {"seal", "llf"}
    with pytest.raises(Exception, match="proposed nothing new"):
        next(search)


@pytest.mark.parametrize(
    ("text", "seeds", "message"),
    [
        (SPACE + "[[union]]\nlr = 0.1\n[[union]]\nlr = 0.2\n", None, "is a union"),
        ('data = "digits"\n', None, "nothing varies"),
        (SPACE, 3, "with one seed"),
    ],
)
def test_what_it_cannot_search_is_refused(space, text, seeds, message):
    with pytest.raises(UsageError, match=message):
        suggest.check(space(text), seeds)
