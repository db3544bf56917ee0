# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The lint of prose: which texts it finds, and what it says of them."""

from __future__ import annotations

import pytest

from prose import __main__ as command
from prose import reading, rules
from prose.rules import Block


def said(text: str) -> list[str]:
    return [fault.rule for fault in rules.faults(Block(1, text))]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The client waits.", []),
        ("Who waits is told.", ["opening"]),
        ("The client waits. What it waits for is an answer.", ["opening"]),
        ("The client knows what it waits for.", []),
        ("What is a ticket?", []),
        ("name: Somebody made it.", ["opening"]),
        ("Whether it is there.", []),
        ("One " + "word " * 24 + ".", []),
        ("One " + "word " * 25 + ".", ["26 words"]),
        ("One " + "`a b c d` " * 24 + ".", []),
        ("One — " + "word " * 24 + ".", []),
        ("One e.g. two. One " + "word " * 24 + ".", []),
    ],
)
def test_rules_of_sentences(text, expected):
    assert said(text) == expected


def test_cell_is_bounded():
    assert not list(rules.cell_faults(Block(1, "x" * 200)))
    assert [fault.rule for fault in rules.cell_faults(Block(7, "x" * 201))] == ["cell of 201 characters"]


PAGE = """# What a heading says

A paragraph
in two lines.

- An item.
- Another
  one.

```
What code says.
```

| what | why |
|---|---|
| a | b |
"""


def test_prose_of_a_page():
    blocks, cells = reading.page(PAGE)
    assert blocks == [Block(3, "A paragraph in two lines."), Block(6, "An item."), Block(7, "Another one.")]
    assert Block(16, "a") in cells
    assert Block(16, "b") in cells


SOURCE = '''"""A module."""

# What a comment
# says.
x = 1  # beside code
"""A constant."""


def f(a):
    """Do something.

    Args:
        a: What it is, in
            two lines.

    Raises:
        ValueError: It is wrong.
    """
    y = "What a text says."  # noqa: X
'''


def test_prose_of_a_source():
    assert [block.text for block in reading.source(SOURCE)] == [
        "A module.",
        "A constant.",
        "Do something.",
        "What it is, in two lines.",
        "It is wrong.",
        "What a comment says.",
        "beside code",
    ]


def test_faults_are_named_by_file_and_line(tmp_path, monkeypatch, capsys):
    path = tmp_path / "page.md"
    path.write_text("Good.\n\nWhat is bad.\n")
    monkeypatch.setattr(command, "TOP", tmp_path)
    monkeypatch.setattr(command, "tracked", lambda paths: [path])
    assert command.main([]) == 1
    assert capsys.readouterr().out == "page.md:3: opening: What is bad.\n"
    path.write_text("Good.\n")
    assert command.main([]) == 0
