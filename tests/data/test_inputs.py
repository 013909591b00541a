"""Resident and stream: the same batches, exact resumption, partial and padded batches, bad images, refusals."""

import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from image_files import encoded, idx_files, image_folder_files, picture, tar_of, write
from PIL import Image

from seal_fast.data import loader, make_input, open_images, select
from seal_fast.kernels import philox
from seal_fast.kernels.augment import augment
from seal_fast.utils.errors import RunError, UsageError

KINDS = ["resident", "stream"]


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    """33 training and 9 validation images, 16 x 16, PNG."""
    folder = tmp_path_factory.mktemp("sets") / "pets"
    return write(folder, image_folder_files(train=11, val=3))


def build(path, kind, **options):
    images = path if hasattr(path, "train") else open_images(path)
    if "limit_train" in options:
        images = select(images, limit_train=options.pop("limit_train"))
    defaults = {"batch_size": 8, "eval_batch_size": 4, "dtype": torch.float64, "seed": 5, "threads": 2}
    return make_input(images, kind, **defaults | options)


def pillow(path, names):
    return torch.from_numpy(np.stack([np.asarray(Image.open(path / name).convert("RGB")) for name in names]))


def collect(batches):
    batches = list(batches)
    return torch.cat([batch.images for batch in batches]), torch.cat([batch.labels for batch in batches])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_tar", [False, True])
def test_batches_are_the_permuted_augmented_files(pets, kind, as_tar):
    images = open_images(tar_of(pets) if as_tar else pets)
    source = build(images, kind)
    assert (source.kind, source.image_size, source.train_size, source.val_size, source.num_classes) == (
        kind,
        16,
        33,
        9,
        3,
    )
    order = philox.permutation(33, 5, 2, 1)
    expected = augment(
        pillow(pets, images.train.names), order[:32], size=16, mean=images.mean, std=images.std, dtype=torch.float64,
        seed=5, generation=2, epoch=1, position=0, pad=1, flip=True, train=True, backend="reference",
    )  # fmt: skip
    batches = list(source.train(2, 1))
    assert [len(batch.labels) for batch in batches] == [8, 8, 8, 8] and batches[0].valid is None
    assert all(batch.images.is_contiguous(memory_format=torch.channels_last) for batch in batches)
    got, labels = collect(batches)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    assert labels.tolist() == images.train.labels[order[:32].numpy()].tolist()
    source.close()


