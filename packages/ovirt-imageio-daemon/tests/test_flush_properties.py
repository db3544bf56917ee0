# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Whatever is asked of a pool, and whenever its server crashes: what was flushed is there."""

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

SECTORS = 64
EPOCH = 1

ranges = st.tuples(st.integers(0, SECTORS - 8), st.integers(1, 8))
steps = st.lists(
    st.one_of(
        st.tuples(st.sampled_from(["write", "change", "zero"]), ranges, st.booleans()),
        st.tuples(st.sampled_from(["flush", "flush", "crash", "drop", "fail"]), st.integers(0, 100)),
    ),
    max_size=25,
)


def write_in_worker(backend, op, offset, data):
    backend.write(offset, data)
    op.advance(len(data))


class Script:
    """Carries out steps against a pool and a model of what is stable."""

    def __init__(self, server, pool):
        self.server = server
        self.pool = pool
        self.model = Model(SECTORS)

    async def run(self, steps):
        for name, *arguments in steps:
            if name in ("write", "change", "zero"):
                (first, count), flush = arguments
                await self.change(name, first, count, flush)
            elif name == "flush":
                await self.flush()
            elif name == "crash":
                self.server.crash(coin(arguments[0]))
            elif name == "drop":
                connections = self.server.connections
                self.server.drop(*connections[arguments[0] % 3 :][:1])
            else:
                self.server.flush_errors = [5]
        await self.pool.close()

    async def change(self, name, first, count, flush):
        change = self.model.begin(first, count, zero=name == "zero")
        offset, data = first * SECTOR, content(first, count, change.version)
        covered = self.model.flush_begins(EPOCH)
        with contextlib.suppress(ImageioError, OSError):
            if name == "write":
                await self.pool.write(Operation(WRITE, offset, len(data)), offset, data, flush=flush)
            elif name == "change":
                op = Operation(WRITE, offset, len(data))
                await self.pool.change(op, write_in_worker, offset, data, flush=flush)
            else:
                await self.pool.zero(Operation(ZERO, offset, len(data)), offset, len(data), flush=flush)
            self.model.acknowledge(change, EPOCH)
            if flush:
                self.model.flushed([*covered, change])

    async def flush(self):
        covered = self.model.flush_begins(EPOCH)
        with contextlib.suppress(ImageioError, OSError):
            await self.pool.flush(Operation(FLUSH))
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
        ("change", (0, 2), False),
        ("fail", 0),
        ("write", (0, 1), True),
        ("write", (0, 1), True),
    ],
    seed=0,
)
def test_flushed_content_survives(multi_conn, fast, steps, seed):
    with Volatile(SECTORS * SECTOR, multi_conn=multi_conn) as server:
        runner = Runner()
        try:
            pool = Pool(runner.loop, lambda: backends.open(server.url, mode="r+"), fast=fast, limit=3)
            script = Script(server, pool)
            runner(script.run(steps))
            server.crash(coin(seed))
            verdict = script.model.compare(bytes(server.stable))
            assert not verdict.problems
        finally:
            runner.close()
