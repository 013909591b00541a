"""LLF, later-layer forgetting: every generation after the first begins with the late layers' weights re-initialised.

Source: arXiv 2202.00155 (ICLR 2022) and its released code. BatchNorm and the classifier's bias are kept. That code
draws from kaiming_uniform(a=sqrt(5)), whose standard deviation is sqrt(6) times smaller than that of the He-normal
initial weights; `--reinit` offers both.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from seal_fast.methods.normal import plain
from seal_fast.methods.schedule import Forget, Timeline

if TYPE_CHECKING:
    from seal_fast.config import Config


def llf(config: Config) -> Timeline:
    """Forget the late layers, then plain training, generation after generation."""
    first = plain(config, config.epochs, fresh=False)
    later = replace(plain(config, config.epochs, fresh=True), forget=Forget("late", config.reinit))
    return Timeline("llf", ((first,), *[(later,)] * (config.generations - 1)), config.lr, config.warmup())
