"""Parquet files as the Hugging Face hub keeps images: a column of {bytes, path} and one of labels.

Pages of a parquet file are compressed, so the bytes of the image files are kept in memory; pixels are not.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seal_fast.data.layouts.common import Samples
from seal_fast.utils.errors import RunError, UsageError, reason
from seal_fast.utils.memory import free_bytes

NAME = "parquet"
_IMAGES, _LABELS = ("image", "img"), ("label", "labels", "fine_label")


class Table:
    """The image bytes of parquet files, named FILE[ROW]; see `seal_fast.data.archive.Store`."""

    def __init__(self) -> None:
        self.files: dict[str, tuple[int, int]] = {}
        self.notes: tuple[str, ...] = ()
        self._bytes: list[Any] = []
        self._path: list[Path] = []

    def add(self, path: Path, label: str, column: Any) -> list[str]:
        """Take in a file's images, an Arrow column of {bytes, ...}; returns their names."""
        names = []
        for chunk in column.chunks:
            for value in chunk.field("bytes"):
                names.append(f"{label}[{len(names):06d}]")
                buffer = value.as_buffer() if value.is_valid else None
                self.files[names[-1]] = len(self._bytes), buffer.size if buffer else 0
                self._bytes.append(buffer)
                self._path.append(path)
        return names

    def read(self, name: str) -> np.ndarray:
        """The bytes of an image file, uint8 [size]."""
        return np.frombuffer(self._bytes[self.files[name][0]], np.uint8)

    def where(self, name: str) -> str:
        """How messages name an image."""
        return f"row {name.rpartition('[')[2][:-1].lstrip('0') or '0'} of {self._path[self.files[name][0]]}"


def read(paths: Sequence[Path], root: Path) -> Samples:
    """The images of the files, named relative to `root`, with their labels and the names of these.

    Raises:
        UsageError: pyarrow is not installed, a column is missing, or the images do not fit into memory.
        RunError: a file is damaged.
    """
    try:
        import pyarrow as arrow
        import pyarrow.parquet as parquet
    except ImportError:
        raise UsageError(f"{paths[0]}: parquet files need pyarrow: pip install 'seal-fast[parquet]'") from None
    table, labels, classes = Table(), {}, ()
    for path in paths:
        try:
            with parquet.ParquetFile(path) as file:
                image, label = (_column(path, file.schema_arrow, names) for names in (_IMAGES, _LABELS))
                _check_memory(path, file.metadata, image)
                content = file.read([image, label])
        except (arrow.ArrowException, OSError) as error:
            raise RunError(f"{path} is no parquet file, or is damaged ({reason(error).splitlines()[0]})") from None
        kind = content.schema.field(image).type
        if not (arrow.types.is_struct(kind) and kind.get_field_index("bytes") >= 0):
            raise UsageError(f"{path}: column {image} is of type {kind}, not of {{bytes, path}}")
        names = table.add(path, str(path.absolute().relative_to(root)), content.column(image))
        labels |= dict(zip(names, content.column(label).to_pylist(), strict=True))
        classes = _class_names(file.schema_arrow, label) or classes
    return Samples(table, labels, classes)


def _column(path: Path, schema: Any, names: tuple[str, ...]) -> str:
    for name in names:
        if name in schema.names:
            return name
    raise UsageError(f"{path}: no column is called {' or '.join(names)}; its columns are {', '.join(schema.names)}")


def _check_memory(path: Path, metadata: Any, image: str) -> None:
    columns = [
        metadata.row_group(g).column(c)
        for g in range(metadata.num_row_groups)
        for c in range(metadata.row_group(g).num_columns)
    ]
    needed = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.partition(".")[0] == image)
    if needed > (free := free_bytes(torch.device("cpu"))):
        raise UsageError(
            f"{path} holds images of {needed / 2**30:.1f} GiB, and {free / 2**30:.1f} GiB of memory are free: "
            "write the set as WebDataset shards, which are read in place"
        )


def _class_names(schema: Any, label: str) -> tuple[str, ...]:
    """The names of a ClassLabel, from the metadata that the hub's library writes."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
        return tuple(features[label]["names"])
    except (KeyError, ValueError, TypeError):
        return ()
