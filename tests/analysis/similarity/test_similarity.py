import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from small_resnet import build_by_name

from seal_fast.__main__ import main
from seal_fast.analysis.common import network
from seal_fast.analysis.depth.probes import run_probes
from seal_fast.analysis.similarity.compute import centred_gram, cka, hsic
from seal_fast.data import open_images
from seal_fast.data.batches import batches


def literal_hsic(x, y):
    """Song et al., equation 5, on the whole Gram matrices in float64."""
    k, m = (v.double().numpy() @ v.double().numpy().T for v in (x, y))
    n = len(k)
    np.fill_diagonal(k, 0), np.fill_diagonal(m, 0)
    ones = np.ones(n)
    total = np.trace(k @ m) + (ones @ k @ ones) * (ones @ m @ ones) / ((n - 1) * (n - 2))
    return (total - 2 / (n - 2) * (ones @ k @ m @ ones)) / (n * (n - 3))


def literal_cka(first, second):
    """Of lists of batches of features."""
    pairs = [(x, y) for x, y in zip(first, second, strict=True)]
    cross = sum(literal_hsic(x, y) for x, y in pairs)
    return cross / np.sqrt(sum(literal_hsic(x, x) for x, _ in pairs) * sum(literal_hsic(y, y) for _, y in pairs))


def ours(first, second):
    a, b = ([centred_gram(x)[None] for x in some] for some in (first, second))
    return float(cka(hsic(a, b), hsic(a, a)[0], hsic(b, b)[0]))


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_minibatch_cka_is_that_of_whole_gram_matrices():
    first = [normal(n, 30, seed=n) + 5 for n in (4, 12, 25)]  # far from 0 beside their spread
    second = [x[:, :7].relu() * 3 for x in first]
    assert ours(first, second) == pytest.approx(literal_cka(first, second), rel=1e-10)  # the literal one rounds more
    assert 0.05 < ours(first, second) < 0.95
    single = [x.float() for x in first], [x.float() for x in second]
    assert ours(*single) == pytest.approx(literal_cka(first, second), rel=1e-5)


def test_invariances_and_independence():
    x, y = [normal(20, 9, seed=s) for s in range(3)], [normal(20, 40, seed=s) for s in range(3, 6)]
    assert ours(x, x) == pytest.approx(1, abs=1e-12)
    turn = torch.linalg.qr(normal(9, 9, seed=9)).Q
    assert ours(x, [0.01 * v @ turn + 2 for v in x]) == pytest.approx(1, abs=1e-12)
    mixed = [v[:, :5] + w[:, :5] for v, w in zip(x, y, strict=True)]
    assert ours([v @ turn for v in x], mixed) == pytest.approx(ours(x, mixed), rel=1e-10)
    assert ours(x, y) == ours(y, x)
    many = [normal(100, 500, seed=s) for s in range(40)]  # biased CKA of so many features is 0.8
    assert abs(ours(many[:20], many[20:])) < 0.02


def test_constant_features_are_exactly_zero_and_have_no_cka():
    row = normal(1, 50).float()
    assert not centred_gram(row.expand(33, 50)).any()
    x = [normal(33, 50, seed=1).float()]
    assert np.isnan(ours(x, [row.expand(33, 50)]))


