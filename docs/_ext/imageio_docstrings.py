# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""What the docstrings of this project need beside napoleon, and whether all are shown.

A drawing or an example stands indented between paragraphs; on a page it is literal text.
When the build ends, a public name of the documented packages that stands on no page is a
warning, and so an error.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from typing import Any, Iterator

from sphinx.application import Sphinx
from sphinx.util import logging

PACKAGES = ("ovirt_imageio.client", "ovirt_imageio.admin", "ovirt_imageio.common")

log = logging.getLogger(__name__)


def mark_literal(lines: list[str]) -> list[str]:
    """Put `::` before each block that is indented after a paragraph and a blank line."""
    result: list[str] = []
    paragraph = ""  # the last line with text, if it stands at the margin
    literal = False
    for number, line in enumerate(lines):
        indented = line.startswith("    ")
        if line.strip() and not indented:
            paragraph, literal = line, False
        elif line.strip() and paragraph and not literal:
            after_blank = number > 0 and not lines[number - 1].strip()
            if after_blank and not paragraph.endswith("::"):
                result += ["::", ""]
            literal = after_blank
            paragraph = ""
        result.append(line)
    return result


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
