"""What a phase does to parameters once, before its first step: operators, each over a scope of the network. No torch.

Sources: the papers that the files of the methods cite; docs/methods.md lists the axes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from seal_fast.utils.errors import UsageError

Distribution = Literal["kaiming-uniform", "he-normal", "unit-normal"]
Part = Literal["weight", "bias", "norm", "statistics"]


def require(condition: bool, sentence: str) -> None:
    """Raise UsageError with `sentence` unless the condition holds."""
    if not condition:
        raise UsageError(sentence)


def require_share(name: str, value: float) -> None:
    """Raise UsageError unless `value` is from 0 to 1."""
    require(0 <= value <= 1, f"{name} is {value:g}: it must be from 0 to 1")


def require_number(name: str, value: float, lowest: float = float("-inf")) -> None:
    """Raise UsageError unless `value` is finite and at least `lowest`."""
    bound = "" if lowest == float("-inf") else f" of at least {lowest:g}"
    require(max(lowest, -1e300) <= value < float("inf"), f"{name} is {value:g}: it must be a finite number{bound}")


@dataclass(frozen=True)
class Scope:
    """Tensors of a network, in forward order.

    start: first module, such as layer3 or layer3.1; "" is the network's first. stop: first module after it; "" is none.
    parts: weight (of convolutions and linear layers), bias (of those), norm (BatchNorm's scale and shift), statistics
    (BatchNorm's running mean and variance). without: modules whose name contains this are left out.
    """

    start: str = ""
    stop: str = ""
    parts: tuple[Part, ...] = ("weight",)
    without: str = ""

    def __post_init__(self) -> None:
        require(bool(self.parts), "a scope has no parts: name some of weight, bias, norm, statistics")

    def __str__(self) -> str:
        start = f" from {self.start}" if self.start else ""
        stop = f" before {self.stop}" if self.stop else ""
        return "all of the network" if self == EVERYTHING else f"{' and '.join(self.parts)}{start}{stop}"


EVERYTHING = Scope(parts=("weight", "bias", "norm", "statistics"))


@dataclass(frozen=True)
class Mask:
    """Which elements of a scope an operator touches; the others keep their value.

    by: what chooses them.
        wels: each element with probability `share` (KE's weight level).
        kels: all but the first outputs and inputs, of which 1 - share are left alone (KE's kernel level). The network's
            first weight keeps all its inputs and its last weight all its outputs.
        rows: `count` random outputs (all, if there are fewer).
        magnitude: the `share` of smallest absolute value.
        snip: the `share` of lowest abs(p) times the sum of abs(gradient) over augmented batches (Dynamic Neural
            Regeneration).
        nonzero: what is not zero.
    anew: drawn for every entry; otherwise one draw serves the whole run.
    across: what magnitude and snip rank together: each tensor, the scope, or all parameters of the network.
    images: share of the training images that snip's gradients are of.
    """

    by: Literal["wels", "kels", "rows", "magnitude", "snip", "nonzero"]
    share: float = 0.5
    anew: bool = False
    across: Literal["tensor", "scope", "network"] = "tensor"
    count: int = 1
    images: float = 1 / 32

    def __post_init__(self) -> None:
        require_share("a mask's share", self.share)
        require(self.count >= 0, f"a mask's count is {self.count}: it must be at least 0")
        require_share("a mask's share of images", self.images)

    def __str__(self) -> str:
        share = {"nonzero": "", "rows": f"{self.count} "}.get(self.by, f"{self.share:.3g} ")
        return f"{share}by {self.by}{', drawn anew' if self.anew else ''}"


@dataclass(frozen=True)
class Source:
    """Where values come from.

    kind: zero; draw (fresh random numbers); initial (the weights that the run began with); snapshot (the last one
        that a phase took); average (the timeline's `Average`).
    distribution: of a draw. Weights: kaiming-uniform is uniform in +-1/sqrt(fan_in); he-normal has standard deviation
        sqrt(2/fan_in). With both, biases are uniform in +-1/sqrt(fan_in), BatchNorm is 1, 0 and its statistics 0, 1: as
        in a new network. unit-normal has standard deviation 1 everywhere.
    """

    kind: Literal["zero", "draw", "initial", "snapshot", "average"]
    distribution: Distribution = "kaiming-uniform"

    def __str__(self) -> str:
        return self.distribution if self.kind == "draw" else self.kind


ZERO = Source("zero")


@dataclass(frozen=True)
class Mix:
    """p <- keep * p + add * source, where the mask says so."""

    scope: Scope
    source: Source
    keep: float = 0.0
    add: float = 1.0
    mask: Mask | None = None

    def __post_init__(self) -> None:
        require_number("a mix's keep", self.keep)
        require_number("a mix's add", self.add)
        scored = self.mask is not None and self.mask.by == "snip"
        require(not scored or "statistics" not in self.scope.parts, "statistics have no gradient: no mask by snip")

    def __str__(self) -> str:
        formula = f"{self.keep:g} p + {self.add:.4g} {self.source}" if self.keep or self.add != 1 else f"{self.source}"
        return f"{self.scope} <- {formula}" + (f" ({self.mask})" if self.mask else "")


@dataclass(frozen=True)
class Orthogonalise:
    """Move weights towards the nearest orthogonal matrix by Newton and Schulz's iteration (FIRE, arXiv 2602.08040).

    Each kernel tap X = W[:, :, i, j], or a linear weight, is divided by its Frobenius norm, taken `iterations` times
    through 1.5 X - 0.5 X X^T X, and multiplied by sqrt(outputs / inputs) / taps.
    """

    scope: Scope
    iterations: int = 10

    def __post_init__(self) -> None:
        require(self.iterations >= 1, f"orthogonalise has {self.iterations} iterations: it needs at least 1")

    def __str__(self) -> str:
        return f"{self.scope} orthogonalised ({self.iterations} iterations)"


@dataclass(frozen=True)
class Align:
    """Shrink what points against its descent direction (DASH, arXiv 2410.23495).

    G <- (1 - alpha) G - alpha * gradient over batches of the training images; then each filter W[o, i], each row of a
    linear weight and each bias p <- p * clamp(cos(G, p), floor, 1).
    """

    scope: Scope
    floor: float = 0.3
    alpha: float = 0.3
    batch: int = 1000

    def __post_init__(self) -> None:
        require_share("align's floor", self.floor)
        require_share("align's alpha", self.alpha)
        require("statistics" not in self.scope.parts, "statistics have no gradient: align other parts")
        require(self.batch >= 1, f"align's batch is {self.batch}: it needs at least 1 image")

    def __str__(self) -> str:
        return f"{self.scope} aligned (floor {self.floor:g}, alpha {self.alpha:g})"


@dataclass(frozen=True)
class Rescale:
    """Bring each tensor back to the norm that it began the run with; what began as zero becomes zero (LW)."""

    scope: Scope

    def __str__(self) -> str:
        return f"{self.scope} rescaled to the initial norm"


Operator = Mix | Orthogonalise | Align | Rescale


@dataclass(frozen=True)
class Loss:
    """The training loss of a phase: the mean over images of weight * cross entropy, and distillation.

    smoothing: of the labels; None is --label-smoothing.
    right, wrong: weights of images whose prediction is right or wrong. confidence: images whose largest softmax is
    below it have weight 0. distil: weight of the cross entropy with the snapshot's softmax (in eval mode) at
    `temperature`, times temperature^2.
    """

    smoothing: float | None = None
    right: float = 1.0
    wrong: float = 1.0
    confidence: float = 0.0
    distil: float = 0.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        require(self.smoothing is None or 0 <= self.smoothing < 1, f"smoothing is {self.smoothing}: from 0 to below 1")
        for name in ("right", "wrong", "distil"):
            require_number(f"the loss's {name}", getattr(self, name), 0)
        require_share("the loss's confidence", self.confidence)
        require_number("the loss's temperature", self.temperature, 1e-6)

    def __str__(self) -> str:
        parts = [] if self.smoothing is None else [f"smoothing {self.smoothing:g}"]
        if (self.right, self.wrong, self.confidence) != (1, 1, 0):
            parts.append(f"weights {self.right:g} right, {self.wrong:g} wrong, from confidence {self.confidence:g}")
        if self.distil:
            parts.append(f"{self.distil:g} distillation from the snapshot at temperature {self.temperature:g}")
        return "; ".join(parts)


@dataclass(frozen=True)
class Average:
    """An average of weights and BatchNorm's statistics, evaluated and saved beside them.

    every: "step": average <- decay * average + (1 - decay) * value. "epoch": the mean of what the phase's epochs ended
    with. anew: BatchNorm's statistics are not averaged but measured for the averaged weights, in one pass over the
    training images.
    """

    decay: float = 0.999
    every: Literal["step", "epoch"] = "step"
    anew: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.decay < 1, f"an average's decay is {self.decay:g}: it must be at least 0 and below 1")
        require(self.every == "epoch" or not self.anew, "statistics can be measured anew for an average of epochs only")

    def __str__(self) -> str:
        return f"averaged every step ({self.decay:g})" if self.every == "step" else "averaged every epoch"


@dataclass(frozen=True)
class Sharpness:
    """The gradient is taken at p + e, e = rho * g / norm(g) (SAM, arXiv 2010.01412); two passes a step.

    adaptive: e = rho * p^2 * g / norm(abs(p) * g) (ASAM, arXiv 2102.11600). Norms are over all parameters.
    """

    rho: float = 0.05
    adaptive: bool = False

    def __post_init__(self) -> None:
        require_number("sharpness's rho", self.rho, 0)

    def __str__(self) -> str:
        return f"{'ASAM' if self.adaptive else 'SAM'} (rho {self.rho:g})"
