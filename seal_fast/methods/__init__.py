"""Training methods: one short file each, a function from the configuration to a timeline of phases."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from seal_fast.methods import llf, normal, seal
from seal_fast.methods.schedule import Timeline

if TYPE_CHECKING:
    from seal_fast.config import Config

METHODS: dict[str, Callable[[Config], Timeline]] = {
    "seal": seal.seal,
    "llf": llf.llf,
    "seal+llf": seal.seal_llf,
    "restart": normal.restart,
    "long": normal.long,
    "reverse": seal.reverse,
    "reverse-keep-fc": seal.reverse_keep_fc,
    "freeze-late": seal.freeze_late,
    "ascend-all": seal.ascend_all,
}


def timeline(config: Config) -> Timeline:
    """The timeline of the configured method."""
    return METHODS[config.method](config)
