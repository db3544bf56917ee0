# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The page, and which tests hold its rows.

    @holds("HEAD", "unknown method")
    def test_methods(hosts): ...

A row is named by its first cell. A test of a row checks both of its columns.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Protocol, TypeVar

import pytest

from imageio_testing.tables import DOCS

PAGE = DOCS / "reference" / "differences.md"

Test = TypeVar("Test", bound=Callable[..., object])

HELD: set[str] = set()
"""Rows that some test holds. It is complete when all modules of tests are imported."""


class HasRow(Protocol):
    """A case of one row."""

    @property
    def row(self) -> str:
        """Name of the row."""


def rows() -> list[str]:
    """Return the names of all rows, in the order of the page."""
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    heads = {number - 1 for number, line in enumerate(lines) if line.startswith("|---")}
    return [
        line.split(" | ")[0][2:] for number, line in enumerate(lines) if line.startswith("| ") and number not in heads
    ]


def holds(*names: str) -> Callable[[Test], Test]:
    """Tell that a test holds some rows."""
    HELD.update(names)
    return lambda test: test


def cases(name: str, cases: Iterable[HasRow]) -> pytest.MarkDecorator:
    """Parametrize a test by cases; it holds their rows."""
    listed = list(cases)
    HELD.update(case.row for case in listed)
    return pytest.mark.parametrize(name, listed, ids=lambda case: case.row)


UNTRIED = {
    "`/run/ovirt-imageio/conf.d`": "the folder is the host's; `daemon/tests/test_config.py` has the order of folders",
    "`buffer_size` of the backends": "speed is no outcome of a test",
    "client that is silent within a head, or a TLS handshake": "time is no outcome of a test",
    "client that is silent within a body": "the same; `daemon/tests/test_hostile.py` has our column",
    "TLS version": "most builds of Python do not read the policy of the system",
    "`poll_interval`": "time is no outcome of a test",
}
"""Rows without a run on both, and why."""
