# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

from ovirt_imageio.daemon.stats import Meter, Stats, Totals


def test_summary_names_each_kind_with_count_size_time_and_rate() -> None:
    stats = Stats()
    stats.record("read", 1 << 30, seconds=0.5)
    stats.record("read", 1 << 30, seconds=0.5)
    stats.record("flush", 0, seconds=0.01)
    assert stats.summary() == "[read 2 ops, 2.00 GiB, 1.00 s, 2.00 GiB/s] [flush 1 op, 0.01 s]"


def test_summary_tells_where_time_went() -> None:
    stats = Stats(Stats())
    stats.record("write", 1 << 30, seconds=2.0, network=0.75, waiting=0.25)
    assert "2.00 s, 512 MiB/s, storage 1.00 s, network 0.75 s, waiting 0.25 s" in stats.summary()


def test_failed_operations_are_counted() -> None:
    stats = Stats()
    stats.record("zero", 0, seconds=0, failed=True)
    assert stats.operations["zero"].errors == 1
    assert "1 failed" in stats.summary()


def test_nothing_done_is_said() -> None:
    assert Stats().summary() == "[no operations]"


def test_parent_counts_all_of_its_children() -> None:
    totals = Totals()
    for size in (1, 2):
        Stats(totals.operations).record("read", size, seconds=1)
    assert totals.operations.operations["read"].size == 3
    assert totals.operations.operations["read"].count == 2


def test_totals_tell_requests_failures_and_uptime() -> None:
    now = 100.0
    totals = Totals(clock=lambda: now)
    totals.response("remote", 200)
    totals.response("remote", 403)
    now = 107.0
    assert totals.summary() == "2 requests, 1 refused or failed in 7 s [no operations]"


def test_rate_is_that_of_the_last_samples() -> None:
    meter = Meter()
    assert meter.rate(5.0, 100) == 0
    for second in range(20):
        meter.sample(second, second * 10)
    # Ten samples are kept, from second 10 on.
    assert meter.rate(20.0, 1100) == 100
    assert meter.rate(10.0, 1100) == 0
