"""Situations that people report of data sets, each with its right outcome: what is read, noted, or refused."""

import os
import re
import unicodedata
from pathlib import Path

import numpy as np
import pytest
import torch
from image_files import encoded, image_folder_files, picture, tar_of, tiny_imagenet_files, write

from seal_fast.data import make_input, open_images, select
from seal_fast.utils.errors import RunError, UsageError

CASES = Path(__file__).parent / "cases"
SMALL = image_folder_files(("a", "b"), train=3, val=2)


def with_odd(name):
    """Two classes; the images of class a are one file of cases/."""
    odd = (CASES / name).read_bytes()
    rest = {file: data for file, data in SMALL.items() if "/b/" in file}
    return rest | {f"{part}/a/{name}": odd for part in ("train", "val")}


def suffixes():
    jpeg = encoded(picture(0), "JPEG")
    names = "x.JPG x.Png x.jfif x.jpe x.jp2 x.ppm x.pgm x.PNM noext x.gif x.heic x.avif y.GIF".split()
    return SMALL | {f"train/a/{name}": jpeg for name in names}


def reorganised(leftover):
    files = {name.replace("val/images/", "val/old/"): data for name, data in tiny_imagenet_files(("n1", "n2")).items()}
    files = {name: data for name, data in files.items() if not name.startswith(("val/", "test/"))}
    return files | {f"val/{wnid}/images/v.JPEG": encoded(picture(9), "JPEG") for wnid in ("n1", "n2")} | leftover


def bom():
    files = tiny_imagenet_files()
    return files | {name: b"\xef\xbb\xbf" + files[name] for name in ("wnids.txt", "val/val_annotations.txt")}


def two_forms():
    forms = {"train": "NFC", "val": "NFD"}
    return {
        name.replace("/a/", f"/{unicodedata.normalize(forms[name.split('/')[0]], 'bébé')}/"): data
        for name, data in SMALL.items()
    }


def no_split():
    return {f"{label}/{n}.png": encoded(picture(n)) for label in "ab" for n in range(5)}


def spaces_and_tabs():
    files = tiny_imagenet_files(("n1", "n2"), val=1)
    files["val/images/a b.JPEG"] = files.pop("val/images/val_0.JPEG")
    files["val/val_annotations.txt"] = b"a b.JPEG\tn2 \t0\t0\t9\t9\r\nval_1.JPEG\tn1\t0\t0\t9\t9\r\n\t\r\n"
    return files


def annotated(line):
    files = tiny_imagenet_files()
    return files | {"val/val_annotations.txt": files["val/val_annotations.txt"] + line}


READ = {
    "suffixes": (
        suffixes(), "image-folder", 14,
        ["left out 5 files whose suffix is none .*: 1 .avif, 2 .gif, 1 .heic, 1 without suffix$"]),
    "tiny-reorganised": (reorganised({}), "image-folder", 6, ["left out 2 files whose suffix .* read: 2 .txt"]),
    "tiny-reorganised, annotations left": (
        reorganised({"val/val_annotations.txt": b"old"}), "image-folder", 6, ["left out 3 files whose suffix"]),
    "tiny-reorganised, empty val/images left": (
        reorganised({"val/images/": b""}), "image-folder", 6,
        ["left out 2 files", "left out 1 empty folders that are no class of train/, val/images first"]),
    "tiny, copied into class folders": (
        tiny_imagenet_files() | {"val/n01/x.JPEG": b"1"}, "tiny-imagenet", 9,
        ["left out 1 images in val/ outside val/images/, val/n01/x.JPEG first"]),
    "tiny-bom": (bom(), "tiny-imagenet", 9, []),
    "tiny, spaces and tabs": (spaces_and_tabs(), "tiny-imagenet", 6, []),
    "tiny, the same line twice": (annotated(b"\nval_0.JPEG\tn03\t0\t0\t1\t1"), "tiny-imagenet", 9, []),
    "png-12-in-16": (with_odd("png_I16_12bit.png"), "image-folder", 4,
                     ["2 of 7 images looked at have 16 bits a sample: scaled so that 65535 is white"]),
    "webp-exif-odd": (with_odd("exif_odd.webp"), "image-folder", 4, []),
}  # fmt: skip


def write_all(root, files):
    for name in [name for name in files if name.endswith("/")]:
        (root / name).mkdir(parents=True)
    return write(root, {name: data for name, data in files.items() if not name.endswith("/")})


@pytest.mark.parametrize("case", READ)
@pytest.mark.parametrize("as_tar", [False, True])
def test_read_with_a_note_of_what_is_left_out(case, as_tar, tmp_path):
    files, layout, train, notes = READ[case]
    folder = write_all(tmp_path / "set", files)
    images = open_images(tar_of(folder) if as_tar else folder)
    assert (images.layout, len(images.train), len(images.notes)) == (layout, train, len(notes))
    for note, expected in zip(images.notes, notes, strict=True):
        assert re.match(expected, note)
    source = make_input(images, "resident", image_size=16, batch_size=2, eval_batch_size=2)
    assert source.train_size == train and source.skipped == []


