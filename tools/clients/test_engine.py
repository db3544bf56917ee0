# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The engine: tickets of its own daemon, which is a proxy, and the monitor of transfers.

Source: oVirt/ovirt-engine, ovirt-engine-4.5.7-57-g0111fc63036,
    - bll/storage/disk/image/ImageioClient.java: the calls, and what is read from their answers.
    - bll/storage/disk/image/TransferDiskImageCommand.java: the tickets, the monitor, the end of a transfer.
    - common/businessentities/storage/ImageTicket.java: keys of a ticket.
    - vdsbroker/vdsbroker/GetImageTicketVDSCommand.java: types of what the monitor reads.
    - packaging/setup/plugins/ovirt-engine-setup/ovirt_imageio/config.py: reads ``--show-config``.

A status of 300 or more is an exception; its body is read to the end and logged. Any other answer is read and
thrown away, that to GET is JSON. Tickets on the hosts go by vdsm, see test_vdsm.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from clients import manager
from clients.host import Host, raw_volume
from clients.wire import HttpCore
from conformance.storage import pattern
from imageio_testing import nbdpeer
from ovirt_imageio.common.nbd import wire as nbdwire

SIZE = 1 << 20
DATA = pattern(SIZE)


@pytest.fixture
def engine(engine_host: Host) -> HttpCore:
    assert isinstance(engine_host.control, int)
    return HttpCore(engine_host.control)


def ticket(url: str, op: str, **keys: Any) -> dict[str, Any]:
    """A ticket as the engine makes it: these keys always, `filename` only for a browser."""
    return {
        "uuid": str(uuid.uuid4()),
        "timeout": 3600,
        "inactivity_timeout": 60,
        "size": SIZE,
        "url": url,
        "ops": [op],
        "sparse": False,
        "transfer_id": str(uuid.uuid4()),
        "dirty": False,
        **keys,
    }


def put(engine: HttpCore, document: dict[str, Any]) -> str:
    """Add a ticket and return its target."""
    target = f"/tickets/{document['uuid']}"
    response = engine.request("PUT", target, json.dumps(document).encode())
    assert response.status < 300, response
    return target


def information(engine: HttpCore, target: str) -> dict[str, Any]:
    """Read a ticket as the engine does; checks the types that it casts to."""
    response = engine.request("GET", target)
    assert response.status < 300, response
    info = response.json()
    types = {"size": int, "url": str, "timeout": int, "active": bool, "idle_time": int, "expires": int, "uuid": str}
    for key, kind in types.items():
        assert type(info[key]) is kind, (key, info)
    assert abs(info["idle_time"]) < 1 << 31
    assert set(info["ops"]) <= {"read", "write"}
    uuid.UUID(info["uuid"])
    return dict(info)


def test_ticket_lives_and_goes(engine, tmp_path):
    document = ticket(raw_volume(tmp_path / "disk", SIZE), "write")
    target = put(engine, document)
    info = information(engine, target)
    assert (info["active"], info["transferred"], info["size"]) == (False, 0, SIZE)
    assert engine.request("PATCH", target, json.dumps({"timeout": 300}).encode()).status < 300
    assert engine.request("DELETE", target).status < 300
    assert engine.request("DELETE", target).status < 300  # again, after a restart of the engine


def test_missing_ticket_is_said_in_status_and_reason(engine):
    for method, body in (("GET", None), ("PATCH", b'{"timeout": 300}')):
        response = engine.request(method, f"/tickets/{uuid.uuid4()}", body)
        assert (response.status, response.reason) == (404, "Not Found")
        assert response.body


def test_refused_ticket_is_said(engine):
    target = f"/tickets/{uuid.uuid4()}"
    assert engine.request("PUT", target, b'{"uuid": "x"}').status >= 300


def test_ticket_that_never_ends_for_inactivity(engine, engine_host, host, tmp_path):
    """A transfer that shall not end for inactivity has the timeout 0.

    2.5.1 takes such a ticket, and then waits for nothing on its connections. A request that has not come as a whole
    fails, and the connection ends after one. So its requests are not tried here.
    """
    ticket_id = host.add_ticket(raw_volume(tmp_path / "disk", SIZE), SIZE, ["write"], inactivity_timeout=0)
    target = put(engine, ticket(host.image_url(ticket_id), "write", uuid=ticket_id, inactivity_timeout=0))
    assert engine.request("GET", target).json()["inactivity_timeout"] == 0
    if host.generation.name == "2.5.1":
        return
    for daemon in (host, engine_host):
        with daemon.connect() as client:
            assert client.request("PUT", f"/images/{ticket_id}?flush=n", body=DATA).status == 200
            assert client.request("PATCH", f"/images/{ticket_id}", body=b'{"op": "flush"}').status == 200
    assert (tmp_path / "disk").read_bytes() == DATA


def test_dirty_ticket_with_a_name_for_the_browser(engine, tmp_path):
    document = ticket(raw_volume(tmp_path / "disk", SIZE), "read", filename="Größe 1.qcow2", dirty=True, sparse=True)
    assert engine.request("GET", put(engine, document)).json()["filename"] == "Größe 1.qcow2"


