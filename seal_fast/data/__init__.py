"""Images in: `open_images` says what there is, `make_input` feeds it in batches."""

from seal_fast.data.dataset import ImageSet, open_images
from seal_fast.data.inputs import Batch, Input
from seal_fast.data.loader import fits, make_input
from seal_fast.data.micro_batch import MicroBatch, Shard
from seal_fast.data.selection import select
from seal_fast.data.split import Split

__all__ = ["Batch", "MicroBatch", "ImageSet", "Input", "Shard", "Split", "fits", "make_input", "open_images", "select"]
