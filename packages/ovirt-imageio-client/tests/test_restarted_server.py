# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""An upload succeeds only if all of it is there, also if its server was killed before a flush."""

from __future__ import annotations

import os
import random
import threading

import pytest

from imageio_testing.imageserver import ScriptedServer, VolatileImage, response
from ovirt_imageio import client
from ovirt_imageio.client import api, plan, streaming, transfer
from ovirt_imageio.client.executor import Retry
from ovirt_imageio.client.gaveup import GaveUp
from ovirt_imageio.common.backends.http import WritesLost
from ovirt_imageio.common.errors import ImageioError, TransferError
from ovirt_imageio.common.units import MiB

SIZE = 8 * MiB
WORKERS = [1, 4]


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(Retry, "pause", lambda self, failures: 0.0)
    monkeypatch.setattr(plan, "SHORTEST_CUT", MiB // 2)
    monkeypatch.setattr(plan, "copy_limit", lambda size, workers: MiB // 2)
    monkeypatch.setattr(streaming, "STEP", MiB)


@pytest.fixture
def source(tmp_path):
    """A raw image: data, and zeroes that the server is told of."""
    data = bytearray(random.Random(2).randbytes(SIZE))
    data[3 * MiB : 5 * MiB] = bytes(2 * MiB)
    path = tmp_path / "disk.raw"
    path.write_bytes(data)
    return path


class Server(ScriptedServer):
    """A server that is killed when a request comes, of those that match.

    Args:
        tells: It is one of version 3, else of 2.5.1.
        op: The request that is counted: `PUT`, or `flush`.
        kills: At which of them the server is killed, before it is carried out.
    """

    def __init__(self, tells, op, kills):
        self.image = VolatileImage(bytearray(b"\xff" * SIZE), tells=tells)
        self._op = op
        self.kills = kills
        self._seen = self.killed = 0
        self._lock = threading.Lock()
        super().__init__(self._answer)

    def _answer(self, got):
        with self._lock:
            kind = "flush" if got.method == "PATCH" and b"flush" in got.body[:14] else got.method
            if kind == self._op:
                self._seen += 1
                if self._seen in self.kills:
                    self.killed += 1
                    self.image.restart(self)
                    return None
            return self.image(got)


@pytest.fixture(params=[True, False], ids=["tells", "2.5.1"])
def tells(request):
    return request.param


def upload(source, server, **arguments):
    return client.upload(str(source), server.url, None, **arguments)


@pytest.mark.parametrize("workers", WORKERS)
@pytest.mark.parametrize(
    ("op", "kills"),
    [("flush", [1]), ("flush", [1, 2]), ("PUT", [3]), ("PUT", [9]), ("PUT", [5, 10])],
    ids=["before the flush", "before both", "early", "late", "twice"],
)
def test_upload_is_whole_whenever_its_server_is_killed(source, tells, workers, op, kills):
    with Server(tells, op, kills) as server:
        result = upload(source, server, max_workers=workers)
        assert server.killed == len(kills)
    assert server.image.stable == source.read_bytes()
    assert result.moved + result.zeroed == SIZE
    assert result.retries > 0


@pytest.mark.parametrize("workers", WORKERS)
def test_progress_counts_each_byte_once_though_it_is_sent_again(source, tells, workers):
    counted = []
    with Server(tells, "flush", [1]) as server:
        upload(source, server, max_workers=workers, progress=counted.append)
    assert sum(counted) == SIZE


def test_verified_upload_is_whole(source, tells):
    with Server(tells, "flush", [1]) as server:
        server.image.features = server.image.document["features"] = ("extents", "flush", "zero")
        upload(source, server, max_workers=2, verify=True)
    assert server.image.stable == source.read_bytes()


def test_resumed_upload_relies_on_nothing_that_was_lost(source, tells, tmp_path, monkeypatch):
    journal = tmp_path / "journal"
    monkeypatch.setattr(transfer, "CHECKPOINT_LENGTH", MiB)
    with Server(tells, "PUT", range(7, 1000)) as server:
        with pytest.raises(ImageioError):
            upload(source, server, max_workers=1, resume=True, journal=str(journal))
        server.kills = ()
        assert upload(source, server, max_workers=1, resume=True, journal=str(journal)).resumed > 0
    assert server.image.stable == source.read_bytes()


def test_upload_to_a_server_that_is_killed_each_time_gives_up_and_says_why(source, tells):
    with Server(tells, "PUT", []) as server:
        # Each flush is answered, by a server that was killed just before.
        server.image.before_flush = lambda: server.image.restart(server)
        with pytest.raises(GaveUp, match="cannot flush"):
            upload(source, server, max_workers=1, retries=3)


def test_lost_connection_alone_sends_nothing_again_where_the_server_tells(source):
    with Server(True, "", []) as server:
        honest, numbers = server.image.do_put, iter(range(100))

        def put(got, query):
            answer = honest(got, query)
            if next(numbers) != 4:
                return answer
            server.hang_up()
            return None

        server.image.do_put = put
        upload(source, server, max_workers=1)
        sent = sum(got.length for got in server.requests if got.method == "PUT")
    assert server.image.stable == source.read_bytes()
    assert sent == 6 * MiB + MiB // 2  # the data, and the one request that was not answered


def test_no_more_than_a_part_is_sent_again_where_the_server_does_not_tell(source, monkeypatch):
    monkeypatch.setattr(api, "UNTOLD_LENGTH", MiB)
    with Server(False, "PUT", [11]) as server:
        upload(source, server, max_workers=1)
        flushes = server.image.flushes
        sent = sum(got.length for got in server.requests if got.method == "PUT")
    assert server.image.stable == source.read_bytes()
    assert flushes >= 6
    assert sent <= SIZE


def test_stream_is_sent_again_from_its_window_where_the_server_does_not_tell(source):
    with Server(False, "PUT", [4]) as server, open(source, "rb") as f:
        streaming.upload(f.fileno(), server.url, None)
    assert server.image.stable == source.read_bytes()


def test_stream_that_cannot_be_read_again_fails_and_says_why(source):
    with Server(True, "PUT", [4]) as server, open(source, "rb") as f:
        with pytest.raises(TransferError, match="was restarted.*may be lost; standard input cannot be read again"):
            streaming.upload(f.fileno(), server.url, None)


def test_client_learns_of_the_loss_at_its_flush(tells):
    data = os.urandom(4096)
    with Server(tells, "", []) as server, client.ImageioClient(server.url) as c:
        c.write(0, data)
        server.image.restart(server)
        for _ in range(2):
            with pytest.raises(WritesLost, match="may be lost"):
                c.flush()
        with client.ImageioClient(server.url) as again:
            again.write(0, data)
            again.flush()
    assert server.image.stable[:4096] == data


def test_client_is_not_told_of_success_after_a_flush_that_storage_refused(tells):
    with Server(tells, "", []) as server, client.ImageioClient(server.url) as c:
        honest, answers = server.image.do_patch, [response(500, b"the storage failed\n")]
        server.image.do_patch = lambda got, query: got.body and answers.pop() if answers else honest(got, query)
        c.write(0, b"x")
        for _ in range(2):
            with pytest.raises(ImageioError, match="the storage failed"):
                c.flush()
