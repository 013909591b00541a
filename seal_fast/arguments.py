"""Command line to configuration: flags over --config file over --preset over defaults (or over a resumed run's)."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields, make_dataclass, replace
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from seal_fast.config import Config, difference, load, override
from seal_fast.methods import method
from seal_fast.methods.method import canonical
from seal_fast.networks import code_flags
from seal_fast.presets import PRESETS
from seal_fast.runs.folder import RunFolder
from seal_fast.utils.errors import UsageError
from seal_fast.utils.terminal import dropping
from seal_fast.validation import check

_OLD_FLAGS = {"--augment": "--augmentation=auto", "--no-augment": "--augmentation=none"}


@dataclass(frozen=True)
class Arguments(Config):
    """Settings are taken from the command line, then --config, then --preset, then the defaults shown here. With --out
    naming a run that was interrupted, the run's own settings stand in for the defaults and training goes on.
    """

    config: Path | None = None
    """TOML file of settings, such as the config.toml of a run."""
    preset: str | None = None
    """Named settings; see `python -m seal_fast presets`."""


def parse(
    argv: Sequence[str],
    prog: str = "python -m seal_fast.train",
    purpose: str = "Train a network with SEAL or one of its rivals.",
) -> Config:
    """The checked configuration that a command line asks for; `prog` and `purpose` are the command's, for --help.

    Raises:
        UsageError: a setting is wrong, or contradicts the run that --out would resume.
        SystemExit: 2 after a message for a wrong flag, 0 after --help.
    """
    import tyro

    early = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--config", "--preset", "--out", "--resume", "--data", "--model"):
        early.add_argument(name)
    try:
        first, rest = early.parse_known_args(argv)
    except SystemExit:  # such as `--out` without a value: tyro says it better
        first, rest = early.parse_args([]), [""]

    argv, options = _options(argv)
    resumed = _resumed(first)
    if first.out and not resumed and not (rest or first.config or first.preset or first.data or first.model):
        missing = "config.toml is missing there" if Path(first.out).exists() else "there is no such folder"
        raise UsageError(
            f"--out {first.out} alone continues a run, and {missing}; to start a new one, give its settings too, "
            "such as --preset demo or --method seal"
        )
    if resumed and code_flags(resumed.model) and not first.model:
        raise UsageError(
            f"--out {first.out} holds a run of {resumed.model}, which is code to import: to continue it, name it too, "
            f"with {shlex.join(code_flags(resumed.model))}, if you trust it"
        )
    base = resumed or Config()
    if first.preset is not None:
        if first.preset not in PRESETS:
            raise UsageError(f"--preset {first.preset}: unknown; choose one of {', '.join(PRESETS)}")
        base = override(Config(), PRESETS[first.preset], f"preset {first.preset}")
    if first.config is not None:
        base = load(Path(first.config), Config() if first.preset is None else base)

    flags = _described() if {"-h", "--help"} & {*argv} else Arguments
    try:
        arguments: Any = tyro.cli(
            flags,
            default=flags(**{f.name: getattr(base, f.name) for f in fields(Config)}),
            args=[_OLD_FLAGS.get(word, word) for word in argv],
            prog=prog,
            description=f"{purpose}\n\n{' '.join((Arguments.__doc__ or '').split())}",
        )
    except BrokenPipeError:  # --help | head
        with dropping():
            raise
        raise SystemExit(0) from None
    config = Config(**{f.name: getattr(arguments, f.name) for f in fields(Config)})
    if config.timeline is not None:
        config = replace(config, method="timeline", option="")
    else:
        given = [*([base.option] if config.method == base.method else []), *options]
        config = replace(config, option=canonical(method(replace(config, option=",".join(given)))))
    if resumed and (changes := difference(resumed, config)):
        raise UsageError(
            f"--out {first.out} holds a run with other settings ({'; '.join(changes)}); "
            "drop those flags to continue it, or choose another --out"
        )
    return check(config)


def _described() -> type:
    """`Arguments` for --help: a text is one paragraph, and None, of which the text tells the meaning, is not shown."""
    import docstring_parser
    import tyro

    texts = {
        p.arg_name: p.description
        for part in (Config, Arguments)
        for p in docstring_parser.parse_from_object(part).params
    }
    described = []
    for name, hint in get_type_hints(Arguments).items():
        shown: dict[str, Any] = {"help": " ".join((texts[name] or "").split())}
        default = getattr(Arguments, name)
        if default is None:
            shown["metavar"] = hint.__args__[0].__name__.upper()
            shown["help_behavior_hint"] = lambda value: "" if value == "None" else f"(default: {value})"
        described.append((name, Annotated[hint, tyro.conf.arg(**shown)], default))
    return make_dataclass("Described", described, bases=(Arguments,), frozen=True)


def _options(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The command line without --option, and what it was given."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    parser.add_argument("--option", action="append", default=[])
    found, rest = parser.parse_known_args(argv)
    return rest, found.option


def _resumed(first: argparse.Namespace) -> Config | None:
    """The configuration of the run that --out names, if there is one to continue."""
    if first.out is None:
        return None
    folder = RunFolder(Path(first.out))
    if not folder.config.exists():
        return None
    if first.resume == "never":
        raise UsageError(
            f"--out {first.out} holds a run already, and --resume never forbids to continue it; choose another"
        )
    return replace(load(folder.config, Config()), out=Path(first.out))
