# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import json
import os
import re
import socket
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imageio_testing.daemon import Daemon
from imageio_testing.serving import Runner
from ovirt_imageio import admin
from ovirt_imageio.admin import cli
from ovirt_imageio.daemon.handlers import status
from ovirt_imageio.daemon.http.registry import Connections
from ovirt_imageio.daemon.stats import Stats, Totals

SIZE = 1 << 20


def test_status_tells_what_a_transfer_waits_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(SIZE))
    with Daemon(tmp_path, tls=False) as daemon, socket.socket(socket.AF_UNIX) as sock:
        idle = daemon.add_ticket("file:///dev/null", size=0, ops=["read"])
        ticket_id = daemon.add_ticket(f"file://{disk}", size=SIZE, ops=["write"])
        sock.settimeout(30)
        sock.connect(daemon.local_socket)
        head = f"PUT /images/{ticket_id} HTTP/1.1\r\nHost: x\r\nContent-Length: {SIZE}\r\n"
        sock.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"

        assert cli.main(["status", "-c", daemon.conf_dir, "--json"]) == 0
        status = json.loads(capsys.readouterr().out)
        states = {transfer["uuid"]: transfer["state"] for transfer in status["transfers"]}
        assert states == {idle: "idle", ticket_id: "active"}
        assert status["connections"]["open"] == 1
        assert status["workers"]["busy"] <= 1  # it is given back if this takes long
        assert status["stopping"] is False
        assert status["services"]["local"] == daemon.local_socket

        assert cli.main(["list", "-c", daemon.conf_dir, "--json"]) == 0
        transfer = json.loads(capsys.readouterr().out)[1]
        (operation,) = transfer["operations"]
        assert (operation["kind"], operation["offset"], operation["length"]) == ("write", 0, SIZE)
        assert operation["age"] >= 0

        assert cli.main(["list", "-c", daemon.conf_dir]) == 0
        assert "write 1.00 MiB at 0" in capsys.readouterr().out
        assert cli.main(["status", "-c", daemon.conf_dir]) == 0
        assert "1 idle, 1 active" in capsys.readouterr().out

        sock.sendall(bytes(SIZE))
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
        with daemon.admin() as client:
            finished = client.status()["transfers"][1]["finished"]
        assert finished["write"]["size"] == SIZE
        assert finished["write"]["errors"] == 0
    assert daemon.log.count(f"used over local by unix:pid={os.getpid()},") == 1


class Tickets:
    """Two transfers that forget each other when they are asked."""

    def __init__(self, ask: Any) -> None:
        self.transfers = [SimpleNamespace(info=lambda name=name: ask(name), stats=Stats()) for name in "ab"]

    def __len__(self) -> int:
        return 2

    def first(self, limit: int) -> list[Any]:
        return self.transfers[:limit]

    def states(self) -> Counter[str]:
        return Counter(idle=2)


async def text_of(resource: status.Status, query: dict[str, str]) -> bytes:
    response = await resource.get(SimpleNamespace(query=query))  # type: ignore[arg-type]
    return b"".join([piece async for piece in response.body.pieces()])  # type: ignore[union-attr]


def told(run: Runner, resource: status.Status, **query: str) -> Any:
    return json.loads(run(text_of(resource, query)))


def test_others_have_a_turn_between_transfers() -> None:
    """Each may have a thousand operations."""
    run, order = Runner(), []

    def info(name: str) -> dict[str, str]:
        order.append(name)
        run.loop.call_soon_threadsafe(order.append, f"others after {name}")
        return {"uuid": name}

    resource = status.Status(
        run.loop,
        Tickets(info),  # type: ignore[arg-type]
        connections=Connections(run.loop, 10),
        totals=Totals(),
        services={},
        stopping=lambda: False,
    )
    document = told(run, resource)
    assert order == ["a", "others after a", "b", "others after b"]
    assert [transfer["uuid"] for transfer in document["transfers"]] == ["a", "b"]
    assert document["tickets"] == {"total": 2, "idle": 2, "active": 0, "expired": 0, "cancelling": 0, "cancelled": 0}
    assert len(told(run, resource, limit="1")["transfers"]) == 1
    run.close()


def test_long_status_is_written_while_it_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status, "_PIECE", 10)
    run = Runner()
    body = status._StatusBody(run.loop, '{"version": "3"}', Tickets(lambda name: {"uuid": name}).first(2))

    async def pieces() -> list[bytes]:
        return [piece async for piece in body.pieces()]

    found = run(pieces())
    run.close()
    assert len(found) == 3
    assert [transfer["uuid"] for transfer in json.loads(b"".join(found))["transfers"]] == ["a", "b"]


def test_as_many_transfers_are_told_of_as_the_client_asks_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with Daemon(tmp_path, tls=False) as daemon:
        for _ in range(3):
            daemon.add_ticket("file:///dev/null", size=0)
        with daemon.admin() as client:
            assert len(client.status()["transfers"]) == 3
            found = client.status(limit=2)
            assert (len(found["transfers"]), found["tickets"]["total"]) == (2, 3)
            for limit in (-1, 100_001):
                with pytest.raises(admin.ServerError, match=r"400 'limit' is .* from 0 to 100000"):
                    client.status(limit=limit)
        assert cli.main(["list", "-c", daemon.conf_dir, "--limit", "1"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert lines[-1] == "and 2 more, see --limit"
        assert cli.main(["list", "-c", daemon.conf_dir, "--limit", "2", "--json"]) == 0
        assert len(json.loads(capsys.readouterr().out)) == 2
        assert cli.main(["status", "-c", daemon.conf_dir]) == 0
        assert re.search(r"transfers +3 idle\n", capsys.readouterr().out)


def test_status_is_for_the_control_service_only(tmp_path: Path) -> None:
    with Daemon(tmp_path, tls=False) as daemon, socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(daemon.local_socket)
        sock.sendall(b"GET /status HTTP/1.1\r\nHost: x\r\n\r\n")
        assert sock.recv(1000).startswith(b"HTTP/1.1 404 ")


def test_ticket_tells_why_its_requests_fail(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gone = tmp_path / "gone.sock"
    with Daemon(tmp_path, tls=False) as daemon, socket.socket(socket.AF_UNIX) as sock:
        ticket_id = daemon.add_ticket(f"nbd:unix:{gone}", size=SIZE)
        before = daemon.ticket(ticket_id)
        assert (before["state"], before["reason"]) == ("idle", "no request came yet")
        assert "last_error" not in before
        sock.settimeout(30)
        sock.connect(daemon.local_socket)
        sock.sendall(f"GET /images/{ticket_id} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        assert sock.recv(1000).startswith(b"HTTP/1.1 500 ")
        error = daemon.ticket(ticket_id)["last_error"]
        assert error["age"] >= 0
        assert str(gone) in error["text"]
        assert cli.main(["list", "-c", daemon.conf_dir]) == 0
        assert str(gone) in capsys.readouterr().out
