import json
import shutil
import signal

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from small_resnet import build_by_name as build

from seal_fast.__main__ import main
from seal_fast.analysis.hessian.compute import Watcher
from seal_fast.data import open_images, select
from seal_fast.data.batches import batches


@pytest.fixture
def weights(tmp_path):
    path = tmp_path / "small.safetensors"
    save_file(build("resnet18", 4, "small").state_dict(), path)
    return path


def test_a_run_says_its_own_data_and_loss(folder, image_folder, tmp_path, capsys):
    out = tmp_path / "results"
    flags = "--images 8 --top 2 --bottom 1 --max-hvps 200 --group layer4.1 --tol 0.05 --vectors --seed 3".split()
    assert main(["hessian", str(folder), *flags, "--out", str(out), "--json"]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    keys = "top bottom trace trace_stderr hvps seconds residuals"
    assert set(keys.split()) <= set(result)
    protocol = result["protocol"]
    assert protocol["loss"] == "cross entropy, label smoothing 0.1, without weight decay"
    expected = dict(images=8, group="layer4.1", solver="lanczos", batchnorm="eval", tol=0.05, compute="float32")
    assert protocol.items() >= expected.items()
    assert protocol["data_sha256"] == select(open_images(str(image_folder)), limit_train=12).fingerprint
    assert result["trace"] is None and result["products"] == "R-operator" and result["seed"] == 0
    assert len(result["top"]) == 2 and len(result["residuals"]["bottom"]) == 1
    assert json.loads((out / "hessian.json").read_text()) == [result]
    vectors = load_file(out / "hessian_vectors.safetensors")
    assert vectors["top"].shape == (2, result["parameters"])
    top = vectors["top"].double()
    torch.testing.assert_close(top @ top.T, torch.eye(2).double(), rtol=0, atol=1e-5)


def test_figures_stay_where_the_vectors_cannot_be_written(folder, tmp_path, capsys):
    (tmp_path / "hessian_vectors.safetensors").mkdir()
    flags = f"--images 4 --top 1 --bottom 0 --tol 0.2 --group fc --max-hvps 100 --vectors --json --out {tmp_path}"
    assert main(["hessian", str(folder), *flags.split()]) == 1
    said = capsys.readouterr()
    assert "error: " in said.err and "hessian_vectors.safetensors" in said.err
    (result,) = json.loads(said.out)
    assert len(result["top"]) == 1 and json.loads((tmp_path / "hessian.json").read_text()) == [result]


def test_a_run_is_followed_through_its_generations(folder, tmp_path, capsys):
    out = tmp_path / "results"
    flags = f"--per-generation --images 8 --top 1 --bottom 1 --tol 0.2 --group fc --max-hvps 200 --json --out {out}"
    assert main(["hessian", str(folder), *flags.split()]) == 0
    results = json.loads(capsys.readouterr().out)
    assert [r["stage"] for r in results] == ["generation-0", "generation-1-ascent", "generation-1"]
    assert len({r["top"][0] for r in results}) == 3
    assert json.loads((out / "hessian.json").read_text()) == results
    assert (out / "hessian_generations.png").read_bytes().startswith(b"\x89PNG")


def test_trace_density_and_picture_of_several(weights, image_folder, tmp_path, capsys):
    out = tmp_path / "out"
    flags = f"--data {image_folder} --stem small --image-size 16 --images 16 --batch-size 5 --label-smoothing 0.2"
    flags += f" --trace --probes 4 --density --density-probes 1 --steps 6 --out {out}"
    flags += " --solver power --top 1 --bottom 0 --tol 0.1 --group layer4.1"
    copy = shutil.copy(weights, tmp_path / "copy.safetensors")
    assert main(["hessian", str(weights), str(copy), *flags.split()]) == 0
    printed = capsys.readouterr().out
    assert "16 training images of" in printed and "evenly spaced, not augmented" in printed
    assert "label smoothing 0.2, without weight decay; BatchNorm: eval mode\n" in printed
    assert "+-" in printed and "solver: power" in printed
    first, second = json.loads((out / "hessian.json").read_text())
    assert first["top"] == second["top"] and first["density"] == second["density"]
    assert len(first["density"]["nodes"][0]) == 6 and first["trace_half"] > first["trace_stderr"] > 0
    assert (first["trace_known"], first["trace_probes"]) == (1, 4)
    assert first["hvps"] >= 4 + 6 + 2
    assert (out / "hessian_density.png").read_bytes()[:4] == b"\x89PNG"


def test_images_are_spread_over_the_classes_unless_told(weights, image_folder, capsys, caplog):
    """The first five in path order are of one class, which is noted."""
    losses = {}
    for flag in ("--spread", "--no-spread", ""):
        flags = f"--data {image_folder} --stem small --image-size 16 --images 5 --top 1 --bottom 0 --group fc --tol 0.2"
        assert main(["hessian", str(weights), *flags.split(), "--json", *flag.split()]) == 0
        (result,) = json.loads(capsys.readouterr().out)
        assert result["protocol"]["order"] == ("first in path order" if flag == "--no-spread" else "evenly spaced")
        losses[flag] = result["loss_value"]
        absent = "3 classes have no image in --images (class1, class2, class3 first)"
        assert (absent in caplog.text) == (flag == "--no-spread")
        caplog.clear()
    assert losses[""] == losses["--spread"] != losses["--no-spread"]
    model = build("resnet18", 4, "small").eval()
    images = open_images(str(image_folder))
    x, y = next(iter(batches(images, images.train.spread(5), image_size=16, batch_size=5)))
    assert len(set(y.tolist())) == 4
    assert losses[""] == pytest.approx(F.cross_entropy(model(x), y).item(), rel=1e-5)


def test_train_mode_says_that_it_depends_on_the_split(weights, image_folder, capsys):
    flags = (
        f"--data {image_folder} --stem small --image-size 16 --images 8 --top 1 --bottom 0 --batchnorm train --tol 0.1"
    )
    assert main(["hessian", str(weights), *flags.split(), "--group", "fc"]) == 0
    printed = capsys.readouterr().out
    assert "BatchNorm: train mode; its value depends on how the images are split" in printed
    assert "products: double backward" in printed


def test_not_converging_is_said_and_what_there_is_is_given(weights, image_folder, capsys):
    flags = f"--data {image_folder} --stem small --image-size 16 --images 8 --max-hvps 3 --tol 1e-6 --json"
    assert main(["hessian", str(weights), *flags.split()]) == 1
    captured = capsys.readouterr()
    assert "error: small: not converged after 3 Hessian-vector products" in captured.err
    (result,) = json.loads(captured.out)
    assert not result["converged"] and result["hvps"] == 3 and result["top"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--group", "layer9"], "--group layer9: the model has no such layer"),
        (["--group", "layer1.0.downsample"], "--group layer1.0.downsample: the model has no such layer"),
        (["--images", "0"], "--images 0: must be at least 1"),
        (["--images", "21"], "21 images asked for"),
        (["--tol", "0"], "--tol 0.0: must be above 0"),
        (["--label-smoothing", "1"], "--label-smoothing 1.0"),
        (["--top", "0", "--bottom", "0"], "nothing is asked for"),
        (["--top", "60"], "at most 50 together"),
        (["--vectors"], "say where with --out"),
        (["--group", "fc.bias"], "--group fc.bias has 4 parameters, fewer than"),
        (["--model", "resnet50"], "another architecture"),
    ],
)
def test_bad_input_ends_in_one_sentence(flags, message, weights, image_folder, capsys):
    base = ["hessian", str(weights), "--data", str(image_folder), "--stem", "small", "--image-size", "16"]
    base += ["--images", "8"]
    assert main([*base, *flags]) == 2
    errors = capsys.readouterr().err
    assert message in errors and errors.count("\n") == 1


def test_diverged_weights_are_named(weights, image_folder, capsys):
    state = load_file(weights)
    state["conv1.weight"][0] = 3e38  # overflows
    save_file(state, weights)
    flags = f"--data {image_folder} --stem small --image-size 16 --images 8"
    assert main(["hessian", str(weights), *flags.split()]) == 1
    assert "these weights have diverged" in capsys.readouterr().err


def test_interrupted_it_gives_what_it_has(folder, monkeypatch, capsys):
    tell = Watcher.solver

    def interrupt(self, hvps, values, errors):
        if hvps == 5:
            signal.raise_signal(signal.SIGINT)
        return tell(self, hvps, values, errors)

    monkeypatch.setattr(Watcher, "solver", interrupt)
    flags = "--images 12 --tol 1e-9 --trace --density --json".split()
    assert main(["hessian", str(folder), *flags]) == 128 + signal.SIGINT
    captured = capsys.readouterr()
    (result,) = json.loads(captured.out)
    assert result["interrupted"] and result["hvps"] == 5 and len(result["top"]) == 4 and result["trace"] is None
    assert captured.err == "stopped: these are the figures so far\n"
