# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A pytest plugin: says for each row of the conformance suite how many tests ran, and why others did not.

A row is one kind of storage: the parameter of the fixture `make` of a class that has
`conformance_rows`, as `conformance.Suite` does.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import pytest

PROPERTY = "conformance row"


@dataclass
class _Row:
    """Outcome of the tests of one row."""

    ran: int = 0
    failed: int = 0
    skipped: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        parts = [f"{self.ran} ran"] if self.ran else []
        if self.failed:
            parts.append(f"{self.failed} FAILED")
        parts += [f"{count} skipped: {why}" for why, count in sorted(self.skipped.items())]
        return ", ".join(parts)


def pytest_itemcollected(item: pytest.Item) -> None:
    """Note on a test of which row it is: that travels with its report between processes."""
    params = getattr(getattr(item, "callspec", None), "params", {})
    if "make" in params and getattr(getattr(item, "cls", None), "conformance_rows", False):
        item.user_properties.append((PROPERTY, params["make"]))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a line for each row."""
    rows: dict[str, _Row] = {}
    for outcome in ("passed", "failed", "error", "skipped"):
        for report in terminalreporter.getreports(outcome):
            # A module that could not be read has a report, too, without properties.
            name = dict(getattr(report, "user_properties", ())).get(PROPERTY)
            if name is not None:
                _count(rows.setdefault(str(name), _Row()), outcome, report)
    if not rows:
        return
    terminalreporter.section("conformance, storage by storage")
    width = max(map(len, rows))
    for name, row in sorted(rows.items()):
        terminalreporter.write_line(f"{name:{width}}  {row}")


def _count(row: _Row, outcome: str, report: pytest.TestReport) -> None:
    if outcome == "skipped":
        row.skipped[_reason(report)] += 1
    elif outcome != "passed":
        row.failed += 1
    elif report.when == "call":
        row.ran += 1


def _reason(report: pytest.TestReport) -> str:
    why = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
    prefix = "Skipped: "
    return why[len(prefix) :] if why.startswith(prefix) else why
