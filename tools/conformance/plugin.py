# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""What pytest needs to know when the suite runs for itself: options, and a report for the table."""

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
    if not hasattr(config, "workerinput"):  # else they were checked where the worker was started
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
