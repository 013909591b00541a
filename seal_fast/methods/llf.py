"""Forgetting by drawing the classifier or later layers anew: LLF, fc-reset, zapping, RIFLE."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from seal_fast.methods.method import Method, descends, plain, repeated, single, stretches
from seal_fast.methods.operators import Mask, Mix, Scope, Source
from seal_fast.methods.schedule import Curve, Timeline, rules

if TYPE_CHECKING:
    from seal_fast.config import Config


@dataclass(frozen=True)
class Llf(Method):
    """LLF, later-layer forgetting (Zhou et al., arXiv 2202.00155): the late layers' weights are drawn anew.

    At the start of every generation after the first; BatchNorm and the classifier's bias are kept. The released code
    (hlml/fortuitous_forgetting) draws from kaiming_uniform(a=sqrt(5)), whose standard deviation is sqrt(6) times
    smaller than that of the He-normal initial weights; `--reinit` offers both.
    """

    def timeline(self, config: Config) -> Timeline:
        return repeated(config, plain(config, enter=(forget_late(config),)))


def forget_late(config: Config) -> Mix:
    """LLF's operator."""
    return Mix(Scope(start=config.layer_threshold), Source("draw", config.reinit))


@dataclass(frozen=True)
class FcReset(Method):
    """The classifier's weight and bias are reset at the start of every generation after the first.

    initial: back to the initial values, with fresh momentum (dojeon-ai/Hare-Tortoise, `head_reset`); otherwise drawn
        anew, with the momentum kept (baekrok/DASH-Direction-Aware-SHrinking, `reset`).
    """

    initial: bool = False

    def timeline(self, config: Config) -> Timeline:
        source = Source("initial") if self.initial else Source("draw", config.reinit)
        operator = Mix(Scope(start="fc", parts=("weight", "bias")), source)
        return repeated(config, plain(config, enter=(operator,), fresh=self.initial))


@dataclass(frozen=True)
class Zapping(Method):
    """Zapping (Frati et al., arXiv 2310.07996): random rows of the classifier's weight are drawn anew again and again.

    rows: how many. every: after so many epochs; 0 is --epochs.

    As in uvm-neurobotics-lab/reset-it-and-forget-it the bias and the momentum are kept and the draw is normal with
    standard deviation sqrt(2 / (rows * inputs)), because `kaiming_normal_` sees one dimension more. Its i.i.d.
    configurations as released have zapping off. Here the learning rate is one cosine.
    """

    rows: int = 1
    every: int = 0

    def timeline(self, config: Config) -> Timeline:
        mask = Mask("rows", count=self.rows, anew=True)
        zap = Mix(Scope(start="fc"), Source("draw", "he-normal"), add=max(1, self.rows) ** -0.5, mask=mask)
        first, *later = stretches(config, self.every or config.epochs)
        phases = [plain(config, length, fresh=False, enter=(zap,)) for length in later]
        return single(config, [plain(config, first, fresh=False), *phases])


@dataclass(frozen=True)
class Rifle(Method):
    """RIFLE (Li et al., arXiv 2007.03349): the classifier is drawn anew again and again within one training run.

    cyclic: the classifier's learning rate has a cosine of its own after each reset; the others' is one for the run.

    After every --epochs epochs weight and bias are reset as by `reset_parameters`; the momentum is kept. The released
    code (lixingjian/RIFLE) resets once more after the last epoch, which would lose the classifier: not here.
    """

    cyclic: bool = False

    def timeline(self, config: Config) -> Timeline:
        fc = descends(config, curve=Curve() if self.cyclic else None)
        by_group = rules(backbone=descends(config), fc=fc)
        reset = Mix(Scope(start="fc", parts=("weight", "bias")), Source("draw", config.reinit))
        phases = [
            plain(config, fresh=False, rules=by_group, enter=(reset,) if g else ()) for g in range(config.generations)
        ]
        return single(config, phases, cuts=("fc",), groups=("backbone", "fc"))
