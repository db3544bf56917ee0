# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Additions to napoleon for the docstrings of this project, and a check that all are shown.

A drawing or an example stands indented between paragraphs; on a page it is literal text.
When the build ends, a public name of the documented packages that stands on no page is a
warning, and so an error.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import re
from typing import Any, Iterator

from sphinx.application import Sphinx
from sphinx.util import logging

PACKAGES = ("ovirt_imageio.client", "ovirt_imageio.admin", "ovirt_imageio.common")

# Lines and arrows, or a scale with two marks.
_DRAWN = re.compile(r"[─│┌└├►◄▲▼]|\|[^|]*[-= ]{2}[^|]*\|")

log = logging.getLogger(__name__)


def mark_literal(lines: list[str]) -> list[str]:
    """Put `::` before blocks that are indented after a paragraph, and before drawings at the margin."""
    result: list[str] = []
    at_margin = False  # the paragraph before stands at the margin, and is not literal
    for block in _paragraphs(lines):
        drawn = _is_drawing(block)
        indented = block[0].startswith("    ")
        literal = drawn if not indented else at_margin
        if literal and not (result and result[-2:-1] and result[-2].endswith("::")):
            result += ["::", ""]
        result += [f"    {line}" for line in block] if drawn and not indented else block
        result.append("")
        at_margin = (literal and indented and at_margin) or not (indented or drawn or _is_section(block))
    return result


def _paragraphs(lines: list[str]) -> Iterator[list[str]]:
    block: list[str] = []
    for line in [*lines, ""]:
        if line.strip():
            block.append(line)
        elif block:
            yield block
            block = []


def _is_drawing(block: list[str]) -> bool:
    return any(_DRAWN.search(line) for line in block)


def _is_section(block: list[str]) -> bool:
    """Tell if it is one of Google's, whose indented lines follow at once."""
    return len(block) > 1 and block[0].endswith(":") and block[1].startswith("    ")


def _process(app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]) -> None:
    lines[:] = mark_literal(lines)


def public_names(package: str) -> Iterator[str]:
    """Yield the full name of each module, class and function that a package defines for others.

    Where a module has `__all__`, that says which.
    """
    root = importlib.import_module(package)
    names = [package, *(info.name for info in pkgutil.walk_packages(root.__path__, package + "."))]
    for name in names:
        if any(part.startswith("_") for part in name.split(".")[1:]):
            continue
        yield name
        module = importlib.import_module(name)
        exported = getattr(module, "__all__", None)
        for key, value in vars(module).items():
            kind = inspect.isclass(value) or inspect.isfunction(value)
            public = key in exported if exported is not None else not key.startswith("_")
            if kind and public and value.__module__ == name:
                yield f"{name}.{key}"


def _check(app: Sphinx, error: Exception | None) -> None:
    if error is not None or app.builder.name != "html":
        return
    shown = app.env.domaindata["py"]["objects"]
    modules = app.env.domaindata["py"]["modules"]
    names = [name for package in PACKAGES for name in public_names(package)]
    missing = [name for name in names if name not in shown and name not in modules]
    for name in missing:
        log.warning("public, but on no page: %s", name)
    log.info("documented: %d of %d public names", len(names) - len(missing), len(names))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register both."""
    # Before napoleon, which has 500.
    app.connect("autodoc-process-docstring", _process, priority=400)
    app.connect("build-finished", _check)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
