"""`python -m seal_fast similarity`: CKA between layers, generations, seeds and methods, as a table, plots and JSON."""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from seal_fast.analysis.common.earlier import BETWEEN, BOTH, GROUPS, partners
from seal_fast.analysis.common.figures import FigureAnalysis, number
from seal_fast.analysis.common.images import ImageAnalysis
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.processes import rows_of
from seal_fast.analysis.depth.compute import Prober
from seal_fast.analysis.depth.probes import probe_modules
from seal_fast.analysis.similarity import plots
from seal_fast.analysis.similarity.compute import LEAST, Grams, cka, grams, hsic
from seal_fast.analysis.similarity.plots import CHECKPOINTS
from seal_fast.data import ImageSet
from seal_fast.distributed.world import on_all_ranks
from seal_fast.utils.errors import RunError, UsageError


class Features(NamedTuple):
    """A network's Gram matrices at each probe, and the HSIC of each probe with itself, float64 [probes]."""

    probes: tuple[str, ...]
    grams: Grams
    own: Tensor


class Similarity(ImageAnalysis, FigureAnalysis):
    """The features of a network, against those of earlier checkpoints of its run and of other runs."""

    name = "similarity"
    description = (
        "Debiased linear CKA (Kornblith et al., ICML 2019; Nguyen et al., ICLR 2021) between the features of "
        "validation images at the probes of `depth`: between the layers of a network, with --per-generation between "
        "the checkpoints of a run, and between the runs' last checkpoints."
    )
    plot = staticmethod(plots.draw)

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[tuple[Any, ...], Features] = {}

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--data", help="data set of the networks' own classes; default: the run's")
        add("--images", type=int, default=2000, help="validation images at most, evenly spaced; default: 2000")
        add("--probes", metavar="A,B,C", help="modules after which there is a probe; default: the network's blocks")
        add("--amp", action="store_true", help="run the network under bfloat16 autocast")

    def check(self) -> None:
        """A batch must be large enough for an unbiased HSIC."""
        for name in ("images", "batch_size"):
            if (value := getattr(self.flags, name)) < LEAST:
                flag = f"--{name.replace('_', '-')} {value}"
                raise UsageError(f"{flag}: debiased CKA needs at least {LEAST} images in a batch")

    def open(self) -> None:
        """Find what each network is compared with."""
        self.partners = partners(self.networks)

    def measure(self, network: TrainedNetwork) -> dict[str, Any]:
        """The CKA at each probe by kind of partner, the heat maps, and the checkpoints of the run by pairs."""
        images, train = self.training_images(network, None, "--data")
        count, size = _batches(images, self.flags.images, self.flags.batch_size)
        data = images, count, size, len(train)
        here = self._features(network, network, data)
        maps = {("within the network", here.probes, here.probes): [self._cka(here, here)]}
        at_probes: dict[str, list[Tensor]] = {"CKA to the input": [self._cka(here, here)[:, 0]]}
        for kind, other, group in self.partners[network.weights]:
            there = self.attempt(other, lambda other=other: self._features(other, network, data))
            if there is None:
                continue
            found = self._cka(here, there)
            name = {GROUPS: f"to {group}", BOTH: f"to {group} at other seeds"}.get(kind, kind)
            maps.setdefault((name, here.probes, there.probes), []).append(found)
            if here.probes == there.probes:
                at_probes.setdefault(f"CKA {kind}", []).append(found.diagonal())
        means = {name: torch.stack(found).mean(0).tolist() for name, found in at_probes.items()}
        figures = {
            probe: {name: number(values[i]) for name, values in means.items() if values[i] == values[i]}
            for i, probe in enumerate(here.probes)
            if probe != "input"  # which all networks share
        }
        shown = [
            {"name": name, "rows": list(rows), "columns": list(columns), "values": torch.stack(found).mean(0).tolist()}
            for (name, rows, columns), found in maps.items()
        ]
        between = {p.network.name for found in self.partners.values() for p in found if p.kind in BETWEEN}
        probes = {"probes": self.flags.probes} if self.flags.probes else {}
        protocol = {"images": count, "batch_size": size, **probes, "between": sorted(between)}
        return self.result(network, images, protocol, figures=figures, maps=shown + self._generations(network, data))

    def _generations(self, network: TrainedNetwork, data: tuple[ImageSet, int, int, int]) -> list[dict[str, Any]]:
        """Checkpoint by checkpoint at each probe, for the last of a run of which several are named."""
        folder = network.weights.parent.resolve()
        run = [n for n in self.networks if n.config and n.weights.parent.resolve() == folder]
        if len(run) < 2 or network is not run[-1]:
            return []
        read = {n.stage: self.attempt(n, lambda n=n: self._features(n, network, data)) for n in run}
        features = [found for found in read.values() if found]
        found = torch.stack([torch.stack([self._cka(a, b).diagonal() for b in features]) for a in features])
        stages = [stage.removeprefix("generation-") for stage, found in read.items() if found]
        return [
            {"name": f"{CHECKPOINTS}, {probe}", "rows": stages, "columns": stages, "values": found[..., i].tolist()}
            for i, probe in enumerate(features[0].probes)
            if probe != "input"
        ]

    def _features(
        self, network: TrainedNetwork, shown: TrainedNetwork, data: tuple[ImageSet, int, int, int]
    ) -> Features:
        """Of `network` on the images of `shown`, computed once."""
        images, count, size, trained_on = data
        key = network.weights.resolve(), images.fingerprint, shown.image_size, count, trained_on
        if key not in self.held:
            world, runtime = self.world, self.runtime
            split = images.val.spread(count)
            own = split.take(rows_of(count, size, world.rank, world.size))
            progress = partial(self.progress, total=len(own), what="images", before=f"{network.name}: ")

            def read() -> tuple[tuple[str, ...], Grams]:
                model = network.load(runtime.device, runtime.dtype)
                modules = probe_modules(model, self.flags.probes)
                settings = size, runtime.dtype, runtime.autocast, modules
                prober = Prober(model, images, shown.image_size, None, *settings)
                return tuple(prober.sizes()), grams(prober, own, progress)

            probes, found = world.run_on_all(read)
            itself = world.sum(hsic(found, found).diagonal().contiguous())
            if not torch.isfinite(itself).all():
                raise RunError(f"{network.weights} gives NaN or infinite activations: its training diverged")
            self.held[key] = Features(probes, found, itself)
        return self.held[key]

    def _cka(self, first: Features, second: Features) -> Tensor:
        return cka(self.world.sum(hsic(first.grams, second.grams)), first.own, second.own).cpu()

    def title(self, protocol: dict[str, Any]) -> str:
        return (
            f"similarity of features (debiased linear CKA) at each probe, on {protocol['images']:,} validation images "
            f"of {protocol['data']} in batches of {protocol['batch_size']}\nintervals: 95 %, over seeds Student's t"
        )


def _batches(images: ImageSet, most: int, size: int) -> tuple[int, int]:
    """How many validation images in batches of how many: alike, and without a last batch that is too small."""
    count = min(most, len(images.val))
    if count < LEAST:
        why = f"{images.name} has {count} validation images: debiased CKA needs at least {LEAST}"
        raise on_all_ranks(UsageError(why))
    size = -(-count // min(-(-count // size), count // LEAST))
    return (count - count % size if 0 < count % size < LEAST else count), size
