"""Methods that restore plasticity: shrink and perturb, DASH, FIRE, Hare and Tortoise, layer-wise re-initialisation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from seal_fast.methods.method import Method, cycles, plain, repeated, single, stretches
from seal_fast.methods.operators import EVERYTHING, Align, Average, Mix, Orthogonalise, Rescale, Scope, Source
from seal_fast.methods.schedule import Curve, Timeline
from seal_fast.networks import Factory, parse
from seal_fast.utils.errors import UsageError

if TYPE_CHECKING:
    from seal_fast.config import Config

PARAMETERS = Scope(parts=("weight", "bias", "norm"))


@dataclass(frozen=True)
class ShrinkPerturb(Method):
    """Shrink and perturb (Ash and Adams, arXiv 1910.08475): p <- keep * p + add * q before every later generation.

    kind: ash-adams (JordanAsh/warm_start): q is a new network, BatchNorm's scale and shift take part and its statistics
            become the new network's; 0.4 and 0.1; fresh momentum.
        initial (dojeon-ai/Hare-Tortoise, isaac7778/FIRE): q is the initial weights, statistics are kept; 0.2 and 0.8;
            fresh momentum.
        noise (baekrok/DASH-Direction-Aware-SHrinking): q is standard normal, for weights and biases of convolutions and
            the classifier only; 0.3 and 0.01; momentum is kept.
    keep, add: in place of those.
    """

    kind: Literal["ash-adams", "initial", "noise"] = "ash-adams"
    keep: float | None = None
    add: float | None = None

    def timeline(self, config: Config) -> Timeline:
        new = Source("draw", "he-normal")
        scope, source, keep, add = {
            "ash-adams": (PARAMETERS, new, 0.4, 0.1),
            "initial": (PARAMETERS, Source("initial"), 0.2, 0.8),
            "noise": (Scope(parts=("weight", "bias")), Source("draw", "unit-normal"), 0.3, 0.01),
        }[self.kind]
        keep, add = keep if self.keep is None else self.keep, add if self.add is None else self.add
        enter = (Mix(scope, source, keep, add),)
        if self.kind == "ash-adams":
            enter += (Mix(Scope(parts=("statistics",)), new),)
        return repeated(config, plain(config, enter=enter, fresh=self.kind != "noise"))


@dataclass(frozen=True)
class Dash(Method):
    """DASH (Shin et al., arXiv 2410.23495; baekrok/DASH-Direction-Aware-SHrinking): direction-aware shrinking.

    floor: the least factor (the paper's lambda). alpha: of the average of negative gradients.

    Before every later generation, in one pass over the training images in eval mode, not augmented, in batches of
    1,000. The released code takes the data set's order; sets here are sorted by class, so the order is a random one.
    Gradients are of the cross entropy without smoothing. Momentum and BatchNorm are kept.
    """

    floor: float = 0.3
    alpha: float = 0.3

    def timeline(self, config: Config) -> Timeline:
        operator = Align(Scope(parts=("weight", "bias")), self.floor, self.alpha)
        return repeated(config, plain(config, enter=(operator,), fresh=False))


@dataclass(frozen=True)
class Fire(Method):
    """FIRE (arXiv 2602.08040; isaac7778/FIRE): weights are moved towards orthogonal matrices before later generations.

    iterations: of Newton and Schulz; the released 10 do not reach the nearest orthogonal matrix of a large square one.

    The scale, sqrt(outputs / inputs) / taps, is one for linear networks: before BatchNorm it is a choice of learning
    rate. Fresh momentum.
    """

    iterations: int = 10

    def timeline(self, config: Config) -> Timeline:
        return repeated(config, plain(config, enter=(Orthogonalise(Scope(), self.iterations),)))


@dataclass(frozen=True)
class HareTortoise(Method):
    """Hare and Tortoise (Lee et al., arXiv 2406.02596; dojeon-ai/Hare-Tortoise): now and then back to the average.

    decay: of the average (the tortoise), updated every step. every: epochs between two resets of the network (the hare)
        to it; the first comes after one epoch.

    Weights and BatchNorm's statistics are averaged and copied; momentum is kept. One learning-rate cycle: 10 % warm-up,
    then constant. Two lines of the released code hold weights in common until the next step; here they are copied.
    """

    decay: float = 0.999
    every: int = 10

    def timeline(self, config: Config) -> Timeline:
        total, average = config.epochs * config.generations, Average(self.decay)
        first, *later = stretches(config, max(1, self.every), first=1)
        reset = Mix(EVERYTHING, Source("average"))
        phases = [plain(config, first, fresh=False, average=average)]
        phases += [plain(config, length, fresh=False, average=average, enter=(reset,)) for length in later]
        return single(config, phases, curve=Curve("constant", warmup_epochs=round(total / 10)))


@dataclass(frozen=True)
class Lw(Method):
    """LW (arXiv 2109.00267; in hlml/fortuitous_forgetting): layer-wise re-initialisation, from the bottom up.

    Of K blocks (the residual blocks and the classifier) and G generations, generation g draws everything from block
    floor(g K / G) on as at the start and rescales each kept tensor to the norm that it began with, so BatchNorm's kept
    shifts become 0. Statistics are kept, momentum is fresh. The paper's constant normalisation after the last kept
    block is a module and not an operator: it is left out, as it is by default in the released code's copies.
    """

    def timeline(self, config: Config) -> Timeline:
        network = parse(config.model)
        if isinstance(network, Factory):
            raise UsageError("--method lw: knows the blocks of registered networks only, not of --model with a factory")
        blocks = [*network.blocks(), "fc"]
        parts, later = PARAMETERS.parts, []
        for g in range(1, config.generations):
            block = blocks[g * len(blocks) // config.generations]
            draw = Mix(Scope(start=block, parts=parts), Source("draw", "he-normal"))
            later.append([plain(config, enter=(draw, Rescale(Scope(stop=block, parts=parts))))])
        return cycles(config, later)
