"""The runner of the analyses, by a command that reads one number out of the weights."""

import json
import signal
from dataclasses import replace

import numpy as np
import pytest
import torch
from pretend import pretend_run
from safetensors.torch import load_file, save_file

from seal_fast.analysis.common.command import Analysis
from seal_fast.analysis.common.figures import FigureAnalysis, number
from seal_fast.config import Config
from seal_fast.runs.stats import student
from seal_fast.utils.errors import RunError, UsageError

BASE = Config(data="/a/images.tar", generations=2, epochs=2, ascent_epochs=1)


class Thing(Analysis):
    name = "thing"
    description = "A number."
    batch_size = 7
    least = {"shots": 1}

    def add_flags(self, parser):
        parser.add_argument("--seed", type=int, default=0)
        parser.add_argument("--shots", type=int, nargs="+", default=[1])
        parser.add_argument("--break", dest="broken", action="store_true")

    def measure(self, network):
        if self.flags.broken:
            self.trouble.append(f"{network.name}: not converged")
        value = load_file(network.weights)["value"].item()
        if value == 99:
            signal.raise_signal(signal.SIGINT)
        return {"protocol": {"shots": self.flags.shots, "size": network.image_size}, "skipped_images": {}, "v": value}

    def table(self, results):
        groups = dict.fromkeys(r["group"] for r in results)
        means = {g: student([r["v"] for r in results if r["group"] == g]) for g in groups}
        return "\n".join(f"{group}: {mean.show()} of {mean.count}" for group, mean in means.items())

    def plot(self, results, path):
        path("thing").write_text(",".join(r["subject"] for r in results))


@pytest.fixture
def made(tmp_path):
    """Makes a run folder whose weights hold a value; its path."""

    def make(name, value, config=BASE, size=16, stages=("last",), **rest):
        pretend_run(tmp_path / name, config, 50, **rest)
        (tmp_path / name / "weights").mkdir()
        for place, stage in enumerate(stages):
            header = {"model": "resnet18", "stem": "small", "image_size": str(size)}
            tensors = {"value": torch.tensor(float(value + place))}
            save_file(tensors, tmp_path / name / "weights" / f"{stage}.safetensors", header)
        return str(tmp_path / name)

    return make


def test_seeds_are_averaged_and_what_counts_in_no_mean_is_named(made, tmp_path, capsys, caplog):
    runs = [made("s0", 10), made("s1", 14, replace(BASE, seed=1)), made("l0", 3, replace(BASE, method="llf"))]
    runs += [made("copy", 10), made("half", 50, replace(BASE, seed=2), generations=1)]
    (tmp_path / "latest").symlink_to(tmp_path / "s1")
    out = tmp_path / "out"
    assert Thing().run([*runs, str(tmp_path / "latest"), "--out", str(out)]) == 0
    printed = capsys.readouterr().out.splitlines()
    expected = [f"seal: {student([10, 14]).show()} of 2", "llf: 3.00 of 1", "copy: 10.00 of 1", "half: 50.00 of 1"]
    assert printed[:4] == expected
    assert printed[4:] == [
        "",
        "copy counts in no mean: the same training and seed as s0",
        "half counts in no mean: its run is unfinished",
        f"written to {out}",
    ]
    assert "latest/weights/last.safetensors is the same file as " in caplog.text
    results = json.loads((out / "thing.json").read_text())
    assert [(r["subject"], r["seed"], r["group"]) for r in results][:3] == [
        ("s0", 0, "seal"), ("s1", 1, "seal"), ("l0", 0, "llf"),
    ]  # fmt: skip
    protocol = results[0]["protocol"]
    assert protocol.pop("seal_fast") and protocol == {
        "analysis": "thing", "compute": "float32", "shots": [1], "size": 16,
    }  # fmt: skip
    assert (out / "thing.png").read_text() == "s0,s1,l0,copy,half"


def test_figures_of_different_protocols_are_never_averaged(made, tmp_path, capsys):
    runs = [made("s0", 10), made("s1", 14, replace(BASE, seed=1), size=32)]
    assert Thing().run([*runs, "--out", str(tmp_path / "out")]) == 0
    assert capsys.readouterr().out.splitlines()[:4] == [
        "seal: 10.00 of 1", "", "seal: 14.00 of 1", "",
    ]  # fmt: skip
    assert (tmp_path / "out" / "thing-2.png").read_text() == "s1"


