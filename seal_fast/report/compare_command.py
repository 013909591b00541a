"""`python -m seal_fast compare`: one page of several runs, and CSV and JSON of its figures."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from seal_fast.analysis.common.results import read_results
from seal_fast.report.compare import compare
from seal_fast.report.compare_page import markdown, page, sections, table_csv
from seal_fast.report.compare_pictures import pictures
from seal_fast.utils.files import write_atomically, write_json, write_text
from seal_fast.utils.table import table


def main(argv: Sequence[str]) -> int:
    """Write the page and its figures, print the tables; returns the exit code.

    Raises:
        UsageError: a run or a result file is wrong, or results cannot be compared.
        RunError: a file cannot be written.
    """
    parser = argparse.ArgumentParser(
        prog="python -m seal_fast compare",
        description="Put several runs side by side: their accuracy, and what depth, transfer, fewshot and hessian "
        "have written about them with --out. Writes compare.md with pictures, compare.html (all in one file), "
        "compare.csv and compare.json.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("runs", nargs="+", type=Path, metavar="RUN", help="run folders; those that differ by seed alone are a group")
    add("--results", nargs="+", type=Path, default=[], metavar="DIR", help="folders that analyses have written")
    add("--stage", default="last", help="weights that the tables speak of: last, best, generation-0 ...")
    add("--out", type=Path, default=Path("comparison"), metavar="DIR", help="default: comparison")
    flags = parser.parse_args(list(argv))
    comparison = compare(flags.runs, read_results(flags.results), flags.stage)
    drawn = pictures(comparison)
    for name, content in drawn.items():
        _write_bytes(flags.out / f"compare-{name}.png", content)
    write_text(flags.out / "compare.md", markdown(comparison, list(drawn)))
    write_text(flags.out / "compare.html", page(comparison, drawn))
    write_text(flags.out / "compare.csv", table_csv(comparison))
    write_json(flags.out / "compare.json", comparison.json())
    for title, _, rows, _ in sections(comparison):
        print(f"{title}\n\n{table(rows)}\n")
    if comparison.strangers:
        print(f"left out, for they are of none of these weights: {', '.join(comparison.strangers)}\n")
    print(f"written to {flags.out}: compare.html, compare.md, compare.csv, compare.json")
    return 0


def _write_bytes(path: Path, content: bytes) -> None:
    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomically(path, write)
