# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovirt_imageio.common.extents import (
    DirtyExtent,
    ZeroExtent,
    check_cover,
    clip,
    dirty_from_json,
    merge,
    overlay_dirty,
    zero_from_json,
)


def z(start, length, zero=False, hole=False):
    return ZeroExtent(start, length, zero, hole)


def runs(flags):
    """Lists of (length, *flags) that start anywhere."""
    return st.lists(st.tuples(st.integers(0, 9), *[st.booleans()] * flags), max_size=20)


def zero_extents(parts):
    start, out = 0, []
    for length, zero, hole in parts:
        out.append(z(start, length, zero, hole))
        start += length
    return out


def flat(extents):
    """Return the flags of every single byte in an extent list."""
    return [e[2:] for e in extents for _ in range(e.length)]


@given(runs(2))
def test_merge_says_the_same_with_fewest_extents(parts):
    extents = zero_extents(parts)
    merged = list(merge(extents))
    assert flat(merged) == flat(extents)
    assert all(e.length for e in merged)
    assert all(a[2:] != b[2:] for a, b in zip(merged, merged[1:]))
    size = sum(e.length for e in extents)
    assert list(check_cover(merged, size)) == merged


def test_merge_takes_no_more_than_it_needs():
    def endless():
        start = 0
        while True:
            yield z(start, 1, zero=bool(start % 2))
            start += 1

    merged = merge(endless())
    assert next(merged) == z(0, 1)
    assert next(merged) == z(1, 1, zero=True)


@given(runs(2), st.integers(0, 100), st.integers(0, 100))
def test_clip_keeps_what_lies_inside(parts, offset, length):
    extents = zero_extents(parts)
    clipped = list(clip(extents, offset, length))
    assert flat(clipped) == flat(extents)[offset : offset + length]
    assert all(offset <= e.start and e.start + e.length <= offset + length for e in clipped)


@given(runs(1), runs(2))
def test_overlay_says_for_each_byte_if_dirty_and_zero(dirty_parts, zero_parts):
    zeros = zero_extents(zero_parts)
    size = sum(e.length for e in zeros)
    dirty, start = [], 0
    for length, flag in [*dirty_parts, (size, False)]:
        length = min(length, size - start)
        if length:
            dirty.append((start, length, flag))
            start += length
    found = list(overlay_dirty(dirty, merge(zeros)))
    flags = [flag for _, length, flag in dirty for _ in range(length)]
    expected = [(flag, zero) for flag, (zero, _) in zip(flags, flat(zeros))]
    assert flat(found) == expected
    assert list(check_cover(found, size)) == found


@pytest.mark.parametrize("zero", [False, True])
def test_every_kind_of_extent_tells_if_it_is_data(zero):
    assert ZeroExtent(0, 10, zero, hole=zero).data is not zero
    assert DirtyExtent(0, 10, dirty=True, zero=zero).data is not zero


def test_overlay_refuses_contexts_of_different_size():
    with pytest.raises(ValueError, match="end at different offsets"):
        list(overlay_dirty([(0, 10, True)], [z(0, 20)]))


@pytest.mark.parametrize(
    "extents",
    [
        [z(1, 9)],
        [z(0, 5), z(6, 4)],
        [z(0, 5), z(4, 6)],
        [z(0, 0), z(0, 10)],
        [z(0, 11)],
        [z(0, 9)],
        [],
    ],
    ids=["gap at start", "gap", "overlap", "empty", "too long", "too short", "none"],
)
def test_check_cover_refuses_what_does_not_cover(extents):
    with pytest.raises(ValueError, match="[eE]xtent"):
        list(check_cover(extents, 10))


@pytest.mark.parametrize("extent", [z(1, 2, True, False), DirtyExtent(1, 2, True, False)])
def test_json_and_back(extent):
    read = zero_from_json if isinstance(extent, ZeroExtent) else dirty_from_json
    assert read(extent.to_dict()) == extent
    assert type(extent).from_dict(extent.to_dict()) == extent


def test_json_of_old_servers_lacks_hole():
    assert zero_from_json({"start": 0, "length": 1, "zero": True}) == z(0, 1, zero=True)


@pytest.mark.parametrize(
    ("document", "key"),
    [
        ([], "start"),
        ({"length": 1, "zero": True}, "start"),
        ({"start": -1, "length": 1, "zero": True}, "start"),
        ({"start": 0, "length": True, "zero": True}, "length"),
        ({"start": 0, "length": 1.0, "zero": True}, "length"),
        ({"start": 0, "length": 1, "zero": 1}, "zero"),
        ({"start": 0, "length": 1, "zero": True, "hole": None}, "hole"),
    ],
)
def test_json_that_is_no_extent_is_refused_by_key(document, key):
    with pytest.raises(ValueError, match=repr(key)):
        zero_from_json(document)


def test_clip_tells_no_empty_extents():
    extents = [ZeroExtent(0, 10, True, False), ZeroExtent(10, 10, False, False), ZeroExtent(20, 10, True, False)]
    assert list(clip(extents, 10, 10)) == extents[1:2]


def test_check_cover_refuses_a_gap_that_an_overlap_makes_up_for():
    extents = [ZeroExtent(0, 10, True, False), ZeroExtent(15, 10, True, False)]
    with pytest.raises(ValueError, match="expected an extent at 10"):
        list(check_cover(extents, 20))


def test_check_cover_passes_on_nothing_that_ends_past_the_image():
    passed = []
    with pytest.raises(ValueError, match="past the image"):
        passed.extend(check_cover([ZeroExtent(0, 21, True, False)], 20))
    found = check_cover([ZeroExtent(0, 21, True, False)], 20)
    with pytest.raises(ValueError, match="past the image"):
        next(found)
    assert passed == []


def test_json_of_old_servers_lacks_zero_of_dirty_extents():
    assert dirty_from_json({"start": 0, "length": 1, "dirty": True}) == DirtyExtent(0, 1, dirty=True, zero=False)
