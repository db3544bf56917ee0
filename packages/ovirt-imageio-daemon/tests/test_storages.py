# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import pytest

from ovirt_imageio.daemon.storages import Storages


class Pool:
    def __init__(self):
        self.told = []

    def flush_refused(self, error):
        self.told.append(error)


@pytest.fixture
def storages():
    return Storages()


def test_all_pools_of_a_storage_are_told_and_no_other(storages):
    pools = {name: Pool() for name in ("a1", "a2", "b1")}
    for name, pool in pools.items():
        storages.join(name[0], pool)
        storages.join(name[0], pool)
    error = OSError()
    storages.flush_refused("a", error)
    storages.flush_refused("c", error)
    assert [pool.told for pool in pools.values()] == [[error], [error], []]


def test_pool_that_left_is_not_told(storages):
    first, second = Pool(), Pool()
    storages.join("a", first)
    storages.join("a", second)
    storages.leave("a", first)
    storages.flush_refused("a", OSError())
    assert (len(first.told), len(second.told)) == (0, 1)


def test_storage_without_pools_is_forgotten(storages):
    pools = [Pool() for _ in range(3)]
    for pool in pools:
        storages.join("a", pool)
    assert len(storages) == 1
    for pool in pools:
        storages.leave("a", pool)
        storages.leave("a", pool)
        storages.leave("never seen", pool)
    assert len(storages) == 0


def test_pool_may_leave_while_it_is_told(storages):
    first, second = Pool(), Pool()
    first.flush_refused = lambda error: storages.leave("a", first)
    storages.join("a", first)
    storages.join("a", second)
    storages.flush_refused("a", OSError())
    assert len(second.told) == 1
