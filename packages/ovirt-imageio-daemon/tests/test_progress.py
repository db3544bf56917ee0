# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Bytes that were moved count once, whatever the order and the overlap."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ovirt_imageio.daemon.progress import Progress

ranges = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 20)), max_size=30)


def covered(done):
    return {byte for offset, length in done for byte in range(offset, offset + length)}


@given(ranges, ranges)
def test_counts_each_byte_once(done, running):
    progress = Progress()
    for offset, length in done:
        progress.add(offset, length)
    assert progress.total == len(covered(done))
    assert progress.total_with(running) == len(covered(done + running))
    assert progress.total == len(covered(done)), "asking changed it"


@given(ranges)
def test_keeps_as_few_ranges_as_there_are(done):
    progress = Progress()
    for offset, length in done:
        progress.add(offset, length)
    bytes_ = covered(done)
    assert len(progress) == sum(byte - 1 not in bytes_ for byte in bytes_)


def test_sequential_work_is_one_range():
    progress = Progress()
    for start in range(0, 1000, 10):
        progress.add(start, 10)
    assert (len(progress), progress.total) == (1, 1000)


def test_takes_offsets_of_the_largest_image():
    progress = Progress()
    progress.add(2**63 - 10, 9)
    assert progress.total == 9
