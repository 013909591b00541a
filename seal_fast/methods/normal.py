"""Normal training, the two baselines of the SEAL and LLF papers: `restart` (warm restarts), `long` (one cosine)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seal_fast.methods.schedule import Phase, Rule, Timeline

if TYPE_CHECKING:
    from seal_fast.config import Config


def plain(config: Config, epochs: int, *, fresh: bool, fc: Rule | None = None) -> Phase:
    """A phase of ordinary SGD; `fresh` clears the momentum first, as an optimiser built anew does."""
    rule = Rule(weight_decay=config.weight_decay)
    return Phase("descent", epochs, early=rule, late=rule, fc=fc and rule, reset_momentum=fresh)


def restart(config: Config) -> Timeline:
    """The same generations and learning-rate cycles as SEAL and LLF, with nothing forgotten."""
    generations = tuple((plain(config, config.epochs, fresh=g > 0),) for g in range(config.generations))
    return Timeline("restart", generations, config.lr, config.warmup())


def long(config: Config) -> Timeline:
    """One cosine over as many epochs as all generations together; the warm-up is as long as one generation's."""
    epochs = config.epochs * config.generations
    return Timeline("long", ((plain(config, epochs, fresh=False),),), config.lr, config.warmup())
