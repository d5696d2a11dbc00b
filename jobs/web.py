"""What the pages of runs share: one file each, nothing from a network, no scripts; light and dark."""

from __future__ import annotations

from html import escape
from pathlib import Path

# No page may load or run anything, whatever a file's name or a spec has in it.
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


def document(title: str, body: str) -> str:
    """A whole page; `body` is HTML already, `title` is text."""
    style = (Path(__file__).parent / "web.css").read_text()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{style}</style></head><body>{body}</body></html>\n"
    )
