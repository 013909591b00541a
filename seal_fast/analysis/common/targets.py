"""What transfer and few-shot share: target data sets, features of each network on them, tables and plots by target."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from seal_fast.analysis.common.command import Analysis
from seal_fast.analysis.common.features import Extractor, cache_folder
from seal_fast.analysis.common.images import open_targets
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.processes import check_alike
from seal_fast.analysis.common.stage_plots import COLOURS, Result, by_stage, draw_rows, new_figure, save, several_stages
from seal_fast.data import ImageSet
from seal_fast.runs.stats import Values, student
from seal_fast.utils.errors import UsageError
from seal_fast.utils.table import table

_UNIT = "accuracy (%)"
Setting = tuple[Any, ...]
"""A target, and how the features are used on it."""


class TargetAnalysis(Analysis):
    """An analysis of frozen features on the images of several targets.

    Attributes:
        data_help: explains --data.
        decisive: flags that decide the figures.
        targets: by name.
        image_size: pixels a side of all input.
        extract: gives the features.
    """

    data_help: ClassVar[str]
    decisive: ClassVar[tuple[str, ...]]
    target_flag = "--data"
    targets: dict[str, ImageSet]
    image_size: int
    extract: Extractor

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Add the flags of both commands."""
        add = parser.add_argument
        add("--data", nargs="+", required=True, metavar="T", help=self.data_help)
        add("--seed", type=int, default=0, help="of everything that is drawn; default: 0")
        add("--amp", action="store_true", help="run the network under bfloat16 autocast")
        add("--cache", type=Path, metavar="DIR", help="of features; default: $SEAL_FAST_CACHE or the user's cache")
        add("--no-cache", action="store_true", help="neither read nor keep features")

    def split_seed(self) -> int | None:
        """Seed that splits class folders without train/ and val/; None refuses them."""
        return self.flags.seed

    def open(self) -> None:
        """Open targets and cache.

        Raises:
            UsageError: networks differ in image size, or a target cannot be used.
        """
        flags, first = self.flags, self.networks[0]
        for other in self.networks:
            if other.image_size != first.image_size:
                raise UsageError(
                    f"{first.name} was trained on images of {first.image_size} pixels a side and {other.name} of "
                    f"{other.image_size}: choose one size for both with --image-size"
                )
        self.image_size = first.image_size
        self.targets = open_targets(flags.data, self.image_size, flags.on_bad_image, self.split_seed())
        cache = None if flags.no_cache else cache_folder(flags.cache)
        self.extract = Extractor(self.runtime, cache, self.image_size, flags.batch_size, self.world)

    def measure(self, network: TrainedNetwork) -> dict[str, Any]:
        """The figures on each target, after all processes have been found to ask the same."""
        for images in self.targets.values():
            check_alike(self.world, network, images)
        return {
            "protocol": {
                **{name: getattr(self.flags, name) for name in self.decisive},
                "image_size": self.image_size,
                "targets": {name: images.fingerprint for name, images in self.targets.items()},
            },
            "targets": self.measure_targets(network),
            "skipped_images": {name: list(images.skipped) for name, images in self.targets.items()},
        }

    def measure_targets(self, network: TrainedNetwork) -> dict[str, Any]:
        """The figures by target."""
        raise NotImplementedError

    def samples(self, results: Sequence[Result]) -> dict[Setting, Callable[[Result], Values]]:
        """By setting, the accuracies in percent of a result: one, or one for each episode."""
        raise NotImplementedError

    def place(self, setting: Setting) -> tuple[str, str]:
        """Title and label of a setting in the plot."""
        raise NotImplementedError

    def by_group(self, results: Sequence[Result], names: Sequence[str]) -> tuple[str, str]:
        """How many runs each group has, and a table with a row per setting and stage and a column per group.

        `names` are the headings of the setting's parts. Means have Student's interval over the runs of the group; the
        mean of a single run has that over its own samples.
        """
        groups, stages = (list(dict.fromkeys(result[key] for result in results)) for key in ("group", "stage"))
        several = len(stages) > 1
        rows = [(*names, *["stage"] * several, *groups)]
        for (setting, samples), stage in product(self.samples(results).items(), stages):
            cells = []
            for group in groups:
                some = [np.asarray(samples(result)) for result in of(results, group, stage)]
                values = np.array([one.mean() for one in some]) if len(some) != 1 else some[0]
                cells.append(student(values).show() if some else "")
            rows.append((*map(str, setting), *[stage] * several, *cells))
        runs = ", ".join(f"{group} {len(of(results, group, stages[-1]))}" for group in groups)
        return runs, table(rows, left=len(names) + several)

    def plot(self, results: Sequence[dict[str, Any]], path: Callable[[str], Path]) -> None:
        """Draw bars as `<command>`, or curves as `<command>_generations` where the results are of several stages."""
        panels: dict[str, dict[str, Callable[[Result], float]]] = {}
        for setting, samples in self.samples(results).items():
            title, label = self.place(setting)
            panels.setdefault(title, {})[label] = lambda result, samples=samples: float(np.mean(samples(result)))
        if several_stages(results):
            rows = [
                [(f"{label}, {title}: {_UNIT}", by_stage(results, figure)) for label, figure in figures.items()]
                for title, figures in panels.items()
            ]
            draw_rows(rows, path(f"{self.name}_generations"))
            return
        figure, axes = new_figure(max(6.0, 1.6 * max(map(len, panels.values())) + 2), 2.8 * len(panels), len(panels))
        for axis, (title, figures) in zip(axes.flat, panels.items(), strict=True):
            _bars(axis, results, figures)
            axis.set_title(title, fontsize=10)
            axis.set_ylabel(_UNIT)
        handles = axes[0, 0].get_legend_handles_labels()
        figure.legend(*handles, frameon=False, fontsize=8, ncols=4, loc="outside lower center")
        save(figure, path(self.name))

    def closing(self) -> list[str]:
        """Where the features came from."""
        return [f"features: {self.extract.extracted} extracted, {self.extract.found} from the cache"]


def of(results: Sequence[Result], group: str, stage: str) -> list[Any]:
    """The results of a group at a stage."""
    return [result for result in results if (result["group"], result["stage"]) == (group, stage)]


def _bars(axis: Any, results: Sequence[Result], figures: Mapping[str, Callable[[Result], float]]) -> None:
    """One bar a group at each label: the mean over its runs, with the interval where there are several."""
    groups = list(dict.fromkeys(result["group"] for result in results))
    wide = 0.8 / len(groups)
    for i, group in enumerate(groups):
        for place, figure in enumerate(figures.values()):
            mean = student([figure(result) for result in results if result["group"] == group])
            error = mean.half if mean.count > 1 else None
            x = place + (i - (len(groups) - 1) / 2) * wide
            label = f"{group} ({mean.count})" if place == 0 else None
            axis.bar(x, mean.mean, wide * 0.92, yerr=error, capsize=2, color=COLOURS[i % len(COLOURS)], label=label)
    axis.set_xticks(range(len(figures)), list(figures), fontsize=8)
