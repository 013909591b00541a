import json
import math
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from seal_fast.__main__ import main
from seal_fast.analysis.drift.compute import compare, layers, moves, norm, scale_free

EARLY = ("conv1", "bn1", "layer1", "layer2")


def flat(file, names=None):
    tensors = {k: v.double() for k, v in load_file(file).items() if "running" not in k and "batches" not in k}
    return torch.cat([v.flatten() for k, v in tensors.items() if names is None or k.startswith(names)])


def literal_angles(file, other, names):
    """Filter by filter, by the arc cosine."""
    before, after = load_file(file), load_file(other)
    angles = []
    for name, weight in before.items():
        if weight.ndim == 4 and name.startswith(names):
            for a, b in zip(weight.double().numpy(), after[name].double().numpy(), strict=True):
                angles.append(math.degrees(math.acos((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))))
    return sum(angles) / len(angles)


def test_figures_are_those_of_the_weights_as_one_vector(runs, folder, tmp_path, capsys):
    out = tmp_path / "results"
    assert main(["drift", *map(str, runs[:2]), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "the start is generation-0, the late group begins with layer3" in printed
    results = json.loads((out / "drift.json").read_text())
    first, ascent, last = results[:3]
    assert [r["from"] for r in (first, ascent, last)] == [
        {}, {"start": "generation-0", "ascent": "generation-0"}, {"start": "generation-0", "generation": "generation-0"}
    ]  # fmt: skip
    assert list(first["figures"]) == ["early", "late", "all"]
    for result, title in ((ascent, "across the ascent"), (last, "across a generation"), (last, "from the start")):
        files = [folder / "weights" / f"{stage}.safetensors" for stage in ("generation-0", result["stage"])]
        late = ("layer3", "layer4", "fc")
        for group, names in (("early", EARLY), ("late", late), ("all", EARLY + late)):
            w, v = (flat(file, names) for file in files)
            found = {name: value["mean"] for name, value in result["figures"][f"{title}, {group}"].items()}
            # the arc cosine of the oracle is good to 1e-8 radians alone
            angle = found.pop("filter angle (degrees)")
            assert angle == pytest.approx(literal_angles(*files, names), rel=1e-6)
            assert found == pytest.approx(
                {
                    "distance": float(torch.dist(w, v)),
                    "relative distance": float(torch.dist(w, v) / w.norm()),
                    "cosine": float(torch.cosine_similarity(w, v, dim=0)),
                },
                rel=1e-12,
            )
            assert result["figures"][group]["norm"]["mean"] == pytest.approx(float(v.norm()), rel=1e-12)
            assert result["protocol"]["parameters"][group] == len(v)
    w, v = (flat(folder / "weights" / f"{s}.safetensors", ("fc.",)) for s in ("generation-0", "generation-1"))
    fc = last["layers"]["fc"]
    assert fc["start"]["distance"] == pytest.approx(float((w - v).norm()), rel=1e-12) and len(fc["start"]) == 3
    assert {p.name for p in out.glob("*.png")} == {"drift.png", "drift_layers.png"}
    assert main(["report", *map(str, runs), "--results", str(out), "--out", str(tmp_path)]) == 0
    (section,) = json.loads((tmp_path / "report.json").read_text())["analyses"]
    shown = {figure["name"]: figure for figure in section["figures"]}
    seeds = [r["figures"]["from the start, all"]["distance"]["mean"] for r in results if r["stage"] == "generation-1"]
    cells = shown["distance, from the start, all"]["cells"]
    assert [c["mean"] for c in cells] == pytest.approx([sum(seeds) / 2])


def test_equal_weights_have_not_moved_and_scale_of_a_filter_has_no_angle(folder, tmp_path, capsys):
    still = shutil.copytree(folder, tmp_path / "still")
    shutil.copy(still / "weights" / "generation-0.safetensors", still / "weights" / "generation-1.safetensors")
    assert main(["drift", str(still), "--json"]) == 0
    last = json.loads(capsys.readouterr().out)[-1]
    for section in ("from the start, all", "across a generation, late"):
        found = {name: value["mean"] for name, value in last["figures"][section].items()}
        assert [found.pop(name) for name in ("distance", "relative distance", "filter angle (degrees)")] == [0, 0, 0]
        assert found["cosine"] == pytest.approx(1, abs=1e-14)
    draw = torch.Generator().manual_seed(0)
    before = {"w": torch.randn(8, 3, 3, 3, generator=draw, dtype=torch.float64)}
    scaled = {"w": before["w"] * torch.arange(1, 9).reshape(8, 1, 1, 1)}
    found = compare(moves(before, scaled, ["w"]), ["w"])
    assert found["distance"] > 1 and found["filter angle (degrees)"] < 1e-13
    opposite = compare(moves(before, {"w": -before["w"]}, ["w"]), ["w"])
    assert opposite["filter angle (degrees)"] == pytest.approx(180) and opposite["cosine"] == pytest.approx(-1)


def test_dead_filters_and_layers_without_a_scale_have_no_angle():
    zero, one = {"w": torch.zeros(2, 3, dtype=torch.float64)}, {"w": torch.ones(2, 3, dtype=torch.float64)}
    assert compare(moves(zero, one, ["w"]), ["w"]) == {"distance": norm(one, ["w"])}
    half = {"w": torch.tensor([[0.0, 0, 0], [0, 2, 0]], dtype=torch.float64)}
    turned = {"w": torch.tensor([[1.0, 0, 0], [1, 1, 0]], dtype=torch.float64)}
    assert compare(moves(half, turned, ["w"]), ["w"])["filter angle (degrees)"] == pytest.approx(45)
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3))
    assert scale_free(model) == ["0.weight"] and scale_free(model[:1]) == []
    assert layers(model) == {"0": ["0.weight"], "1": ["1.weight", "1.bias"], "2": ["2.weight", "2.bias"]}


def test_refusals(folder, capsys):
    assert main(["drift", str(folder), "--stage", "best"]) == 2
    assert "drift reads all checkpoints kept; drop the flag" in capsys.readouterr().err
    assert main(["drift", str(folder), "--layer-threshold", "nowhere"]) == 2
    assert main(["drift", str(folder / "weights" / "last.safetensors")]) == 2
    assert "keeps no weights of its generations" in capsys.readouterr().err
