"""Each layout as a folder and as a tar: the same ImageSet; and every fault named in a sentence."""

import re

import numpy as np
import pytest
from image_files import encoded, image_folder_files, picture, tar_of, tiny_imagenet_files, write

from seal_fast.data import open_images
from seal_fast.utils.errors import RunError, UsageError


def same(a, b):
    assert (a.layout, a.classes, a.mirror, a.mean, a.std) == (b.layout, b.classes, b.mirror, b.mean, b.std)
    for one, other in ((a.train, b.train), (a.val, b.val)):
        assert one.names == other.names
        assert one.labels.dtype == np.int64
        assert np.array_equal(one.labels, other.labels)
        assert all(np.array_equal(one.source.read(row), other.source.read(row)) for row in range(len(one)))
    assert a.fingerprint == b.fingerprint


def test_image_folder(image_folder):
    images = open_images(image_folder)
    assert (images.layout, images.classes, images.name) == ("image-folder", ("cat", "dog", "eel"), "pets")
    assert images.train.names == tuple(f"train/{c}/{n}.png" for c in ("cat", "dog", "eel") for n in range(4))
    assert images.train.labels.tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert images.val.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert images.mirror and images.native_size == 16 and images.notes == ()
    assert images.train.source.read(5).tobytes() == (image_folder / "train/dog/1.png").read_bytes()
    for top in (True, False):
        same(images, open_images(tar_of(image_folder, top)))


def test_image_folder_with_test_and_nested_folders(tmp_path):
    files = image_folder_files(held_out="test")
    files["train/cat/deep/er/9.PNG"] = files["train/cat/0.png"]
    files["train/cat/notes.txt"] = b"not an image"
    images = open_images(write(tmp_path / "set", files))
    assert images.train.names[4] == "train/cat/deep/er/9.PNG" and len(images.train) == 13 and len(images.val) == 6


def test_val_is_preferred_to_test(tmp_path):
    files = image_folder_files() | image_folder_files(held_out="test")
    assert open_images(write(tmp_path / "set", files)).val.names[0].startswith("val/")


def test_tiny_imagenet(tiny_imagenet):
    images = open_images(tiny_imagenet)
    assert (images.layout, images.classes) == ("tiny-imagenet", ("n01", "n02", "n03"))
    assert images.train.names[:2] == ("train/n01/images/n01_0.JPEG", "train/n01/images/n01_1.JPEG")
    assert images.val.names == tuple(f"val/images/val_{n}.JPEG" for n in range(6))
    assert images.val.labels.tolist() == [2, 0, 1, 2, 0, 1]  # as annotated: n03, n01, n02, ...
    assert images.native_size == 64 and images.mirror and images.mean == (0.485, 0.456, 0.406)
    same(images, open_images(tar_of(tiny_imagenet)))


def test_reorganised_tiny_imagenet_is_an_image_folder(tmp_path):
    files = {f"{part}/{w}/images/{n}.png": encoded(picture(n)) for part in ("train", "val") for w in "ab" for n in "01"
             for n in (int(n),)} | {"wnids.txt": b"a b"}  # fmt: skip
    images = open_images(write(tmp_path / "set", files))
    assert images.layout == "image-folder" and len(images.val) == 4


def test_sizes_that_differ_have_no_native_size(tmp_path):
    files = image_folder_files()
    files["train/cat/0.png"] = encoded(picture(0, 20, 16))
    assert open_images(write(tmp_path / "set", files)).native_size is None


def test_fingerprint_tells_sets_apart(tmp_path):
    files = image_folder_files()
    first = open_images(write(tmp_path / "a", files)).fingerprint
    assert open_images(write(tmp_path / "b", files)).fingerprint == first  # the folder's own name does not count
    renamed = {name.replace("eel", "elk"): data for name, data in files.items()}
    assert open_images(write(tmp_path / "c", renamed)).fingerprint != first
    changed = files | {"val/eel/0.png": encoded(picture(99))}
    assert open_images(write(tmp_path / "d", changed)).fingerprint != first


