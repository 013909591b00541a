"""The study runs its measures in this process here, so that they find the narrow networks."""

import contextlib
import io
import json
import os
import shutil
import signal
import threading
from dataclasses import replace

import pytest
from pretend import pretend_run

from seal_fast.__main__ import COMMANDS, main
from seal_fast.analysis.study import command, plan
from seal_fast.config import Config
from seal_fast.utils.errors import UsageError

FAST = ["--only", "evaluate", "drift"]
OURS = "depth transfer fewshot hessian evaluate drift barrier plasticity".split()


@pytest.fixture
def launched(monkeypatch):
    """The command lines that a study starts."""
    lines = []

    def launch(words, log):
        lines.append(words[3:])
        with contextlib.redirect_stdout(io.StringIO()) as output, contextlib.redirect_stderr(output):
            code = main(words[3:])
        log.write_text(output.getvalue())
        return command.last_message(log) if code else ""

    monkeypatch.setattr(command, "launch", launch)
    monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda _, path, **settings: path.write_bytes(b""))
    return lines


def test_measures_and_page_are_made_once(runs, tmp_path, launched, capsys):
    out = tmp_path / "study"
    study = ["study", *map(str, runs[:2]), *FAST, "--out", str(out)]
    assert main([*study, "--images", "9", "--per-generation", "--flags", "evaluate --bins 5"]) == 0
    assert [line[0] for line in launched] == ["evaluate", "drift", "report"]
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in printed[:2]] == ["evaluate (1 of 2)", "drift (2 of 2)"]
    for name in FAST[1:]:
        stages = [result["stage"] for result in json.loads((out / f"{name}.json").read_text())]
        assert stages == ["generation-0", "generation-1-ascent", "generation-1"] * 2
    (protocol,) = {json.dumps(r["protocol"]) for r in json.loads((out / "evaluate.json").read_text())}
    assert json.loads(protocol)["images"] == {"val": 9} and json.loads(protocol)["bins"] == 5
    titles = [section["title"] for section in json.loads((out / "report.json").read_text())["analyses"]]
    assert titles == ["Accuracy and calibration", "Travel of the weights"]
    assert "9 val images" in (out / "evaluate.txt").read_text()

    def again(*flags):
        launched.clear()
        assert main([*study, "--images", "9", "--per-generation", *flags]) == 0
        return [line[0] for line in launched]

    assert again("--flags", "evaluate --bins 5") == ["report"]
    assert capsys.readouterr().out.count("done already") == 2
    assert again() == ["evaluate", "report"]
    (out / "drift.json").unlink()
    assert again() == ["drift", "report"]


def test_a_failing_measure_is_named_and_loses_no_other(runs, tmp_path, launched, capsys):
    mine = [shutil.copytree(run, tmp_path / "all" / run.name) for run in runs[::2]]
    torn = mine[1] / "weights" / "last.safetensors"
    torn.write_bytes(torn.read_bytes()[:-8])
    (mine[0] / "weights" / "generation-0.safetensors").unlink()
    pretend_run(tmp_path / "all" / "young", Config(data="x", generations=2, epochs=2, ascent_epochs=1), 50, 1)
    study = ["study", str(tmp_path / "all"), *FAST]
    assert main(study) == 1
    printed = capsys.readouterr()
    out = tmp_path / "all" / "study"
    assert [r["subject"] for r in json.loads((out / "evaluate.json").read_text())] == ["seal-0"]
    assert (out / "drift.json").exists() and (out / "report.html").exists()
    assert "error: evaluate: " in printed.err and "not a readable safetensors file" in printed.err
    assert printed.err.count("\n") == 1
    assert f"left out: {tmp_path / 'all' / 'young'}: unfinished" in printed.out
    assert "left out: drift of a run that keeps no weights of generation-0: seal-0" in printed.out
    shutil.copy(runs[2] / "weights" / "last.safetensors", torn)
    launched.clear()
    assert main(study) == 0
    assert [line[0] for line in launched] == ["evaluate", "drift", "report"]  # as the weights changed


def test_a_dry_run_lists_every_measure(runs, tmp_path, capsys):
    bare = shutil.copytree(runs[2], tmp_path / "bare")
    for file in (bare / "weights").glob("generation-*"):
        file.unlink()
    assert main(["study", str(bare), "--images", "5", "--dry-run"]) == 0
    lines = capsys.readouterr().out.splitlines()
    states = dict(line.split(": ", 1) for line in lines if not line.startswith(("  ", "left out")))
    assert list(states) == [name for name in COMMANDS if name in plan.registered()]
    assert set(OURS) <= states.keys() and "study" not in states
    assert states["transfer"] == states["fewshot"] == "left out, as it needs other images: name them with --targets"
    assert states["barrier"] == "left out, as it needs two networks"
    assert states["hessian"].startswith("left out, as sharpness has the largest eigenvalue and the trace: name it with")
    assert states["drift"] == "left out, as no run can be measured"
    assert f"  python -m seal_fast depth {bare} --queries 5 --bank 5" in "\n".join(lines).replace(
        "--bank 5 --queries 5", "--queries 5 --bank 5"
    )
    assert "left out: drift of a run that keeps no weights of its generations: bare" in lines
    assert not (tmp_path / "study").exists()
    assert main(["study", *map(str, runs), "--targets", "digits", "--dry-run", "--only", "transfer", "hessian"]) == 0
    shown = capsys.readouterr().out
    assert "hessian: 3 runs" in shown
    assert "--data digits" in shown and "--images 12 --out" in shown  # no more than there are to train on


def test_refusals(runs, tmp_path, monkeypatch, capsys):
    for flags, sentence in (
        (["--only", "depht"], "--only depht: is no analysis; choose among depth, "),
        (["--images", "0"], "--images 0: must be at least 1"),
        (["--flags", "hesian --trace"], "--flags hesian: is no analysis; choose among depth, "),
        (["--flags", ""], "--flags : is no analysis; choose among depth, "),
        (["--flags", "depth --probes 'a"], "--flags depth --probes 'a: No closing quotation"),
    ):
        assert main(["study", str(runs[0]), *flags]) == 2
        assert sentence in capsys.readouterr().err
    pretend_run(tmp_path / "young", replace(Config(data="x"), generations=2), 50, 1)
    assert main(["study", str(tmp_path / "young")]) == 2
    assert "none of the runs is finished" in capsys.readouterr().err
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UsageError, match="without torchrun"):
        command.main([str(runs[0])])


def test_a_process_that_fails_dies_or_is_stopped(tmp_path):
    log = tmp_path / "x.txt"
    assert command.launch(["python", "-m", "seal_fast", "tarin"], log).startswith("tarin is not a command")
    assert command.launch(["python", "-c", "import os; os.kill(os.getpid(), 9)"], log) == "ended by signal 9"
    assert command.launch(["python", "-c", "print('fine')"], log) == "" and log.read_text() == "fine\n"
    timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM))
    timer.start()
    with pytest.raises(SystemExit) as stopped:
        command.launch(["python", "-c", "import time; time.sleep(60)"], log)
    assert stopped.value.code == 128 + signal.SIGTERM


def test_a_changed_file_asks_anew(tmp_path):
    file = tmp_path / "x"
    file.write_text("1")
    before = plan.stamp(file)
    assert plan.stamp(file) == before and plan.stamp("digits") == ["digits"]
    file.write_text("22")
    assert plan.stamp(file) != before
    assert plan.Measure("a", inputs=[before]).request() != plan.Measure("a").request()
