# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The rules of prose, as pure values.

A sentence has at most 25 words and begins with its noun: "The client waits", not "Who waits". Text in
backticks counts as one word. A cell of a table holds a fact, in at most 200 characters.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

MOST_WORDS = 25
MOST_CELL = 200

_OPENING = re.compile(r"(?:Who|Whom|Whose|Whoever|What|Whatever|Nobody|Somebody|Anybody|Everybody)\b")
_CODE = re.compile(r"`[^`]*`")
_WORD = re.compile(r"\w")
# A full stop within a name, a version or "e.g." is followed by no capital.
_END = re.compile(r"(?<=[.!?])[)\"']*\s+(?=[A-Z`\"'(])|(?<=[:;])\s+(?=[A-Z])")


class Block(NamedTuple):
    """Text without markup that may hold several sentences.

    Attributes:
        line: Number of its first line, from 1.
        text: In one line.
    """

    line: int
    text: str


class Fault(NamedTuple):
    """A broken rule.

    Attributes:
        line: Number of the line where the block begins.
        rule: Name of the rule.
        text: Beginning of the sentence or cell.
    """

    line: int
    rule: str
    text: str


def sentences(text: str) -> Iterator[str]:
    """Yield the sentences of a text; a colon ends one if a capital follows."""
    masked = _CODE.sub(lambda code: "`" + "x" * (len(code[0]) - 2) + "`", text)
    start = 0
    for end in _END.finditer(masked):
        yield text[start : end.end()].strip()
        start = end.end()
    yield text[start:].strip()


def words(sentence: str) -> int:
    """Return how many words a sentence has."""
    return sum(bool(_WORD.search(word)) for word in _CODE.sub("code", sentence).split())


def faults(block: Block) -> Iterator[Fault]:
    """Yield what breaks a rule in a block of sentences."""
    for sentence in sentences(block.text):
        if _OPENING.match(sentence) and not sentence.endswith("?"):
            yield Fault(block.line, "opening", sentence)
        count = words(sentence)
        if count > MOST_WORDS:
            yield Fault(block.line, f"{count} words", sentence)


def cell_faults(block: Block) -> Iterator[Fault]:
    """Yield what breaks a rule in a cell of a table."""
    if len(block.text) > MOST_CELL:
        yield Fault(block.line, f"cell of {len(block.text)} characters", block.text)
