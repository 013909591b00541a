import json
import re

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.calibration import calibration_curve
from sklearn.metrics import accuracy_score, brier_score_loss, log_loss, recall_score

from seal_fast.__main__ import main
from seal_fast.analysis.evaluate.compute import equal_mass, equal_width, score
from seal_fast.data import open_images
from seal_fast.runs.stats import student, wilson

CLASSES = ("a", "b", "c", "d", "e")


def mean(found, name):
    return found["figures"][name]["mean"]


def literal_ece(shares, labels, edges):
    """Guo et al., equation 3, image by image."""
    total = 0.0
    for low, high in zip(edges[:-1], edges[1:], strict=True):
        inside = [i for i in range(len(labels)) if low < shares[i].max() <= high]
        if inside:
            hits = sum(int(shares[i].argmax() == labels[i]) for i in inside)
            total += abs(hits - sum(shares[i].max() for i in inside))
    return total / len(labels)


@pytest.mark.parametrize("scale", [0.3, 1.0, 3.0])  # scikit-learn clips smaller probabilities
def test_scores_are_those_of_scikit_learn_and_of_their_definitions(scale):
    draw = np.random.default_rng(int(10 * scale))
    logits, labels = scale * draw.normal(size=(400, 5)), draw.integers(0, 5, 400)
    logits[np.arange(400), labels] += scale
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    found = score(logits, labels, CLASSES)
    assert mean(found, "top-1 (%)") == pytest.approx(100 * accuracy_score(labels, shares.argmax(1)), rel=1e-12)
    assert mean(found, "NLL") == pytest.approx(log_loss(labels, shares), rel=1e-12)
    assert mean(found, "Brier score") == pytest.approx(brier_score_loss(labels, shares, scale_by_half=False), rel=1e-12)
    recall = recall_score(labels, shares.argmax(1), average=None)
    np.testing.assert_allclose([c["top1"] for c in found["by_class"].values()], 100 * recall, rtol=1e-12)
    assert [c["images"] for c in found["by_class"].values()] == np.bincount(labels).tolist()
    ece = literal_ece(shares, labels, np.linspace(0, 1, 16))
    assert mean(found, "ECE (%)") == pytest.approx(100 * ece, rel=1e-12)
    ranked = np.sort(shares.max(1))  # 400 = 10 bins of 27 and 5 of 26
    edges = [0, *ranked[np.cumsum([27] * 10 + [26] * 5) - 1]]
    assert mean(found, "adaptive ECE (%)") == pytest.approx(100 * literal_ece(shares, labels, edges), rel=1e-12)
    accuracies, confidences = calibration_curve(shares.argmax(1) == labels, shares.max(1), n_bins=15)
    full = [b for b in found["bins"] if b["images"]]
    np.testing.assert_allclose([b["accuracy"] for b in full], accuracies, rtol=1e-12)
    np.testing.assert_allclose([b["confidence"] for b in full], confidences, rtol=1e-12)
    interval = wilson(accuracy_score(labels, shares.argmax(1), normalize=False), 400)
    assert found["figures"]["top-1 (%)"]["low"] == pytest.approx(100 * interval.low)
    assert found["figures"]["NLL"]["high"] == pytest.approx(student(-np.log(shares[np.arange(400), labels])).high)


def test_degenerate_predictions():
    sure = score(np.eye(3) * 1e4, np.arange(3), CLASSES[:3])
    assert [mean(sure, name) for name in sure["figures"]] == [100, 0, 0, 0, 0]
    wrong = score(np.eye(3) * 1e4, (np.arange(3) + 1) % 3, CLASSES[:3])
    assert [mean(wrong, name) for name in wrong["figures"]] == [0, 1e4, 2, 100, 100]
    one = score(np.zeros((1, 4)), np.array([0]), CLASSES[:4])  # fewer images than bins; 1 / 4 belongs to bin 4 of 15
    assert mean(one, "ECE (%)") == mean(one, "adaptive ECE (%)") == 75
    assert [b["images"] for b in one["bins"]].index(1) == 3 and one["by_class"]["b"]["top1"] is None
    edges = equal_width(np.array([0.2, 0.2000001, 1.0]), 5)
    assert [rows.tolist() for rows in edges] == [[0], [1], [], [], [2]]
    assert [rows.tolist() for rows in equal_mass(np.array([0.9, 0.1, 0.5]), 2)] == [[1, 2], [0]]


def test_runs_are_evaluated_at_every_stage(runs, folder, image_folder, tmp_path, capsys):
    out = tmp_path / "results"
    flags = ["--per-generation", "--splits", "val", "train", "--logits", "--batch-size", "5", "--out", str(out)]
    assert main(["evaluate", str(folder), str(runs[1]), *flags]) == 0
    printed = capsys.readouterr().out
    results = json.loads((out / "evaluate.json").read_text())
    assert [r["stage"] for r in results] == ["generation-0", "generation-1-ascent", "generation-1"] * 2
    assert results[0]["protocol"]["images"] == {"val": 12, "train": 12}  # the run was trained on 12 of 20
    values = [r["figures"]["val"]["NLL"]["mean"] for r in results if r["stage"] == "generation-1"]
    (row,) = [line for line in printed.splitlines() if re.match(r".*2 seeds, generation-1 +val", line)]
    assert student(values).show(4) in row
    assert {p.name for p in out.glob("*.png")} == {"evaluate.png", "evaluate_generations.png"}
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert results[2]["figures"]["val"]["top-1 (%)"]["mean"] == pytest.approx(last["val_top1"])
    digest = results[2]["weights_sha256"]
    kept = load_file(out / f"evaluate_logits-{digest[:16]}.safetensors")
    images = open_images(image_folder)
    assert torch.equal(kept["val.labels"], torch.from_numpy(images.val.labels))
    again = score(kept["train.logits"].numpy(), kept["train.labels"].numpy(), images.classes)
    assert again["figures"]["NLL"]["mean"] == results[2]["figures"]["train"]["NLL"]["mean"]
    assert main(["report", *map(str, runs), "--results", str(out), "--out", str(tmp_path)]) == 0
    (section,) = json.loads((tmp_path / "report.json").read_text())["analyses"]
    shown = {figure["name"]: figure for figure in section["figures"]}
    assert section["title"] == "Accuracy and calibration" and len(shown) == 10
    (cell,) = shown["NLL, val"]["cells"]
    assert cell["mean"] == pytest.approx(student(values).mean) and shown["ECE (%), train"]["curves"][0]["at"]


def test_refusals(folder, capsys):
    assert main(["evaluate", str(folder), "--logits"]) == 2
    assert "--logits: name the folder" in capsys.readouterr().err
    assert main(["evaluate", str(folder), "--bins", "0"]) == 2
