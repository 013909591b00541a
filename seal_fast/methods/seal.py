"""SEAL: every generation after the first begins with gradient ascent in the early layers, and the ablations of it.

Source: arXiv 2304.04858 (CVPR 2023) and its released code. The ascent is plain SGD with a flipped sign and a small
factor on the learning rate; the gradient is not negated before the momentum. Weight decay is 0 on the ascending group.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from seal_fast.methods.normal import plain
from seal_fast.methods.schedule import Forget, Phase, Rule, Timeline

if TYPE_CHECKING:
    from seal_fast.config import Config


def descends(config: Config) -> Rule:
    """Plain SGD."""
    return Rule(weight_decay=config.weight_decay)


def ascends(config: Config) -> Rule:
    """SGD uphill at `ascent_scale` times the learning rate."""
    return Rule(sign=-1, lr_multiplier=config.ascent_scale, weight_decay=config.ascent_weight_decay)


def annealed(
    config: Config, method: str, early: Rule, late: Rule, fc: Rule | None = None, forget: Forget | None = None
) -> Timeline:
    """Generation 0 plain; then, in each generation, an ascent phase under the given rules and a plain descent phase.

    The optimiser starts afresh at the start of every generation and again where ascent turns into descent.
    """
    up = config.ascent()
    ascent = (Phase("ascent", up, early, late, fc, reset_momentum=True, forget=forget),) if up else ()
    down = plain(config, config.epochs - up, fresh=True, fc=fc)
    if not up:
        down = replace(down, forget=forget)
    first = plain(config, config.epochs, fresh=False, fc=fc)
    later = (*ascent, down)
    return Timeline(method, ((first,), *[later] * (config.generations - 1)), config.lr, config.warmup())


def seal(config: Config) -> Timeline:
    """The early layers ascend, the late ones descend."""
    return annealed(config, "seal", early=ascends(config), late=descends(config))


def seal_llf(config: Config) -> Timeline:
    """SEAL, and the late layers are re-initialised at the start of each generation as LLF does."""
    forget = Forget("late", config.reinit)
    return annealed(config, "seal+llf", early=ascends(config), late=descends(config), forget=forget)


def reverse(config: Config) -> Timeline:
    """The late layers ascend, the early ones descend."""
    return annealed(config, "reverse", early=descends(config), late=ascends(config))


def reverse_keep_fc(config: Config) -> Timeline:
    """`reverse`, but the classifier never ascends."""
    return annealed(config, "reverse-keep-fc", early=descends(config), late=ascends(config), fc=descends(config))


def freeze_late(config: Config) -> Timeline:
    """The early layers ascend while the late ones stand still."""
    return annealed(config, "freeze-late", early=ascends(config), late=Rule(lr_multiplier=0.0))


def ascend_all(config: Config) -> Timeline:
    """Every layer ascends."""
    return annealed(config, "ascend-all", early=ascends(config), late=ascends(config))
