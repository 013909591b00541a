"""Which runs are the same training, so that only their seeds differ, and which of their values belong together.

A run folder's provenance.json holds what config.toml cannot say: the fingerprint of the images, the hash of the initial
weights, the device, and the number of processes. Two runs are the same training if their timelines, their other
settings that change numbers, their images and their initial weights are equal. Of a run without provenance.json,
written by an older version, the paths of the data and of the initial weights count instead; it is never grouped with a
run that has one. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from seal_fast import __version__
from seal_fast.config import EXECUTION, Config
from seal_fast.methods import timeline
from seal_fast.utils.errors import UsageError
from seal_fast.utils.files import write_json

PROVENANCE = "provenance.json"

# Settings of execution that change numbers all the same.
_INPUTS = frozenset({"data", "init_weights", "on_bad_image"})
# Settings that change no number, or change it by rounding alone.
NEUTRAL = (EXECUTION - _INPUTS) | {"kernels", "eval_batch_size", "ema", "record_examples"}
# Settings that act through the timeline alone: configurations of equal timelines need not agree in them.
_IN_TIMELINE = frozenset("method option generations epochs warmup_epochs lr lr_curve weight_decay reinit".split())
_IN_TIMELINE |= {"ascent_epochs", "ascent_scale", "ascent_weight_decay", "layer_threshold"}
# Settings whose effect depends on what the provenance says.
_WITH_PROVENANCE = _INPUTS | {"device", "init_fc", "sync_batchnorm"}
# Settings that act on every training.
_ALWAYS = {f.name for f in fields(Config)} - NEUTRAL - _IN_TIMELINE - _WITH_PROVENANCE
_ALWAYS -= {"seed", "amp_dtype"}


def write_provenance(
    folder: Path, *, data_sha256: str, init_weights: Path | None, device: str, processes: int, resuming: bool
) -> None:
    """Write provenance.json when a run starts; a resumed run adds its device and its number of processes.

    Raises:
        UsageError: the file that is there is damaged, or the initial weights cannot be read.
        RunError: the file cannot be written.
    """
    known = read_provenance(folder) if resuming else {}
    given = weights_sha256(init_weights) if init_weights and not known else None
    now = {
        "seal_fast": __version__,
        "data_sha256": data_sha256,
        "init_weights_sha256": known.get("init_weights_sha256", given),
        "devices": sorted({*known.get("devices", ()), device}),
        "processes": sorted({*known.get("processes", ()), processes}),
    }
    if now != known:
        write_json(folder / PROVENANCE, now)


def check_initial_weights(folder: Path, file: Path | None) -> None:
    """Raise UsageError if a run that is resumed began with other weights, or the file cannot be read."""
    known = read_provenance(folder)
    if known and known.get("init_weights_sha256") != (weights_sha256(file) if file else None):
        given = f"--init-weights {file}" if file else "no --init-weights"
        raise UsageError(f"{given}: the run in {folder} began with other weights; name those, or choose another --out")


def read_provenance(folder: Path) -> dict[str, Any]:
    """What provenance.json holds, nothing where there is none; UsageError if it is damaged."""
    path = folder / PROVENANCE
    content = read_object(path)
    if content and not isinstance(content.get("data_sha256"), str):
        raise UsageError(f"{path} is damaged (no data_sha256); delete it to group the run by its paths")
    return content


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file, empty where there is no file; UsageError if it holds no such object."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} is not readable JSON ({error})") from None
    if not isinstance(content, dict):
        raise UsageError(f"{path} is not a JSON object")
    return content


def weights_sha256(file: Path) -> str:
    """sha256 over names, types, shapes and bytes of all tensors of a safetensors file, in the order of their names.

    Raises UsageError if it cannot be read or is none.
    """
    total = hashlib.sha256()
    try:
        with file.open("rb") as content:
            size = int.from_bytes(content.read(8), "little")
            if size > file.stat().st_size:
                raise ValueError("its header is longer than the file")
            header = json.loads(content.read(size))
            for name, entry in sorted(header.items()):
                if name == "__metadata__":
                    continue
                total.update(f"{name} {entry['dtype']} {tuple(entry['shape'])}\0".encode())
                start, end = entry["data_offsets"]
                content.seek(8 + size + start)
                for at in range(start, end, 1 << 20):
                    total.update(content.read(min(1 << 20, end - at)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} is not a readable safetensors file ({error})") from None
    return total.hexdigest()


@dataclass(frozen=True, eq=False)
class Training:
    """What decides the numbers of a run, its seed included.

    Without provenance data and initial weights count by their paths; `skipped` names images left out of training.
    """

    config: Config
    provenance: Mapping[str, Any] = field(default_factory=dict)
    skipped: tuple[str, ...] = ()

    @cached_property
    def key(self) -> Hashable:
        """Equal for trainings that differ by their seed alone: settings without effect do not count."""
        config, inputs = self.config, {name: mark for name, (mark, _) in self.inputs().items()}
        rest = tuple(getattr(config, f.name) for f in fields(Config) if f.name in _ALWAYS)
        if config.sync_batchnorm:  # else BatchNorm sees the images of one process at a time
            inputs["processes"] = (1,)
        acting = config.amp and config.amp_dtype, inputs["init_weights"] and config.init_fc
        return timeline(config).effective(), rest, acting, *inputs.values()

    def inputs(self) -> dict[str, tuple[Any, str]]:
        """Of what settings name by path or not at all: (what distinguishes it, its short name)."""
        known, config = self.provenance, self.config
        initial = known.get("init_weights_sha256") or config.init_weights
        places = {"device": known.get("devices", (config.device,)), "processes": known.get("processes", (1,))}
        return {
            "data": (known.get("data_sha256", config.data), Path(config.data).name),
            "init_weights": (initial, config.init_weights.name if config.init_weights else "none"),
            "skipped_images": (self.skipped, str(len(self.skipped))),
            **{name: (tuple(values), " and ".join(map(str, values))) for name, values in places.items()},
        }


def varied_settings(trainings: Sequence[Training]) -> list[dict[str, Any]]:
    """For each of several different trainings, the settings in which they differ, those without effect on it left out.

    Data sets and initial weights are called by their files' names, with the start of the hash where others share it.
    """
    found: list[dict[str, Any]] = [{} for _ in trainings]
    inputs = [training.inputs() for training in trainings]
    named = list(inputs[0]) if inputs else []
    for name in (f.name for f in fields(Config) if f.name not in NEUTRAL.union(named, ["seed"])):
        values = list(dict.fromkeys(getattr(t.config, name) for t in trainings))
        if len(values) > 1:
            values = _extremes(values)
            for settings, training in zip(found, trainings, strict=True):
                if name in _ALWAYS or any(_differs(training, name, value) for value in values):
                    settings[name] = getattr(training.config, name)
    for name in named:
        marks: dict[str, set[Any]] = {}
        for mark, text in (one[name] for one in inputs):
            marks.setdefault(text, set()).add(mark)
        if len(set().union(*marks.values())) > 1:
            for settings, (mark, text) in zip(found, (one[name] for one in inputs), strict=True):
                settings[name] = text if len(marks[text]) == 1 else f"{text} ({str(mark)[:8]})"
    return found


def _extremes(values: Sequence[Any]) -> Sequence[Any]:
    """Values that suffice to see whether a setting acts: the least and greatest numbers, of fractions apart.

    A training depends on a number monotonically, but for lengths, which are fractions of a generation below 1.
    """
    if not all(isinstance(value, int | float) for value in values):
        return values
    parts = [value for value in values if value < 1], [value for value in values if value >= 1]
    return [end(part) for part in parts if part for end in (min, max)]


def _differs(training: Training, name: str, value: Any) -> bool:
    """Whether this value of a setting would make it another training."""
    if value == getattr(training.config, name):
        return False
    try:
        return replace(training, config=replace(training.config, **{name: value})).key != training.key
    except (UsageError, ValueError):
        return True


def labels(trainings: Sequence[Training], varied: Sequence[dict[str, Any]] | None = None) -> list[str]:
    """A name for each of several different trainings: `varied_settings`, or the method where there are none."""
    names: list[str] = []
    for training, settings in zip(trainings, varied or varied_settings(trainings), strict=True):
        name = ", ".join(shown_setting(n, v) for n, v in settings.items() if v != "") or training.config.method
        same = sum(other == name or other.startswith(f"{name} (") for other in names)
        names.append(f"{name} ({same + 1})" if same else name)
    return names


def shown_setting(name: str, value: Any) -> str:
    """A setting as labels hold it, such as `ascent scale 0.01`; of the method its name alone."""
    return short(value) if name == "method" else f"{name.replace('_', ' ')} {short(value)}"


def short(value: Any) -> str:
    """A setting's value with at most four significant digits."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def pair_by_seed(first: Mapping[int, Any], second: Mapping[int, Any]) -> list[tuple[Any, Any]]:
    """Values of two groups of runs, one of each group for every seed that both have, in the order of the seeds."""
    return [(first[seed], second[seed]) for seed in sorted(first.keys() & second.keys())]