def drop(prefix):
    return lambda files: {name: data for name, data in files.items() if not name.startswith(prefix)}


FOLDER_FAULTS = [
    (lambda f: f | {"val/fox/0.png": f["val/cat/0.png"]}, RunError, r"val/fox.* is no class of train/"),
    (drop("val/dog"), RunError, r"1 of 3 classes have no validation image \(dog first\)"),
    (lambda f: f | {"train/loose.png": f["train/cat/0.png"]}, RunError, r"loose\.png.* lies beside the class folders"),
    (lambda f: f | {"train/ant/readme.txt": b"no image"}, RunError, r"train/ant.* holds no image: each class needs"),
    (lambda f: f | {"train/cat/0.png": b""}, RunError, r"train/cat/0\.png.* is empty \(0 bytes\).*--on-bad-image skip"),
    (drop("val/"), UsageError, r"holds no known layout \(found: train\); known layouts: Tiny-ImageNet .* image folder"),
    (drop(""), UsageError, r"holds no known layout \(found: nothing\)"),
]


@pytest.mark.parametrize(("change", "kind", "message"), FOLDER_FAULTS)
@pytest.mark.parametrize("as_tar", [False, True])
def test_faults_of_an_image_folder(tmp_path, change, kind, message, as_tar):
    folder = write(tmp_path / "set", change(image_folder_files()))
    folder.mkdir(exist_ok=True)
    with pytest.raises(kind, match=message):
        open_images(tar_of(folder) if as_tar else folder)


def test_an_empty_class_folder_is_named_in_folder_and_tar(image_folder):
    (image_folder / "train" / "emu").mkdir()
    for path in (image_folder, tar_of(image_folder)):
        with pytest.raises(RunError, match=r"train/emu.* holds no image"):
            open_images(path)


def annotations(pattern, replacement):
    def change(files):
        text = re.sub(pattern, replacement, files["val/val_annotations.txt"].decode(), count=1)
        return files | {"val/val_annotations.txt": text.encode()}

    return change


TINY_FAULTS = [
    (annotations("n03", "n99"), r"val_annotations\.txt.*, line 1: 'n99' is no class of wnids\.txt"),
    (annotations(r"val_1\.JPEG", "val_77.JPEG"), r"line 2: there is no image val/images/val_77\.JPEG"),
    (annotations(r"val_0\.JPEG.*\n", ""), r"val/images/val_0\.JPEG.* has no line in val_annotations\.txt"),
    (annotations(r"val_0\.JPEG.*\n", "gibberish\n"), r"line 1: 'gibberish' is no annotation"),
    (drop("val/val_annotations.txt"), r"val/val_annotations\.txt.* is missing"),
    (drop("train/n01/"), r"train/n01.*: no such class folder, though wnids\.txt lists it"),
    (lambda f: f | {"wnids.txt": b"n01 n02"}, r"train/n03.*: wnids\.txt does not list this class"),
    (drop("train/n01/images"), r"train/n01 holds no image"),
    (drop("val/images"), r"line 1: there is no image val/images/val_0\.JPEG"),
]


@pytest.mark.parametrize(("change", "message"), TINY_FAULTS)
def test_faults_of_tiny_imagenet(tmp_path, change, message):
    folder = write(tmp_path / "set", change(tiny_imagenet_files()))
    with pytest.raises(RunError, match=message):
        open_images(folder)


def test_bad_images_are_left_out_and_listed(tmp_path):
    files = annotations(r"val_1\.JPEG", "val_77.JPEG")(tiny_imagenet_files(val=3))
    files["train/n02/images/n02_1.JPEG"] = b""
    images = open_images(write(tmp_path / "set", files), bad="skip")
    assert set(images.skipped) == {"train/n02/images/n02_1.JPEG", "val/images/val_77.JPEG", "val/images/val_1.JPEG"}
    assert len(images.train) == 8 and len(images.val) == 8
    assert "left out 3 bad images" in images.notes[0]
    with pytest.raises(UsageError, match="--on-bad-image is 'ignore': choose error or skip"):
        open_images(tmp_path / "set", bad="ignore")
