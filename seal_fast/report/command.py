"""`python -m seal_fast report`: one page about many runs."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from seal_fast.report.content import content
from seal_fast.report.page import page
from seal_fast.report.runs import find
from seal_fast.utils.files import write_text


def main(argv: Sequence[str]) -> int:
    """Write the page; returns the exit code.

    Raises:
        UsageError: there are no runs.
        RunError: the file cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m seal_fast report",
        description="Draw the runs of a sweep, or of a folder of runs, on one HTML page that needs nothing else: "
        "means over seeds, paired comparison of methods, learning curves, accuracy against settings, throughput.",
        allow_abbrev=False,
    )
    parser.add_argument("folder", type=Path, metavar="DIR", help="a sweep's --out, or a folder such as runs/")
    parser.add_argument("--out", type=Path, metavar="FILE", help="default: DIR/report.html")
    flags = parser.parse_args(list(argv))
    runs = find(flags.folder)
    path = flags.out or flags.folder / "report.html"
    write_text(path, page(content(runs, flags.folder.resolve().name)))
    counted = f"{len(runs)} run{'s' if len(runs) > 1 else ''}"
    print(f"written: {path} ({counted}, {path.stat().st_size / 1e6:.1f} MB)")
    return 0