def test_a_stage_or_all_of_them(made, capsys):
    run = made("s0", 1, stages=("generation-0", "generation-1-ascent", "generation-1", "last"))
    assert Thing().run([run, "--stage", "generation-1", "--json"]) == 0
    assert [r["v"] for r in json.loads(capsys.readouterr().out)] == [3]
    assert Thing().run([run, "--per-generation", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(r["stage"], r["v"]) for r in found] == [
        ("generation-0", 1), ("generation-1-ascent", 2), ("generation-1", 3),
    ]  # fmt: skip
    assert {r["group"] for r in found} == {"seal"}
    with pytest.raises(UsageError, match="--model resnet50: .* of resnet18"):
        Thing().run([run, "--per-generation", "--model", "resnet50"])


def test_a_signal_gives_what_there_is(made, capsys):
    runs = [made(f"s{seed}", value, replace(BASE, seed=seed)) for seed, value in enumerate((1, 99, 3))]
    assert Thing().run([*runs, "--json"]) == 128 + signal.SIGINT
    captured = capsys.readouterr()
    assert [r["v"] for r in json.loads(captured.out)] == [1, 99]
    assert captured.err == "stopped: these are the figures so far\n"


def test_trouble_is_told_after_the_figures(made, capsys):
    assert Thing().run([made("s0", 1), "--break"]) == 1
    captured = capsys.readouterr()
    assert captured.out == "seal: 1.00 of 1\n" and captured.err == "error: s0: not converged\n"


@pytest.mark.parametrize(
    ("argv", "sentence"),
    [
        (["--batch-size", "0"], "--batch-size 0: must be at least 1"),
        (["--image-size", "-3"], "--image-size -3: must be at least 1"),
        (["--threads", "0"], "--threads 0: must be at least 1"),
        (["--seed", "-1"], "--seed -1: must be at least 0"),
        (["--shots", "5", "0"], "--shots 0: must be at least 1"),
        (["--stage", "generation-9"], "keeps no weights called generation-9"),
    ],
)
def test_a_wrong_flag_ends_in_a_sentence(argv, sentence, made):
    with pytest.raises(UsageError, match=sentence):
        Thing().run([made("s0", np.pi), *argv])


def test_a_folder_without_a_run_ends_in_a_sentence(tmp_path):
    with pytest.raises(UsageError, match="is no run folder"):
        Thing().run([str(tmp_path)])


def test_a_fault_costs_no_results_that_there_are(made, tmp_path, capsys):
    runs = [made("s0", 10), made("s1", 14, replace(BASE, seed=1))]
    (tmp_path / "s1" / "weights" / "last.safetensors").write_bytes(b"nothing")
    assert Thing().run(runs) == 1
    captured = capsys.readouterr()
    assert captured.out == "seal: 10.00 of 1\n"
    assert captured.err.startswith("error: ") and "s1/weights/last.safetensors is not a readable" in captured.err
    with pytest.raises(RunError, match="not a readable safetensors file"):
        Thing().run(runs[1:])

    class Fails(Thing):
        def measure(self, network):
            if network.name == "s2":
                raise RunError("s2: its images are damaged")
            return super().measure(network)

    runs = [runs[0], made("s2", 14, replace(BASE, seed=2)), made("s3", 12, replace(BASE, seed=3))]
    assert Fails().run([*runs, "--out", str(tmp_path / "out")]) == 1
    results = json.loads((tmp_path / "out" / "thing.json").read_text())
    captured = capsys.readouterr()
    assert [r["v"] for r in results] == [10, 12] and captured.out.startswith(f"seal: {student([10, 12]).show()} of 2")
    assert captured.err == "error: s2: its images are damaged\n"
    with pytest.raises(RunError, match="images are damaged"):  # of no network there is a figure
        Fails().run(runs[1:2])


def test_sections_of_the_same_figures_share_a_table(made, capsys):
    class Figures(FigureAnalysis):
        name = "figures"
        description = "Numbers."

        def add_flags(self, parser):
            pass

        def measure(self, network):
            value = load_file(network.weights)["value"].item()
            small, large = number(value / 1e6), number(value)
            sections = {"a": {"rise": small}, "b": {"rise": large}, "c": {"share (%)": large, "rise": large}}
            sections |= {"c": {"share (%)": large}} if value == 14 else {}
            return {"protocol": {}, "skipped_images": {}, "figures": sections}

        def title(self, result):
            return "numbers"

    runs = [made("s0", 10), made("s1", 14, replace(BASE, method="llf"))]
    assert Figures().run(runs) == 0
    title, *tables = capsys.readouterr().out.split("\n\n")
    assert title == "numbers" and [[line.split() for line in table.splitlines()] for table in tables] == [
        [["network", "section", "rise"], ["-" * 7, "-" * 7, "-" * 9],
         ["s0", "a", "0.0000100"], ["s1", "a", "0.0000140"], ["s0", "b", "10.0000"], ["s1", "b", "14.0000"]],
        [["network", "section", "share", "(%)", "rise"], ["-" * 7, "-" * 7, "-" * 9, "-" * 7],
         ["s0", "c", "10.00", "10.0000"], ["s1", "c", "14.00", "-"]],
    ]  # fmt: skip
