"""CIFAR-10 and CIFAR-100 (Krizhevsky, 2009), their binary versions: records of label bytes and 3 x 32 x 32 pixels."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import numpy as np

from seal_fast.data.prepare.sources import Sources
from seal_fast.utils.errors import RunError, UsageError

_PIXELS = 3 * 32 * 32


def cifar(sources: Sources, notes: list[str]) -> Iterator[tuple[str, bytes]]:
    """Path in the new .tar, PART/CLASS/FILE, and content, a PNG, of every image; CIFAR-100 by its fine labels.

    Raises:
        UsageError: these are the versions for Python.
        RunError: a file ends within an image, or holds a label without a name.
    """
    from PIL import Image

    members = [member for member, _ in sources.members()]
    if any(re.search(r"(^|/)cifar-100?-(batches-py|python)/", member) for member in members):
        raise UsageError(
            f"{sources} holds pickled objects, and unpickling can run code: download the binary version "
            "(cifar-10-binary.tar.gz, cifar-100-binary.tar.gz)"
        )
    hundred = any(member.endswith("fine_label_names.txt") for member in members)
    (text,) = sources.read("fine_label_names.txt" if hundred else "batches.meta.txt")
    classes, label_bytes = text.decode().split(), 2 if hundred else 1
    numbers = {"train": 0, "test": 0}
    for member, content in sources.members():
        if not (file := re.fullmatch(r"(?:.*/)?(data_batch_\d|train|test_batch|test)\.bin", member)):
            continue
        part = "test" if file[1].startswith("test") else "train"
        while record := content.read(label_bytes + _PIXELS):
            if len(record) < label_bytes + _PIXELS:
                raise RunError(f"{member} ends within an image: download the archive again")
            if (label := record[label_bytes - 1]) >= len(classes):
                raise RunError(f"{member} holds label {label}, and there are {len(classes)} names")
            png = io.BytesIO()
            pixels = np.frombuffer(record, np.uint8, offset=label_bytes).reshape(3, 32, 32)
            Image.fromarray(pixels.transpose(1, 2, 0).copy()).save(png, "PNG")
            yield f"{part}/{classes[label]}/{numbers[part]:05d}.png", png.getvalue()
            numbers[part] += 1