@pytest.mark.parametrize("options", [
    {}, {"augmentation": "none"}, {"shuffle": False}, {"pad": 3}, {"limit_train": 20}, {"image_size": 12},
    {"image_size": 24}, {"augmentation": "pad-crop", "image_size": 12}, {"dtype": torch.bfloat16}, {"batch_size": 7},
])  # fmt: skip
def test_resident_and_stream_are_bit_identical(pets, options):
    both = [build(pets, kind, **options) for kind in KINDS]
    for epoch in (0, 1):
        (images, labels), (others, other_labels) = (collect(source.train(1, epoch)) for source in both)
        assert torch.equal(images, others) and torch.equal(labels, other_labels)
    for split in ("train", "val"):
        for one, other in zip(both[0].evaluation(split), both[1].evaluation(split), strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
            assert torch.equal(one.valid, other.valid)
    assert both[0].steps_per_epoch == both[1].steps_per_epoch


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_resumes_in_its_middle(pets, kind, monkeypatch):
    source = build(pets, kind)
    whole = list(source.train(3, 4))
    opened = []
    read = type(source._splits["train"].source).read
    monkeypatch.setattr("seal_fast.data.split.Files.read", lambda self, row: opened.append(row) or read(self, row))
    for first in range(5):
        opened.clear()
        rest = list(build(pets, kind).train(3, 4, first)) if kind == "resident" else list(source.train(3, 4, first))
        assert len(rest) == 4 - first
        if kind == "stream":
            assert len(opened) == 8 * len(rest)  # what comes before is not even read
        for one, other in zip(whole[first:], rest, strict=True):
            assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("kind", KINDS)
def test_seed_generation_and_epoch_each_change_the_order(pets, kind):
    def labels(seed, generation, epoch):
        source = build(pets, kind, seed=seed, augmentation="none")
        return collect(source.train(generation, epoch))[0].sum((1, 2, 3)).tolist()

    orders = [labels(5, 0, 0), labels(6, 0, 0), labels(5, 1, 0), labels(5, 0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == labels(5, 0, 0)


@pytest.mark.parametrize("kind", KINDS)
def test_without_shuffle_and_augmentation_it_is_the_sorted_files(pets, kind):
    images = open_images(pets)
    source = build(images, kind, shuffle=False, augmentation="none", batch_size=11)
    got, labels = collect(source.train(0, 0))
    mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (images.mean, images.std))
    expected = (pillow(pets, images.train.names).permute(0, 3, 1, 2) / 255.0 - mean) / std
    torch.testing.assert_close(got, expected.to(torch.float64), rtol=1e-6, atol=1e-6)
    assert labels.tolist() == sorted(images.train.labels.tolist())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("batch_size", "sizes"), [(8, [8] * 4), (16, [16, 16]), (10, [10, 10, 10, 3]), (33, [33])])
def test_the_last_batch_is_smaller_and_never_a_single_image(pets, kind, batch_size, sizes):
    source = build(pets, kind, batch_size=batch_size)
    assert [len(batch.labels) for batch in source.train(0, 0)] == sizes and source.steps_per_epoch == len(sizes)
    assert any("single image" in note for note in source.notes) == (33 % batch_size == 1)


def test_batches_of_one_are_all_fed(pets):
    source = build(pets, "resident", batch_size=1)
    assert source.steps_per_epoch == 33 == len(list(source.train(0, 0)))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [4, 9, 20])
def test_evaluation_batches_are_of_one_size_with_a_mask(pets, kind, size):
    batches = list(build(pets, kind, eval_batch_size=size).evaluation())
    assert {len(batch.images) for batch in batches} == {size} and len(batches) == -(-9 // size)
    valid = torch.cat([batch.valid for batch in batches])
    assert valid.dtype == torch.bool and valid.tolist() == [True] * 9 + [False] * (len(valid) - 9)
    labels = torch.cat([batch.labels for batch in batches])
    assert labels[:9].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2] and labels.dtype == torch.int64


def test_limit_takes_evenly_spaced_images(pets):
    source = build(pets, "resident", limit_train=6, batch_size=6, shuffle=False, augmentation="none")
    full = build(pets, "resident", batch_size=33, shuffle=False, augmentation="none")
    chosen = collect(source.train(0, 0))[0]
    assert torch.equal(chosen, collect(full.train(0, 0))[0][[0, 5, 11, 16, 22, 27]])
    assert any("training on 6 of 33 images" in note for note in source.notes)
    assert build(pets, "resident", limit_train=1000).train_size == 33


def test_random_resized_crops_are_streamed(tmp_path):
    files = {name: encoded(picture(n, 40, 60)) for n, name in enumerate(image_folder_files(train=3))}
    source = build(write(tmp_path / "large", files), "auto", image_size=16, batch_size=4, augmentation="resized-crop")
    assert (source.kind, source.augmentation) == ("stream", "resized-crop")
    one, two, other = (collect(source.train(0, epoch)) for epoch in (0, 0, 1))
    assert one[0].shape == (9 - 9 % 4, 3, 16, 16) and torch.equal(one[0], two[0]) and not torch.equal(one[0], other[0])
    rest = collect(source.train(0, 0, 1))
    assert torch.equal(rest[0], one[0][4:])
    plain = build(tmp_path / "large", "resident", image_size=16, batch_size=4)
    assert torch.equal(collect(source.evaluation())[0], collect(plain.evaluation())[0])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [None, 12])
