"""Training methods: dataclasses of options, each of which makes a timeline of phases from the configuration."""

from __future__ import annotations

from typing import TYPE_CHECKING

from seal_fast.methods import averaged, llf, masked, normal, plasticity, seal, sparse
from seal_fast.methods.method import Method, parse_options
from seal_fast.methods.schedule import Timeline
from seal_fast.methods.text import load
from seal_fast.utils.errors import UsageError

if TYPE_CHECKING:
    from seal_fast.config import Config

METHODS: dict[str, type[Method]] = {
    "seal": seal.Seal,
    "llf": llf.Llf,
    "seal+llf": seal.SealLlf,
    "restart": normal.Restart,
    "long": normal.Long,
    "reverse": seal.Reverse,
    "reverse-keep-fc": seal.ReverseKeepFc,
    "freeze-late": seal.FreezeLate,
    "ascend-all": seal.AscendAll,
    "ke-kels": masked.Kels,
    "ke-wels": masked.Wels,
    "fc-reset": llf.FcReset,
    "zapping": llf.Zapping,
    "rifle": llf.Rifle,
    "shrink-perturb": plasticity.ShrinkPerturb,
    "dash": plasticity.Dash,
    "fire": plasticity.Fire,
    "hare-tortoise": plasticity.HareTortoise,
    "lw": plasticity.Lw,
    "dnr": masked.Dnr,
    "perturb": masked.Perturb,
    "dsd": sparse.Dsd,
    "ac-dc": sparse.Acdc,
    "imp": sparse.Imp,
    "born-again": averaged.BornAgain,
    "sgdr": normal.Sgdr,
    "swa": averaged.Swa,
    "sam": normal.Sam,
    "asam": normal.Asam,
}


def method(config: Config) -> Method:
    """The configured method with its options; UsageError if one of them is wrong."""
    if config.method not in METHODS:
        raise UsageError(f"--method {config.method}: needs --timeline FILE.toml")
    return parse_options(METHODS[config.method], config.method, config.option)


def timeline(config: Config) -> Timeline:
    """The timeline of the configured method, or of the file that --timeline names; UsageError if it is none."""
    return method(config).timeline(config) if config.timeline is None else load(config.timeline)
