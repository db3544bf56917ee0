# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The directive `imageio-options`, which lists the configuration's keys as the code knows them."""

from __future__ import annotations

import inspect
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from ovirt_imageio.daemon import options


class ImageioOptions(SphinxDirective):
    """Makes a section for each section of the file, and a definition for each key."""

    def run(self) -> list[nodes.Node]:
        """Read `options.describe`, which is what the daemon itself reads files with."""
        return [self._section(name, kind) for name, kind in options.SECTIONS.items()]

    def _section(self, name: str, kind: type[Any]) -> nodes.section:
        anchor = f"section-{name.replace('_', '-')}"
        # The manual page lists the same keys; links go to the page of the reference.
        names = [anchor] if self.env.docname.startswith("reference/") else []
        section = nodes.section(ids=[anchor], names=names)
        title = nodes.title()
        title += nodes.literal(text=f"[{name}]")
        section += title
        doc = inspect.cleandoc(kind.__doc__ or "").partition("\n")[0].partition(": ")[2]
        if doc:
            section += nodes.paragraph(text=doc[0].upper() + doc[1:])
        keys = nodes.definition_list()
        keys.extend(_item(info) for info in options.describe(name))
        section += keys
        if names:
            self.state.document.note_explicit_target(section)
        return section


def _item(info: options.OptionInfo) -> nodes.definition_list_item:
    item = nodes.definition_list_item()
    term = nodes.term()
    term += nodes.literal(text=info.key)
    term += nodes.Text(f" ({info.type}, default ")
    term += nodes.literal(text=_spelt(info.default))
    term += nodes.Text(f" {info.rule.unit})" if info.rule.unit else ")")
    item += term
    definition = nodes.definition()
    definition += nodes.paragraph(text=" ".join(filter(None, _sentences(info.rule))))
    item += definition
    return item


def _sentences(rule: options.Rule) -> list[str]:
    return [rule.doc, _bounds(rule), rule.reason, "Applied by SIGHUP." if rule.live else ""]


def _spelt(value: bool | int | float | str) -> str:
    """A value as the file writes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(str(value))[1:-1] if value != "" else "(empty)"


def _bounds(rule: options.Rule) -> str:
    if rule.choices:
        return f"One of {', '.join(rule.choices)}."
    if rule.minimum is None and rule.maximum is None:
        return ""
    if rule.maximum is None:
        return f"At least {rule.minimum:g}."
    return f"From {rule.minimum:,} to {rule.maximum:,}."


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("imageio-options", ImageioOptions)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
