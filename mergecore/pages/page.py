"""Pages of HTML that hold everything they show and need no network.

A page is ``page.html`` around a body; neither holds data. Everything a page shows travels as JSON and is put in by
script as text, so that a name is never markup; a content security policy allows the page's own scripts, by their hash,
and nothing else. ``page.html`` names the places of ``{{title}}``, ``{{hashes}}``, ``{{css}}``, ``{{body}}``,
``{{data}}``, ``{{plotly}}`` and ``{{js}}``.
"""

from __future__ import annotations

import base64
import hashlib
import html
import json
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any


def fill_page(body: str, *, title: str, data: dict[str, Any], css: Sequence[str], scripts: Sequence[str]) -> str:
    """One HTML page out of resources of this package.

    Args:
        body: name of an HTML file: what is in the page's main part.
        title: of the document, any text.
        data: what the scripts read, in JSON's types and without NaN.
        css: names of style sheets, the later ones counting more.
        scripts: names of scripts; they run as one, in this order.
    """
    plotly, script = _plotly(), "\n".join(_resource(name) for name in scripts)
    parts = {
        "hashes": " ".join(_hash(text) for text in (plotly, script)),
        "title": html.escape(title),
        "css": "\n".join(_resource(name) for name in css),
        "body": _resource(body),
        "data": _embed(data),
        "plotly": plotly,
        "js": script,
    }
    # one pass over the template: what is filled in is not searched for further placeholders
    head, *pieces = _resource("page.html").split("{{")
    for piece in pieces:
        key, _, tail = piece.partition("}}")
        head += parts[key] + tail
    return head


@cache
def _resource(name: str) -> str:
    return files("mergecore.pages").joinpath(name).read_text("utf-8")


@cache
def _plotly() -> str:
    from plotly.offline import get_plotlyjs  # 5 MB of text that only a page needs

    # a browser reads every line end as \n before it hashes a script
    return get_plotlyjs().replace("\r\n", "\n").replace("\r", "\n")


@cache
def _hash(script: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _embed(data: dict[str, Any]) -> str:
    """JSON that cannot end the element it stands in, nor be read as markup."""
    text = json.dumps(data, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        text = text.replace(mark, f"\\u{ord(mark):04x}")
    return text
