"""However an epoch is cut, every position is learnt from once, and counts as much as in one piece."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seal_fast.data import Shard, make_input, open_images
from seal_fast.data.micro_batch import shard_step
from seal_fast.utils.errors import UsageError


@given(st.integers(0, 50), st.integers(2, 70), st.integers(1, 8), st.integers(1, 4))
def test_cuts_cover_a_step_once(start, count, processes, parts):
    weight, counted = torch.zeros(start + count, dtype=torch.float64), torch.zeros(start + count)
    lengths = set()
    for rank in range(processes):
        own = shard_step(start, start + count, Shard(rank, processes, parts))
        lengths.add(len(own))
        assert [part.last for part in own] == [False] * (len(own) - 1) + [True]
        assert len({(part.shared, rank) for part in own}) <= 2
        for part in own:
            assert part.stop - part.start >= 2 or count < 2 * parts
            weight[part.start : part.stop] += part.weight / (part.stop - part.start)
            counted[part.start : part.stop] += part.counted
    assert len(lengths) == 1  # all processes take as many steps
    assert torch.allclose(weight[start:], torch.full((count,), 1 / count, dtype=torch.float64), rtol=1e-12)
    assert (weight[:start] == 0).all() and (counted[start:] == 1).all()


@pytest.mark.parametrize(
    ("batch", "shard", "words"),
    [
        (8, Shard(0, 3), r"3 processes .* choose a multiple of 3 from 6 on"),
        (8, Shard(0, 8), r"8 processes .* choose a multiple of 8 from 16 on"),
        (32, Shard(0, 2, 3), r"2 processes with --accumulate 3: choose a multiple of 6 from 12 on"),
    ],
)
def test_a_batch_that_cannot_be_divided_is_refused(batch, shard, words):
    with pytest.raises(UsageError, match=f"--batch-size {batch} cannot be divided equally among {words}"):
        shard.micro_batch_size(batch)


@pytest.mark.parametrize("kind", ["resident", "stream"])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_every_image_is_fed_to_one_process(kind, processes, image_folder):
    """In training as in one process, to the bit; in evaluation once each, whatever the number."""
    images = open_images(str(image_folder))

    def inputs(rank, size):
        return make_input(images, kind, batch_size=8, eval_batch_size=5, shard=Shard(rank, size), threads=1)

    whole = inputs(0, 1)
    expected = torch.cat([batch.images for batch in whole.train(1, 2)])
    labels = torch.cat([batch.labels for batch in whole.train(1, 2)])
    seen, rows = torch.zeros(len(expected), dtype=torch.int64), []
    for rank in range(processes):
        source = inputs(rank, processes)
        for batch in source.train(1, 2):
            here = slice(batch.micro_batch.start, batch.micro_batch.stop)
            assert torch.equal(batch.images, expected[here]) and torch.equal(batch.labels, labels[here])
            seen[here] += batch.micro_batch.counted
        batches = list(source.evaluation())
        assert {len(batch.labels) for batch in batches} <= {source.eval_batch_size}
        rows += [image for batch in batches for image in batch.images[batch.valid]]
        source.close()
    assert (seen == 1).all()
    once = [image for batch in whole.evaluation() for image in batch.images[batch.valid]]
    assert torch.equal(torch.stack(rows), torch.stack(once)) and len(once) == len(images.val)
