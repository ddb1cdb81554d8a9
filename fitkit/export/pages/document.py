"""HTML documents in one file: elements whose text is always escaped, and what is embedded in them."""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias
from xml.etree import ElementTree

from fitkit import __version__
from fitkit.io.atomic import written_whole
from fitkit.io.options import plain
from fitkit.io.resources import asset_path

Element = ElementTree.Element
Content: TypeAlias = "Element | str | Sequence[Content] | None"
MARKS = {  # of a status or a finding: sign, word
    "ok": ("✓", "ok"),
    "good": ("✓", "good"),
    "doubtful": ("!", "doubtful"),
    "failed": ("✕", "failed"),
    "error": ("✕", "no face"),
    "note": ("i", "note"),
}


def element(name: str, attributes: Mapping[str, Any] | None = None, *content: Content) -> Element:
    """One HTML element; None and False leave an attribute out, True gives one without a value. Texts are
    escaped when the document is written, whatever they hold."""
    known = {k: v for k, v in (attributes or {}).items() if v is not None and v is not False}
    made = Element(name, {k: "" if v is True else str(v) for k, v in known.items()})
    _fill(made, content)
    return made


def _fill(parent: Element, content: Content) -> None:
    if content is None:
        return
    if isinstance(content, Element):
        parent.append(content)
    elif isinstance(content, str):
        if len(parent):
            parent[-1].tail = (parent[-1].tail or "") + content
        else:
            parent.text = (parent.text or "") + content
    else:
        for part in content:
            _fill(parent, part)


def markup(part: Element) -> str:
    """The element as HTML."""
    return ElementTree.tostring(part, encoding="unicode", method="html")


def pill(status: str) -> Element:
    """A status with its sign and colour; one that is not known keeps its own word."""
    sign, word = MARKS.get(status, ("?", status))
    return element(
        "span", {"class": f"pill {_css_class(status)}"}, element("b", {"aria-hidden": "true"}, sign), word
    )


def mark(severity: str) -> Element:
    """The sign of a severity, with its word for those who do not see it."""
    sign, word = MARKS.get(severity, ("?", severity))
    return element("span", {"class": f"mark {_css_class(severity)}", "role": "img", "aria-label": word}, sign)


def _css_class(status: str) -> str:
    return status if status in MARKS else "unknown"


def picture_uri(content: bytes, kind: str = "jpeg") -> str:
    """A picture file as an address that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def embedded(identifier: str, value: Any) -> Element:
    """Data for the scripts of a page."""
    text = json.dumps(plain(value), ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    # No text in it can end the element, or begin a comment.
    return element("script", {"id": identifier, "type": "application/json"}, text.replace("<", "\\u003c"))


def embedded_bytes(identifier: str, content: bytes) -> Element:
    """A file for the scripts of a page, in base64."""
    return element(
        "script", {"id": identifier, "type": "application/octet-stream"}, base64.b64encode(content).decode()
    )


def write_page(path: str | os.PathLike, title: str, body: Sequence[Content], scripts: Sequence[str]) -> Path:
    """Write an HTML file that needs nothing else.

    Args:
        scripts: names of files in assets/report/ that run when the body is there, in this order. No other
            script can run in the page, and nothing is loaded from a network: its policy says so.
    Raises:
        InputError: the file cannot be written, or the installation lacks a script.
    """
    code = [_asset(name) for name in scripts]
    hashes = " ".join(
        f"'sha256-{base64.b64encode(hashlib.sha256(c.encode()).digest()).decode()}'" for c in code
    )
    policy = (
        f"default-src 'none'; img-src data: blob:; connect-src blob:; style-src 'unsafe-inline'; "
        f"script-src {hashes}; base-uri 'none'; form-action 'none'"
    )
    head = element(
        "head",
        None,
        element("meta", {"charset": "utf-8"}),
        element("meta", {"http-equiv": "Content-Security-Policy", "content": policy}),
        element("meta", {"name": "viewport", "content": "width=device-width, initial-scale=1"}),
        element("meta", {"name": "color-scheme", "content": "light dark"}),
        element("meta", {"name": "generator", "content": f"fitkit {__version__}"}),
        element("title", None, title),
        element("style", None, _asset("page.css")),
    )
    whole = element("body", None, body, [element("script", None, c) for c in code])
    text = "<!doctype html>\n" + markup(element("html", {"lang": "en"}, head, whole)) + "\n"
    with written_whole(Path(path)) as part:
        part.write_bytes(text.encode("utf-8", "replace"))
    return Path(path)


@lru_cache(maxsize=8)
def _asset(name: str) -> str:
    text = asset_path(f"report/{name}").read_text(encoding="utf-8")
    assert "</script" not in text and "</style" not in text, name
    return text
