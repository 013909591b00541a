"""The transfer and fewshot commands from the flags to the files, and what they say of bad input."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from image_folders import write_images
from safetensors.torch import save_file
from small_resnet import build_by_name as build

from seal_fast.__main__ import main
from seal_fast.data import open_images


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    """Three other classes, 16 x 16."""
    root = tmp_path_factory.mktemp("targets") / "stripes"
    write_images(root / "train", 3, 8, 16, seed=5)
    write_images(root / "test", 3, 4, 16, seed=6)
    return str(root)


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("SEAL_FAST_CACHE", str(tmp_path_factory.getbasetemp() / "feature_cache"))


def test_transfer_compares_groups_and_writes_what_it_says(runs, target, tmp_path, capsys):
    argv = ["transfer", *map(str, runs), "--data", target, "--out", str(tmp_path / "o"), "--k", "1", "3"]
    assert main(argv) == 0
    said = capsys.readouterr().out
    results = json.loads((tmp_path / "o" / "transfer.json").read_text())
    assert [(r["subject"], r["group"], r["stage"], r["seed"]) for r in results] == [
        ("seal-0", "seal", "last", 0),
        ("seal-1", "seal", "last", 1),
        ("restart-0", "restart", "last", 0),
    ]
    assert len({r["weights_sha256"] for r in results}) == 3
    protocol = results[0]["protocol"]
    assert protocol.items() >= {"analysis": "transfer", "compute": "float32", "k": [1, 3], "image_size": 16}.items()
    decisive = "seal_fast seed validation l2 fine_tune fine_tune_epochs fine_tune_lr targets".split()
    assert {*decisive, "analysis", "compute", "k", "image_size"} == protocol.keys()
    assert protocol["targets"] == {"stripes": open_images(target).fingerprint}
    linear = [r["targets"]["stripes"]["linear"]["top1"] for r in results]
    assert f"{np.mean(linear[:2]):.2f} [" in said and f"{linear[2]:.2f}" in said and "seal 2, restart 1" in said
    assert (tmp_path / "o" / "transfer.png").read_bytes().startswith(b"\x89PNG")
    assert main([*argv, "--json"]) == 0  # now from the cache, and only JSON on stdout
    again = json.loads(capsys.readouterr().out)
    for before, after in zip(results, again, strict=True):
        assert before["targets"] == after["targets"]


def test_fewshot_pairs_runs_on_the_same_episodes(runs, target, tmp_path, capsys):
    argv = ["fewshot", *map(str, runs), "--data", target, "--ways", "2", "--shots", "1", "3", "--queries", "4"]
    assert main([*argv, "--episodes", "20", "--out", str(tmp_path / "o")]) == 0
    said = capsys.readouterr().out
    results = json.loads((tmp_path / "o" / "fewshot.json").read_text())
    first = results[0]["targets"]["stripes"]["3"]["linear"]
    assert first["count"] == 20 and first["low"] <= first["mean"] <= first["high"]
    assert "difference to seal" in said and "episodes" in said and "centroid" in said
    protocol = results[0]["protocol"]
    assert protocol.pop("seal_fast") and protocol == {
        "analysis": "fewshot", "compute": "float32", "ways": 2, "shots": [1, 3], "queries": 4, "episodes": 20,
        "seed": 0, "image_size": 16, "targets": {"stripes": open_images(target).fingerprint},
    }  # fmt: skip
    assert (tmp_path / "o" / "fewshot.png").exists()


def test_a_run_is_followed_through_its_generations(runs, target, tmp_path, capsys):
    for command, flags in (("transfer", []), ("fewshot", ["--ways", "2", "--shots", "2", "--queries", "3"])):
        out = tmp_path / command
        argv = [command, str(runs[0]), str(runs[1]), "--data", target, "--per-generation", "--out", str(out), *flags]
        assert main(argv if command == "transfer" else [*argv, "--episodes", "10"]) == 0
        stages = [r["stage"] for r in json.loads((out / f"{command}.json").read_text())]
        assert stages == ["generation-0", "generation-1-ascent", "generation-1"] * 2
        assert (out / f"{command}_generations.png").exists()
        said = capsys.readouterr().out
        assert "generation-1-ascent" in said and "stage" in said


def test_fine_tuning_reaches_the_table(runs, target, tmp_path, capsys):
    argv = [
        "transfer",
        str(runs[0]),
        "--data",
        target,
        "--fine-tune",
        "--fine-tune-epochs",
        "1",
        "--out",
        str(tmp_path),
    ]
    assert main(argv) == 0
    assert "fine-tuned" in capsys.readouterr().out
    (result,) = json.loads((tmp_path / "transfer.json").read_text())
    assert 0 <= result["targets"]["stripes"]["fine_tune"]["top1"] <= 100


def bad(argv, capsys) -> str:
    assert main(argv) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.count("\n") == 1
    return said.err


def test_bad_input_ends_in_a_sentence(runs, target, tmp_path, capsys):
    flags = ["--ways", "2", "--queries", "4"]
    assert "class class0 has 12 images, and 9 shots" in bad(
        ["fewshot", str(runs[0]), "--data", target, "--shots", "9", *flags], capsys
    )
    assert "the images have 3 classes" in bad(["fewshot", str(runs[0]), "--data", target], capsys)
    assert "--image-size 0" in bad(["transfer", str(runs[0]), "--data", target, "--image-size", "0"], capsys)
    assert "--l2 0:" in bad(["transfer", str(runs[0]), "--data", target, "--l2", "0"], capsys)
    assert "called stripes too" in bad(["transfer", str(runs[0]), "--data", target, target], capsys)

    save_file(build("resnet18", 4, "small").state_dict(), tmp_path / "at64.safetensors")
    argv = ["transfer", str(runs[0]), str(tmp_path / "at64.safetensors"), "--data", target]
    assert "seal-0 was trained on images of 16 pixels a side and at64 of 64: choose one size" in bad(argv, capsys)
    save_file(build("resnet34", 4).state_dict(), tmp_path / "34.safetensors")
    assert "another architecture" in bad(
        ["transfer", str(tmp_path / "34.safetensors"), "--data", target, "--no-cache"], capsys
    )

    alone = tmp_path / "alone"
    for part in ("train", "test"):
        shutil.copytree(Path(target) / part / "class0", alone / part / "class0")
    assert "one class (class0)" in bad(["transfer", str(runs[0]), "--data", str(alone)], capsys)


def test_an_empty_class_of_the_target_ends_in_a_sentence(runs, target, tmp_path, capsys):
    copy = Path(shutil.copytree(target, tmp_path / "copy"))
    for file in (copy / "train" / "class1").iterdir():
        file.unlink()
    assert main(["transfer", str(runs[0]), "--data", str(copy)]) == 1
    assert "class1" in capsys.readouterr().err


def test_class_folders_without_a_split_are_a_pool_or_split_by_seed(runs, tmp_path, capsys):
    write_images(tmp_path / "pool", 3, 8, 16, seed=5)
    data = ["--data", str(tmp_path / "pool"), "--json"]
    few = ["--ways", "3", "--shots", "5", "--queries", "3", "--episodes", "3"]  # all 8 images of each class
    assert main(["fewshot", str(runs[0]), *data, *few]) == 0
    (result,) = json.loads(capsys.readouterr().out)
    assert result["targets"]["pool"]["5"]["linear"]["count"] == 3
    found = []
    for seed in ("0", "1"):
        assert main(["transfer", str(runs[0]), *data, "--seed", seed]) == 0
        (result,) = json.loads(capsys.readouterr().out)
        assert [result["targets"]["pool"][key] for key in ("train", "test")] == [18, 6]  # a fifth of each class
        found.append(result["protocol"]["targets"]["pool"])
    assert found[0] != found[1]  # other images are held out
    assert "training needs train/CLASS" in bad(["transfer", str(runs[0]), *data, "--fine-tune"], capsys)


def test_images_of_another_size_are_scaled_with_a_note(runs, tmp_path, capsys, caplog):
    write_images(tmp_path / "large" / "train", 2, 4, 20, seed=5)
    write_images(tmp_path / "large" / "test", 2, 2, 20, seed=6)
    assert main(["transfer", str(runs[0]), "--data", str(tmp_path / "large")]) == 0
    assert "images of 20 pixels a side, scaled to the network's 16" in caplog.text
