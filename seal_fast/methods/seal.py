"""SEAL: every generation after the first begins with gradient ascent in the early layers, and the ablations of it.

Source: arXiv 2304.04858 (CVPR 2023) and its released code (amiiir-sarfi/SEAL). The ascent is plain SGD with a flipped
sign and a small factor on the learning rate; the gradient is not negated before the momentum.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from seal_fast.methods.llf import forget_late
from seal_fast.methods.method import Method, cycles, descends, plain
from seal_fast.methods.operators import Loss, Operator, require
from seal_fast.methods.schedule import Phase, Rule, Timeline

if TYPE_CHECKING:
    from seal_fast.config import Config


@dataclass(frozen=True)
class Seal(Method):
    """SEAL (Sarfi et al., arXiv 2304.04858): the early layers ascend for --ascent-epochs, the late ones descend.

    The optimiser starts afresh at the start of every generation and again where ascent turns into descent. The options
    are what the paper leaves to future work; by default they are off.

    scale_end: --ascent-scale changes linearly over the ascent to reach this factor in its last epoch.
    thresholds: thresholds by generation such as layer2/layer3/layer4, the last one for all that follow; default
        --layer-threshold in all.
    smoothing: label smoothing during the ascent.
    confidence: in the ascent only wrongly predicted images count whose largest softmax is at least this. There is no
        released code for it: this is our reading ("errorful" ascent).
    """

    scale_end: float | None = None
    thresholds: tuple[str, ...] | None = None
    smoothing: float | None = None
    confidence: float | None = None

    def early(self, config: Config) -> Rule:
        """The early layers' rule during the ascent: SGD uphill at `ascent_scale` times the learning rate."""
        return Rule(-1, config.ascent_scale, config.ascent_weight_decay, self.scale_end)

    def late(self, config: Config) -> Rule:
        """The late layers' rule during the ascent."""
        return descends(config)

    def enter(self, config: Config) -> tuple[Operator, ...]:
        """What happens at the start of a generation."""
        return ()

    def timeline(self, config: Config) -> Timeline:
        by_generation = self.thresholds or (config.layer_threshold,)
        cuts = tuple(sorted(set(by_generation), key=_forward))
        groups = ("early", "late") if len(cuts) == 1 else tuple(f"stage{i}" for i in range(len(cuts) + 1))
        later = []
        for g in range(1, config.generations):
            cut = cuts.index(by_generation[min(g, len(by_generation)) - 1])
            by_group = [self.early(config) if i <= cut else self.late(config) for i in range(len(groups))]
            here = replace(config, layer_threshold=cuts[cut])
            later.append(self.phases(here, tuple(zip(groups, by_group, strict=True))))
        return cycles(config, later, cuts=cuts, groups=groups)

    def phases(self, config: Config, by_group: tuple[tuple[str, Rule], ...]) -> list[Phase]:
        """A generation: an ascent phase under the given rules and a plain descent phase."""
        up, enter = config.ascent(), self.enter(config)
        loss = Loss(self.smoothing)
        if self.confidence is not None:
            loss = replace(loss, right=0.0, confidence=self.confidence)
        shaped = None if loss == Loss() else loss
        ascent = [plain(config, up, name="ascent", rules=by_group, enter=enter, loss=shaped)] if up else []
        return [*ascent, plain(config, config.epochs - up, enter=() if up else enter)]


@dataclass(frozen=True)
class SealLlf(Seal):
    """SEAL, and the late layers' weights are drawn anew at the start of each generation as in LLF.

    Options as `seal`.
    """

    def enter(self, config: Config) -> tuple[Operator, ...]:
        return (forget_late(config),)


@dataclass(frozen=True)
class Reverse(Seal):
    """SEAL's ablation: the late layers ascend, the early ones descend. Options as `seal`."""

    def early(self, config: Config) -> Rule:
        return descends(config)

    def late(self, config: Config) -> Rule:
        return super().early(config)


@dataclass(frozen=True)
class ReverseKeepFc(Reverse):
    """`reverse`, but the classifier never ascends. Options as `seal`, without thresholds."""

    def timeline(self, config: Config) -> Timeline:
        require(self.thresholds is None, "--option thresholds: not with --method reverse-keep-fc")
        by_group = (("early", self.early(config)), ("late", self.late(config)), ("fc", descends(config)))
        later = [self.phases(config, by_group)] * (config.generations - 1)
        return cycles(config, later, cuts=(config.layer_threshold, "fc"), groups=("early", "late", "fc"))


@dataclass(frozen=True)
class FreezeLate(Seal):
    """SEAL's ablation: the early layers ascend while the late ones stand still. Options as `seal`."""

    def late(self, config: Config) -> Rule:
        return Rule(lr_multiplier=0.0)


@dataclass(frozen=True)
class AscendAll(Seal):
    """SEAL's ablation: every layer ascends. Options as `seal`."""

    def late(self, config: Config) -> Rule:
        return self.early(config)


def _forward(module: str) -> tuple[bool, bool, list[int]]:
    """Sorts a ResNet's modules in forward order: the stem, then layers and blocks by number, then fc."""
    return module == "fc", module.startswith("layer"), [int(number) for number in re.findall(r"\d+", module)]