@pytest.fixture(scope="module")
def results(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("similarity")
    flags = ["--per-generation", "--images", "9", "--batch-size", "4", "--out", str(out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "build", build_by_name)
        assert main(["similarity", *map(str, runs), *flags]) == 0
    return out, {r["subject"]: r for r in json.loads((out / "similarity.json").read_text())}


def features(file, image_folder, size):
    """By probe, the features of batches of 5 and 4 images."""
    model = build_by_name("resnet18", 4, "small").eval()
    model.load_state_dict(load_file(file))
    images = open_images(image_folder)
    found = {}
    for x, _ in batches(images, images.val.spread(9), image_size=size, batch_size=5):
        run_probes(model, x, lambda name, v: found.setdefault(name, []).append(v.clone()))
    return found


def test_figures_and_maps_are_those_of_the_literal_formula(results, runs, image_folder):
    _, by_name = results
    last = by_name["seal-1 generation-1"]
    assert (last["protocol"]["images"], last["protocol"]["batch_size"]) == (9, 5)
    size = last["protocol"]["image_size"]
    files = {
        "": runs[1] / "weights" / "generation-1.safetensors",
        "across a generation": runs[1] / "weights" / "generation-0.safetensors",
        "to other seeds": runs[0] / "weights" / "generation-1.safetensors",
        "to restart at other seeds": runs[2] / "weights" / "generation-1.safetensors",
    }
    shown = {name: features(file, image_folder, size) for name, file in files.items()}
    here, probes = shown.pop(""), list(last["figures"])
    assert ["input", *probes] == list(here)
    maps = {one["name"]: one for one in last["maps"]}
    for name, there in shown.items():
        assert maps[name]["rows"] == maps[name]["columns"] == list(here)
        literal = [[literal_cka(x, y) for y in there.values()] for x in here.values()]
        np.testing.assert_allclose(maps[name]["values"], literal, atol=2e-5)
        figure = "CKA to other groups and seeds" if "restart" in name else f"CKA {name}"
        at_probes = [last["figures"][probe][figure]["mean"] for probe in probes]
        np.testing.assert_allclose(at_probes, np.diag(literal)[1:], atol=2e-5)
    found = last["figures"]["layer3.0"]["CKA to the input"]["mean"]
    assert found == pytest.approx(literal_cka(here["layer3.0"], here["input"]), abs=2e-5)
    between = maps["checkpoints, layer4.1"]
    assert between["rows"] == between["columns"] == ["0", "1-ascent", "1"]
    np.testing.assert_allclose(np.diag(between["values"]), 1, atol=1e-12)
    assert between["values"][2][0] == last["figures"]["layer4.1"]["CKA from the start"]["mean"]


def test_kinds_of_partners_and_pictures(results, tmp_path, runs, capsys):
    out, by_name = results
    names = {subject: [one["name"] for one in r["maps"] if "," not in one["name"]] for subject, r in by_name.items()}
    assert names["seal-0 generation-0"] == ["within the network"]
    assert names["seal-0 generation-1-ascent"] == ["within the network", "from the start", "across the ascent"]
    assert not any("CKA to other seeds" in found for found in by_name["seal-0 generation-1"]["figures"].values())
    assert names["restart-0 generation-1"] == [
        "within the network",
        "from the start",
        "across a generation",
        "to seal",
        "to seal at other seeds",
    ]
    assert {p.name for p in out.glob("*.png")} == {"similarity.png", "similarity_checkpoints.png"}
    assert main(["report", *map(str, runs), "--results", str(out), "--out", str(tmp_path)]) == 0
    (section,) = json.loads((tmp_path / "report.json").read_text())["analyses"]
    assert "CKA to other seeds, layer1.0" in [figure["name"] for figure in section["figures"]]
    groups = [g["label"] for g in json.loads((tmp_path / "report.json").read_text())["groups"]]
    (seeds,) = (m for m in section["maps"] if (groups[m["group"]], m["name"]) == ("seal", "to restart"))
    (one,) = (one for one in by_name["seal-0 generation-1"]["maps"] if one["name"] == "to restart")
    np.testing.assert_allclose(seeds["values"], one["values"], atol=1e-4)
    (seeds,) = (m for m in section["maps"] if (groups[m["group"]], m["name"]) == ("seal", "within the network"))
    two = [by_name[f"seal-{seed} generation-1"]["maps"][0]["values"] for seed in "01"]
    np.testing.assert_allclose(seeds["values"], np.mean(two, 0), atol=1e-4)


def test_identical_networks_a_single_class_and_too_few_images(folder, image_folder, tmp_path, capsys):
    weights = folder / "weights" / "last.safetensors"
    copy_of = shutil.copy(weights, tmp_path / "copy.safetensors")
    flags = ["--stem", "small", "--image-size", "16", "--json"]
    assert main(["similarity", str(weights), str(copy_of), "--data", str(image_folder), *flags]) == 0
    for result in json.loads(capsys.readouterr().out):
        found = {probe: value["CKA to other groups"]["mean"] for probe, value in result["figures"].items()}
        assert len(found) == 10 and list(found.values()) == pytest.approx([1] * 10, abs=1e-12)
    one = tmp_path / "one"
    first = min(path for path in (image_folder / "train").iterdir() if path.is_dir())
    for split in ("train", "val"):
        shutil.copytree(first, one / split / first.name)
    save_file(build_by_name("resnet18", 1, "small").state_dict(), tmp_path / "single.safetensors")
    assert main(["similarity", str(tmp_path / "single.safetensors"), "--data", str(one), *flags]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["figures"]["softmax"] == {} and 0 < result["figures"]["stem"]["CKA to the input"]["mean"] <= 1
    assert result["maps"][0]["values"][-1] == [None] * 11  # the softmax of one class is 1
    for few in (["--images", "1"], ["--batch-size", "3"]):
        assert main(["similarity", str(folder), *few]) == 2
        assert "debiased CKA needs at least 4 images in a batch" in capsys.readouterr().err
