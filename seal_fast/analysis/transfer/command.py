"""`python -m seal_fast transfer`: the accuracy of several networks' features on several other sets of images."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from typing import Any

from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.stage_plots import Result
from seal_fast.analysis.common.targets import Setting, TargetAnalysis
from seal_fast.analysis.transfer.compute import L2, K, fine_tune, hold_out, knn_probe, linear_probe
from seal_fast.config import Config
from seal_fast.runs.stats import Values
from seal_fast.utils.errors import UsageError

PROBES = {"linear": "linear probe", "knn": "k-NN", "fine_tune": "fine-tuned"}


class Transfer(TargetAnalysis):
    """Linear probe, k-NN and fine-tuning on other images."""

    name = "transfer"
    description = (
        "Transfer: accuracy on other images of a linear probe and of k-NN on the frozen pooled features, settings "
        "chosen on held-out training images, and with --fine-tune of the whole network trained on them."
    )
    data_help = "target data sets; class folders without train/ and val/ are split by --seed"
    decisive = ("seed", "validation", "l2", "k", "fine_tune", "fine_tune_epochs", "fine_tune_lr")
    least = {"k": 1, "fine_tune_epochs": 1}

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        super().add_flags(parser)
        add = parser.add_argument
        add("--l2", nargs="+", type=float, default=L2, help=f"penalties to choose from; default: {_list(L2)}")
        add("--k", nargs="+", type=int, default=K, help=f"numbers of neighbours to choose from; default: {_list(K)}")
        add("--validation", type=float, default=0.2, help="share of the training split to choose them on; default: 0.2")
        add("--fine-tune", action="store_true", help="also train the whole network on each target")
        add("--fine-tune-epochs", type=int, default=20, help="epochs of fine-tuning; default: 20")
        add("--fine-tune-lr", type=float, default=0.01, help="peak learning rate, one cosine; default: 0.01")

    def check(self) -> None:
        for penalty in self.flags.l2:
            if not 0 < penalty < float("inf"):
                raise UsageError(f"--l2 {penalty:g}: must be a finite number above 0")

    def split_seed(self) -> int | None:
        """Training opens its data itself, so with --fine-tune class folders need train/ and val/."""
        return None if self.flags.fine_tune else self.flags.seed

    def open(self) -> None:
        """Hold out a share of each target's training split, the same for every network."""
        super().open()
        self.held = {
            name: hold_out(images.train.labels, images.classes, self.flags.validation, self.flags.seed)
            for name, images in self.targets.items()
        }

    def measure_targets(self, network: TrainedNetwork) -> dict[str, Any]:
        """Sizes of each target and what each probe gives."""
        flags, figures = self.flags, {}
        for name, images in self.targets.items():
            self.say(f"  {name}\n")
            classes = len(images.classes)
            train, test = self.extract(network, images, "train"), self.extract(network, images, "val")
            figures[name] = {
                "classes": classes,
                "train": len(images.train),
                "test": len(images.val),
                "linear": linear_probe(train, test, classes, self.held[name], flags.l2),
                "knn": knn_probe(train, test, classes, self.held[name], flags.k),
            }
            if flags.fine_tune:
                same = ("seed", "image_size", "amp", "device", "threads", "on_bad_image")
                given = {name: getattr(flags, name) for name in same}
                settings = Config(epochs=flags.fine_tune_epochs, lr=flags.fine_tune_lr, **given)
                out = flags.out and flags.out / "fine-tune"
                figures[name]["fine_tune"] = fine_tune(network, images, settings, out, self.world)
        return figures

    def table(self, results: Sequence[dict[str, Any]]) -> str:
        """A row per target, probe and stage, a column per group of runs."""
        runs, rows = self.by_group(results, ("target", "probe"))
        title = f"top-1 % on the target's test images; runs: {runs}; intervals: 95 %, Student's t over runs (seeds)"
        return f"{title}\n\n{rows}"

    def samples(self, results: Sequence[Result]) -> dict[Setting, Callable[[Result], Values]]:
        """The accuracy of each probe on each target."""
        return {
            (target, title): lambda result, target=target, probe=probe: [result["targets"][target][probe]["top1"]]
            for target, figures in results[0]["targets"].items()
            for probe, title in PROBES.items()
            if probe in figures
        }

    def place(self, setting: Setting) -> tuple[str, str]:
        """A panel for each probe, with the targets as labels."""
        return setting[1], setting[0]


def _list(values: Sequence[float]) -> str:
    return " ".join(f"{value:g}" for value in values)
