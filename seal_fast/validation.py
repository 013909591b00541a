"""What the numbers of a configuration may be."""

from __future__ import annotations

from seal_fast.config import Config, flag
from seal_fast.methods import timeline
from seal_fast.networks import Factory, parse
from seal_fast.utils.errors import UsageError

_LOWEST = {"generations": 1, "epochs": 1, "batch_size": 2, "accumulate": 1, "eval_every": 1, "log_every": 1}
_LOWEST |= {"eval_batch_size": 1, "limit_train": 2, "per_class": 1, "hessian_every": 0, "hessian_images": 1}
_LOWEST |= {"threads": 1, "image_size": 1}


def check(config: Config) -> Config:
    """The configuration itself, if its numbers can make a run; else UsageError, naming the flag and what it accepts."""
    for name, lowest in _LOWEST.items():
        value = getattr(config, name)
        if value is not None and value < lowest:
            raise UsageError(f"{flag(name)} {value}: must be at least {lowest}")
    for name in ("lr", "weight_decay", "ascent_scale", "mixup", "checkpoint_seconds"):
        value = getattr(config, name)
        if not 0 <= value < float("inf"):
            raise UsageError(f"{flag(name)} {value}: must be a finite number that is not negative")
    if not abs(config.ascent_weight_decay) < float("inf"):
        raise UsageError(f"--ascent-weight-decay {config.ascent_weight_decay}: must be a finite number")
    if not 0 < config.width < float("inf"):
        raise UsageError(f"--width {config.width:g}: must be a finite number above 0")
    if not 0 < config.dist_timeout < float("inf"):
        raise UsageError(f"--dist-timeout {config.dist_timeout}: must be a finite number of seconds above 0")
    for name in ("momentum", "label_smoothing", "dropout", "ema", "holdout", "label_noise"):
        if not 0 <= getattr(config, name) < 1:
            raise UsageError(f"{flag(name)} {getattr(config, name)}: must be at least 0 and below 1")
    for name in ("ascent_epochs", "warmup_epochs"):
        value = getattr(config, name)
        if not (0 <= value < 1 or (value >= 1 and float(value).is_integer())):
            raise UsageError(f"{flag(name)} {value}: must be a whole number of epochs or a fraction from 0 to below 1")
    if config.ascent() >= config.epochs:
        raise UsageError(
            f"--ascent-epochs {config.ascent_epochs:g}: leaves no descent in a generation of --epochs {config.epochs}"
        )
    length = config.epochs * (config.generations if config.method == "long" else 1)
    if config.warmup() > length:
        raise UsageError(f"--warmup-epochs {config.warmup_epochs:g}: longer than a generation of --epochs {length}")
    if not 0 <= config.seed < 2**63:
        raise UsageError(f"--seed {config.seed}: must be from 0 to 2**63 - 1")
    if config.dtype == "float64" and config.amp:
        raise UsageError("--dtype float64 computes in double throughout and excludes --amp; drop one of them")
    if config.record_examples and config.mixup:
        raise UsageError(
            f"--record-examples: --mixup {config.mixup:g} trains on mixtures of examples; drop one of them"
        )
    if isinstance(parse(config.model), Factory) and config.dropout:
        raise UsageError(
            f"--dropout {config.dropout:g}: is for registered networks; give --model {config.model} its own"
        )
    timeline(config)
    return config
