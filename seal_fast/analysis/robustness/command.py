"""`python -m seal_fast robustness`: accuracy on corrupted images and detection of others: table, plots and JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from seal_fast.analysis.common.figures import FigureAnalysis
from seal_fast.analysis.common.images import ImageAnalysis, open_targets
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.processes import check_alike, rows_of
from seal_fast.analysis.robustness import plots
from seal_fast.analysis.robustness.compute import accuracy, detection, normalise
from seal_fast.analysis.robustness.corruptions import CORRUPTIONS, corrupt
from seal_fast.data import ImageSet, Split
from seal_fast.utils.errors import RunError, UsageError

SHARED_BYTES = 1 << 30


class Robustness(ImageAnalysis, FigureAnalysis):
    """Predictions for corrupted validation images, and for images of other data sets."""

    name = "robustness"
    description = (
        "Accuracy on validation images under the 15 common corruptions at five strengths (Hendrycks and Dietterich, "
        "ICLR 2019), made on the fly; with --ood detection of images of other data sets by maximum softmax and by "
        "energy (Liu et al., NeurIPS 2020)."
    )
    least = {"images": 1}
    target_flag = "--ood"
    plot = staticmethod(plots.draw)

    def __init__(self) -> None:
        super().__init__()
        self.held: dict[tuple[Any, ...], Tensor] = {}  # corrupted images, uint8, which the networks share
        self.room = SHARED_BYTES

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        names = [name.replace(" ", "-") for name in CORRUPTIONS]
        add("--data", help="data set of the network's own classes; default: the run's")
        add("--images", type=int, default=1000, help="validation images at most, evenly spaced; default: 1000")
        add(
            "--corruptions",
            nargs="*",
            choices=names,
            default=names,
            metavar="C",
            help=f"default: all: {' '.join(names)}",
        )
        add("--strengths", nargs="+", type=int, choices=range(1, 6), default=[1, 2, 3, 4, 5], help="default: 1 to 5")
        add("--ood", nargs="+", default=[], metavar="DATA", help="other data sets, by their validation images")
        add("--seed", type=int, default=0, help="of the corruptions; default: 0")
        add("--amp", action="store_true", help="run the network under bfloat16 autocast")

    def check(self) -> None:
        if not self.flags.corruptions and not self.flags.ood:
            raise UsageError("--corruptions: none is named; name some, or other data sets with --ood")

    def measure(self, network: TrainedNetwork) -> dict[str, Any]:
        """The accuracy by corruption and strength, and the detection of each other data set."""
        flags, world = self.flags, self.world
        images, _ = self.training_images(network, None, "--data")
        others = world.run_on_all(lambda: open_targets(flags.ood, network.image_size, flags.on_bad_image, 0))
        for other in others.values():
            check_alike(world, network, other)
        model = self.load(network)
        names = [name for name in CORRUPTIONS if name.replace(" ", "-") in flags.corruptions]
        strengths = sorted(set(flags.strengths))
        split = images.val.spread(flags.images)
        asked = [(name, strength) for name in names for strength in strengths]
        clean, hits = self._shown(network, model, images, split, images, asked)
        right = (clean.argmax(1).numpy() == split.labels).tolist()
        by_name = hits.numpy().T.reshape(len(names), len(strengths), len(split))
        figures, by_strength = accuracy(right, dict(zip(names, by_name, strict=True)))
        for name, other in others.items():
            shown = other.val.spread(flags.images)
            logits, _ = self._shown(network, model, other, shown, images, [])
            figures[f"against {name}"] = detection(clean, logits)
        protocol = {"images": len(split), "corruptions": names, "strengths": strengths, "seed": flags.seed}
        protocol["ood"] = {name: other.fingerprint for name, other in others.items()}
        result = self.result(network, images, protocol, figures=figures, by_strength=by_strength)
        result["skipped_images"] |= {name: list(other.skipped) for name, other in others.items()}
        return result

    @torch.inference_mode()
    def _shown(
        self,
        network: TrainedNetwork,
        model: nn.Module,
        images: ImageSet,
        split: Split,
        own: ImageSet,
        asked: Sequence[tuple[str, int]],
    ) -> tuple[Tensor, Tensor]:
        """Logits [N, C] of a split, normalised as `own` is, and hits of its corrupted images, bool [N, asked]."""
        size, world, runtime = self.flags.batch_size, self.world, self.runtime
        rows = rows_of(len(split), size, world.rank, world.size)
        source = replace(images, mean=own.mean, std=own.std)

        def predict(pixels: Tensor) -> Tensor:
            pixels = pixels.to(runtime.device, runtime.dtype, memory_format=torch.channels_last)
            with runtime.autocast():
                return model(pixels).float().cpu()

        def forward() -> tuple[Tensor, Tensor]:
            logits, hits = [torch.empty(0, network.num_classes)], [torch.empty(0, len(asked), dtype=torch.bool)]
            shown = self.batches(network, source, split.take(rows), device="cpu", dtype=torch.float32)
            for number, (pixels, labels) in enumerate(shown):
                logits.append(predict(pixels))
                places = rows[number * size : (number + 1) * size]
                plain = normalise(pixels, own.mean, own.std, back=True).clamp(0, 1).contiguous()
                found = []
                for one in asked:
                    key = images.fingerprint, network.image_size, places[0], one
                    if (kept := self.held.get(key)) is None:
                        changed = corrupt(plain, *one, places, self.flags.seed)
                        if len(self.networks) > 1 and changed.numel() <= self.room:
                            self.held[key] = (changed * 255).round().to(torch.uint8)
                            self.room -= changed.numel()
                    else:
                        changed = kept.float() / 255
                    found.append(predict(normalise(changed, own.mean, own.std)).argmax(1) == labels)
                hits.append(torch.stack(found, 1) if found else torch.empty(len(labels), 0, dtype=torch.bool))
                self.progress(len(labels) + number * size, len(rows), "images")
            return torch.cat(logits), torch.cat(hits)

        logits, hits = (self.gathered(part, split) for part in world.run_on_all(forward))
        if not torch.isfinite(logits).all():
            raise RunError(f"{network.weights} gives NaN or infinite logits for {images.name}: its training diverged")
        return logits, hits

    def title(self, protocol: dict[str, Any]) -> str:
        shown, strengths = "", protocol["strengths"]
        if count := len(protocol["corruptions"]):
            shown = f" under {count} corruption{'s' * (count > 1)} at strength{'s' * (len(strengths) > 1)} "
            shown += f"{', '.join(map(str, strengths))}"
            shown += " (means over them)" * (count * len(strengths) > 1)
        return (
            f"{protocol['images']:,} validation images of {protocol['data']}{shown}\n"
            "intervals: 95 %, of the clean top-1 Wilson's; over seeds Student's t"
        )
