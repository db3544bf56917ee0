# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import pytest

from ovirt_imageio.daemon import memory


@pytest.mark.parametrize(
    ("counts", "trims"),
    [
        ([0, 1000, 900, 250], 1),
        ([1000, 0, 0, 0], 1),
        ([1000, 0, 1000, 0], 2),
        ([1000, 500, 400, 300], 0),
        ([199, 0], 0),
        ([], 0),
    ],
)
def test_memory_is_trimmed_once_when_most_connections_have_ended(counts: list[int], trims: int) -> None:
    calls: list[None] = []
    tidier = memory.Tidier(lambda: calls.append(None))
    for count in counts:
        tidier.look(count)
    assert len(calls) == trims


def test_trim_works_here() -> None:
    memory.trim()
