"""What no analysis can work with ends in one sentence, whichever command is asked."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from image_folders import write_images
from safetensors.torch import load_file, save_file
from small_resnet import build_by_name as build

from seal_fast.__main__ import main
from seal_fast.utils.files import read_tensors

FLAGS = {
    "depth": "--k 2 --pool avg",
    "transfer": "--k 1 --no-cache",
    "fewshot": "--ways 2 --shots 1 --queries 3 --episodes 2 --no-cache",
    "hessian": "--images 8 --top 1 --bottom 0 --max-hvps 60 --tol 0.2 --group fc",
}
COMMANDS = pytest.mark.parametrize("command", FLAGS)


@pytest.fixture
def ask(tmp_path, capsys):
    """Asks a command about a small network; returns its exit code and what it printed as an error."""

    def ask(command: str, data: Path, model: str = "resnet18"):
        save_file(build(model, 4, "small").state_dict(), tmp_path / "w.safetensors")
        argv = [command, str(tmp_path / "w.safetensors"), "--data", str(data), "--stem", "small", "--image-size", "16"]
        code = main([*argv, *FLAGS[command].split()])
        return code, capsys.readouterr().err

    return ask


def one_sentence(error: str) -> str:
    lines = [line for line in error.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "Traceback" not in error
    return lines[0]


@COMMANDS
def test_weights_of_another_architecture(command, ask, image_folder):
    code, error = ask(command, image_folder, model="resnet34")
    assert code == 2 and "holds weights of another architecture" in one_sentence(error)


@COMMANDS
def test_a_class_without_images(command, ask, image_folder, tmp_path):
    copy = Path(shutil.copytree(image_folder, tmp_path / "copy"))
    for file in (copy / "val" / "class2").iterdir():
        file.unlink()
    code, error = ask(command, copy)
    assert code == 1 and "class2" in one_sentence(error)


@COMMANDS
def test_one_class_alone(command, ask, tmp_path):
    for part in ("train", "val"):
        write_images(tmp_path / "alone" / part, 1, 6, 16, seed=0)
    code, error = ask(command, tmp_path / "alone")
    own = command in ("depth", "hessian")
    assert code == 2 and ("has 1 classes and w tells 4 apart" if own else "one class (class0)") in one_sentence(error)


@COMMANDS
def test_images_of_another_size_are_scaled_with_a_note(command, ask, tmp_path, caplog):
    for part in ("train", "val"):
        write_images(tmp_path / "large" / part, 4, 5, 20, seed=3)
    code, _ = ask(command, tmp_path / "large")
    assert code == 0
    assert "large: images of 20 pixels a side, scaled to the network's 16" in caplog.text


@pytest.mark.parametrize("command", ["barrier --points 3 --images 8", "similarity --images 8", "drift", "evaluate"])
def test_a_diverged_run_between_others_loses_none_of_their_figures(command, runs, tmp_path, capsys):
    """Its weights are named once, and no other network is compared with it."""
    bad = Path(shutil.copytree(runs[1], tmp_path / "bad"))
    for file in (bad / "weights").glob("*.safetensors"):
        save_file(load_file(file) | {"fc.bias": torch.full((4,), torch.nan)}, file, read_tensors(file)[1])
    name, *flags = command.split()
    assert main([name, str(runs[0]), str(bad), str(runs[2]), *flags, "--json"]) == 1
    printed = capsys.readouterr()
    results = json.loads(printed.out)
    assert {r["subject"].split()[0] for r in results} == {"seal-0", "restart-0"} and all(r["figures"] for r in results)
    sentences = [line for line in printed.err.splitlines() if line.startswith("error: ")]
    assert sentences and all(
        f"{bad}/weights/" in line and "holds NaN or infinite weights" in line for line in sentences
    )
    assert len(sentences) == (3 if name == "drift" else 1)  # one for each of its files
