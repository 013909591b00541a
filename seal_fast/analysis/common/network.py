"""The network under study: weights from a run folder or from a file, and what is known of how they were trained."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from seal_fast.config import Config, load
from seal_fast.models import ResNet, build, load_weights
from seal_fast.runs.folder import RunFolder
from seal_fast.utils.errors import RunError, UsageError

# What a weights file's header says of the network, and the type of each entry (see `train.assemble`, which writes it).
_HEADER: dict[str, Callable[[str], Any]] = {"model": str, "stem": str, "num_classes": int, "image_size": int}


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network, not yet in memory.

    Attributes:
        name: how tables call it: the run folder's name or the file's, with the stage unless that is "last".
        weights: the .safetensors file.
        model: resnet18, resnet34 or resnet50.
        stem: imagenet or small.
        num_classes: outputs of the classifier; 0 where the file has none (a backbone).
        image_size: pixels a side that it was trained on.
        config: the run's own configuration; None for a bare weights file.
        stage: "last", "best", "generation-<g>" or "generation-<g>-ascent"; "" for a bare weights file.
    """

    name: str
    weights: Path
    model: str
    stem: str
    num_classes: int
    image_size: int
    config: Config | None = None
    stage: str = ""

    def network(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> ResNet:
        """The network in eval mode, channels-last, on the device.

        Raises:
            UsageError: the file is missing, damaged or of another architecture.
        """
        network = build(self.model, self.num_classes or 1, self.stem)  # type: ignore[arg-type]
        load_weights(network, self.weights)
        network.to(device, dtype).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        return network.eval().requires_grad_(False)


def open_network(
    path: str | Path,
    *,
    stage: str = "last",
    model: str | None = None,
    stem: str | None = None,
    image_size: int | None = None,
) -> TrainedNetwork:
    """What a run folder or a weights file (.safetensors, torchvision's names) holds.

    A run folder and the weights in it say themselves which network they are of. For other files `model`, `stem` and
    `image_size` say it (resnet18, imagenet and 64 where they are None).

    Raises:
        UsageError: there is no such run, stage or file, or a setting contradicts what the file says of itself.
    """
    path = Path(path)
    folder = RunFolder(path)
    if not path.is_dir():
        return _of_file(path, model, stem, image_size)
    if not folder.config.exists():
        raise UsageError(f"{path} is no run folder (it holds no config.toml); name a run folder or a .safetensors file")
    file = folder.weights(stage)
    if not file.exists():
        held = ", ".join(name for name, _ in stages(path)) or "none; the run has not finished its first generation"
        raise UsageError(f"{path} keeps no weights called {stage}; it keeps {held}")
    subject = _of_file(file, model, stem, image_size)
    name = path.resolve().name + ("" if stage == "last" else f" {stage}")
    return replace(subject, name=name, config=load(folder.config, Config()), stage=stage)


def stages(path: str | Path) -> list[tuple[str, Path]]:
    """The weights a run has kept of its way, in the order they arose: (stage, file); `last` and `best` left out."""
    found = []
    for file in (Path(path) / "weights").glob("generation-*.safetensors"):
        if match := re.fullmatch(r"generation-(\d+)(-ascent)?", file.stem):
            found.append(((int(match[1]), match[2] is None), file.stem, file))
    return [(stage, file) for _, stage, file in sorted(found)]


def follow(path: str | Path, **said: Any) -> list[TrainedNetwork]:
    """A run's kept weights as subjects, in the order they arose; `said` goes to `open_network`.

    Raises:
        UsageError: it has kept none, or a setting contradicts what they say of themselves.
    """
    kept = [open_network(path, stage=stage, **said) for stage, _ in stages(path)]
    if not kept:
        raise UsageError(f"{path} keeps no weights of its generations; train with --keep generations or --keep ascents")
    return kept


def _of_file(file: Path, model: str | None, stem: str | None, image_size: int | None) -> TrainedNetwork:
    from safetensors import SafetensorError, safe_open

    if not file.is_file():
        raise UsageError(f"{file}: no such run folder or weights file")
    try:
        with safe_open(file, "pt") as content:
            header = content.metadata() or {}
            keys = content.keys()
            classes = content.get_slice("fc.bias").get_shape()[0] if "fc.bias" in keys else 0
    except (OSError, SafetensorError) as error:
        raise UsageError(f"{file} is not a readable safetensors file ({error})") from None
    try:
        said = {name: kind(header[name]) for name, kind in _HEADER.items() if name in header}
    except ValueError as error:
        raise RunError(f"{file}: its header is damaged ({error})") from None
    given = {"model": model, "stem": stem, "image_size": image_size}
    for name, value in given.items():
        if value is not None and name != "image_size" and value != said.get(name, value):
            raise UsageError(f"--{name} {value}: {file} says that it is of {said[name]}; drop the flag")
    usual = {"model": "resnet18", "stem": "imagenet", "image_size": 64}
    settings = usual | said | {name: value for name, value in given.items() if value is not None}
    return TrainedNetwork(
        name=file.stem,
        weights=file,
        model=settings["model"],
        stem=settings["stem"],
        num_classes=classes,
        image_size=settings["image_size"],
    )
