# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

from types import SimpleNamespace

from imageio_testing import rows


class Terminal:
    """Reports by outcome, and what is printed about them."""

    def __init__(self, **reports):
        self.reports = reports
        self.printed = []
        self.section = self.write_line = self.printed.append

    def getreports(self, outcome):
        return self.reports.get(outcome, [])


def report(row=None, *, when="call", why=None):
    properties = [] if row is None else [(rows.PROPERTY, row)]
    return SimpleNamespace(when=when, user_properties=properties, longrepr=why and ("file", 1, f"Skipped: {why}"))


def item(make, *, suite=True):
    callspec = SimpleNamespace(params={} if make is None else {"make": make})
    return SimpleNamespace(callspec=callspec, cls=SimpleNamespace(conformance_rows=suite), user_properties=[])


def test_only_tests_of_the_suite_belong_to_a_row():
    found = [item("nbd"), item(None), item("nbd", suite=False), SimpleNamespace(user_properties=[])]
    for one in found:
        rows.pytest_itemcollected(one)
    assert [one.user_properties for one in found] == [[(rows.PROPERTY, "nbd")], [], [], []]


def test_summary_tells_what_ran_and_why_the_rest_did_not():
    terminal = Terminal(
        passed=[report("memory", when="setup"), report("memory"), report("memory"), report()],
        failed=[report("nbd")],
        error=[report("nbd", when="setup")],
        skipped=[report("xfs", when="setup", why="no mkfs.xfs"), report("nbd", why="odd"), report("nbd", why="odd")],
    )
    rows.pytest_terminal_summary(terminal)
    assert terminal.printed[1:] == [
        "memory  2 ran",
        "nbd     2 FAILED, 2 skipped: odd",
        "xfs     1 skipped: no mkfs.xfs",
    ]


def test_summary_without_rows_is_silent():
    terminal = Terminal(passed=[report()])
    rows.pytest_terminal_summary(terminal)
    assert terminal.printed == []
