# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The comparison with 2.5.1 says what its runs have shown, and nothing else."""

from __future__ import annotations

import argparse
import json
from types import SimpleNamespace

import pytest

from conformance import plugin, table
from conformance.differences import Difference

RULE = "test_get.py::test_head"
OPTIONS = ("remote", "local", "cafile", "tcp_control", "version_expected", "set")


def rule(outcome, *, faults=(), skipped=()):
    return {"chapter": "GET", "title": "HEAD works.", "outcome": outcome, "faults": faults, "skipped": skipped}


@pytest.fixture
def write(tmp_path, monkeypatch):
    """Writes the table of one rule; returns its row, and what is wrong."""
    monkeypatch.setattr(table, "DIFFERENCES", {RULE: Difference("2.5.1 has no HEAD: 405.", "the status is 405")})

    def write(ours, theirs):
        (tmp_path / "ours").write_text(json.dumps({RULE: ours} if ours else {}))
        (tmp_path / "theirs").write_text(json.dumps({RULE: theirs} if theirs else {}))
        wrong = table.write_table(tmp_path / "page.md", tmp_path / "ours", tmp_path / "theirs")
        rows = [line for line in (tmp_path / "page.md").read_text().splitlines() if line.startswith("| HEAD works.")]
        return (rows or [""])[0], wrong

    return write


def test_difference_that_was_seen(write):
    row, wrong = write(rule("passed"), rule("failed", faults=["no HEAD", "the status is 405, expected 200"]))
    assert (row, wrong) == ("| HEAD works. | yes | no | 2.5.1 has no HEAD: 405. |", [])


def test_difference_that_was_not_seen_is_a_guess(write):
    (fault,) = write(rule("passed"), rule("failed", faults=["BrokenPipeError: [Errno 32]"]))[1]
    assert fault == f"{RULE}: '2.5.1 has no HEAD: 405.' is not seen: ['BrokenPipeError: [Errno 32]']"


def test_difference_that_is_gone(write):
    assert write(rule("passed"), rule("passed"))[1] == [f"{RULE}: there is no difference to explain"]


def test_difference_without_explanation(write, monkeypatch):
    monkeypatch.setattr(table, "DIFFERENCES", {})
    assert write(rule("passed"), rule("failed", faults=["x"]))[1] == [f"{RULE}: not explained: ['x']"]


def test_rule_that_was_not_tried_is_no_row_of_a_table(write):
    row, wrong = write(rule("passed"), None)
    assert wrong == [f"{RULE}: not tried with the peer"]
    assert "not tried" in row
    assert write(None, rule("failed", faults=["the status is 405"]))[1] == [f"{RULE}: not tried with this daemon"]


def test_skipped_rule_says_why(write, monkeypatch):
    monkeypatch.setattr(table, "DIFFERENCES", {})
    row, wrong = write(rule("passed"), rule("skipped", skipped=["the server does not announce it"]))
    assert (row, wrong) == ("| HEAD works. | yes | n/a | The server does not announce it. |", [])


def test_rule_that_this_daemon_breaks(write):
    faults = ["the status is 405"]
    wrong = write(rule("failed", faults=["x"]), rule("failed", faults=faults))[1]
    assert wrong == [f"{RULE}: this daemon breaks the rule: ['x']"]


class Config:
    """The part of a configuration that the plugin uses; a worker of pytest-xdist has `workerinput`."""

    def __init__(self, report, **attributes):
        self.option = argparse.Namespace(folder=None, report=None, control=None, **dict.fromkeys(OPTIONS))
        self.registered = []
        self.pluginmanager = SimpleNamespace(register=lambda plugin, name: self.registered.append(plugin))
        self.getoption = lambda name: str(report)
        self.__dict__.update(attributes)


def test_report_is_written_where_all_outcomes_come_together(tmp_path):
    """A worker knows the rules that it tried; its report would take the place of that of all."""
    started, worker = Config(tmp_path / "report"), Config(tmp_path / "report", workerinput={})
    for config in (started, worker):
        plugin.pytest_configure(config)
    assert len(started.registered) == 1
    assert worker.registered == []


def test_report_has_all_faults_and_reasons(tmp_path):
    report = plugin.Report(tmp_path / "report")
    for outcome, text, fault in (
        ("failed", "a story", "the status is 500"),
        ("failed", "a story", "the status is 500"),
        ("failed", "an assertion", None),
        ("skipped", ("file", 1, "Skipped: it has none"), None),
        ("passed", "", None),
    ):
        properties = [("rule", ("GET", "It works.")), *([("fault", fault)] if fault else [])]
        report.pytest_runtest_logreport(
            SimpleNamespace(
                when="call", outcome=outcome, nodeid=f"x/{RULE}[a]", longrepr=text, user_properties=properties
            )
        )
    report.pytest_sessionfinish()
    found = json.loads((tmp_path / "report").read_text())[RULE]
    assert found == {
        "chapter": "GET",
        "title": "It works.",
        "outcome": "failed",
        "faults": ["the status is 500", "an assertion"],
        "skipped": ["it has none"],
    }
