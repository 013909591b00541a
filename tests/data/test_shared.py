"""Decoded images in a file that processes share: the same batches, decoded once, in memory once."""

import re
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from image_files import image_folder_files, write

from seal_fast.data import make_input, open_images, shared
from seal_fast.data.decode import Decoder
from seal_fast.utils.errors import RunError


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    return write(tmp_path_factory.mktemp("sets") / "pets", image_folder_files(train=11, val=3))


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("SEAL_FAST_SHARED_IMAGES", str(tmp_path / "shared"))
    return tmp_path / "shared"


def resident(path, **options):
    defaults = {"batch_size": 8, "eval_batch_size": 4, "dtype": torch.float64, "threads": 1}
    return make_input(open_images(path), "resident", **defaults | options)


def batches(source):
    found = [*source.train(1, 2), *source.evaluation()]
    return [b.images for b in found] + [b.labels for b in found]


def never(*_):
    raise AssertionError("decoded again")


def test_batches_are_those_of_a_run_alone_and_the_second_decodes_nothing(pets, tmp_path, monkeypatch):
    alone = batches(resident(pets))
    monkeypatch.setenv("SEAL_FAST_SHARED_IMAGES", str(tmp_path / "shared"))
    first = batches(resident(pets))
    with monkeypatch.context() as patch:
        patch.setattr(Decoder, "__call__", never)
        second = batches(resident(pets))
        with pytest.raises(AssertionError, match="decoded again"):
            resident(pets, image_size=8)  # other pixels, another key
    for a, b, c in zip(alone, first, second, strict=True):
        assert torch.equal(a, b) and torch.equal(a, c)


def test_bad_images_are_left_out_and_named_by_every_process(pets, place, tmp_path, monkeypatch):
    other = write(tmp_path / "other", image_folder_files(train=11, val=3))
    bad = other / "train" / "dog" / "4.png"
    bad.write_bytes(bad.read_bytes()[:60])
    with pytest.raises(RunError, match=re.escape(str(bad))):
        resident(other)
    assert not list(place.glob("*.tmp"))
    first = resident(other, on_bad_image="skip")
    monkeypatch.setattr(Decoder, "__call__", never)
    second = resident(other, on_bad_image="skip")
    assert first.skipped == second.skipped == ["train/dog/4.png"] and first.train_size == second.train_size == 32
    for a, b in zip(batches(first), batches(second), strict=True):
        assert torch.equal(a, b)


def test_whoever_comes_while_another_decodes_waits(place):
    """A lock belongs to the open file, so threads exclude each other as processes do."""
    filled = []

    def fill(rows):
        filled.append(True)
        time.sleep(0.1)
        rows[:] = 7
        return np.ones(len(rows), bool)

    with ThreadPoolExecutor(3) as pool:
        runs = [pool.submit(shared.mapped, place, "k", (5, 2, 2, 3), fill) for _ in range(3)]
    for pixels, good in (run.result() for run in runs):
        assert pixels.shape == (5, 2, 2, 3) and (pixels == 7).all() and good.all()
    assert filled == [True]


def test_mapped_pixels_cost_no_memory_of_their_own(place):
    shape = (64, 256, 256, 3)  # 12 MiB

    def fill(rows):
        rows[:] = np.arange(len(rows), dtype=np.uint8)[:, None, None, None]
        return np.ones(len(rows), bool)

    pixels, _ = shared.mapped(place, "k", shape, fill)
    assert int(pixels[:, 0, 0, 0].sum()) == 63 * 32 and int(pixels.amax()) == 63  # touches every page
    regions = re.split(r"\n(?=[0-9a-f]+-[0-9a-f]+ )", open("/proc/self/smaps").read())
    (region,) = [region for region in regions if str(place) in region.partition("\n")[0]]
    assert region.split()[1].startswith("r--")  # nobody can write to what all read
    assert int(re.search(r"Private_Dirty: +(\d+)", region)[1]) == 0
    assert int(re.search(r"Rss: +(\d+)", region)[1]) >= 12 * 1024


def test_damage_is_named(place):
    shared.mapped(place, "k", (2, 1, 1, 1), lambda rows: np.ones(2, bool))
    with pytest.raises(RunError, match="is damaged: it holds 4 bytes, not 6"):
        shared.mapped(place, "k", (3, 1, 1, 1), never)
    (place / "k.images").write_bytes(b"nonsense")
    with pytest.raises(RunError, match="is damaged: it holds 8 bytes, not 4"):
        shared.mapped(place, "k", (2, 1, 1, 1), never)
    (place.parent / "file").touch()
    with pytest.raises(RunError, match="SEAL_FAST_SHARED_IMAGES"):
        shared.mapped(place.parent / "file", "k", (2, 1, 1, 1), never)
