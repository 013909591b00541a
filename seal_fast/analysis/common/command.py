"""The run of an analysis command: flags, processes, networks one after the other, results, exit code.

A command is a subclass of `Analysis` that gives its flags, its measurement of one network, its table and its plots.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from seal_fast import __version__
from seal_fast.analysis.common.flags import add_shared, check_numbers
from seal_fast.analysis.common.groups import Member, members
from seal_fast.analysis.common.network import TrainedNetwork, checkpoints, load_checkpoints, open_network
from seal_fast.analysis.common.processes import joined
from seal_fast.analysis.common.results import by_protocol, identity, left_out
from seal_fast.config import Config
from seal_fast.distributed.world import World
from seal_fast.runs.folder import RunFolder
from seal_fast.training.runtime import Runtime
from seal_fast.training.signals import Interrupted, stop_signals
from seal_fast.utils.errors import RunError, UsageError
from seal_fast.utils.files import to_json, write_json

T = TypeVar("T")
_log = logging.getLogger("seal_fast")


class Analysis:
    """A command over trained networks.

    Attributes:
        name: of the command and of its result file.
        description: for --help.
        batch_size: default of --batch-size.
        least: lowest values of numbers among the flags, by name.
        image_flags: those that limit the number of images, and whether so many must exist.
        target_flag: the flag that takes other data sets; empty if there is none.
        networks_needed: the fewest networks that can be measured.
        every_generation: whether it reads all weights kept, without --per-generation too.
        on_demand: why a study makes it only where it is named; empty if it always does.
        plot: draws results of one protocol, or raises a RunError; `path` gives the PNG file of a plot by its name.
        networks: to be measured, without those named twice.
        world: the processes that share the images; all of them measure, the first one prints and writes.
        runtime: device, compute type and autocast.
        stop: number of the signal that asked to stop, 0 for none.
        trouble: sentences about networks without figures or with incomplete ones; they make the exit code 1.
    """

    name: ClassVar[str]
    description: ClassVar[str]
    batch_size: ClassVar[int] = 256
    least: ClassVar[Mapping[str, float]] = {}
    image_flags: ClassVar[Mapping[str, bool]] = {"images": False}
    target_flag: ClassVar[str] = ""
    networks_needed: ClassVar[int] = 1
    every_generation: ClassVar[bool] = False
    on_demand: ClassVar[str] = ""

    plot: Callable[[Sequence[dict[str, Any]], Callable[[str], Path]], None]
    flags: argparse.Namespace
    networks: list[TrainedNetwork]
    world: World
    runtime: Runtime

    def __init__(self) -> None:
        self.stop = 0
        self.trouble: list[str] = []
        self.fault: UsageError | RunError | None = None  # the first of a network

    def add_flags(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's own flags."""
        raise NotImplementedError

    @classmethod
    def lacks(cls, run: Path, generations: bool) -> str:
        """Why this analysis cannot be made of a run's `generations`, or else its last weights; empty if it can."""
        if generations:
            return "" if checkpoints(run) else "keeps no weights of its generations"
        return "" if RunFolder(run).weights("last").exists() else "keeps no last weights"

    def check(self) -> None:
        """Raise a UsageError if `flags` cannot be served; `least` is checked already."""

    def open(self) -> None:
        """Do what is done once, after the processes have met and before the first network."""

    def measure(self, network: TrainedNetwork) -> dict[str, Any]:
        """The figures of a network as JSON, with `protocol` (what decides them) and `skipped_images` (by data set)."""
        raise NotImplementedError

    def table(self, results: Sequence[dict[str, Any]]) -> str:
        """Results of one protocol as text, the protocol above the figures."""
        raise NotImplementedError

    def closing(self) -> list[str]:
        """Lines below the tables."""
        return []

    def run(self, argv: Sequence[str]) -> int:
        """Measure, print, and write what --out asks for; returns the exit code.

        A network that cannot be measured is named at the end, and the others are measured.

        Raises:
            UsageError: a flag, a run, a weights file or a data set cannot be used; or RunError: an image cannot be
                decoded, or a number is not finite. Both only where no network could be measured.
            RunError: a file cannot be written.
        """
        self.flags = flags = self.parser().parse_args(list(argv))
        check_numbers(flags, self.least)
        self.check()
        settings = ("device", "amp", "dtype", "threads", "dist_timeout")
        config = Config(**{name: getattr(flags, name) for name in settings if hasattr(flags, name)})
        results: list[dict[str, Any]] = []
        with joined(flags, config) as (self.world, self.runtime), stop_signals(self._ask):
            opened = self.world.run_on_all(self._open_networks)
            try:
                self.world.run_on_all(self.open)
            except UsageError as error:  # perhaps because a run was left out
                raise self.fault or error from None
            for number, (network, member) in enumerate(opened, 1):
                if self.world.max(self.stop)[0]:
                    break
                self.say(f"{network.name} ({number} of {len(opened)})\n")
                began = time.perf_counter()
                try:
                    figures = self.attempt(network, lambda network=network: self.measure(network))
                except Interrupted as interrupted:  # by the training of a fine-tuned network
                    self.stop = interrupted.number
                    break
                if figures is None:
                    continue
                result = {**identity(network), **asdict(member), **figures}
                compute = str(self.runtime.compute).removeprefix("torch.")
                common = {"analysis": self.name, "seal_fast": __version__, "compute": compute}
                result["protocol"] = {**common, **result["protocol"]}
                results.append(result | {"processes": self.world.size, "seconds": time.perf_counter() - began})
        if self.fault and not results and not self.stop:
            raise self.fault
        self._give(results)
        if self.stop:
            return 128 + self.stop
        return 1 if self.trouble else 0

    def attempt(self, network: TrainedNetwork, make: Callable[[], T]) -> T | None:
        """What `make` returns; None, with a sentence in `trouble`, where `network` cannot be measured.

        Raises:
            UsageError, RunError: not all of several processes had the error.
        """
        try:
            return make()
        except (UsageError, RunError) as error:
            self._tolerate(error, network.name, network.weights)
            return None

    def _tolerate(self, error: UsageError | RunError, name: str, path: Path) -> None:
        if self.world.size > 1 and not getattr(error, "on_all_ranks", False):
            raise error
        sentence = str(error) if name in str(error) or str(path) in str(error) else f"{name}: {error}"
        if sentence not in self.trouble:
            self.trouble.append(sentence)
        self.fault = self.fault or error

    def load(self, network: TrainedNetwork) -> Any:
        """The network, see `TrainedNetwork.load`; an error of one process is one of all."""
        return self.world.run_on_all(lambda: network.load(self.runtime.device, self.runtime.dtype))

    def say(self, text: str) -> None:
        """Show progress, on a terminal only."""
        if self.world.is_main and sys.stderr.isatty():
            print(text, end="", file=sys.stderr, flush=True)

    def progress(self, done: int, total: int, what: str, before: str = "") -> None:
        """Show how many are done, over what was shown before, on a terminal only."""
        self.say(f"\r  {before}{done:,} of {total:,} {what}" + "\n" * (done == total))

    def _ask(self, number: int) -> None:
        self.stop = number
        self.say("\nstopping after this network; interrupt again to end at once\n")

    def _open_networks(self) -> list[tuple[TrainedNetwork, Member]]:
        """The networks to measure, each with its group, without runs whose files are damaged."""
        given = {name: getattr(self.flags, name) for name in ("model", "stem", "width", "image_size")}
        opened: dict[Path, TrainedNetwork] = {}
        for run in self.flags.runs:
            try:
                if self.flags.per_generation:
                    found = load_checkpoints(run, **given)
                else:
                    found = [open_network(run, stage=self.flags.stage, **given)]
            except RunError as error:
                self._tolerate(error, run.name, run)
                continue
            for network in found:
                first = opened.setdefault(network.weights.resolve(), network)
                if first is not network:
                    _log.warning("%s is the same file as %s and counts once", network.weights, first.weights)
        if self.fault and not opened:
            raise self.fault
        self.networks = list(opened.values())
        return list(zip(self.networks, members(self.networks), strict=True))

    def _give(self, results: list[dict[str, Any]]) -> None:
        """Write and print the results."""
        if not self.world.is_main:
            return
        flags, parts = self.flags, by_protocol(results)
        if flags.out and results:
            write_json(flags.out / f"{self.name}.json", results)
            for number, part in enumerate(parts, 1):
                suffix = f"-{number}.png" if number > 1 else ".png"
                self.plot(part, lambda name, suffix=suffix: flags.out / f"{name}{suffix}")
        if flags.json:
            print(json.dumps(to_json(results), indent=2))
        elif results:
            print("\n\n".join(self.table(part) for part in parts))
            below = [f"{r['subject']} counts in no mean: {r['excluded']}" for r in results if r["excluded"]]
            if len(parts) > 1:
                below.append("figures of different protocols stand in tables of their own")
            below += [*left_out(results), *self.closing(), *([f"written to {flags.out}"] if flags.out else [])]
            if below:
                print("\n" + "\n".join(below))
        for sentence in self.trouble:
            print(f"error: {sentence}", file=sys.stderr)
        if self.stop:
            print("stopped: these are the figures so far", file=sys.stderr)

    def parser(self) -> argparse.ArgumentParser:
        """The flags of all analyses, and the command's own."""
        parser = argparse.ArgumentParser(
            prog=f"python -m seal_fast {self.name}", description=self.description, allow_abbrev=False
        )
        add_shared(parser, self.batch_size, f"{self.name}.json")
        self.add_flags(parser)
        return parser
