# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The suite's own part of pytest: its options, and a report for the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from .options import add_options, check

_GOOD = ("passed", "skipped")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that tell where the server listens."""
    add_options(parser.getgroup("conformance").addoption)


def pytest_configure(config: pytest.Config) -> None:
    """Check the options, and collect outcomes if a report is wanted."""
    if hasattr(config, "workerinput"):  # of a worker: all of this is done where it was started
        return
    check(config.option)
    if config.getoption("--report"):
        config.pluginmanager.register(Report(Path(config.getoption("--report"))), "conformance-report")


class Report:
    """Writes the outcome of each rule: what it is called, and whether every way kept it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._rules: dict[str, dict[str, Any]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note an outcome: of several phases, ways and examples the worst one counts."""
        if report.when != "call" and report.outcome == "passed":
            return
        name = report.nodeid.partition("[")[0].rpartition("/")[2]
        properties: Any = dict(report.user_properties)
        said = properties["rule"]
        empty = {"chapter": said[0], "title": said[1], "outcome": "skipped", "faults": [], "skipped": []}
        rule = self._rules.setdefault(name, empty)
        if report.outcome == "failed":
            _note(rule["faults"], properties.get("fault") or str(report.longrepr).strip())
            rule["outcome"] = "failed"
        elif report.outcome == "skipped":
            _note(rule["skipped"], str(report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr))
        elif rule["outcome"] == "skipped":
            rule["outcome"] = "passed"

    def pytest_sessionfinish(self) -> None:
        """Write the report."""
        self._path.write_text(json.dumps(self._rules, indent=1, sort_keys=True) + "\n")


def _note(reasons: list[str], reason: str) -> None:
    """Keep a reason, once."""
    reason = reason.removeprefix("Skipped: ")
    if reason not in reasons:
        reasons.append(reason)


def titles(item: pytest.Item) -> tuple[str, str]:
    """Return the chapter and the rule that a test stands for."""
    function = getattr(item, "function", None)
    module = getattr(item, "module", None)
    rule = " ".join((function.__doc__ or item.name).split("\n\n")[0].split()) if function else item.name
    return getattr(module, "CHAPTER", ""), rule
