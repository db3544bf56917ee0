# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The local service proves that it belongs to the server that a client speaks to by TLS."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from imageio_testing.daemon import Daemon
from imageio_testing.httppeer import HttpPeer, Response, request_head
from ovirt_imageio.common import sameserver

pytestmark = pytest.mark.system

NONCE = bytes(16)


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("daemon")) as daemon:
        yield daemon


def ask(peer: HttpPeer, path: str = "/images/*", challenge: str = "") -> Response:
    fields = [("Imageio-Challenge", challenge)] if challenge else []
    with peer:
        peer.send(request_head("OPTIONS", path, headers=fields))
        return peer.response("OPTIONS")


def by_tls(daemon: Daemon) -> HttpPeer:
    return HttpPeer.tls("localhost", daemon.port, ca_file=daemon.ca_file)


def key_of(daemon: Daemon) -> sameserver.Key:
    return sameserver.parse_key(ask(by_tls(daemon)).json()["unix_socket_proof"])


def test_local_service_answers_for_a_key_given_by_tls(daemon: Daemon) -> None:
    key = key_of(daemon)
    challenge = sameserver.make_challenge(key, NONCE)
    response = ask(HttpPeer.unix(daemon.local_socket), challenge=challenge)
    assert response.status == 200
    assert sameserver.holds(key, challenge, response.header("Imageio-Proof") or "")


def test_each_client_gets_a_key_of_its_own(daemon: Daemon) -> None:
    assert key_of(daemon) != key_of(daemon)


def test_ticket_gets_a_key_as_well(daemon: Daemon, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(4096))
    ticket_id = daemon.add_ticket(f"file://{disk}", size=4096, ops=["read"])
    assert "unix_socket_proof" in ask(by_tls(daemon), f"/images/{ticket_id}").json()


def test_remote_service_answers_no_challenge(daemon: Daemon) -> None:
    """A program that owns the name on another host could pass the challenge on."""
    challenge = sameserver.make_challenge(key_of(daemon), NONCE)
    assert ask(by_tls(daemon), challenge=challenge).header("Imageio-Proof") is None


def test_local_service_gives_no_keys(daemon: Daemon) -> None:
    assert "unix_socket_proof" not in ask(HttpPeer.unix(daemon.local_socket)).json()


@pytest.mark.parametrize("service", ["local", "remote"])
@pytest.mark.parametrize("challenge", ["x", "0" * 32, "0" * 64])
def test_malformed_challenge_is_400(daemon: Daemon, challenge: str, service: str) -> None:
    peer = by_tls(daemon) if service == "remote" else HttpPeer.unix(daemon.local_socket)
    response = ask(peer, challenge=challenge)
    assert response.status == 400
    assert response.text.startswith("invalid Imageio-Challenge: expected two words")


def test_no_keys_without_tls(tmp_path: Path) -> None:
    with Daemon(tmp_path, tls=False) as daemon:
        document = ask(HttpPeer.tcp("127.0.0.1", daemon.port)).json()
    assert document["unix_socket"] == daemon.local_socket
    assert "unix_socket_proof" not in document


def test_no_keys_without_a_local_service(tmp_path: Path) -> None:
    with Daemon(tmp_path, config={"local": {"enable": "false"}}) as daemon:
        assert "unix_socket_proof" not in ask(by_tls(daemon)).json()
