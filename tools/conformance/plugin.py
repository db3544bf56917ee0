# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""What pytest needs to know when the suite runs for itself: options, and a report for the table."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

_GOOD = ("passed", "skipped")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that tell where the server listens."""
    group = parser.getgroup("conformance")
    group.addoption("--remote", default="", help="URL of the images service, like https://localhost:54322")
    group.addoption("--cafile", default=None, help="PEM file that verifies it")
    group.addoption("--local", default="", help="Unix socket of the images service: a path, or @ and a name")
    group.addoption("--control", default="", help="Unix socket or http://localhost:PORT of the control service")
    group.addoption("--folder", default="", help="where to make images, which the server may open and change")
    group.addoption("--version-expected", default="", help="what the server should report as its version")
    group.addoption(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="configuration of the daemon of this checkout, if no other server is named",
    )
    group.addoption("--report", default="", help="JSON file to write the outcome of every rule to")


def pytest_configure(config: pytest.Config) -> None:
    """Collect outcomes if a report is wanted."""
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
        said: Any = dict(report.user_properties)["rule"]
        rule = self._rules.setdefault(name, {"chapter": said[0], "title": said[1], "outcome": "skipped", "why": ""})
        if report.outcome == "failed":
            rule["why"] = rule["why"] or str(report.longrepr).strip().rpartition("\n")[2].strip()
            rule["outcome"] = "failed"
        elif report.outcome == "passed" and rule["outcome"] == "skipped":
            rule["outcome"] = "passed"

    def pytest_sessionfinish(self) -> None:
        """Write the report."""
        self._path.write_text(json.dumps(self._rules, indent=1, sort_keys=True) + "\n")


def titles(item: pytest.Item) -> tuple[str, str]:
    """Return the chapter and the rule that a test stands for."""
    function = getattr(item, "function", None)
    module = getattr(item, "module", None)
    rule = " ".join((function.__doc__ or item.name).split("\n\n")[0].split()) if function else item.name
    return getattr(module, "CHAPTER", ""), rule
