"""`python -m seal_fast fewshot`: accuracy of several networks in the same few-shot episodes on other images."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from itertools import product
from typing import Any

import numpy as np
import torch

from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.results import identity
from seal_fast.analysis.common.stage_plots import Result
from seal_fast.analysis.common.targets import Setting, TargetAnalysis, of
from seal_fast.analysis.fewshot.compute import centroid, linear
from seal_fast.analysis.fewshot.episodes import Episodes, draw
from seal_fast.runs.identity import pair_by_seed
from seal_fast.runs.stats import Values, holm, paired, paired_p, student
from seal_fast.utils.table import table

Head = Callable[[torch.Tensor, Episodes], torch.Tensor]
HEADS: dict[str, Head] = {"linear": linear, "centroid": centroid}
TITLES = {"linear": "linear head", "centroid": "nearest centroid"}


class FewShot(TargetAnalysis):
    """Few-shot episodes.

    Attributes:
        percent: accuracies [episodes] by the sha256 of the weights and the setting (target, shots, head).
    """

    name = "fewshot"
    description = (
        "Few-shot accuracy under distribution shift (Guo et al., ECCV 2020): episodes drawn from all images of a "
        "target; on the frozen pooled features a linear head trained by SGD, and the nearest class mean. The "
        "episodes are the same for every RUN."
    )
    data_help = "target data sets; all their images are one pool"
    decisive = ("ways", "shots", "queries", "episodes", "seed")

    def __init__(self) -> None:
        super().__init__()
        self.percent: dict[str, dict[Setting, np.ndarray]] = {}

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        super().add_flags(parser)
        add = parser.add_argument
        add("--ways", type=int, default=5, help="classes an episode; default: 5")
        add("--shots", type=int, nargs="+", default=[5, 20, 50], help="images a class to learn from; default: 5 20 50")
        add("--queries", type=int, default=15, help="images a class to classify; default: 15")
        add("--episodes", type=int, default=600, help="episodes for each target and number of shots; default: 600")

    def split_seed(self) -> int:
        """How a pool is split makes no difference to its episodes' law, so it never changes."""
        return 0

    def open(self) -> None:
        """Draw the episodes, the same for every network."""
        super().open()
        self.shots = list(dict.fromkeys(self.flags.shots))
        numbers = {name: getattr(self.flags, name) for name in ("ways", "queries", "episodes", "seed")}
        self.episodes = {
            (name, shots): draw(
                np.concatenate([images.train.labels, images.val.labels]), images.classes, shots=shots, **numbers
            )
            for name, images in self.targets.items()
            for shots in self.shots
        }

    def measure_targets(self, network: TrainedNetwork) -> dict[str, Any]:
        """Mean accuracies in percent with Student's interval over the episodes, by target, shots and head."""
        percent: dict[Setting, np.ndarray] = {}
        for name, images in self.targets.items():
            pool = torch.cat([self.extract(network, images, part).values for part in ("train", "val")])
            for shots, (head, accuracy) in product(self.shots, HEADS.items()):
                hits = self._shared(accuracy, pool, self.episodes[name, shots])
                percent[name, shots, head] = 100 * hits.cpu().numpy()
        self.percent[identity(network)["weights_sha256"]] = percent
        figures: dict[str, Any] = {}
        for (target, shots, head), values in percent.items():
            figures.setdefault(target, {}).setdefault(str(shots), {})[head] = student(values).json()
        return figures

    def _shared(self, accuracy: Head, pool: torch.Tensor, shown: Episodes) -> torch.Tensor:
        """The accuracy in every episode; each process computes its part of them."""
        world = self.world
        start, stop = (len(shown) * rank // world.size for rank in (world.rank, world.rank + 1))
        own = accuracy(pool, shown.part(start, stop)) if stop > start else pool.new_empty(0, dtype=torch.float64)
        return torch.cat(world.all_gather(own))

    @staticmethod
    def _pairs(results: Sequence[dict[str, Any]], first: Sequence[dict[str, Any]]) -> list[tuple[Any, Any]]:
        """Results of two groups, paired by seed; of bare weights files, which have no seed, the first of each."""
        by_seed, first_by_seed = ({r["seed"]: r for r in group if not r["excluded"]} for group in (results, first))
        if None in (*by_seed, *first_by_seed):
            return [*zip(by_seed.values(), first_by_seed.values(), strict=False)][:1]
        return pair_by_seed(by_seed, first_by_seed)

    def table(self, results: Sequence[dict[str, Any]]) -> str:
        """Accuracies by group, and differences to the first group in the same episodes."""
        protocol = results[0]["protocol"]
        runs, rows = self.by_group(results, ("target", "shots", "head"))
        title = (
            f"{protocol['ways']}-way accuracy % in {protocol['episodes']} episodes of {protocol['queries']} queries a "
            f"class; runs: {runs}\nintervals: 95 %, Student's t; of a single run over its episodes, of several over "
            "the runs (seeds)"
        )
        parts = [title, rows]
        if differences := self._differences(results):
            note = "paired in the same episodes and by seed; p of the paired t-test, adjusted for the table (Holm)"
            parts += [f"difference to {_reference(results)}, {note}", *differences]
        return "\n\n".join(parts)

    def _differences(self, results: Sequence[dict[str, Any]]) -> list[str]:
        """The table of differences, and lines about seeds that have no partner; nothing where no two networks pair."""
        reference, stages = _reference(results), list(dict.fromkeys(result["stage"] for result in results))
        several = len(stages) > 1
        others = list(dict.fromkeys(r["group"] for r in results if not r["excluded"] and r["group"] != reference))
        tests: dict[str, dict[tuple[tuple[str, ...], str], tuple[Any, Any]]] = {"episodes": {}, "runs": {}}
        unpaired: dict[str, None] = {}
        for setting, stage, group in product(self.percent[results[0]["weights_sha256"]], stages, others):
            pairs = self._pairs(of(results, group, stage), of(results, reference, stage))
            row = (*map(str, setting), *[stage] * several)
            values = [[self.percent[r["weights_sha256"]][setting] for r in side] for side in zip(*pairs, strict=True)]
            if values:
                tests["episodes"][row, group] = np.mean(values[0], axis=0), np.mean(values[1], axis=0)
            if len(pairs) > 1:
                tests["runs"][row, group] = [v.mean() for v in values[0]], [v.mean() for v in values[1]]
            for name, other in ((group, 0), (reference, 1)):
                alone = {r["seed"] for r in of(results, name, stage)} - {pair[other]["seed"] for pair in pairs}
                if alone - {None}:
                    against = reference if name == group else group
                    unpaired[f"{name}: seeds {', '.join(map(str, sorted(alone)))} have no partner in {against}"] = None
        cells: dict[tuple[str, ...], dict[str, str]] = {}
        for over, samples in tests.items():
            adjusted = holm([paired_p(*sample) for sample in samples.values()])
            for ((row, group), sample), p in zip(samples.items(), adjusted, strict=True):
                cells.setdefault((*row, over), {})[group] = paired(*sample).show() + f" p {p:.2g}" * (p == p)
        if not cells:
            return list(unpaired)
        order = sorted(cells, key=lambda row: [key[:-1] for key in cells].index(row[:-1]))
        head = ("target", "shots", "head", *["stage"] * several, "over", *others)
        rows = [(*row, *(cells[row].get(group, "") for group in others)) for row in order]
        return [table([head, *rows], left=4 + several), *(["\n".join(unpaired)] if unpaired else [])]

    def samples(self, results: Sequence[Result]) -> dict[Setting, Callable[[Result], Values]]:
        """The accuracies in the episodes."""
        return {
            setting: lambda result, setting=setting: self.percent[result["weights_sha256"]][setting]
            for setting in self.percent[results[0]["weights_sha256"]]
        }

    def place(self, setting: Setting) -> tuple[str, str]:
        """A panel for each target and head, with the numbers of shots as labels."""
        target, shots, head = setting
        return f"{target}, {TITLES[head]}", f"{shots} shots"


def _reference(results: Sequence[dict[str, Any]]) -> str:
    """The group that others are compared with: the first that counts."""
    return next((r["group"] for r in results if not r["excluded"]), results[0]["group"])
