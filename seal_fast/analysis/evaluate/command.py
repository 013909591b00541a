"""`python -m seal_fast evaluate`: accuracy and calibration of trained networks, as a table, plots and JSON."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor

from seal_fast.analysis.common.figures import FigureAnalysis
from seal_fast.analysis.common.images import ImageAnalysis
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.results import identity
from seal_fast.analysis.evaluate import plots
from seal_fast.analysis.evaluate.compute import score
from seal_fast.data import ImageSet, Split
from seal_fast.training.checkpoint import save_tensors
from seal_fast.utils.errors import RunError, UsageError


class Evaluate(ImageAnalysis, FigureAnalysis):
    """Predictions on the network's own training and validation images."""

    name = "evaluate"
    description = (
        "Predictions of trained networks on their own images, not augmented: top-1 as a whole and by class, negative "
        "log-likelihood, Brier score, expected calibration error with bins of equal width and of equal mass."
    )
    least = {"images": 1, "bins": 1}
    plot = staticmethod(plots.draw)

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--data", help="data set of the network's own classes; default: the run's")
        what = "test: of a run with --holdout; clean: training images of a run with --label-noise by their true labels"
        splits = ("val", "train", "test", "clean")
        add("--splits", nargs="+", choices=splits, default=["val"], help=f"{what}; default: val")
        add("--images", type=int, help="images of each split at most, evenly spaced; default: all")
        add("--bins", type=int, default=15, help="bins of confidence; default: 15")
        add("--logits", action="store_true", help="write logits and labels of each network to --out")
        add("--amp", action="store_true", help="run the network under bfloat16 autocast")

    def check(self) -> None:
        if self.flags.logits and not self.flags.out:
            raise UsageError("--logits: name the folder to write them to with --out")

    def measure(self, network: TrainedNetwork) -> dict[str, Any]:
        """The figures of each split; see `score`."""
        flags = self.flags
        images, train = self.training_images(network, None, "--data")
        model = self.load(network)
        known = {"train": train, "val": images.val, **images.others}
        for name in flags.splits:
            if name not in known:
                option = {"test": "--holdout, so that val is its test set", "clean": "--label-noise"}[name]
                raise UsageError(f"--splits {name}: {network.name} was trained without {option}")
        splits = {name: known[name].spread(flags.images) for name in dict.fromkeys(flags.splits)}
        logits = {name: self._logits(network, model, images, split) for name, split in splits.items()}
        if flags.logits and self.world.is_main:
            tensors = {f"{name}.logits": found for name, found in logits.items()}
            tensors |= {f"{name}.labels": torch.from_numpy(split.labels) for name, split in splits.items()}
            digest = identity(network)["weights_sha256"]
            metadata = {"subject": network.name, "of": digest}
            save_tensors(flags.out / f"evaluate_logits-{digest[:16]}.safetensors", tensors, metadata)
        found = {
            name: score(logits[name].numpy(), split.labels, images.classes, flags.bins)
            for name, split in splits.items()
        }
        figures = {name: scores.pop("figures") for name, scores in found.items()}
        protocol = {"images": {name: len(split) for name, split in splits.items()}, "bins": flags.bins}
        return self.result(network, images, protocol, figures=figures, splits=found)

    @torch.inference_mode()
    def _logits(self, network: TrainedNetwork, model: torch.nn.Module, images: ImageSet, split: Split) -> Tensor:
        """Float32 [N, C] on the host."""

        def forward() -> Tensor:
            parts = [torch.empty(0, network.num_classes)]
            for pixels, _ in self.batches(network, images, self.share(split)):
                with self.runtime.autocast():
                    parts.append(model(pixels).float().cpu())
            return torch.cat(parts)

        logits = self.gathered(self.world.run_on_all(forward), split)
        if not torch.isfinite(logits).all():
            raise RunError(f"{network.weights} gives NaN or infinite logits for {images.name}: its training diverged")
        return logits

    def title(self, protocol: dict[str, Any]) -> str:
        counts = ", ".join(f"{count:,} {name} images" for name, count in protocol["images"].items())
        return (
            f"predictions for {protocol['data']}: {counts}, not augmented; calibration errors with {protocol['bins']} "
            "bins of confidence\nintervals: 95 %, of top-1 Wilson's, of scores Student's t over images; over seeds "
            "Student's t"
        )