def test_proxy_moves_a_disk_of_a_host(engine, engine_host, host, tmp_path):
    """The ticket of the proxy has the id of the host's, and its URL."""
    url = raw_volume(tmp_path / "disk", SIZE)
    with proxied(engine, host, url, "write") as ticket_id, engine_host.connect() as client:
        assert client.request("PUT", f"/images/{ticket_id}", body=DATA).status == 200
    assert (tmp_path / "disk").read_bytes() == DATA
    with proxied(engine, host, url, "read") as ticket_id, engine_host.connect() as client:
        assert client.request("GET", f"/images/{ticket_id}").body == DATA


def test_proxy_of_old_engines_trusts_the_authority_of_tls(generation, host, pki, tmp_path):
    """Before 4.4.2.3 the engine wrote no section backend_http."""
    folder = tmp_path / "engine"
    folder.mkdir()
    config = {"control": {"port": 0}}
    with Host(generation, folder, pki, dropins=manager.ENGINE_4_4_0, config=config) as engine_host:
        assert isinstance(engine_host.control, int)
        url = raw_volume(tmp_path / "disk", SIZE, DATA)
        with proxied(HttpCore(engine_host.control), host, url, "read") as ticket_id, engine_host.connect() as client:
            assert client.request("GET", f"/images/{ticket_id}").body == DATA


def test_monitor_follows_an_upload(host, tmp_path):
    """A running transfer is active and not idle; what storage has acknowledged is counted, and no more."""
    url = raw_volume(tmp_path / "disk", 0)
    ticket_id = host.add_ticket(url, SIZE, ["write"])
    half = SIZE // 2
    with host.connect() as client:
        assert client.request("PUT", f"/images/{ticket_id}?flush=n", body=DATA[:half]).status == 200
        info = host.ticket(ticket_id)
        assert (info["transferred"], info["active"]) == (half, False)
        head = f"PUT /images/{ticket_id} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {half}\r\n"
        client.send(f"{head}Content-Range: bytes {half}-{SIZE - 1}/{SIZE}\r\n\r\n".encode())
        client.send(DATA[half : half + 4096])
        info = host.wait(ticket_id, active=True)
        assert info["idle_time"] == 0
        assert half <= info["transferred"] <= half + 4096
        client.send(DATA[half + 4096 :])
        assert client.response("PUT").status == 200
    info = host.ticket(ticket_id)
    assert (info["transferred"], info["active"]) == (SIZE, False)
    assert (tmp_path / "disk").read_bytes() == DATA


def test_monitor_sees_a_download_end(host, tmp_path):
    """A browser's download is finalized when all is transferred, and nothing is active."""
    ticket_id = host.add_ticket(raw_volume(tmp_path / "disk", SIZE, DATA), SIZE, ["read"])
    with host.connect() as client:
        assert client.request("GET", f"/images/{ticket_id}?close=y").body == DATA
        assert client.ended()
    info = host.ticket(ticket_id)
    assert (info["transferred"], info["active"]) == (SIZE, False)


def test_busy_ticket_is_removed_at_last(generation, pki, tmp_path):
    """The engine deletes again after a refusal, as long as it takes; one with another status left backups stuck.

    2.5.1 waits for storage, and refuses after `remove_timeout`. Ours ends the wait for storage.
    """
    gate = threading.Event()
    config = {"control": {"port": 0, "remove_timeout": 1}}
    with slow_storage(gate) as url, Host(generation, tmp_path, pki, dropins=manager.ENGINE, config=config) as daemon:
        assert isinstance(daemon.control, int)
        engine = HttpCore(daemon.control)
        target = put(engine, document := ticket(url, "read"))
        with daemon.connect() as client:
            client.send(f"GET /images/{document['uuid']} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
            daemon.wait(document["uuid"], active=True)
            while (response := engine.request("DELETE", target)).status >= 300:
                assert (response.status, response.reason) == (409, "Conflict")
                gate.set()
        gate.set()
        assert engine.request("GET", target).status == 404


def test_setup_reads_the_port(engine_host):
    command = [engine_host.generation.command("ovirt-imageio"), "-c", engine_host.conf_dir, "--show-config"]
    config = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
    assert config["remote"]["port"] == 0  # of the file; 54322 tells that a host is set up here


@contextlib.contextmanager
def proxied(engine: HttpCore, host: Host, url: str, op: str) -> Iterator[str]:
    """Add a ticket to the host, then to the proxy; remove them in that order."""
    ticket_id = host.add_ticket(url, SIZE, [op])
    target = put(engine, ticket(host.image_url(ticket_id), op, uuid=ticket_id))
    yield ticket_id
    assert host.remove_ticket(ticket_id) < 300
    assert engine.request("DELETE", target).status < 300


@contextlib.contextmanager
def slow_storage(gate: threading.Event) -> Iterator[str]:
    """Serve a disk by NBD that answers no read before the gate opens."""

    class Talk(nbdpeer.Talk):
        def answer(self, image: nbdpeer.Image, asked: nbdpeer.Asked) -> None:
            if asked.command == nbdwire.CMD_READ:
                gate.wait(30)
            super().answer(image, asked)

    image = nbdpeer.Image(bytearray(SIZE))
    with nbdpeer.Peer(lambda talk: Talk(talk.sock).serve(image)) as peer:
        yield f"nbd:unix:{peer.address.path}"