def test_grey_sets_have_three_equal_channels_and_no_flips(tmp_path, kind, size):
    source = build(write(tmp_path / "mnist", idx_files()), kind, image_size=size, pad=0, shuffle=False)
    got = collect(source.train(0, 0))[0]
    assert got.shape == (20, 3, size or 9, size or 9)
    assert torch.equal(got[:, 0], got[:, 1]) and torch.equal(got[:, 0], got[:, 2])
    assert torch.equal(got, collect(source.train(0, 1))[0])  # nothing random is left
    if size is None:
        assert abs(got[:, 0].mean().item()) < 1e-6 and abs(got[:, 0].std(correction=0).item() - 1) < 1e-6


def test_the_augmentation_depends_on_the_size_of_the_batches_and_never_on_memory(pets, monkeypatch):
    for free in (1 << 40, 0):
        monkeypatch.setattr(loader, "free_bytes", lambda device, free=free: free)
        for size, augmentation in ((12, "pad-crop"), (127, "pad-crop"), (128, "resized-crop")):
            assert build(pets, "auto", image_size=size).augmentation == augmentation
            assert build(pets, "auto", image_size=size, augmentation="none").augmentation == "none"
    with pytest.raises(UsageError, match="--input resident .* choose --input stream or --augmentation pad-crop"):
        build(pets, "resident", image_size=128)


def test_resized_crops_need_files(tmp_path):
    grey = write(tmp_path / "mnist", idx_files())
    assert build(grey, "stream", image_size=128, batch_size=2).augmentation == "pad-crop"
    with pytest.raises(UsageError, match="--augmentation resized-crop cuts image files"):
        build(grey, "stream", augmentation="resized-crop")


def spoil(folder, *names):
    for name in names:
        path = folder / name
        path.write_bytes(path.read_bytes()[:60])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("as_tar", [False, True])
def test_a_corrupt_image_is_named(tmp_path, kind, as_tar):
    folder = write(tmp_path / "pets", image_folder_files())
    spoil(folder, "train/dog/2.png")
    path = tar_of(folder) if as_tar else folder
    message = r"train/dog/2\.png.* is not a readable image \(corrupt or truncated\).*--on-bad-image skip"
    with pytest.raises(RunError, match=message):
        list(build(path, kind, batch_size=4).train(0, 0))
    assert [t for t in threading.enumerate() if t.name.startswith("seal_fast-input")] == []


def test_resident_leaves_bad_images_out(tmp_path):
    folder = write(tmp_path / "pets", image_folder_files())
    whole = build(folder, "resident", batch_size=12, shuffle=False, augmentation="none")
    spoil(folder, "train/cat/3.png", "train/dog/2.png", "val/eel/0.png")
    source = build(folder, "resident", batch_size=10, shuffle=False, augmentation="none", on_bad_image="skip")
    assert (source.train_size, source.val_size) == (10, 5)
    assert source.skipped == ["train/cat/3.png", "train/dog/2.png", "val/eel/0.png"]
    keep = [row for row in range(12) if row not in (3, 6)]
    for one, other in zip(collect(whole.train(0, 0)), collect(source.train(0, 0)), strict=True):
        assert torch.equal(one[keep], other)
    with pytest.raises(UsageError, match=r"--batch-size 12 is larger than the training set of 10 images"):
        build(folder, "resident", batch_size=12, on_bad_image="skip")


