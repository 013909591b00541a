"""`python -m seal_fast depth`: prediction depth of several networks, as a table, plots and JSON."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from typing import Any

from seal_fast.analysis.common.images import ImageAnalysis
from seal_fast.analysis.common.network import TrainedNetwork
from seal_fast.analysis.common.results import over_seeds
from seal_fast.analysis.depth import plots
from seal_fast.analysis.depth.compute import Prober, probe_votes, summarise
from seal_fast.analysis.depth.probes import parse_pooling, probe_modules
from seal_fast.data.split import spread
from seal_fast.runs.stats import Interval, student
from seal_fast.utils.table import table

REFERENCE = {"prediction": "the network's own prediction", "truth": "the true class"}


class Depth(ImageAnalysis):
    """Prediction depth on the network's own training and validation images."""

    name = "depth"
    description = (
        "Prediction depth (Baldock et al., NeurIPS 2021): the first probe from which a k-NN vote on the training set's "
        "activations, and every later one, agrees with the network's prediction. Probes sit at the input, after the "
        "stem, after each block and on the softmax."
    )
    batch_size = 512
    least = {"k": 1, "bank": 1, "queries": 1}
    image_flags = {"bank": True, "queries": False}
    plot = staticmethod(plots.draw)

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        add = parser.add_argument
        add("--data", help="data set of the network's own classes; default: the run's")
        add("--k", type=int, default=30, help="neighbours that vote; default: 30")
        add("--pool", default="none", help="feature maps: none (whole), avg, or a side to average to; default: none")
        add("--probes", metavar="A,B,C", help="modules after which there is a probe; default: the network's blocks")
        add(
            "--reference",
            choices=tuple(REFERENCE),
            default="prediction",
            help="label to agree with; default: prediction",
        )
        add("--bank", type=int, help="training images that vote, evenly spaced; default: all the run was trained on")
        add("--queries", type=int, default=2000, help="images to probe, of train and of val each; default: 2000")
        add("--leave-one-out", action="store_true", help="a training image has no vote on itself")
        add("--amp", action="store_true", help="run the network under bfloat16 autocast")

    def check(self) -> None:
        self.pooling = parse_pooling(self.flags.pool)

    def measure(self, network: TrainedNetwork) -> dict[str, Any]:
        """The figures of each split; see `summarise`."""
        flags, world, runtime = self.flags, self.world, self.runtime
        images, bank = self.training_images(network, flags.bank, "the bank")
        # The training images to probe are a part of the bank, so that each of them is one that votes.
        rows = spread(len(bank), flags.queries)
        queries = {"val": images.val.spread(flags.queries), "train": bank.take(rows)}
        model = self.load(network)
        modules = world.run_on_all(lambda: probe_modules(model, flags.probes))
        settings = self.pooling, flags.batch_size, runtime.dtype, runtime.autocast, modules
        prober = Prober(model, images, network.image_size, *settings)
        progress = partial(self.progress, what="images of the bank")
        own = {"train": rows} if flags.leave_one_out else None
        votes = probe_votes(prober, bank, queries, flags.k, own, progress, world)
        protocol = {
            "bank": len(bank),
            "queries": {name: len(split) for name, split in queries.items()},
            "k": flags.k,
            "pooling": flags.pool,
            **({"probes": flags.probes} if flags.probes else {}),
            "reference": flags.reference,
            "leave_one_out": flags.leave_one_out,
        }
        splits = {name: summarise(found, flags.reference) for name, found in votes.items()}
        return self.result(network, images, protocol, probes=list(prober.sizes()), splits=splits)

    def table(self, results: Sequence[dict[str, Any]]) -> str:
        protocol, probes = results[0]["protocol"], results[0]["probes"]
        itself = "has no vote on itself" if protocol["leave_one_out"] else "votes on itself too"
        title = (
            f"prediction depth of {protocol['data']}: {len(probes)} probes ({probes[0]} is depth 0, {probes[-1]} the "
            f"last), {protocol['k']} nearest of {protocol['bank']:,} training images, a training image {itself}\n"
            f"reference label: {REFERENCE[protocol['reference']]}; pooling of feature maps: {protocol['pooling']}; "
            "intervals: 95 %, of mean depths bootstrap over images, of shares Wilson's; over seeds Student's t"
        )
        rows = [("network", "split", "images", "top-1 %", "mean depth", "without depth %")]
        for split in results[0]["splits"]:
            for result in results:
                found = result["splits"][split]
                mean, without = Interval(**found["mean_depth"]), Interval(**found["without_depth"])
                shown = f"{found['top1']:.2f}", mean.show(), without.show(1)
                rows.append((result["subject"], split, str(found["examples"]), *shown))
            for name, same in over_seeds(results):
                found = [result["splits"][split] for result in same]
                depths = [f["mean_depth"]["mean"] for f in found if f["mean_depth"]["count"]]
                shown = student([f["top1"] for f in found]).show(), student(depths).show() if depths else "none"
                without = student([f["without_depth"]["mean"] for f in found])
                rows.append((name, split, "", *shown, without.show(1)))
        return f"{title}\n\n{table(rows, left=2)}"
