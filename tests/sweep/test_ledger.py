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
