# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Where TLS records end."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovirt_imageio.daemon.http.records import whole_records


def record(length: int) -> bytes:
    return b"\x17\x03\x03" + length.to_bytes(2, "big") + bytes(length)


@pytest.mark.parametrize("size", range(15))
def test_part_of_a_record_is_waited_for(size: int) -> None:
    assert whole_records(record(10)[:size], 1000) == 0


def test_only_whole_records_are_taken() -> None:
    first, second = record(10), record(0)
    data = first + second
    assert [whole_records(data[:size], 1000) for size in (15, 19, 20)] == [15, 15, 20]
    assert whole_records(memoryview(data + record(3)[:7]), 1000) == 20


def test_first_may_be_longer_than_the_limit() -> None:
    assert whole_records(record(5000) + record(1), 1000) == 5005


def test_others_stay_within_the_limit() -> None:
    assert whole_records(record(5) * 5, 30) == 30
    assert whole_records(record(5) * 5, 29) == 20


def test_longest_record() -> None:
    longest = record(2**14 + 2048)
    assert whole_records(longest[:-1], 1000) == 0
    assert whole_records(longest, 1000) == len(longest)


def test_too_long_record_is_not_waited_for() -> None:
    start = record(2**14 + 2049)[:100]
    assert whole_records(start, 10) == 100
    assert whole_records(record(1) + start, 10) == 106


@given(st.lists(st.integers(0, 300), max_size=20), st.integers(1, 1000), st.lists(st.integers(1, 400), min_size=1))
def test_all_is_taken_however_it_comes(lengths: list[int], limit: int, pieces: list[int]) -> None:
    stream = b"".join(map(record, lengths))
    ends = {sum(5 + n for n in lengths[: i + 1]) for i in range(len(lengths))}
    taken, have, came = 0, b"", 0
    while came < len(stream):
        piece = pieces[came % len(pieces)]
        have += stream[came : came + piece]
        came += piece
        while count := whole_records(have, limit):
            taken += count
            have = have[count:]
            assert taken in ends
    assert taken == len(stream)