REFUSED = {
    "unicode-forms": (two_forms(), RunError,
                      r"val/b.+b.+ and train/b.+b.+ are one name in two Unicode forms \(NFD and NFC\)"),
    "no-split": (no_split(), UsageError,
                 r"class folders \(a, b\) and no split: training needs train/CLASS/\* and val/"),
    "tiny, two labels": (annotated(b"\nval_0.JPEG\tn01\t0\t0\t1\t1"), RunError,
                         r"line 7: val_0\.JPEG has two labels, here n01"),
    "tiff-grey-alpha": (with_odd("la.tif"), RunError,
                        r"la\.tif is a TIFF image of 2 samples a pixel, which is not read: convert it to PNG"),
    "tiff-int16": (with_odd("int16.tif"), RunError, r"int16\.tif is a TIFF image of signed 16-bit samples"),
    "gif-named-jpg": (with_odd("gif_as.jpg"), RunError, r"gif_as\.jpg is in content GIF, which is not read: convert"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("kind", ["resident", "stream"])
def test_refused_by_name(case, kind, tmp_path):
    files, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        images = open_images(write(tmp_path / "set", files))
        list(make_input(images, kind, image_size=16, batch_size=2, eval_batch_size=2).train(0, 0))


@pytest.mark.parametrize("name", ["linked-class.tar", "joined.tar", "link-then-file.tar"])
def test_tars_are_the_set_they_unpack_to(name, tmp_path):
    """Links, entries that replace links, and a second archive behind the first; the truth is written out here."""
    images = open_images(CASES / name)
    classes = {"linked-class.tar": "abc", "joined.tar": "abcd", "link-then-file.tar": "ab"}[name]
    assert images.classes == tuple(classes)
    if name == "linked-class.tar":
        folder = tmp_path / "slc"
        for label in "ab":
            for part in ("train", "val"):
                for number in "01":
                    (folder / part / label).mkdir(parents=True, exist_ok=True)
                    source = images.train.source.read(int(number))
                    (folder / part / label / f"{number}.png").write_bytes(source.tobytes())
        (folder / "pool" / "c").mkdir(parents=True)
        (folder / "pool" / "c" / "0.png").write_bytes(images.train.source.read(4).tobytes())
        for part in ("train", "val"):
            os.symlink("../pool/c", folder / part / "c")
        unpacked = open_images(folder)
        assert unpacked.fingerprint == images.fingerprint and unpacked.train.names == images.train.names
        assert unpacked.name != images.name  # the fingerprint does not hang on the name


def test_webp_decodes_to_the_same_pixels_with_and_without_metadata(tmp_path):
    pixels = []
    for name in ("exif_odd.webp", "plain.webp"):
        images = open_images(write(tmp_path / name, with_odd(name)))
        source = make_input(
            images, "resident", image_size=16, batch_size=2, eval_batch_size=8, shuffle=False, augmentation="none"
        )
        pixels.append(next(source.evaluation()).images[0])
    assert torch.equal(*pixels) and pixels[0].std() > 0


def test_without_a_split_a_fifth_of_each_class_is_held_out_by_the_seed(tmp_path):
    folder = write(tmp_path / "set", no_split())
    one, same, other = (open_images(folder, split_seed=seed) for seed in (3, 3, 4))
    for images in (one, other):
        assert np.bincount(images.train.labels).tolist() == [4, 4] and np.bincount(images.val.labels).tolist() == [1, 1]
        assert {*images.train.names, *images.val.names} == set(no_split())
    assert one.fingerprint == same.fingerprint != other.fingerprint and one.val.names != other.val.names
    assert "one pool of 10 images, of which seed 3 holds out 2" in one.notes[0]
    (folder / "a" / "1.png").rename(folder / "b" / "9.png")
    for number in "234":
        (folder / "a" / f"{number}.png").unlink()
    with pytest.raises(RunError, match="a in .* has 1 usable images: to be split, each class needs two"):
        open_images(folder, split_seed=0)


@pytest.mark.parametrize("kind", ["resident", "stream"])
def test_a_class_whose_images_are_all_bad_is_refused(kind, tmp_path):
    files = SMALL | {f"train/a/{n}.png": SMALL[f"train/a/{n}.png"][:60] for n in range(3)}
    images = open_images(write(tmp_path / "set", files))
    with pytest.raises(
        RunError, match="class a has no readable image, such as .*train/a/.*: accuracy would be measured"
    ):
        source = make_input(images, kind, batch_size=6, eval_batch_size=2, on_bad_image="skip")
        list(source.train(0, 0))


def test_limit_train_says_which_classes_it_leaves_without_an_image(tmp_path):
    images = open_images(write(tmp_path / "set", SMALL))
    notes = select(images, limit_train=1).notes
    assert "--limit-train 1 leaves 1 of 2 classes without a training image, b first" in notes


def test_names_that_are_no_utf8_train_and_print(tmp_path):
    name = os.fsdecode(b"train/a/b\xe9b.png")
    images = open_images(write(tmp_path / "set", SMALL | {name: SMALL["train/a/0.png"]}))
    assert r"train/a/b\xe9b.png" in images.train.names and "\0".join(images.train.names).encode()
    assert images.fingerprint
    assert make_input(images, "resident", batch_size=2, eval_batch_size=2).train_size == 7
