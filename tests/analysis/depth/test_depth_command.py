import json
import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_resnet import build_by_name

from seal_fast.__main__ import main
from seal_fast.analysis.depth.command import Depth
from seal_fast.runs.stats import student


def test_a_run_is_measured_on_what_it_was_trained_on(folder, tmp_path, capsys):
    out = tmp_path / "results"
    assert main(["depth", str(folder), "--per-generation", "--k", "3", "--pool", "avg", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "11 probes (input is depth 0, softmax the last), 3 nearest of 12 training images" in printed
    assert "reference label: the network's own prediction; pooling of feature maps: avg" in printed
    results = json.loads((out / "depth.json").read_text())
    assert [r["stage"] for r in results] == ["generation-0", "generation-1-ascent", "generation-1"]
    assert len({r["weights_sha256"] for r in results}) == 3
    for result in results:
        assert (result["protocol"]["bank"], result["method"], result["seed"]) == (12, "seal", 0)
        assert {name: found["examples"] for name, found in result["splits"].items()} == {"val": 12, "train": 12}
        for found in result["splits"].values():
            without = found["without_depth"]["mean"] / 100 * found["examples"]
            assert sum(found["histogram"]) + without == pytest.approx(found["examples"])
    assert {path.name for path in out.glob("*.png")} == {"depth.png", "depth_generations.png"}


def test_runs_that_differ_by_their_seed_have_a_common_row():
    def result(seed, depth):
        mean = {"mean": depth, "low": depth - 1, "high": depth + 1, "count": 9}
        found = {"examples": 10, "top1": 40.0, "mean_depth": mean, "without_depth": mean | {"mean": 10.0}}
        protocol = {"data": "d", "k": 3, "bank": 20, "pooling": "avg", "reference": "truth", "leave_one_out": False}
        network = {"subject": f"a-{seed}", "stage": "last", "group": "seal"}
        return network | {"protocol": protocol, "probes": ["input", "softmax"], "splits": {"val": found}}

    shown = Depth().table([result(0, 4.0), result(1, 6.0)])
    assert "reference label: the true class" in shown
    (row,) = [line for line in shown.splitlines() if line.startswith("seal, 2 seeds")]
    assert student([4.0, 6.0]).show() in row and "40.00 [40.00, 40.00]" in row
    assert "seeds  " not in Depth().table([result(0, 4.0)])


def test_several_networks_are_compared_and_json_is_printed(folder, image_folder, tmp_path, capsys):
    weights = {name: torch.nan_to_num(x) for name, x in load_file(folder / "weights" / "best.safetensors").items()}
    save_file(weights, tmp_path / "bare.safetensors")
    flags = ["--data", str(image_folder), "--stem", "small", "--image-size", "16", "--k", "2", "--queries", "5"]
    flags += ["--bank", "9", "--leave-one-out", "--reference", "truth", "--json", "--pool", "2"]
    assert (
        main(["depth", str(folder / "weights" / "best.safetensors"), str(tmp_path / "bare.safetensors"), *flags]) == 0
    )
    first, second = json.loads(capsys.readouterr().out)
    assert (first["subject"], second["subject"], first["method"]) == ("best", "bare", None)
    assert first["splits"] == second["splits"] and first["protocol"]["leave_one_out"] and first["protocol"]["bank"] == 9
    assert first["splits"]["train"]["examples"] == 5


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--pool", "max"], "--pool max: choose none, avg"),
        (["--k", "0"], "--k 0: must be at least 1"),
        (["--k", "13"], "--k 13: the bank has 12 images"),
        (["--bank", "13"], "13 images asked for: the train split of .* has 12"),
        (["--stage", "generation-9"], "it keeps generation-0"),
        (["--data", "digits"], "--data digits has 10 classes and seal-0 tells 4 apart"),
        (["--model", "resnet50"], "says that it is of resnet18"),
    ],
)
def test_bad_input_ends_in_a_sentence(folder, capsys, flags, message):
    assert main(["depth", str(folder), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1
    assert re.search(message, error), error


def test_networks_without_classifier_or_with_dead_numbers_are_refused(tmp_path, image_folder, capsys):
    network = build_by_name("resnet18", 4, "small")
    weights = network.state_dict()
    save_file({k: v for k, v in weights.items() if not k.startswith("fc.")}, tmp_path / "backbone.safetensors")
    flags = ["--data", str(image_folder), "--stem", "small", "--image-size", "16", "--k", "2"]
    assert main(["depth", str(tmp_path / "backbone.safetensors"), *flags]) == 2
    assert "has no fc, so it has no prediction" in capsys.readouterr().err
    weights["layer3.0.conv1.weight"].fill_(3e38)  # finite, but what it computes is not
    save_file(weights, tmp_path / "broken.safetensors")
    assert main(["depth", str(tmp_path / "broken.safetensors"), *flags]) == 1
    assert "layer3.0" in capsys.readouterr().err
