"""--on-bad-image in every analysis: an unreadable image is named, or left out, counted and listed."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from small_resnet import build_by_name as build

from seal_fast.__main__ import main
from seal_fast.analysis.common.features import Extractor
from seal_fast.analysis.common.images import readable
from seal_fast.analysis.common.network import open_network
from seal_fast.config import Config
from seal_fast.data import open_images
from seal_fast.data.batches import batches
from seal_fast.training import runtime
from seal_fast.utils.errors import RunError


@pytest.fixture
def damaged(image_folder, tmp_path):
    """The four classes with one image cut short, one empty, and one whose end is missing."""
    folder = tmp_path / "pictures"
    shutil.copytree(image_folder, folder)
    cut = folder / "train" / "class1" / "002.png"
    cut.write_bytes(cut.read_bytes()[:200])
    (folder / "train" / "class0" / "000.png").write_bytes(b"")
    last = folder / "val" / "class3" / "002.png"
    last.write_bytes(last.read_bytes()[:100])
    return folder


BAD = {"train/class0/000.png", "train/class1/002.png", "val/class3/002.png"}


def test_what_can_be_read_keeps_its_order_and_labels(damaged, image_folder):
    images = readable(open_images(damaged, "skip"))
    whole = open_images(image_folder)
    assert set(images.skipped) == BAD and len(images.train) == 18 and len(images.val) == 11
    for part in ("train", "val"):
        kept = [row for row, name in enumerate(getattr(whole, part).names) if name not in BAD]
        expected = getattr(whole, part).take(kept)
        found = getattr(images, part)
        assert found.names == expected.names and found.labels.tolist() == expected.labels.tolist()
        pixels = [torch.cat([x for x, _ in batches(whole, s, image_size=16, batch_size=4)]) for s in (found, expected)]
        assert torch.equal(*pixels)


def test_features_of_what_is_left_belong_to_their_labels(damaged, image_folder, tmp_path):
    save_file(build("resnet18", 4, "small").state_dict(), tmp_path / "w.safetensors")
    network = open_network(tmp_path / "w.safetensors", stem="small", image_size=16)
    extract = Extractor(runtime.start(Config(device="cpu")), None, batch_size=4)
    whole = open_images(image_folder)
    for part in ("train", "val"):
        kept = [row for row, name in enumerate(getattr(whole, part).names) if name not in BAD]
        found, all_of_them = (
            extract(network, images, part) for images in (readable(open_images(damaged, "skip")), whole)
        )
        torch.testing.assert_close(found.values, all_of_them.values[kept], rtol=1e-4, atol=1e-5)
        assert found.labels.tolist() == all_of_them.labels[kept].tolist()


@pytest.mark.parametrize("part", ["train", "val"])
def test_a_class_without_readable_images_is_refused(image_folder, tmp_path, part):
    folder = tmp_path / "pictures"
    shutil.copytree(image_folder, folder)
    for file in (folder / part / "class2").iterdir():
        file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(RunError, match=f"class class2 has no readable image, such as .*{part}/class2/000.png"):
        readable(open_images(folder, "skip"))


def test_a_sound_set_stays_as_it_is(image_folder):
    images = open_images(image_folder)
    assert readable(images) is images


@pytest.mark.parametrize(
    "command, flags",
    [
        ("depth", "--k 2 --pool avg"),
        ("transfer", "--k 1 3 --no-cache --fine-tune --fine-tune-epochs 1"),
        ("fewshot", "--ways 2 --shots 1 2 --queries 3 --episodes 4 --no-cache"),
        ("hessian", "--images 18 --top 1 --bottom 0 --max-hvps 60 --tol 0.2 --group fc"),
    ],
)
def test_every_analysis_names_a_bad_image_or_leaves_it_out(command, flags, damaged, tmp_path, capsys):
    save_file(build("resnet18", 4, "small").state_dict(), tmp_path / "w.safetensors")
    argv = [command, str(tmp_path / "w.safetensors"), "--data", str(damaged), "--stem", "small", "--image-size", "16"]
    argv += flags.split()
    assert main(argv) == 1
    error = capsys.readouterr().err
    assert "train/class0/000.png is empty (0 bytes)" in error and "--on-bad-image skip" in error
    (damaged / "train" / "class0" / "000.png").unlink()
    assert main(argv) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    first = "val/class3/002.png" if command == "depth" else "train/class1/002.png"  # its queries come before the bank
    assert first in error and "or leave such images out with --on-bad-image skip" in error

    out = tmp_path / "out"
    (damaged / "train" / "class0" / "000.png").write_bytes(b"")
    assert main([*argv, "--on-bad-image", "skip", "--out", str(out)]) == 0
    assert "pictures: left out 3 unreadable images: train/class0/000.png, " in capsys.readouterr().out
    (result,) = json.loads((out / f"{command}.json").read_text())
    assert set(result["skipped_images"]["pictures"]) == BAD
    if command == "depth":
        assert result["protocol"]["bank"] == 18 and result["splits"]["val"]["examples"] == 11
    if command == "transfer":
        assert (result["targets"]["pictures"]["train"], result["targets"]["pictures"]["test"]) == (18, 11)
    if command == "hessian":
        assert result["images"] == 18
