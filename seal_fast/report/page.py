"""A report as one HTML file without anything outside it."""

from __future__ import annotations

import html
import json
from importlib import resources
from typing import Any

from seal_fast.utils.files import to_json


def page(content: dict[str, Any]) -> str:
    """The page; the content travels inside it as JSON, in a place where it cannot execute."""
    part = resources.files("seal_fast.report")
    style, script, body = ((part / name).read_text(encoding="utf-8") for name in ("page.css", "page.js", "page.html"))
    data = json.dumps(to_json(content), separators=(",", ":")).replace("<", "\\u003c")
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark"><link rel="icon" href="data:,">'
        f"<title>{html.escape(content['title'])}</title><style>{style}</style></head><body>{body}"
        f'<script type="application/json" id="data">{data}</script><script>{script}</script></body></html>\n'
    )
