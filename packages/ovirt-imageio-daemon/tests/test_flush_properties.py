# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Flushed data is there, whatever is asked of two pools of one storage, and whenever its server crashes."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from soak.model import SECTOR, Model, content

from imageio_testing.serving import Runner
from imageio_testing.volatile import Volatile, coin
from ovirt_imageio.common import backends
from ovirt_imageio.common.errors import ImageioError
from ovirt_imageio.daemon.operations import FLUSH, WRITE, ZERO, Operation
from ovirt_imageio.daemon.pool import Pool
from ovirt_imageio.daemon.storages import Storages

SECTORS = 64

tickets = st.sampled_from([0, 0, 1])
ranges = st.tuples(st.integers(0, SECTORS - 8), st.integers(1, 8))
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["write", "change", "zero"]), tickets, ranges, st.booleans()),
        st.tuples(st.just("flush"), tickets),
        st.tuples(st.sampled_from(["crash", "drop", "fail"]), st.integers(0, 100)),
    ),
    max_size=25,
)


def write_in_worker(backend, op, offset, data):
    backend.write(offset, data)
    op.advance(len(data))


class Script:
    """Carries out steps against the pools of two tickets and a model of what is stable."""

    def __init__(self, server, pools):
        self.server = server
        self.pools = pools
        self.model = Model(SECTORS)

    async def run(self, steps):
        for name, *arguments in steps:
            if name in ("write", "change", "zero"):
                ticket, (first, count), flush = arguments
                await self.change(name, ticket, first, count, flush)
            elif name == "flush":
                await self.flush(*arguments)
            elif name == "crash":
                self.server.crash(coin(arguments[0]))
            elif name == "drop":
                connections = self.server.connections
                self.server.drop(*connections[arguments[0] % 3 :][:1])
            else:
                self.server.flush_errors = [5]
        for pool in self.pools:
            await pool.close()

    async def change(self, name, ticket, first, count, flush):
        pool = self.pools[ticket]
        change = self.model.begin(first, count, zero=name == "zero")
        offset, data = first * SECTOR, content(first, count, change.version)
        covered = self.model.flush_begins(ticket)
        with contextlib.suppress(ImageioError, OSError):
            if name == "write":
                await pool.write(Operation(WRITE, offset, len(data)), offset, data, flush=flush)
            elif name == "change":
                op = Operation(WRITE, offset, len(data))
                await pool.change(op, write_in_worker, offset, data, flush=flush)
            else:
                await pool.zero(Operation(ZERO, offset, len(data)), offset, len(data), flush=flush)
            self.model.acknowledge(change, ticket)
            if flush:
                self.model.flushed([*covered, change])

    async def flush(self, ticket):
        covered = self.model.flush_begins(ticket)
        with contextlib.suppress(ImageioError, OSError):
            await self.pools[ticket].flush(Operation(FLUSH))
            self.model.flushed(covered)


@pytest.mark.parametrize("multi_conn", [True, False], ids=["multi-conn", "single-conn"])
@pytest.mark.parametrize("fast", [True, False], ids=["shared", "workers"])
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=steps, seed=st.integers(0, 1000))
# The connection that a worker wrote with becomes that of small requests, and a flush over it fails.
@example(
    steps=[
        ("flush", 0),
        ("crash", 0),
        ("change", 0, (0, 2), False),
        ("fail", 0),
        ("write", 0, (0, 1), True),
        ("write", 0, (0, 1), True),
    ],
    seed=0,
)
# The flush of another ticket fails.
@example(steps=[("write", 0, (0, 2), False), ("fail", 0), ("flush", 1), ("flush", 0)], seed=0)
def test_flushed_content_survives(multi_conn, fast, steps, seed):
    with Volatile(SECTORS * SECTOR, multi_conn=multi_conn) as server:
        runner = Runner()
        try:
            storages = Storages()
            options = {"fast": fast, "limit": 3, "identify": lambda: server.url, "storages": storages}
            pools = [Pool(runner.loop, lambda: backends.open(server.url, mode="r+"), **options) for _ in range(2)]
            script = Script(server, pools)
            runner(script.run(steps))
            server.crash(coin(seed))
            verdict = script.model.compare(bytes(server.stable))
            assert not verdict.problems
            assert not len(storages)
        finally:
            runner.close()
