import json

import pytest

from seal_fast.sweep.ledger import Entry, Ledger
from seal_fast.utils.errors import RunError


def test_the_last_word_counts_and_is_found_again(tmp_path):
    ledger = Ledger.open(tmp_path / "ledger.jsonl", "abcd")
    ledger.record("a", "running")
    ledger.record("b", "running", failures=1, message="out of memory")
    for generation, value in ((1, 5.0), (2, 6.0), (1, 5.0), (2, 6.0), (3, 4.0)):
        ledger.record("a", "running", generation=generation, value=value)
    ledger.record("a", "finished")
    ledger.record("c", "failed", failures=3, message="NaN")
    again = Ledger.open(tmp_path / "ledger.jsonl", "abcde")
    assert again.entries == ledger.entries | {"e": Entry()}
    assert again.entries["b"] == Entry("running", [], 1, "out of memory")
    assert again.entries["a"] == Entry("finished", [5.0, 6.0, 4.0])
    assert again.left() == ["b", "d", "e"]
    again.retry()
    assert again.left() == ["b", "c", "d", "e"] and again.entries["c"].failures == 0


def test_a_line_cut_short_was_never_written(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger.open(path, "ab")
    ledger.record("a", "finished")
    whole = path.read_text()
    for cut in range(1, len(whole)):
        path.write_text(whole + whole.replace('"a"', '"b"')[:cut].rstrip("\n"))
        again = Ledger.open(path, "ab")
        assert again.left() == ["b"]
        again.record("b", "finished")
        assert Ledger.open(path, "ab").left() == []
        assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_ledger_that_cannot_be_written_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="could not be written"):
        Ledger(tmp_path / "file" / "ledger.jsonl").record("a", "running")


def test_a_damaged_line_leaves_its_trial_out_and_names_it(tmp_path):
    path = tmp_path / "ledger.jsonl"
    ledger = Ledger.open(path, ["a", "ö", "c"])
    for name in ("a", "ö", "c"):
        ledger.record(name, "running", generation=1, value=5.0)
        ledger.record(name, "finished")
    lines = path.read_text().splitlines()
    lines[3] = lines[3].replace("finished", "finish\x00").replace("}", "")
    path.write_bytes("\n".join([*lines[:5], "[1]", '{"trial": "c", "state": "gone"}', ""]).encode())
    found = Ledger.open(path, ["a", "ö", "c"])
    assert [found.entries[name].state for name in ("a", "ö", "c")] == ["finished", "failed", "failed"]
    assert found.left() == []
    assert [note.removeprefix(f"line 4 of {path} ") for note in found.notes[:1]] == ["is damaged; ö is left out"]
    assert "line 6" in found.notes[1] and "does not name" in found.notes[1] and "line 7" in found.notes[2]
    assert found.entries["c"].message == f"line 7 of {path} is damaged; --resume --retry-failed continues the run"
    found.retry()
    again = Ledger.open(path, ["a", "ö", "c"])
    assert again.left() == ["ö", "c"] and again.entries["ö"] == Entry()
