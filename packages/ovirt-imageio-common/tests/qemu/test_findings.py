# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import io

import pytest

from ovirt_imageio.common.qemu.findings import CheckReport, Findings

WHOLE = '{"check-errors": 0, "image-end-offset": 5}'


def report(lines, summary, status, counts_are_old=False):
    findings = Findings(counts_are_old=counts_are_old)
    assert findings.take(io.StringIO("".join(f"{line}\n" for line in lines)))
    return findings.report(summary, status)


def test_nothing_was_found():
    assert report([], WHOLE, 0) == CheckReport()


def test_first_findings_are_kept():
    lines = [f"ERROR: finding {n}" for n in range(10)]
    found = report(lines, '{"corruptions": 10, "check-errors": 1, "leaks": 2}', 2)
    assert found == CheckReport(True, 10, 1, 2, tuple(lines[:3]))


@pytest.mark.parametrize(
    ("lines", "corruptions", "errors"),
    [(["ERROR: one", "qemu-img: Check failed"], 1, 0), (["qemu-img: no"], 0, 1), ([], 0, 1)],
)
def test_check_that_did_not_end_is_no_good_news(lines, corruptions, errors):
    found = report(lines, "", 1)
    assert (found.corruptions, found.errors) == (corruptions, errors)
    assert found.is_damaged


def test_leaks_are_no_findings():
    found = report(["Leaked cluster 5 refcount=1 reference=0"] * 5, '{"leaks": 5, "check-errors": 0}', 3)
    assert found == CheckReport(leaks=5)


@pytest.mark.parametrize(
    ("line", "forgiven"),
    [
        ("ERROR cluster 5 refcount=0 reference=1", True),
        ("ERROR OFLAG_COPIED data cluster: l2_entry=8000000000050000 refcount=0", True),
        ("ERROR cluster 5 refcount=1 reference=2", False),
        ("ERROR cluster 5 refcount=0 reference=12", False),
        ("ERROR offset=a0200: Data cluster is not properly aligned; L2 entry corrupted.", False),
    ],
)
def test_only_counts_that_were_not_written_yet_are_forgiven(line, forgiven):
    summary = '{"corruptions": 1, "check-errors": 0}'
    assert report([line], summary, 2).is_damaged
    assert report([line], summary, 2, counts_are_old=True).is_damaged is not forgiven


def test_format_without_checks():
    assert report(["qemu-img: This image format does not support checks"], "", 63) == CheckReport(supported=False)
