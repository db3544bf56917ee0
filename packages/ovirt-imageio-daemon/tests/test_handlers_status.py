# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from imageio_testing.daemon import Daemon
from imageio_testing.serving import Runner
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


def test_others_have_a_turn_between_transfers() -> None:
    """Each may have a thousand operations; what was removed meanwhile is told of all the same."""
    run, order = Runner(), []
    transfers: dict[str, Any] = {}

    def info(name: str) -> dict[str, str]:
        order.append(name)
        run.loop.call_soon_threadsafe(order.append, f"others after {name}")
        run.loop.call_soon_threadsafe(transfers.clear)
        return {"uuid": name}

    for name in ("a", "b"):
        transfers[name] = SimpleNamespace(info=lambda name=name: info(name), stats=Stats())
    resource = status.Status(
        run.loop,
        transfers.values(),
        connections=Connections(run.loop, 10),
        totals=Totals(),
        services={},
        stopping=lambda: False,
    )
    response = run(resource.get(SimpleNamespace()))  # type: ignore[arg-type]
    run.close()
    assert order == ["a", "others after a", "b", "others after b"]
    assert [transfer["uuid"] for transfer in json.loads(response.body)["transfers"]] == ["a", "b"]


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