def test_stream_keeps_the_batch_size_and_masks_bad_ones(tmp_path):
    folder = write(tmp_path / "pets", image_folder_files())
    options = {"batch_size": 3, "shuffle": False, "augmentation": "none"}
    images, labels = collect(build(folder, "stream", **options).train(0, 0))
    spoil(folder, "train/cat/3.png", "train/dog/2.png", "val/eel/0.png")
    source = build(folder, "stream", on_bad_image="skip", **options)
    stand_in = [0, 1, 2, 4, 4, 5, 7, 7, 8, 9, 10, 11]  # of the same batch, with its own label
    got, got_labels = collect(source.train(0, 0))
    assert torch.equal(got, images[stand_in]) and torch.equal(got_labels, labels[stand_in])
    valid = torch.cat([batch.valid for batch in source.evaluation()])
    assert valid.tolist() == [True] * 4 + [False, True, False, False]
    assert source.skipped == ["train/cat/3.png", "train/dog/2.png", "val/eel/0.png"]


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_but_bad_images_is_an_error(tmp_path, kind):
    files = image_folder_files()
    folder = write(tmp_path / "pets", {n: data[:50] if n.startswith("train") else data for n, data in files.items()})
    with pytest.raises(RunError, match=r"every image of a batch is corrupt|class cat has no readable image"):
        list(build(folder, kind, on_bad_image="skip").train(0, 0))


def test_auto_is_resident_where_half_of_the_free_memory_suffices(pets, monkeypatch):
    needed = (33 + 9) * 16 * 16 * 3
    for free, kind in ((2 * needed, "resident"), (2 * needed - 1, "stream")):
        monkeypatch.setattr(loader, "free_bytes", lambda device, free=free: free)
        assert build(pets, "auto").kind == kind
    monkeypatch.setattr(loader, "free_bytes", lambda device: needed - 1)
    with pytest.raises(UsageError, match=r"--input resident needs .* choose --input stream"):
        build(pets, "resident")


@pytest.mark.parametrize(("processors", "threads"), [(3, 3), (99, 16)])
def test_dali_has_a_thread_for_each_processor_that_may_be_used(pets, monkeypatch, processors, threads):
    monkeypatch.setattr(loader, "cpu_count", lambda: processors)
    assert build(pets, "stream", threads=None).threads == threads


REFUSALS = [
    ({"batch_size": 34}, r"--batch-size 34 is larger than the training set of 33 images: choose at most 33"),
    ({"batch_size": 8, "limit_train": 5}, r"--batch-size 8 is larger than the training set of 5 images"),
    ({"batch_size": 0}, r"--batch-size is 0: it must be at least 1"),
    ({"image_size": 0}, r"--image-size is 0"),
    ({"pad": -1}, r"pad is -1"),
    ({"augmentation": "crop"}, r"--augmentation is 'crop': choose auto, none, pad-crop or resized-crop"),
]


@pytest.mark.parametrize(("options", "message"), REFUSALS)
def test_impossible_values_are_refused(pets, options, message):
    for kind in KINDS:
        with pytest.raises(UsageError, match=message):
            build(pets, kind, **options)
    with pytest.raises(UsageError, match="--input is 'both': choose auto, resident or stream"):
        build(pets, "both")


def test_closing_an_unfinished_stream_ends_its_thread(pets):
    source = build(pets, "stream", batch_size=2)
    batches = source.train(0, 0)
    next(batches)
    assert any(thread.name.startswith("seal_fast-input") for thread in threading.enumerate())
    source.close()
    assert not any(thread.name.startswith("seal_fast-input") for thread in threading.enumerate())
    del batches


def test_waiting_is_counted(pets):
    source = build(pets, "stream")
    list(source.train(0, 0))
    waited = source.wait_seconds
    assert waited > 0
    list(source.evaluation())
    assert source.wait_seconds > waited


def test_an_error_in_mid_stream_ends_the_process_as_errors_do(pets):
    """An interpreter that goes while DALI still runs in a thread would abort instead."""
    code = (
        "import sys; from seal_fast.data import make_input, open_images; "
        "source = make_input(open_images(sys.argv[1]), 'stream', batch_size=2, eval_batch_size=2); "
        "kept = source.train(0, 0); next(kept); raise ValueError('mine')"
    )
    done = subprocess.run([sys.executable, "-c", code, pets], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and done.stderr.rstrip().endswith("ValueError: mine")
