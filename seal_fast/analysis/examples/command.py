"""`python -m seal_fast examples`: when training examples are learnt and forgotten, as a table, plots and JSON."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from seal_fast.analysis.common.figures import FigureAnalysis
from seal_fast.analysis.common.images import ImageAnalysis
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.results import identity
from seal_fast.analysis.examples import plots
from seal_fast.analysis.examples.compute import Records, across, find_wrong, profile, summarise, table_of
from seal_fast.runs.folder import RunFolder
from seal_fast.utils.errors import RunError, UsageError
from seal_fast.utils.files import read_tensors, write_text


class Examples(ImageAnalysis, FigureAnalysis):
    """The records of runs that were trained with --record-examples, as a generation ended."""

    name = "examples"
    description = (
        "Training examples of runs with --record-examples: when each was learnt, forgetting events "
        " (Toneva et al., ICLR 2019), area under the margin (Pleiss et al., NeurIPS 2020), what an ascent made "
        "the network forget, and with --label-noise how well each measure finds the wrong labels."
    )
    plot = staticmethod(plots.draw)

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--data", help="data set of the run, if it has moved; default: the run's")
        parser.add_argument("--list", action="store_true", help="write a CSV file of every example to --out")

    @classmethod
    def lacks(cls, run: Path, generations: bool) -> str:
        kept = any(RunFolder(run).examples(0).parent.glob("generation-*.safetensors"))
        return super().lacks(run, generations) or ("" if kept else "was trained without --record-examples")

    def check(self) -> None:
        if self.flags.list and not self.flags.out:
            raise UsageError("--list: name the folder to write to with --out")
        if self.flags.stage == "best":
            raise UsageError("--stage best: examples are recorded at the ends of generations; choose one of those")

    def measure(self, network: TrainedNetwork) -> dict[str, Any]:
        """The figures of all examples, and by whether their label is right."""
        records, metadata, generation = self.world.run_on_all(lambda: _read(network))
        images, train = self.training_images(network, None, "--data")
        if not np.array_equal(train.labels, records["labels"]):
            raise RunError(
                f"{network.name} has records of {len(records['labels'])} examples, and {images.source} gives "
                f"{len(train)} with other labels: name the run's own data, and --on-bad-image skip if it was trained so"
            )
        clean = images.others.get("clean")
        wrong = np.zeros(len(train), bool) if clean is None else clean.labels != train.labels
        parts = {"all examples": np.ones(len(train), bool)}
        if wrong.any():
            parts |= {"right labels": ~wrong, "wrong labels": wrong}
        changes = across(records, json.loads(metadata["phases"]))
        if network.stage.endswith("-ascent"):
            changes = {name: value for name, value in changes.items() if "ascent" in name}
            parts = {}
        figures = {name: summarise(records, rows) for name, rows in parts.items()}
        figures |= {"across the generation": changes} if changes else {}
        if parts and (found := find_wrong(records, wrong)):
            figures["wrong labels found"] = found
        if self.flags.list and parts and self.world.is_main:
            file = self.flags.out / f"examples-{identity(network)['weights_sha256'][:16]}.csv"
            write_text(file, table_of(records, train.names, images.classes, wrong))
        return {
            "protocol": {
                "data": images.name,
                "data_sha256": images.fingerprint,
                "examples": len(train),
                "wrong_labels": int(wrong.sum()),
            },
            "skipped_images": {images.name: list(images.skipped)},
            "generation": generation,
            "epochs": int(metadata["epochs"]),
            "figures": figures,
            "profile": {name: profile(records, int(metadata["epochs"]), rows) for name, rows in parts.items()},
        }

    def title(self, protocol: dict[str, Any]) -> str:
        wrong = f", {protocol['wrong_labels']:,} of them with a wrong label" * bool(protocol["wrong_labels"])
        return (
            f"{protocol['examples']:,} training examples of {protocol['data']}{wrong}, as they were shown in training; "
            "epochs count from 0 over the run\nintervals: 95 %, of shares Wilson's, of means Student's t over "
            "examples; over seeds Student's t"
        )


def _read(network: TrainedNetwork) -> tuple[Records, dict[str, str], int]:
    """The records that belong to a network, their file's metadata, and the generation."""
    from safetensors import SafetensorError

    if not network.config:
        raise UsageError(f"{network.weights} is a bare weights file: records are in run folders")
    folder = RunFolder(network.weights.parent.parent)
    known = sorted(int(f.stem.split("-")[1]) for f in folder.examples(0).parent.glob("generation-*.safetensors"))
    if match := re.match(r"generation-(\d+)", network.stage):
        known = [generation for generation in known if generation == int(match[1])]
    if not known:
        at = f" of {network.stage}" if match else ""
        raise UsageError(f"{folder.path} holds no records of examples{at}: train with --record-examples")
    file = folder.examples(known[-1])
    try:
        tensors, metadata = read_tensors(file)
        return {name: tensor.numpy() for name, tensor in tensors.items()}, metadata, known[-1]
    except (OSError, SafetensorError) as error:
        raise RunError(f"{file} is damaged ({error}); resume the run from its start, or leave it out") from None
