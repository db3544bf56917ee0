# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ovirt_imageio.client import plan
from ovirt_imageio.client.plan import Action, Step
from ovirt_imageio.common import defaults
from ovirt_imageio.common.extents import DirtyExtent, ZeroExtent
from ovirt_imageio.common.units import GiB, MiB, TiB

DATA = (False, False)
ZERO = (True, False)
HOLE = (True, True)


def zero_extents(*parts):
    """Extents from (length, (zero, hole))."""
    start, out = 0, []
    for length, (zero, hole) in parts:
        out.append(ZeroExtent(start, length, zero, hole))
        start += length
    return out


parts = st.lists(st.tuples(st.integers(1, 40 * MiB), st.sampled_from([DATA, ZERO, HOLE])), max_size=20)
dirty_parts = st.lists(st.tuples(st.integers(1, 40 * MiB), st.booleans(), st.booleans()), max_size=20)


def assert_cover(steps, size):
    position = 0
    for step in steps:
        assert step.offset == position
        assert step.length > 0
        position = step.end
    assert position == size


def kinds(steps):
    return [(s.action, s.offset, s.length) for s in steps]


@given(parts, st.booleans(), st.booleans(), st.integers(1, 64).map(lambda n: n * MiB))
def test_upload_steps_cover_the_image_and_keep_the_limit(parts, is_zero, chain, limit):
    extents = zero_extents(*parts)
    steps = list(plan.upload_steps(extents, disk_is_zero=is_zero, backing_chain=chain, copy_limit=limit))
    assert_cover(steps, sum(length for length, _ in parts))
    assert all(s.length <= limit for s in steps if s.action is Action.COPY)


@given(parts)
def test_upload_copies_exactly_the_data(parts):
    extents = zero_extents(*parts)
    copied = sum(s.length for s in plan.upload_steps(extents) if s.action is Action.COPY)
    assert copied == sum(e.length for e in extents if not e.zero)


@given(dirty_parts)
def test_incremental_copies_exactly_the_dirty_data(parts):
    start, extents = 0, []
    for length, dirty, zero in parts:
        extents.append(DirtyExtent(start, length, dirty, zero))
        start += length
    steps = list(plan.incremental_steps(extents))
    assert_cover(steps, start)
    copied = sum(s.length for s in steps if s.action is Action.COPY)
    zeroed = sum(s.length for s in steps if s.action is Action.ZERO)
    assert copied == sum(e.length for e in extents if e.dirty and not e.zero)
    assert zeroed == sum(e.length for e in extents if e.dirty and e.zero)


def dirty_extents(*parts):
    """Extents from (length, dirty, zero)."""
    start, out = 0, []
    for length, dirty, zero in parts:
        out.append(DirtyExtent(start, length, dirty, zero))
        start += length
    return out


@pytest.mark.parametrize(
    ("parts", "expected"),
    [
        # Whole clusters stay as they are.
        ([(8, True, False), (8, False, False)], [(8, True, False), (8, False, False)]),
        # Clean ranges before and after are dirty, to the ends of the clusters.
        (
            [(21, False, False), (1, True, False), (21, False, True)],
            [(16, False, False), (5, True, False), (1, True, False), (2, True, False), (19, False, False)],
        ),
        # Between two that are dirty in one cluster, or in neighbours.
        ([(1, True, False), (2, False, True), (5, True, True)], [(1, True, False), (2, True, False), (5, True, True)]),
        (
            [(7, True, False), (2, False, False), (7, True, False)],
            [(7, True, False), (1, True, False), (1, True, False), (7, True, False)],
        ),
        # Clean neighbours are one.
        (
            [(4, False, True), (4, False, False), (4, False, True), (0, True, False), (1, True, True)],
            [(8, False, False), (4, True, False), (1, True, True)],
        ),
        # The last cluster ends with the image.
        ([(9, True, False), (1, False, False)], [(9, True, False), (1, True, False)]),
        ([(10, False, False)], [(10, False, False)]),
        ([], []),
    ],
)
def test_clusters_that_are_dirty_in_part_are_dirty_as_a_whole(parts, expected):
    assert list(plan.whole_clusters(dirty_extents(*parts), 8)) == dirty_extents(*expected)


small_dirty_parts = st.lists(st.tuples(st.integers(0, 20), st.booleans(), st.booleans()), max_size=20)


@given(small_dirty_parts, st.integers(1, 16))
def test_whole_clusters_are_dirty_or_clean(parts, cluster):
    def at_each_byte(extents):
        return [extent for extent in extents for _ in range(extent.length)]

    before = at_each_byte(dirty_extents(*parts))
    after = at_each_byte(plan.whole_clusters(dirty_extents(*parts), cluster))
    assert len(after) == len(before)
    for start in range(0, len(before), cluster):
        expected = any(extent.dirty for extent in before[start : start + cluster])
        assert {extent.dirty for extent in after[start : start + cluster]} == {expected}
    for old, new in zip(before, after):
        # A clean range is fetched as data, for its zeroes may hide nothing.
        assert new.zero == (old.dirty and old.zero)


def test_increment_that_gets_its_backing_file_later_has_whole_clusters():
    extents = dirty_extents((12, False, False), (1, True, False), (19, False, True))
    steps = plan.incremental_steps(extents, cluster=8)
    assert kinds(steps) == [(Action.SKIP, 0, 8), (Action.COPY, 8, 8), (Action.SKIP, 16, 16)]


