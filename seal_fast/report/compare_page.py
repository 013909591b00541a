"""The page of a comparison: the same sections as Markdown beside its pictures, and as one HTML file that holds them."""

from __future__ import annotations

import base64
import csv
import html
import io
from collections.abc import Sequence
from dataclasses import asdict, fields

from seal_fast.report.compare import TITLES, Comparison, Figure

Row = Sequence[str]

_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0}td,th{padding:.25rem .75rem;border-bottom:1px solid #ddd}"
    "td:not(:first-child),th:not(:first-child){text-align:right}img{max-width:100%}"
)


def sections(comparison: Comparison) -> list[tuple[str, list[str], list[Row], list[str]]]:
    """Title, sentences, table (its header first) and names of pictures of each part of the page."""
    runs: list[Row] = [("group", "runs", "seeds", "method", "network", "epochs")]
    for group, members in comparison.runs.items():
        config = members[0].config
        assert config is not None
        epochs = sorted({len(comparison.rows[name]) for name in _run_names(comparison, group)})
        seeds = " ".join(str(member.config.seed) for member in members if member.config)
        names = ", ".join(_run_names(comparison, group))
        runs.append((group, names, seeds, config.method, config.model, " to ".join(map(str, epochs))))
    stage = "" if comparison.stage == "last" else f" Their weights: {comparison.stage}."
    about = "Groups hold runs that differ by their seed alone; an interval is 95 % of Student's t over a group's runs,"
    sentences = [f"{about} or for a single run that of its examples or episodes, where it has one.{stage}"]
    if comparison.strangers:
        sentences.append("Left out, for they are of none of these weights: " + ", ".join(comparison.strangers) + ".")
    parts = [("Runs", sentences, runs, ["curves"])]
    for analysis, title in TITLES.items():
        names = comparison.names(analysis)
        if not names:
            continue
        table: list[Row] = [("", *comparison.runs)]
        for name in names:
            cells = [comparison.cell(analysis, name, group) for group in comparison.runs]
            if any(cells):
                table.append((name, *(_show(found[0]) if found else "" for found in cells)))
        protocol = [f"{key.replace('_', ' ')}: {_plain(value)}" for key, value in _told(comparison, analysis)]
        said = [f"Protocol: {'; '.join(protocol)}."] if protocol else []
        parts.append((title, said, table, [analysis, f"{analysis}-generations"]))
    return parts


def markdown(comparison: Comparison, pictures: Sequence[str]) -> str:
    """The page in Markdown; pictures are named as files beside it."""
    lines = ["# Comparison"]
    for title, sentences, table, names in sections(comparison):
        lines += ["", f"## {title}", "", *sentences, ""]
        if len(table) > 1:
            head, *rows = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in table]
            lines += [f"| {head} |", "|" + "---|" * len(table[0]), *(f"| {row} |" for row in rows), ""]
        lines += [f"![{title}: {name}](compare-{name}.png)" for name in names if name in pictures]
    return "\n".join(lines) + "\n"


def page(comparison: Comparison, pictures: dict[str, bytes]) -> str:
    """The page as one HTML file without anything outside it."""
    out = [
        "<!doctype html><html lang=en><meta charset=utf-8><title>Comparison</title>",
        f"<style>{_STYLE}</style><h1>Comparison</h1>",
    ]
    for title, sentences, table, names in sections(comparison):
        out.append(f"<h2>{html.escape(title)}</h2>")
        out += [f"<p>{html.escape(sentence)}</p>" for sentence in sentences]
        if len(table) > 1:
            rows = [
                "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in row)
                for tag, row in zip(["th"] + ["td"] * (len(table) - 1), table, strict=True)
            ]
            out.append("<table>" + "".join(f"<tr>{row}</tr>" for row in rows) + "</table>")
        for name in names:
            if name in pictures:
                data = base64.b64encode(pictures[name]).decode()
                out.append(f'<img alt="{html.escape(title)}" src="data:image/png;base64,{data}">')
    return "\n".join(out) + "\n</html>\n"


def table_csv(comparison: Comparison) -> str:
    """Every figure of every network, one a line."""
    memory = io.StringIO()
    writer = csv.DictWriter(memory, [f.name for f in fields(Figure)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(asdict(figure) for figure in comparison.figures)
    return memory.getvalue()


def _run_names(comparison: Comparison, group: str) -> list[str]:
    return list(dict.fromkeys(f.run for f in comparison.figures if f.group == group))


def _show(interval) -> str:
    digits = 2 if abs(interval.mean) >= 0.1 else 4
    return interval.show(digits)


def _told(comparison: Comparison, analysis: str) -> list[tuple[str, object]]:
    return [(key, v) for key, v in comparison.protocols.get(analysis, {}).items() if not key.endswith("sha256")]


def _plain(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{key} {item}" for key, item in value.items())
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)
