"""idx files and the digits: grey pixels that are in memory at once."""

import gzip

import numpy as np
import pytest
from image_files import idx, idx_files, tar_of, write
from sklearn.datasets import load_digits

from seal_fast.data import open_images
from seal_fast.utils.errors import RunError


@pytest.mark.parametrize("compress", [False, True])
@pytest.mark.parametrize("as_tar", [False, True])
def test_idx_files(tmp_path, compress, as_tar):
    folder = write(tmp_path / "mnist", idx_files(compress=compress))
    images = open_images(tar_of(folder) if as_tar else folder)
    pixels = np.random.default_rng(0).integers(0, 256, (20, 9, 9), dtype=np.uint8)  # as idx_files draws them
    assert (images.layout, images.classes, images.mirror) == ("idx", tuple("01234"), False)
    assert np.array_equal(images.train.source.read(7)[..., 0], pixels[7])
    assert images.train.labels.tolist() == [0, 1, 2, 3, 4] * 4 and len(images.val) == 10
    assert images.native_size == 9 and sorted(images.train.names) == list(images.train.names)
    np.testing.assert_allclose(images.mean, (pixels / 255).mean(), rtol=1e-12)
    np.testing.assert_allclose(images.std, (pixels / 255).std(), rtol=1e-12)
    assert "own mean" in images.notes[0]


def test_compressed_and_plain_are_the_same_but_for_names(tmp_path):
    plain = open_images(write(tmp_path / "a", idx_files()))
    packed = open_images(write(tmp_path / "b", idx_files(compress=True)))
    assert plain.train.source.digest() == packed.train.source.digest()


IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
FAULTS = [
    (lambda f: f | {IMAGES: f[IMAGES][:-1]}, rf"{IMAGES} is damaged: .* promises 1620 bytes, it holds only 1619"),
    (lambda f: f | {IMAGES: f[IMAGES] + b"x"}, rf"{IMAGES} is damaged: .* holds more"),
    (lambda f: f | {IMAGES: f[IMAGES][:7]}, rf"{IMAGES} is truncated or damaged \(it ends within its header"),
    (lambda f: f | {IMAGES: f[LABELS]}, rf"{IMAGES} is no idx file of 3 dimensions .* begins with 00 00 08 01"),
    (lambda f: f | {LABELS: idx(np.zeros(19, np.uint8))}, rf"{IMAGES} holds 20 images, but {LABELS} 19 labels"),
    (lambda f: {name: data for name, data in f.items() if name != LABELS}, rf"idx file {LABELS} is missing"),
    (lambda f: {name: data for name, data in f.items() if "t10k" not in name}, r"idx file t10k-images.* is missing"),
    (lambda f: f | {LABELS: idx(np.full(20, 9, np.uint8))}, r"9 of 10 classes have no training image \(0, 1, 2"),
    (lambda f: f | {"t10k-labels-idx1-ubyte": idx(np.full(10, 6, np.uint8))}, r"validation label 6 is no class of"),
    (lambda f: f | {"t10k-images-idx3-ubyte": idx(np.zeros((10, 8, 9), np.uint8))}, r"images of 9 x 9 .* of 8 x 9"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), FAULTS)
def test_faults_of_idx_files(tmp_path, change, message):
    with pytest.raises(RunError, match=message):
        open_images(write(tmp_path / "set", change(idx_files())))


@pytest.mark.parametrize(
    "damage", [lambda d: d[: len(d) // 2], lambda d: d[:30] + b"\xff" * 20 + d[50:], lambda d: b"no"]
)
def test_damaged_gz_is_named(tmp_path, damage):
    files = idx_files(compress=True)
    files[f"{IMAGES}.gz"] = damage(files[f"{IMAGES}.gz"])
    with pytest.raises(RunError, match=rf"{IMAGES}\.gz is truncated or damaged"):
        open_images(write(tmp_path / "set", files))


def test_a_gz_cannot_fill_the_memory(tmp_path):
    """A file of a thousand times the promised bytes is refused after reading one more than promised."""
    files = idx_files() | {}
    files[f"{IMAGES}.gz"] = gzip.compress(files.pop(IMAGES) + bytes(2_000_000))
    with pytest.raises(RunError, match=r"promises 1620 bytes, it holds more"):
        open_images(write(tmp_path / "set", files))


def test_digits_are_scikit_learns(caplog):
    images = open_images("digits")
    data = load_digits()
    assert len(images.train) + len(images.val) == 1797 and images.native_size == 8 and not images.mirror
    for split in (images.train, images.val):
        for row in (0, 17, len(split) - 1):
            number = int(split.names[row][len("digits[") : -1])
            assert split.labels[row] == data.target[number]
            assert np.array_equal(split.source.read(row)[..., 0], np.round(data.images[number] * 255 / 16))
    counts = np.bincount(images.val.labels), np.bincount(images.train.labels)
    np.testing.assert_allclose(counts[0] / (counts[0] + counts[1]), 0.2, atol=0.006)
    assert not set(images.train.names) & set(images.val.names)
