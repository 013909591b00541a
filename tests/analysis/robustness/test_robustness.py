import json
import math

import numpy as np
import pytest
import torch
from image_folders import write_images
from safetensors.torch import load_file, save_file
from small_resnet import build_by_name

from seal_fast.__main__ import main
from seal_fast.analysis.robustness.command import Robustness
from seal_fast.analysis.robustness.compute import accuracy, detection, normalise, scores
from seal_fast.analysis.robustness.corruptions import CORRUPTIONS, corrupt
from seal_fast.data import open_images
from seal_fast.data.batches import batches

SOME = ["--corruptions", "contrast", "gaussian-noise", "--strengths", "1", "5", "--batch-size", "5"]


def literal_auroc(own, other):
    return sum((a > b) + (a == b) / 2 for a in own for b in other) / len(own) / len(other)


def test_detection_is_the_share_of_pairs_in_the_right_order():
    draw = torch.Generator().manual_seed(0)
    own, other = (3 * torch.randn(n, 4, generator=draw) for n in (11, 13))
    shares = [
        [max(math.exp(v) for v in row) / sum(math.exp(v) for v in row) for row in x.tolist()] for x in (own, other)
    ]
    energies = [[math.log(sum(math.exp(v) for v in row)) for row in x.tolist()] for x in (own, other)]
    found = {name: value["mean"] for name, value in detection(own, other).items()}
    expected = {"AUROC, maximum softmax": literal_auroc(*shares), "AUROC, energy": literal_auroc(*energies)}
    assert found == pytest.approx(expected, rel=1e-12)
    dead = torch.zeros(3, 4)  # a dead network, and one class
    assert {value["mean"] for value in detection(dead, dead[:1]).values()} == {0.5}
    assert scores(torch.tensor([[2.0]]))["energy"].tolist() == [2.0]
    apart = detection(torch.tensor([[9.0, 0]]), torch.tensor([[0.1, 0]]))  # one image each
    assert {value["mean"] for value in apart.values()} == {1.0}


def test_means_are_over_strengths_and_corruptions():
    hits = {"snow": np.array([[1, 1, 0, 0], [1, 0, 0, 0]], bool), "fog": np.array([[1, 1, 1, 1], [0, 0, 0, 0]], bool)}
    hits["pixelate"] = np.zeros((2, 4), bool)
    figures, by_strength = accuracy([True, True, True, False], hits)
    found = {section: value["top-1 (%)"]["mean"] for section, value in figures.items()}
    assert found == pytest.approx(
        {
            "clean": 75,
            "all corruptions": 87.5 / 3,
            "weather": 43.75,
            "digital": 0,
            "snow": 37.5,
            "fog": 50,
            "pixelate": 0,
        }
    )
    assert by_strength["snow"] == [50, 25] and figures["clean"]["top-1 (%)"]["low"] < 75
    assert list(accuracy([True], {})[0]) == ["clean"]


def test_runs_are_measured_as_by_a_loop(runs, folder, image_folder, tmp_path, capsys):
    out, other = tmp_path / "results", tmp_path / "other"
    for part, seed in (("train", 3), ("val", 4)):
        write_images(other / part, 2, 4, 16, seed=seed)
    flags = [*SOME, "--per-generation", "--ood", str(other), "--images", "7", "--out", str(out)]
    assert main(["robustness", str(folder), *flags]) == 0
    assert "7 validation images" in capsys.readouterr().out
    results = json.loads((out / "robustness.json").read_text())
    assert {p.name for p in out.glob("*.png")} == {"robustness.png", "robustness_generations.png"}
    last = results[-1]
    model = build_by_name("resnet18", 4, "small").eval()
    model.load_state_dict(load_file(folder / "weights" / "generation-1.safetensors"))
    images = open_images(image_folder)
    ((x, labels),) = batches(images, images.val.spread(7), image_size=16, batch_size=7)
    plain = normalise(x, images.mean, images.std, back=True)
    torch.testing.assert_close(plain * 255, (plain * 255).round(), atol=1e-3, rtol=0)
    for name in ("contrast", "gaussian noise"):
        for i, strength in enumerate((1, 5)):
            changed = corrupt(plain.contiguous(), name, strength, range(7))
            with torch.no_grad():
                predicted = model(normalise(changed, images.mean, images.std)).argmax(1)
            top1 = 100 * float((predicted == labels).float().mean())
            assert last["by_strength"][name][i] == pytest.approx(top1)
    assert set(last["figures"]) == {
        "clean", "all corruptions", "noise", "digital", "gaussian noise", "contrast", "against other"
    }  # fmt: skip
    assert 0 <= last["figures"]["against other"]["AUROC, energy"]["mean"] <= 1
    assert len(CORRUPTIONS) == 15


def test_the_title_counts_what_was_shown():
    protocol = {"data": "digits", "images": 1000, "corruptions": ["snow"], "strengths": [3]}
    title = Robustness().title(protocol)
    assert title.startswith("1,000 validation images of digits under 1 corruption at strength 3\n")
    both = protocol | {"corruptions": ["snow", "fog"], "strengths": [1, 5]}
    assert " under 2 corruptions at strengths 1, 5 (means over them)\n" in Robustness().title(both)
    assert "images of digits\n" in Robustness().title(protocol | {"corruptions": []})  # --ood alone


def test_refusals_and_a_dead_network(folder, image_folder, tmp_path, capsys):
    assert main(["robustness", str(folder), "--corruptions"]) == 2
    assert "none is named" in capsys.readouterr().err
    dead = {
        n: t * 0 if t.is_floating_point() else t for n, t in build_by_name("resnet18", 4, "small").state_dict().items()
    }
    save_file(dead, tmp_path / "dead.safetensors")
    flags = ["--data", str(image_folder), "--stem", "small", "--image-size", "16", "--json", "--images", "1"]
    assert main(["robustness", str(tmp_path / "dead.safetensors"), *SOME, *flags]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert {value["top-1 (%)"]["mean"] for value in result["figures"].values()} <= {0, 100}
