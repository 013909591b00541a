import base64
import csv
import json
import re
import shutil

import pytest
from safetensors.torch import load_file, save_file

from seal_fast import train
from seal_fast.__main__ import main
from seal_fast.analysis.common.network import open_network
from seal_fast.analysis.common.results import identity, read_results, weights_sha256
from seal_fast.analysis.common.stats import student
from seal_fast.config import Config
from seal_fast.models.resnet import BasicBlock, ResNet
from seal_fast.utils.errors import UsageError


@pytest.fixture(scope="module")
def runs(image_folder, tmp_path_factory):
    """Two runs of `long` that differ by their seed, and one of `restart`."""
    monkeypatch = pytest.MonkeyPatch()
    monkeypatch.setattr(
        train, "build", lambda _, classes, stem, seed: ResNet(BasicBlock, (2, 2, 2, 2), classes, stem, 8)
    )
    out = tmp_path_factory.mktemp("runs")
    settings = {"generations": 2, "epochs": 1, "warmup_epochs": 0, "batch_size": 10, "stem": "small"}
    for name, method, seed in (("long-0", "long", 0), ("long-1", "long", 1), ("again-0", "restart", 0)):
        train.run(Config(data=str(image_folder), out=out / name, method=method, seed=seed, **settings))
    monkeypatch.undo()
    return [out / name for name in ("long-0", "long-1", "again-0")]


def depth_of(run, mean, stage="last", **changes):
    interval = {"mean": mean, "low": mean - 1, "high": mean + 1, "count": 12}
    split = {"mean_depth": interval, "without_depth": interval | {"mean": 25.0}}
    protocol = {"data_sha256": "d", "bank": 20, "k": 3, "pooling": "avg", "reference": "prediction"}
    return identity(open_network(run, stage=stage)) | protocol | {"splits": {"val": split}} | changes


def write(folder, **results):
    folder.mkdir()
    for command, found in results.items():
        (folder / f"{command}.json").write_text(json.dumps(found))
    return folder


@pytest.fixture
def results(runs, tmp_path):
    first, second, other = runs
    depth = [depth_of(first, 4.0), depth_of(second, 6.0), depth_of(other, 5.0)]
    depth += [depth_of(other, 3.5, stage="generation-0")]
    target = {"far": {"linear": {"top1": 61.5}, "knn": {"top1": 50.0}}}
    episodes = {"far": {"5": {"linear": {"mean": 70.0, "low": 69.0, "high": 71.0, "count": 600}}}}
    hessian = identity(open_network(other)) | {"top": [31.5, 20.0], "bottom": [-2.5], "trace": 400.0, "images": 256}
    return write(
        tmp_path / "results",
        depth=depth,
        transfer=[identity(open_network(first)) | {"targets": target}],
        fewshot=[identity(open_network(first)) | {"targets": episodes, "protocol": {"ways": 5}}],
        hessian=hessian,  # one object standing alone
    )


def test_one_page_puts_everything_side_by_side(runs, results, tmp_path, capsys):
    out = tmp_path / "page"
    assert main(["compare", *map(str, runs), "--results", str(results), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    held = json.loads((out / "compare.json").read_text())
    cells = {(row["name"], row["group"]): row for row in held["table"]}
    mean = student([4.0, 6.0])
    assert cells["mean depth, val", "long"] == pytest.approx(
        {"analysis": "depth", "name": "mean depth, val", "group": "long", **mean.json()}
    )
    alone = cells["mean depth, val", "restart"]
    assert (alone["mean"], alone["low"], alone["high"]) == (5, 4, 6)  # a single run: the interval of its examples
    assert cells["far, linear probe (%)", "long"]["mean"] == 61.5
    assert cells["far, 5-shot, linear head (%)", "long"]["low"] == 69
    assert [cells[n, "restart"]["mean"] for n in ("largest eigenvalue", "most negative eigenvalue", "trace")] == [
        31.5,
        -2.5,
        400,
    ]
    summary = json.loads((runs[2] / "summary.json").read_text())
    assert cells["top-1 of the best epoch (%)", "restart"]["mean"] == summary["best"]["val_top1"]
    assert "far, linear probe (%)" in printed and "5.00 [-7.71, 17.71]" in printed

    rows = list(csv.DictReader((out / "compare.csv").open()))
    assert {(r["run"], r["stage"], r["value"]) for r in rows if r["name"] == "mean depth, val"} >= {
        ("long-0", "last", "4.0"),
        ("again-0", "generation-0", "3.5"),
    }
    page = (out / "compare.html").read_text()
    assert not re.search(r'(src|href)="(?!data:)', page)
    pictures = re.findall(r'src="data:image/png;base64,([^"]+)"', page)
    names = {"curves", "accuracy", "depth", "depth-generations", "transfer", "fewshot", "hessian"}
    assert len(pictures) == len(names) and all(base64.b64decode(p).startswith(b"\x89PNG") for p in pictures)
    named = re.findall(r"\]\((.*?)\)", (out / "compare.md").read_text())
    assert set(named) == {f"compare-{name}.png" for name in names} == {path.name for path in out.glob("*.png")}


def test_results_of_other_weights_are_left_out_and_named(runs, results, tmp_path, capsys):
    out = tmp_path / "page"
    assert main(["compare", str(runs[0]), "--results", str(results), "--out", str(out)]) == 0
    assert "again-0 (depth)" in (out / "compare.md").read_text()
    assert "again-0 (depth)" in capsys.readouterr().out
    assert not (out / "compare-depth-generations.png").exists()  # one stage of a run is no curve
    assert len(json.loads((out / "compare.json").read_text())["groups"]["long"]) == 1


def test_the_same_tensors_have_the_same_name_whatever_the_file(runs, tmp_path):
    file = runs[0] / "weights" / "last.safetensors"
    tensors = load_file(file)
    save_file(tensors, tmp_path / "copy.safetensors", {"other": "header"})
    assert weights_sha256(file) == weights_sha256(tmp_path / "copy.safetensors")
    tensors["bn1.bias"][0] += 1
    save_file(tensors, tmp_path / "other.safetensors")
    assert weights_sha256(file) != weights_sha256(tmp_path / "other.safetensors")


def test_what_cannot_be_compared_ends_in_a_sentence(runs, tmp_path, capsys):
    def error(*argv):
        assert main(["compare", *map(str, argv), "--out", str(tmp_path / "page")]) == 2
        said = capsys.readouterr().err
        assert said.startswith("error: ") and said.count("\n") == 1
        return said

    mixed = write(tmp_path / "mixed", depth=[depth_of(runs[0], 4.0), depth_of(runs[1], 6.0, k=5)])
    assert "depth results cannot be compared: k is 3 for long-0 and 5 for long-1" in error(*runs, "--results", mixed)
    assert "none of depth.json, transfer.json" in error(runs[0], "--results", tmp_path)
    assert "two of the runs are called long-0" in error(runs[0], runs[0])
    assert "not a run folder" in error(runs[0] / "weights" / "last.safetensors")
    shutil.copytree(runs[0], tmp_path / "running")
    (tmp_path / "running" / "summary.json").unlink()
    assert "let the run finish" in error(tmp_path / "running")
    with pytest.raises(UsageError, match="does not say weights_sha256"):
        read_results([write(tmp_path / "old", depth=[{"subject": "a", "stage": ""}])])
    (tmp_path / "old" / "depth.json").write_text("{")
    with pytest.raises(UsageError, match="not readable JSON"):
        read_results([tmp_path / "old"])