def test_upload_zeroes_what_reads_as_zero():
    extents = zero_extents((10, DATA), (20, ZERO), (30, HOLE), (5, DATA))
    assert kinds(plan.upload_steps(extents)) == [
        (Action.COPY, 0, 10),
        (Action.ZERO, 10, 50),
        (Action.COPY, 60, 5),
    ]


def test_upload_to_zero_disk_skips_zeroes():
    extents = zero_extents((10, DATA), (20, ZERO), (30, HOLE))
    assert kinds(plan.upload_steps(extents, disk_is_zero=True)) == [(Action.COPY, 0, 10), (Action.SKIP, 10, 50)]


def test_upload_without_chain_skips_holes_and_zeroes_the_rest():
    extents = zero_extents((10, DATA), (20, ZERO), (30, HOLE))
    assert kinds(plan.upload_steps(extents, backing_chain=False)) == [
        (Action.COPY, 0, 10),
        (Action.ZERO, 10, 20),
        (Action.SKIP, 30, 30),
    ]


def test_upload_of_a_layer_zeroes_what_it_zeroes_on_a_zero_disk_as_well():
    # Below the layer the disk may hold data, which a zero of the layer hides.
    extents = zero_extents((10, DATA), (20, ZERO), (30, HOLE))
    layer = list(plan.upload_steps(extents, backing_chain=False))
    assert list(plan.upload_steps(extents, backing_chain=False, disk_is_zero=True)) == layer


def test_download_skips_zeroes_of_a_new_image():
    extents = zero_extents((10, DATA), (20, ZERO), (30, HOLE))
    assert kinds(plan.download_steps(extents)) == [(Action.COPY, 0, 10), (Action.SKIP, 10, 50)]


def test_download_to_a_device_zeroes_what_is_zero():
    extents = zero_extents((10, DATA), (20, ZERO), (30, HOLE))
    assert kinds(plan.download_steps(extents, target_is_zero=False)) == [(Action.COPY, 0, 10), (Action.ZERO, 10, 50)]


def test_download_over_backing_hides_it_where_zero_and_shows_it_where_hole():
    extents = zero_extents((10, DATA), (20, ZERO), (30, HOLE))
    assert kinds(plan.download_steps(extents, has_backing=True)) == [
        (Action.COPY, 0, 10),
        (Action.ZERO, 10, 20),
        (Action.SKIP, 30, 30),
    ]


def test_split_cuts_at_multiples_of_the_limit():
    assert list(plan.split(Step(Action.COPY, 3, 10), 4)) == [
        Step(Action.COPY, 3, 1),
        Step(Action.COPY, 4, 4),
        Step(Action.COPY, 8, 4),
        Step(Action.COPY, 12, 1),
    ]


def test_split_leaves_skip_whole():
    step = Step(Action.SKIP, 0, 8 * TiB)
    assert list(plan.split(step, MiB)) == [step]


def test_zero_is_cut_so_that_it_can_be_cancelled():
    steps = list(plan.upload_steps(zero_extents((3 * GiB, ZERO))))
    assert [s.length for s in steps] == [defaults.ZERO_LIMIT] * 3


def test_steps_are_lazy():
    def endless():
        start = 0
        while True:
            yield ZeroExtent(start, MiB, bool(start // MiB % 2), False)
            start += MiB

    steps = plan.upload_steps(endless())
    assert next(steps) == Step(Action.COPY, 0, MiB)


@pytest.mark.parametrize(
    ("size", "workers", "limit"),
    [
        (0, 4, 8 * MiB),
        (64 * MiB, 4, 8 * MiB),
        (GiB, 4, 64 * MiB),
        (GiB + 1, 4, 64 * MiB),
        (8 * TiB, 4, 128 * MiB),
        (GiB, 0, 128 * MiB),
    ],
)
def test_copy_limit_shares_an_image_among_workers(size, workers, limit):
    assert plan.copy_limit(size, workers) == limit


def test_overlay_cuts_steps_where_ranges_begin_and_end():
    steps = [Step(Action.COPY, 0, 10), Step(Action.ZERO, 10, 10), Step(Action.SKIP, 20, 10)]
    ranges = [(2, 3), (8, 4), (25, 100)]
    assert list(plan.overlay(steps, ranges)) == [
        (Step(Action.COPY, 0, 2), False),
        (Step(Action.COPY, 2, 3), True),
        (Step(Action.COPY, 5, 3), False),
        (Step(Action.COPY, 8, 2), True),
        (Step(Action.ZERO, 10, 2), True),
        (Step(Action.ZERO, 12, 8), False),
        (Step(Action.SKIP, 20, 5), False),
        (Step(Action.SKIP, 25, 5), True),
    ]


def test_overlay_passes_ranges_between_steps():
    steps = [Step(Action.COPY, 10, 10), Step(Action.COPY, 40, 10)]
    ranges = [(0, 5), (25, 5), (30, 1), (45, 1)]
    inside = [(step.offset, step.length) for step, inside in plan.overlay(steps, ranges) if inside]
    assert inside == [(45, 1)]
    assert sum(step.length for step, _ in plan.overlay(steps, ranges)) == 20


def test_resumed_plan_covers_the_image_and_leaves_out_what_is_done():
    steps = [Step(Action.COPY, 0, 100)]
    result = list(plan.resumed(steps, [(0, 40), (60, 40)]))
    assert result == [Step(Action.DONE, 0, 40), Step(Action.COPY, 40, 20), Step(Action.DONE, 60, 40)]
