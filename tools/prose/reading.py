# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Where prose is found: paragraphs and cells of pages, docstrings and comments of sources."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterable, Iterator

from .rules import Block

_ITEM = re.compile(r"\s*(?:[-*+]|\d+\.)\s+|\s*:\s+|\s*>\s?")
_HEADING = re.compile(r"#+\s|[-=~^]{3,}\s*$")
_FENCE = re.compile(r"\s*(```|~~~|:::)")
_FIELD = re.compile(r"\s*\*{0,2}[\w.]+(?:, \*{0,2}[\w.]+)*:\s+(?=\S)|\s*\w+:\s*$")
_DIRECTIVE = re.compile(r"\s*(?:noqa|type:|pragma|SPDX|!|:|shellcheck|fmt:|coding)")


class _Gather:
    """Joins lines to blocks."""

    def __init__(self) -> None:
        self.blocks: list[Block] = []
        self._lines: list[str] = []
        self._first = 0

    def add(self, number: int, text: str) -> None:
        """Add a line to the block."""
        if not self._lines:
            self._first = number
        self._lines.append(text.strip())

    def end(self) -> None:
        """End the block."""
        if self._lines:
            self.blocks.append(Block(self._first, " ".join(self._lines)))
        self._lines = []


def page(text: str) -> tuple[list[Block], list[Block]]:
    """Return the paragraphs and items of a page in Markdown, and the cells of its tables."""
    gather, cells = _Gather(), []
    fenced = False
    for number, line in enumerate(text.splitlines(), 1):
        if _FENCE.match(line):
            fenced = not fenced if line.strip().strip(":`~") == "" or not fenced else fenced
            gather.end()
        elif fenced or not line.strip() or _HEADING.match(line) or line.startswith(("<", "![", "    ")):
            gather.end()
        elif line.lstrip().startswith("|"):
            gather.end()
            cells += [Block(number, cell.strip()) for cell in line.strip().strip("|").split("|")]
        else:
            item = _ITEM.match(line)
            if item:
                gather.end()
            gather.add(number, line[item.end() :] if item else line)
    gather.end()
    return gather.blocks, cells


def source(text: str) -> list[Block]:
    """Return the docstrings and comments of a Python source."""
    return [*_docstrings(ast.parse(text)), *_comments(text)]


def _docstrings(tree: ast.Module) -> Iterator[Block]:
    """Yield those of modules, classes and functions, and of what is assigned in modules and classes."""
    for node in ast.walk(tree):
        if not isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            continue
        before: ast.stmt | None = None
        for statement in node.body:
            if (
                (before is None or isinstance(before, (ast.Assign, ast.AnnAssign)))
                and isinstance(statement, ast.Expr)
                and isinstance(statement.value, ast.Constant)
                and isinstance(statement.value.value, str)
            ):
                yield from _paragraphs(statement.lineno, statement.value.value.splitlines())
            before = statement


def _paragraphs(number: int, lines: Iterable[str]) -> list[Block]:
    """Split a docstring; drawings are indented deeper than what they follow, fields begin with their name."""
    gather = _Gather()
    depth, in_section = 0, False
    for offset, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        if not line.strip():
            gather.end()
            in_section = in_section and False
            continue
        field = _FIELD.match(line)
        if field or _ITEM.match(line):
            gather.end()
            item = field or _ITEM.match(line)
            rest = line[item.end() :] if item else line
            in_section, depth = True, indent
            if rest.strip():
                gather.add(number + offset, rest)
        elif offset and not in_section and indent > depth + 3 and "──" in line:
            gather.end()
        else:
            gather.add(number + offset, line)
    gather.end()
    return gather.blocks


def _comments(text: str) -> list[Block]:
    gather = _Gather()
    last = -1
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type != tokenize.COMMENT:
            continue
        words = token.string.lstrip("#")
        alone = token.line.lstrip().startswith("#")
        if not alone or token.start[0] != last + 1:
            gather.end()
        if not _DIRECTIVE.match(words):
            gather.add(token.start[0], words)
        if not alone:
            gather.end()
        last = token.start[0] if alone else -1
    gather.end()
    return gather.blocks
