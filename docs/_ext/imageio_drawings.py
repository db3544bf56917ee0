# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The directive `drawing`: a drawing of lines and arrows, as text in the source, a picture on the page.

    ```{drawing} What it shows
      client ──GET──► daemon
    ```

The picture takes the page's colour, light or dark, and its width, as far as its letters stay
readable: on a phone it is scrolled. Manual pages and
other formats get the text.
"""

from __future__ import annotations

import re
from html import escape
from typing import Any, Iterator

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_WIDTH, _HEIGHT = 8, 17  # of a character, in units of the picture
_UP, _DOWN, _LEFT, _RIGHT = "up", "down", "left", "right"
_LINES = {
    "─": (_LEFT, _RIGHT),
    "│": (_UP, _DOWN),
    "┌": (_RIGHT, _DOWN),
    "┐": (_LEFT, _DOWN),
    "└": (_RIGHT, _UP),
    "┘": (_LEFT, _UP),
    "├": (_UP, _RIGHT, _DOWN),
    "┤": (_UP, _LEFT, _DOWN),
    "┬": (_LEFT, _RIGHT, _DOWN),
    "┴": (_LEFT, _RIGHT, _UP),
    "┼": (_LEFT, _RIGHT, _UP, _DOWN),
}
_ENDS = {_UP: (0.5, 0.0), _DOWN: (0.5, 1.0), _LEFT: (0.0, 0.5), _RIGHT: (1.0, 0.5)}
_ARROWS = {
    "►": ((0.0, 0.26), (1.0, 0.5), (0.0, 0.74)),
    "◄": ((1.0, 0.26), (0.0, 0.5), (1.0, 0.74)),
    "▲": ((0.0, 0.6), (0.5, 0.1), (1.0, 0.6)),
    "▼": ((0.0, 0.4), (0.5, 0.9), (1.0, 0.4)),
}
# Words with single spaces between them are one text.
_TEXT = re.compile(rf"[^\s{''.join([*_LINES, *_ARROWS])}]+(?: [^\s{''.join([*_LINES, *_ARROWS])}]+)*")


def picture(text: str, title: str) -> str:
    """Return the SVG of a drawing, to stand within HTML."""
    rows = text.rstrip("\n").split("\n")
    width = (max(map(len, rows)) + 1) * _WIDTH
    height = len(rows) * _HEIGHT
    size = f'viewBox="0 0 {width} {height}" style="width:100%;min-width:{width * 0.7:.0f}px;max-width:{width}px"'
    parts = [
        f'<svg role="img" aria-label="{escape(title)}" {size} xmlns="http://www.w3.org/2000/svg">',
        f"<title>{escape(title)}</title>",
        f'<path d="{" ".join(_strokes(rows))}" fill="none" stroke="currentColor" stroke-opacity=".6"/>',
        f'<path d="{" ".join(_triangles(rows))}" fill="currentColor" stroke="none"/>',
        '<g fill="currentColor" font-family="ui-monospace,monospace" font-size="13">',
        *_texts(rows),
        "</g></svg>",
    ]
    return "\n".join(parts)


def _cells(rows: list[str]) -> Iterator[tuple[int, int, str]]:
    for y, row in enumerate(rows):
        for x, character in enumerate(row):
            yield x, y, character


def _place(x: float, y: float) -> str:
    return f"{x * _WIDTH:g},{y * _HEIGHT:g}"


def _strokes(rows: list[str]) -> Iterator[str]:
    for x, y, character in _cells(rows):
        for end in _LINES.get(character, ()):
            dx, dy = _ENDS[end]
            yield f"M{_place(x + 0.5, y + 0.5)}L{_place(x + dx, y + dy)}"


def _triangles(rows: list[str]) -> Iterator[str]:
    for x, y, character in _cells(rows):
        if character in _ARROWS:
            yield "M" + "L".join(_place(x + dx, y + dy) for dx, dy in _ARROWS[character]) + "Z"


def _texts(rows: list[str]) -> Iterator[str]:
    for y, row in enumerate(rows):
        for match in _TEXT.finditer(row):
            x, length = match.start() * _WIDTH, len(match[0]) * _WIDTH
            yield f'<text x="{x}" y="{(y + 0.74) * _HEIGHT:g}" textLength="{length}">{escape(match[0])}</text>'


class Drawing(SphinxDirective):
    """Puts both forms into the page; each builder takes its own."""

    has_content = True
    required_arguments = 1
    final_argument_whitespace = True

    def run(self) -> list[nodes.Node]:
        """Return the picture for HTML, and the text for everything else."""
        text = "\n".join(self.content)
        title = self.arguments[0]
        if self.env.app.builder.format == "html":
            return [nodes.raw("", f'<figure class="drawing">{picture(text, title)}</figure>', format="html")]
        return [nodes.literal_block(text, text)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("drawing", Drawing)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
