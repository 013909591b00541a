"""A trained network: the weights of a run folder or of a file, and what is known of their training."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from seal_fast.config import Config, load
from seal_fast.models import build, load_weights
from seal_fast.networks import Registered, parse
from seal_fast.runs.folder import RunFolder
from seal_fast.utils.errors import RunError, UsageError
from seal_fast.utils.files import read_tensors

# Entries of a weights file's header, which `train.assemble` writes, and their types.
_HEADER: dict[str, Callable[[str], Any]] = {
    "model": str,
    "stem": str,
    "width": float,
    "classifier": str,
    "num_classes": int,
    "image_size": int,
}


@dataclass(frozen=True)
class TrainedNetwork:
    """A trained network, not yet in memory.

    Attributes:
        name: in tables: the name of the run folder or file, with the stage unless that is "last".
        weights: the .safetensors file.
        model: as `--model` names it.
        stem: imagenet or small.
        num_classes: outputs of the classifier; 0 where the file has none (a backbone).
        image_size: pixels a side of the training images.
        config: of the run; None for a bare weights file.
        stage: "last", "best", "generation-<g>" or "generation-<g>-ascent"; "" for a bare weights file.
        width: factor on the channels.
        classifier: the name of the last linear layer; "" where there is none.
    """

    name: str
    weights: Path
    model: str
    stem: str
    num_classes: int
    image_size: int
    config: Config | None = None
    stage: str = ""
    width: float = 1.0
    classifier: str = "fc"

    @property
    def label_smoothing(self) -> float:
        """Of the loss that it was trained with; 0 for a bare weights file."""
        return self.config.label_smoothing if self.config else 0.0

    def load(self, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32) -> Any:
        """The network in eval mode, channels-last, on the device.

        Raises:
            UsageError: the file is missing, damaged or of another architecture.
            RunError: a weight or statistic is NaN or infinite.
        """
        network = build(self.model, self.num_classes or 1, self.stem, width=self.width)  # type: ignore[arg-type]
        load_weights(network, self.weights, classifier=self.classifier)
        if not all(bool(tensor.isfinite().all()) for tensor in network.state_dict().values()):
            raise RunError(f"{self.weights} holds NaN or infinite weights: its training diverged")
        network.to(device, dtype).to(memory_format=torch.channels_last)
        return network.eval().requires_grad_(False)


def open_network(
    path: str | Path,
    *,
    stage: str = "last",
    model: str | Sequence[str] | None = None,
    stem: str | None = None,
    width: float | None = None,
    image_size: int | None = None,
) -> TrainedNetwork:
    """The network in a run folder or in a weights file (.safetensors, torchvision's names).

    Run folders and the weights in them record their architecture. For other files `model`, `stem`, `width` and
    `image_size` give it; None stands for resnet18, imagenet, 1 and 64. A file alone never names code to import: where
    its network is a factory's, `model` must name it. It may name several, of which the file's must be one.

    Raises:
        UsageError: there is no such run, stage or file, or an argument contradicts the file.
    """
    path = Path(path)
    if not path.is_dir():
        return _of_file(path, model=model, stem=stem, width=width, image_size=image_size)
    folder = RunFolder(path)
    if not folder.config.exists():
        raise UsageError(f"{path} is no run folder (it holds no config.toml); name a run folder or a .safetensors file")
    file = folder.weights(stage)
    if not file.exists():
        held = ", ".join(checkpoints(path)) or "none; the run has not finished its first generation"
        raise UsageError(f"{path} keeps no weights called {stage}; it keeps {held}")
    name = path.resolve().name + ("" if stage == "last" else f" {stage}")
    config = load(folder.config, Config())
    network = _of_file(file, model=model, stem=stem, width=width, image_size=image_size)
    return replace(network, name=name, config=config, stage=stage)


def checkpoints(path: str | Path) -> list[str]:
    """Stages of a run whose weights were kept, in the order of training, without `last` and `best`."""
    found = []
    for file in (Path(path) / "weights").glob("generation-*.safetensors"):
        if match := re.fullmatch(r"generation-(\d+)(-ascent)?", file.stem):
            found.append((int(match[1]), match[2] is None, file.stem))
    return [stage for *_, stage in sorted(found)]


def load_checkpoints(path: str | Path, **architecture: Any) -> list[TrainedNetwork]:
    """The networks of a run's `checkpoints`; `architecture` goes to `open_network`.

    Raises:
        UsageError: the run has kept none, or an argument contradicts their files.
    """
    kept = [open_network(path, stage=stage, **architecture) for stage in checkpoints(path)]
    if not kept:
        raise UsageError(f"{path} keeps no weights of its generations; train with --keep generations or --keep ascents")
    return kept


def _of_file(file: Path, model: str | Sequence[str] | None = None, **given: Any) -> TrainedNetwork:
    from safetensors import SafetensorError

    if not file.is_file():
        raise UsageError(f"{file}: no such run folder or weights file")
    try:
        tensors, header = read_tensors(file)
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file} is not a readable safetensors file ({error})") from None
    try:
        recorded = {name: kind(header[name]) for name, kind in _HEADER.items() if name in header}
    except ValueError as error:
        raise RunError(f"{file}: its header is damaged ({error})") from None
    named = [model] if isinstance(model, str) else list(model or ())
    if "model" not in recorded and len(named) > 1:
        raise UsageError(f"--model: {file} does not say which network it is of; name one")
    given["model"] = recorded["model"] if recorded.get("model") in named else next(iter(named), None)
    for name, value in given.items():
        if value is not None and name != "image_size" and value != recorded.get(name, value):
            raise UsageError(f"--{name} {value}: {file} says that it is of {recorded[name]}; drop the flag")
    if ":" in recorded.get("model", "") and not given["model"]:
        raise UsageError(
            f"{file} is of {recorded['model']}, which is code to import: name it with --model, if you trust it"
        )
    settings: dict[str, Any] = {"model": "resnet18", "stem": "imagenet", "image_size": 64} | recorded
    settings |= {name: value for name, value in given.items() if value is not None}
    if isinstance(parse(settings["model"]), Registered):
        settings["num_classes"] = len(tensors.get("fc.bias", ()))
    elif "num_classes" not in recorded:
        raise UsageError(f"{file}: only weights that seal_fast wrote can be used with --model {settings['model']}")
    return TrainedNetwork(file.stem, file, **settings)
