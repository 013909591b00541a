"""Pooled features of a network on a data set, extracted once and kept in a content-addressed cache.

The name of an entry is the sha256 of everything that decides the features: the tensors of the weights, the bytes and
label of every image, the image size, the compute type and the version of this module. So a changed file never meets an
old entry, and a moved or renamed one still finds its own.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.processes import gathered, rows_of
from seal_fast.analysis.common.results import identity
from seal_fast.data import ImageSet, Split
from seal_fast.data.batches import batches
from seal_fast.distributed.world import SINGLE_PROCESS, World
from seal_fast.models import features
from seal_fast.training.checkpoint import save_tensors
from seal_fast.training.runtime import Runtime
from seal_fast.utils.errors import RunError, UsageError
from seal_fast.utils.files import read_tensors

VERSION = "seal_fast features 1"
"""Raise it whenever the same network would give other features for the same images."""

_log = logging.getLogger("seal_fast")


@dataclass(frozen=True)
class Features:
    """The features of a split, in the order of its images.

    Attributes:
        values: float32 [n, D], the pooled activations that the last linear layer reads.
        labels: int64 [n].
    """

    values: Tensor
    labels: Tensor


def cache_folder(flag: Path | None = None) -> Path:
    """The folder of the cache: the flag, $SEAL_FAST_CACHE, or seal_fast in $XDG_CACHE_HOME (~/.cache).

    Raises:
        UsageError: the user has no home and names no folder.
    """
    if named := flag or os.environ.get("SEAL_FAST_CACHE"):
        return Path(named)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "seal_fast"
    except RuntimeError:
        raise UsageError("there is no home folder for the cache: name one with --cache, or use --no-cache") from None


class Extractor:
    """Extracts features of one network after the other, or finds them in the cache.

    Args:
        runtime: device, compute type and autocast of the forward pass.
        cache: folder of the cache; None keeps nothing.
        image_size: pixels a side of the input; None takes what each network was trained on.
        batch_size: images a forward pass; changes speed and memory only.
        world: processes that share the images; all of them must ask the same. The cache is the first one's.

    Attributes:
        extracted: splits extracted so far.
        found: splits found in the cache so far.
    """

    def __init__(
        self,
        runtime: Runtime,
        cache: Path | None,
        image_size: int | None = None,
        batch_size: int = 256,
        world: World = SINGLE_PROCESS,
    ) -> None:
        self.runtime, self.cache, self.image_size, self.batch_size = runtime, cache, image_size, batch_size
        self.world = world
        self.extracted = self.found = 0
        self._contents: dict[tuple[str, str], str] = {}
        self._loaded: tuple[TrainedNetwork, torch.nn.Module] | None = None

    def __call__(self, network: TrainedNetwork, images: ImageSet, part: Literal["train", "val"]) -> Features:
        """The features of a split.

        Raises:
            UsageError: the weights file is damaged or of another architecture.
            RunError: an image cannot be decoded, or the network gives NaN or infinite features.
        """
        if not network.classifier:
            raise UsageError(
                f"{network.weights}: the network uses no linear layer, before which features could be read"
            )
        split = getattr(images, part)
        device = self.runtime.device
        labels = torch.from_numpy(split.labels).to(device)
        path, name, key, values = None, "", {}, None
        if self.cache and self.world.is_main:
            key = self._key(network, images, part)
            name = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()
            path = self.cache / "features" / name[:2] / f"{name}.safetensors"
            values = _read(path, name, len(split))
        if (width := self.world.broadcast_object(None if values is None else values.shape[1])) is not None:
            self.found += 1
            values = torch.empty(len(split), width) if values is None else values
            self.world.broadcast_(values)
            return Features(values.to(device), labels)
        values = self._extract(network, images, split)
        self.extracted += 1
        if path:
            _write(path, name, values, key)
        return Features(values, labels)

    def _key(self, network: TrainedNetwork, images: ImageSet, part: str) -> dict[str, Any]:
        known = images.fingerprint, part
        if known not in self._contents:
            self._contents[known] = _content(getattr(images, part))
        return {
            "version": VERSION,
            "weights": identity(network)["weights_sha256"],
            "network": [network.model, network.stem, *([network.width] if network.width != 1 else [])],
            "images": [images.fingerprint, part, self._contents[known], *images.mean, *images.std],
            "image_size": self.image_size or network.image_size,
            "compute": str(self.runtime.compute),
        }

    @torch.inference_mode()
    def _extract(self, network: TrainedNetwork, images: ImageSet, split: Split) -> Tensor:
        runtime = self.runtime
        if self._loaded is None or self._loaded[0] != network:
            self._loaded = network, self.world.run_on_all(lambda: network.load(runtime.device, runtime.dtype))
        model = self._loaded[1]
        own = split.take(rows_of(len(split), self.batch_size, self.world.rank, self.world.size))

        def embed() -> Tensor:
            shown = batches(
                images,
                own,
                image_size=self.image_size or network.image_size,
                batch_size=self.batch_size,
                device=runtime.device,
                dtype=runtime.compute,
                threads=torch.get_num_threads(),
            )
            width = model.get_submodule(network.classifier).in_features
            parts = [torch.empty(0, width, device=runtime.device)]  # type: ignore[arg-type]
            for pixels, _ in shown:
                with runtime.autocast():
                    parts.append(features(model, pixels, network.classifier).float())
            return torch.cat(parts)

        part = self.world.run_on_all(embed)
        values = gathered(part, len(split), self.batch_size, self.world).to(runtime.device)
        if not torch.isfinite(values).all():
            raise RunError(f"{network.weights} gives NaN or infinite features for {images.name}: its training diverged")
        return values


def _content(split: Split) -> str:
    """sha256 over labels and the bytes of every image; the fingerprint covers the sizes of files alone."""
    total = hashlib.sha256(split.labels.astype("<i8").tobytes())
    for row in range(len(split)):
        data = split.source.read(row)
        total.update(len(data).to_bytes(8, "little"))
        total.update(data.tobytes())
    return total.hexdigest()


def _digest(values: Tensor) -> str:
    return hashlib.sha256(values.numpy().data).hexdigest()


def _read(path: Path, name: str, count: int) -> Tensor | None:
    """An entry of the cache; None where there is none, or a damaged one."""
    from safetensors import SafetensorError

    try:
        tensors, metadata = read_tensors(path)
    except FileNotFoundError:
        return None
    except (OSError, SafetensorError) as error:
        fault = str(error)
    else:
        values = tensors["values"]
        if metadata.get("name") == name and len(values) == count and metadata.get("sha256") == _digest(values):
            return values
        fault = "its checksum differs"
    _log.warning("cache: %s is damaged (%s), so its features are extracted again", path, fault)
    return None


def _write(path: Path, name: str, values: Tensor, key: dict[str, Any]) -> None:
    values = values.cpu().contiguous()
    metadata = {"name": name, "sha256": _digest(values), "key": json.dumps(key, sort_keys=True)}
    try:
        save_tensors(path, {"values": values}, metadata)
    except RunError as error:  # without a cache the analysis takes longer, and its figures are the same
        _log.warning("cache: %s", error)
