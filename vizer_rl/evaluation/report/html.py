"""HTML of our pages: escaped text, tables, pictures in bytes, one document that fetches nothing.

What a caption, a file name or a setting says is data. It enters a page through `text`, or through
`json_block`, and a page with a script allows that one alone (Content-Security-Policy).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterable, Mapping
from hashlib import sha256
from html import escape
from importlib.resources import files
from io import BytesIO
from math import isfinite
from string import Template
from typing import Any

from PIL.Image import Image

from ...errors import printable

THUMB = 240  # pixels: the longer side of a picture
QUALITIES = (82, 65, 45, 25, 10)  # of WebP, the first whose bytes are few enough
SHRINK = 0.6  # of a picture that is too large even at the last of them


def asset(name: str) -> str:
    """A file of this package: a template, a style or a script."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")


def document(title: str, body: str, style: str = "", script: str = "") -> str:
    """A whole page, in light or dark as the reader has it; title: not yet escaped."""
    style, policy = asset("base.css") + style, ""
    if script:
        hashes = {"style": _hash(style), "script": _hash(script)}
        sources = "; ".join(f"{kind}-src {value}" for kind, value in hashes.items())
        rules = f"default-src 'none'; img-src data:; {sources}; base-uri 'none'; form-action 'none'"
        policy = f'<meta http-equiv="Content-Security-Policy" content="{rules}"/>\n'
        body += f"\n<script>{script}</script>"
    page = Template(asset("page.html"))
    return page.substitute(title=text(title), policy=policy, style=style, body=body)


def _hash(source: str) -> str:
    """How a Content-Security-Policy names the one source that it allows."""
    return f"'sha256-{base64.b64encode(sha256(source.encode()).digest()).decode()}'"


def text(value: str) -> str:
    """Text as HTML: no tag, no quote that ends an attribute, no character that acts."""
    return escape(printable(value))


def json_block(name: str, content: Any) -> str:
    """Data for the script, under an id; whatever it says, it cannot end its element."""
    source = json.dumps(content, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return f'<script type="application/json" id="{name}">{_inert(source)}</script>'


def _inert(source: str) -> str:
    return printable(source).replace("<", "\\u003c").replace(">", "\\u003e")


def table(head: Iterable[str], rows: Iterable[Iterable[str]], *, kind: str = "") -> str:
    """A table of cells that are HTML already; kind: its class."""
    top = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join(f"<tr>{''.join(f'<td>{c}</td>' for c in row)}</tr>" for row in rows)
    name = f' class="{kind}"' if kind else ""
    inner = f"<table{name}><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="wide">{inner}</div>'


def findings(lines: Iterable[Mapping[str, str]]) -> str:
    """A list of {"level": pass, warn or fail, "says": sentence, "do": advice or ""}."""
    items = [
        f'<li class="{text(line["level"])}">{text(line["says"])}'
        + (f"<b>{text(line['do'])}</b>" if line["do"] else "")
        + "</li>"
        for line in lines
    ]
    return f"<ul>{''.join(items)}</ul>" if items else ""


def picture(image: Image, max_bytes: int = 2**15) -> str:
    """A small WebP in base64, of at most so many characters; no side is longer than THUMB."""
    small = image.copy()
    small.thumbnail((THUMB, THUMB))
    while True:
        for quality in QUALITIES:
            file = BytesIO()
            small.save(file, "WEBP", quality=quality, method=2)
            if 4 * file.tell() <= 3 * max_bytes or max(small.size) < 16:
                return base64.b64encode(file.getvalue()).decode()
        small.thumbnail((int(SHRINK * small.width) or 1, int(SHRINK * small.height) or 1))


def number(value: float | None, signed: bool = False) -> str:
    """Three or four digits: "0.477", "+9.3", "102"; "–" where there is none."""
    if value is None or not isfinite(value):
        return "–"
    places = 3 if abs(value) < 2 else 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{round(value, places) + 0.0:{'+' if signed else ''}.{places}f}".replace("-", "−")
