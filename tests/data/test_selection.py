"""What a run trains on: shares held out, images a class, wrong labels; the same for every seed, input and process."""

import numpy as np
import pytest
import torch
from image_files import image_folder_files, write

from seal_fast.data import Shard, make_input, open_images, select
from seal_fast.utils.errors import UsageError


@pytest.fixture(scope="module")
def digits():
    return open_images("digits")


@pytest.fixture(scope="module")
def pets(tmp_path_factory):
    return open_images(write(tmp_path_factory.mktemp("sets") / "pets", image_folder_files(train=10, val=3)))


def counts(split):
    return np.bincount(split.labels).tolist()


def drawn(images, key):
    """Rows of each class in the order of the draw, written out: random words of numpy's Philox, the smallest first."""
    words = np.random.Philox(key=key).random_raw(len(images.train)).tolist()
    labels = images.train.labels.tolist()
    return [
        sorted((row for row in range(len(labels)) if labels[row] == label), key=lambda row: words[row])
        for label in range(len(images.classes))
    ]


def names(images, rows):
    return [images.train.names[row] for row in sorted(rows)]


def test_nothing_asked_for_changes_nothing(digits):
    same = select(digits)
    assert same.fingerprint == digits.fingerprint and same.notes == digits.notes and not same.others


def test_a_share_of_each_class_is_held_out_and_the_rest_is_trained_on(digits):
    chosen = select(digits, holdout=0.25)
    held = [rows[: round(len(rows) / 4)] for rows in drawn(digits, 1)]
    assert list(chosen.val.names) == names(digits, sum(held, []))
    assert list(chosen.train.names) == names(digits, set(range(len(digits.train))) - set(sum(held, [])))
    assert chosen.others["test"] is digits.val
    assert any(f"chosen on {len(chosen.val)} held-out training images" in note for note in chosen.notes)


def test_a_class_keeps_an_image_on_both_sides(pets):
    for share, expected in ((0.01, 1), (0.99, 9)):
        chosen = select(pets, holdout=share)
        assert counts(chosen.val) == [expected] * 3 and counts(chosen.train) == [10 - expected] * 3


def test_so_many_images_a_class(digits):
    chosen = select(digits, per_class=5)
    assert list(chosen.train.names) == names(digits, sum((rows[:5] for rows in drawn(digits, 2)), []))
    assert chosen.val is digits.val
    more = select(digits, per_class=20)  # begins with the same ones
    assert set(chosen.train.names) < set(more.train.names)


def test_an_exact_share_of_labels_is_wrong_and_all_wrong_ones_are_as_likely(digits):
    chosen = select(digits, label_noise=0.4)
    true, given = digits.train.labels, chosen.train.labels
    assert (given != true).sum() == round(0.4 * len(true)) and chosen.val is digits.val
    assert set(given) <= set(range(10)) and (chosen.others["clean"].labels == true).all()
    offsets = np.bincount((given - true)[given != true] % 10, minlength=10)
    expected = round(0.4 * len(true)) / 9
    assert offsets[0] == 0 and ((offsets[1:] - expected) ** 2 / expected).sum() < 26.1  # chi-square, 8 degrees, p 0.001
    order, offset = (np.random.Philox(key=3).random_raw(2 * len(true)).reshape(2, -1)).tolist()
    wrong = sorted(range(len(true)), key=lambda row: order[row])[: round(0.4 * len(true))]
    for row in wrong:
        assert given[row] == (true[row] + 1 + offset[row] % 9) % 10


def test_the_steps_follow_each_other(digits):
    chosen = select(digits, holdout=0.2, per_class=10, limit_train=50, label_noise=0.5)
    alone = select(select(select(select(digits, holdout=0.2), per_class=10), limit_train=50), label_noise=0.5)
    assert chosen.fingerprint == alone.fingerprint
    assert len(chosen.train) == 50 and (chosen.train.labels != chosen.others["clean"].labels).sum() == 25
    assert not set(chosen.train.names) & set(chosen.val.names)


def test_what_cannot_be_is_refused(pets, tmp_path):
    with pytest.raises(UsageError, match="--per-class 11: class cat has 10 training images, and 11 are needed"):
        select(pets, per_class=11)
    with pytest.raises(UsageError, match="--holdout 0.5: class a has 1 training images, and 2 are needed"):
        files = dict(zip(("train/a/0.png", "val/a/0.png"), image_folder_files().values(), strict=False))
        select(one := open_images(write(tmp_path / "one", files)), holdout=0.5)
    with pytest.raises(UsageError, match="--label-noise 0.5: this data set has one class"):
        select(open_images(tmp_path / "one") or one, label_noise=0.5)


@pytest.mark.parametrize("name", ["digits", "pets"])
def test_inputs_and_processes_agree(name, request):
    images = select(request.getfixturevalue(name), holdout=0.3, label_noise=0.5, limit_train=18)

    def fed(kind, shard, split):
        settings = {"batch_size": 8, "eval_batch_size": 8, "augmentation": "none", "threads": 1, "shard": shard}
        source = make_input(images, kind, image_size=16, **settings)
        if split == "fed":
            batches = [(b.images, b.labels) for b in source.train(1, 2)]
        else:
            batches = [(b.images[b.valid], b.labels[b.valid]) for b in source.evaluation(split)]
        return [torch.cat(parts) for parts in zip(*batches, strict=True)]

    for split in ("train", "val", "test", "clean", "fed"):
        one = fed("resident", Shard(), split)
        for kind in ("resident", "stream"):
            halves = [fed(kind, Shard(rank, 2), split) for rank in range(2)]
            if split == "fed":  # each step is divided: 8 as 4 + 4, 2 computed by both
                parts = [half[1].split(4) for half in halves]
                labels = torch.cat(
                    [part for step in range(2) for part in (parts[0][step], parts[1][step])] + [parts[0][2]]
                )
                assert torch.equal(labels, one[1])
            else:
                for whole, *pair in zip(one, *halves, strict=True):
                    assert torch.equal(torch.cat(pair), whole)
    assert (fed("stream", Shard(), "train")[1].numpy() == images.train.labels).all()
    assert (fed("stream", Shard(), "clean")[1].numpy() == images.others["clean"].labels).all()


def test_images_that_splits_share_lie_in_memory_once(pets):
    source = make_input(select(pets, label_noise=0.5), "resident", batch_size=8, eval_batch_size=8, threads=1)
    assert source._pixels["clean"][0] is source._pixels["train"][0]
    assert source._pixels["val"][0].data_ptr() != source._pixels["train"][0].data_ptr()
