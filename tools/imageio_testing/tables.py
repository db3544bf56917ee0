# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Tables of the documentation that a test makes: the page says what the test saw.

A table stands between two comments. With IMAGEIO_WRITE_TABLES=1 a test writes it anew.

    <!-- table NAME, made by tests -->
    | … |
    <!-- end of table -->
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterable, Sequence

DOCS = Path(__file__).resolve().parents[2] / "docs"

_END = "<!-- end of table -->"


def check_table(page: str, name: str, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Make sure that a page holds a table, or write it.

    Args:
        page: Path below `docs`.
        name: Of the table, in its first comment.
        head: Names of the columns.
        rows: Cells of each row.

    Raises:
        AssertionError: The page has another table.
    """
    path = DOCS / page
    text = path.read_text(encoding="utf-8")
    begin = f"<!-- table {name}, made by tests -->\n\n"
    before, _, rest = text.partition(begin)
    old, end, after = rest.partition(_END)
    assert end, f"{page} has no table {name!r}"
    lines = [_row(head), _row(["---"] * len(head)), *map(_row, rows)]
    new = "\n".join(lines) + "\n\n"
    if os.environ.get("IMAGEIO_WRITE_TABLES") == "1":
        path.write_text(before + begin + new + _END + after, encoding="utf-8")
        return
    assert old == new, f"{page}: write table {name!r} anew by this test with IMAGEIO_WRITE_TABLES=1"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
