"""Forgetting by a mask: knowledge evolution (KELS, WELS), Dynamic Neural Regeneration, random perturbation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from seal_fast.methods.method import Method, plain, repeated
from seal_fast.methods.operators import Mask, Mix, Scope, Source, require_share
from seal_fast.methods.schedule import Timeline
from seal_fast.methods.sparse import prune

if TYPE_CHECKING:
    from seal_fast.config import Config


@dataclass(frozen=True)
class Wels(Method):
    """KE with a split by weights (Taha et al., arXiv 2103.05152; ahmdtaha/knowledge_evolution).

    keep: share of each convolution's and the classifier's weight that is kept (the split rate); the rest is drawn anew
        at the start of every generation after the first. anew: a new split each time (`--reset_hypothesis`).

    The next generation starts from the last epoch; biases and BatchNorm are kept, momentum is fresh. The draw is
    --reinit's.
    """

    keep: float = 0.5
    anew: bool = False

    def timeline(self, config: Config) -> Timeline:
        require_share("--option keep", self.keep)
        return _drawn(config, Mask("wels", 1 - self.keep, self.anew))


@dataclass(frozen=True)
class Kels(Method):
    """KE with a split by kernels (Taha et al., arXiv 2103.05152): a slim network of the first channels is kept.

    keep: share of each weight's outputs and inputs that is kept (the split rate), rounded up; of the first
        convolution's outputs and the classifier's inputs alone. Otherwise as `ke-wels`.

    The slim network is evaluated (val_slim_top1) and saved at every generation's end.
    """

    keep: float = 0.5

    def timeline(self, config: Config) -> Timeline:
        require_share("--option keep", self.keep)
        return _drawn(config, Mask("kels", 1 - self.keep))


@dataclass(frozen=True)
class Dnr(Method):
    """DNR (NeurIPS 2024; NeurAI-Lab/Dynamic-Neural-Regeneration): the least important weights are drawn anew.

    keep: share of all parameters that is kept. The others, of lowest abs(p) times the sum of abs(gradient) over 1/32 of
        the training images, are drawn anew where they are weights of convolutions or the classifier; 1x1 shortcuts are
        kept. The released command's `--sparsity 0.8` keeps 80 % too.

    Scores are ranked over the whole network, BatchNorm and biases included, and taken in eval mode without label
    smoothing on the first batches of the epoch that follows, augmented as in training.
    """

    keep: float = 0.8

    def timeline(self, config: Config) -> Timeline:
        require_share("--option keep", self.keep)
        return _drawn(config, Mask("snip", 1 - self.keep, across="network"), without="downsample")


@dataclass(frozen=True)
class Perturb(Method):
    """Random perturbation, the control of LLF's analysis (arXiv 2202.00155, `targeted_forgetting`).

    kind: random draws a share of each weight tensor anew, another one in every generation; magnitude sets the smallest
        to zero and the others to their initial values.
    share: that is drawn, or set to zero.

    The released code perturbs a copy of a network once to study it; here every generation after the first begins so.
    """

    kind: Literal["random", "magnitude"] = "random"
    share: float = 0.5

    def timeline(self, config: Config) -> Timeline:
        if self.kind == "random":
            return _drawn(config, Mask("wels", self.share, anew=True))
        rewind = Mix(Scope(), Source("initial"), mask=Mask("nonzero"))
        return repeated(config, plain(config, enter=(prune(self.share), rewind)))


def _drawn(config: Config, mask: Mask, without: str = "") -> Timeline:
    operator = Mix(Scope(without=without), Source("draw", config.reinit), mask=mask)
    return repeated(config, plain(config, enter=(operator,)))
