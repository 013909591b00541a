"""Images in: `open_images` says what there is, `make_input` feeds it in batches."""

from .catalogue import ImageSet, open_images
from .cuts import Cut, Share
from .inputs import Batch, Input
from .loader import fits, make_input
from .split import Split

__all__ = ["Batch", "Cut", "ImageSet", "Input", "Share", "Split", "fits", "make_input", "open_images"]
