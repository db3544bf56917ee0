# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""TLS as a client sees it: records on a raw socket, and openssl's own client.

The client is at security level 0 and would speak any version. So a refusal comes from the server,
and its alert says so (RFC 8446 §6.2).
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.machine import usage
from imageio_testing.daemon import Daemon, DaemonFailed
from imageio_testing.httppeer import HttpPeer, request_head
from imageio_testing.keyupdates import KeyUpdater
from imageio_testing.pki import Pki, make_pki
from imageio_testing.qemu import needs

SIZE = 1 << 20
ALERT, HANDSHAKE = 21, 22  # types of records, RFC 8446 §5.1
FATAL, PROTOCOL_VERSION = 2, 70  # RFC 8446 §6

pytestmark = [pytest.mark.system, pytest.mark.filterwarnings("ignore::DeprecationWarning")]


@pytest.fixture(scope="module")
def daemon(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Daemon]:
    with Daemon(tmp_path_factory.mktemp("default"), pki=pki) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def lax(tmp_path_factory: pytest.TempPathFactory, pki: Pki) -> Iterator[Daemon]:
    """A daemon with enable_tls1_1."""
    try:
        with Daemon(tmp_path_factory.mktemp("lax"), pki=pki, config={"tls": {"enable_tls1_1": True}}) as daemon:
            yield daemon
    except DaemonFailed as e:
        if "TLS library refuses TLS 1.1" not in str(e):
            raise
        pytest.skip("the TLS library of this system forbids TLS 1.1")


def client(version: str) -> ssl.SSLContext:
    """A client of one version, at security level 0."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    return context


def first_record(daemon: Daemon, context: ssl.SSLContext) -> tuple[int, bytes]:
    """Send a ClientHello; return type and content of the record that answers."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = context.wrap_bio(incoming, outgoing)
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    hello = outgoing.read()
    assert hello[0] == HANDSHAKE, "this system's library does not send such a ClientHello"
    with socket.create_connection(("localhost", daemon.port), 10) as sock:
        sock.sendall(hello)
        with sock.makefile("rb") as stream:
            head = stream.read(5)
            return head[0], stream.read(int.from_bytes(head[3:], "big"))


@pytest.mark.parametrize("version", ["TLSv1", "TLSv1_1"])
def test_old_version_is_refused_by_an_alert(daemon: Daemon, version: str) -> None:
    assert first_record(daemon, client(version)) == (ALERT, bytes([FATAL, PROTOCOL_VERSION]))


@pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])
def test_current_version_is_spoken(daemon: Daemon, version: str) -> None:
    assert first_record(daemon, client(version))[0] == HANDSHAKE
    with HttpPeer.tls("localhost", daemon.port, context=client(version)) as peer:
        assert peer.socket.version() == version.replace("_", ".")  # type: ignore[attr-defined]
        assert peer.request("GET", "/info/").status == 200


def test_tls1_0_is_refused_even_where_1_1_is_enabled(lax: Daemon) -> None:
    assert first_record(lax, client("TLSv1")) == (ALERT, bytes([FATAL, PROTOCOL_VERSION]))


def test_tls1_1_is_spoken_where_enabled(lax: Daemon) -> None:
    with HttpPeer.tls("localhost", lax.port, context=client("TLSv1_1")) as peer:
        assert peer.socket.version() == "TLSv1.1"  # type: ignore[attr-defined]
        assert peer.request("GET", "/info/").status == 200


def test_fallback_is_recognized(daemon: Daemon) -> None:
    """A client that was made to offer less than it can says so, and is told: RFC 7507."""
    context = client("TLSv1_2")
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        context.wrap_bio(incoming, outgoing).do_handshake()
    hello = bytearray(outgoing.read())
    session = 5 + 4 + 2 + 32  # record, handshake, version, random: the session id comes next
    suites = session + 1 + hello[session] + 2
    hello[suites : suites + 2] = b"\x56\x00"  # TLS_FALLBACK_SCSV in place of the first suite
    with socket.create_connection(("localhost", daemon.port), 10) as sock:
        sock.sendall(hello)
        assert sock.recv(7)[5:] == bytes([FATAL, 86]), "inappropriate_fallback"


@needs("openssl")
def test_renegotiation_is_refused_and_hurts_nobody(daemon: Daemon) -> None:
    command = ["openssl", "s_client", "-tls1_2", "-connect", f"localhost:{daemon.port}"]
    done = subprocess.run(command, input=b"R\n", capture_output=True, timeout=20, check=False)
    assert b"RENEGOTIATING" in done.stdout + done.stderr
    assert b"no renegotiation" in done.stdout + done.stderr
    with HttpPeer.tls("localhost", daemon.port, ca_file=daemon.ca_file) as peer:
        assert peer.request("GET", "/info/").status == 200


@needs("openssl")
def test_secure_renegotiation_is_signalled_and_no_compression(daemon: Daemon) -> None:
    command = ["openssl", "s_client", "-tls1_2", "-connect", f"localhost:{daemon.port}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, timeout=20, check=False)
    assert b"Secure Renegotiation IS supported" in done.stdout  # RFC 5746; it protects the first handshake
    assert b"Compression: NONE" in done.stdout


@pytest.mark.parametrize("first", [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", b"PUT /images/x HTTP/1.1\r\n", b"\r\n"])
def test_plain_http_is_told_what_this_port_speaks(daemon: Daemon, first: bytes) -> None:
    with HttpPeer.tcp("localhost", daemon.port) as peer:
        peer.send(first)
        response = peer.response()
        assert (response.status, response.text) == (400, "this port speaks HTTPS, not plain HTTP\n")
        assert peer.ended()


# Renewal.


@pytest.fixture
def renewable(tmp_path: Path) -> Iterator[tuple[Daemon, Path]]:
    """A daemon and the folder of its keys. It looks at the files on SIGHUP only, or every minute."""
    folder = tmp_path / "pki"
    folder.mkdir()
    disk = tmp_path / "disk"
    disk.write_bytes(bytes(SIZE))
    with Daemon(tmp_path, pki=make_pki(folder), config={"daemon": {"poll_interval": 60}}) as daemon:
        yield daemon, folder


def served(daemon: Daemon) -> str:
    return ssl.get_server_certificate(("localhost", daemon.port))


def test_connection_outlives_the_certificate_it_began_with(renewable: tuple[Daemon, Path]) -> None:
    daemon, folder = renewable
    with HttpPeer.tls("localhost", daemon.port, ca_file=daemon.ca_file) as old:
        assert old.request("GET", "/info/").status == 200
        before = served(daemon)
        make_pki(folder)
        assert served(daemon) == before, "nobody has told the daemon yet"
        daemon.send_signal(signal.SIGHUP)
        daemon.wait_for_log("TLS files loaded again")
        assert served(daemon) != before
        assert old.request("GET", "/info/").status == 200
    with HttpPeer.tls("localhost", daemon.port, ca_file=str(folder / "ca.pem")) as new:
        assert new.request("GET", "/info/").status == 200


@pytest.mark.parametrize("name", ["key.pem", "cert.pem"])
def test_broken_file_is_refused_on_sighup_and_the_old_one_kept(renewable: tuple[Daemon, Path], name: str) -> None:
    daemon, folder = renewable
    before = served(daemon)
    good = (folder / name).read_bytes()
    (folder / name).write_text("-----BEGIN NOTHING-----\n")
    daemon.send_signal(signal.SIGHUP)
    log = daemon.wait_for_log("New TLS files refused, the old ones stay in use")
    assert name in log.split("New TLS files refused")[1].splitlines()[0]
    assert served(daemon) == before
    (folder / name).write_bytes(good)
    daemon.send_signal(signal.SIGHUP)
    daemon.wait_for_log("TLS files loaded again")


def test_files_replaced_by_a_rename_are_noticed(tmp_path: Path) -> None:
    """As certificate managers do: a link to a folder that is switched in one step."""
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        make_pki(tmp_path / name)
    live = tmp_path / "live"
    live.symlink_to("one")
    pki = Pki(*(str(live / name) for name in ("ca.pem", "cert.pem", "key.pem")))
    with Daemon(tmp_path, pki=pki, config={"daemon": {"poll_interval": 0.01}}) as daemon:
        before = served(daemon)
        (tmp_path / "new").symlink_to("two")
        os.rename(tmp_path / "new", live)
        daemon.wait_for_log("TLS files loaded again")
        assert served(daemon) != before


# New keys, again and again: RFC 8446 §4.6.3.

FLOOD = 4000  # requests for new keys, 108 KB
TIMEOUT = 60.0


@pytest.fixture
def image(daemon: Daemon) -> Iterator[str]:
    """The id of a ticket for an image of zeroes in the daemon's folder."""
    (daemon.folder / "image").write_bytes(bytes(SIZE))
    ticket = daemon.add_ticket(f"file://{daemon.folder}/image", size=SIZE)
    yield ticket
    daemon.remove_ticket(ticket)


@contextlib.contextmanager
def key_updater(daemon: Daemon) -> Iterator[KeyUpdater]:
    with KeyUpdater(socket.create_connection(("localhost", daemon.port), TIMEOUT)) as updater:
        updater.socket.settimeout(TIMEOUT)
        yield updater


def end_of(sock: socket.socket) -> int:
    """Receive until the other end closes; return how many bytes that was."""
    count = 0
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1 << 16):
            count += len(data)
    return count


def send_flood(updater: KeyUpdater) -> None:
    flood = updater.updates(FLOOD)
    with contextlib.suppress(ConnectionError):
        updater.socket.sendall(flood)


def test_some_new_keys_are_taken(daemon: Daemon, image: str) -> None:
    """Between requests, and within a body of the loop."""
    data = os.urandom(8000)
    head = request_head("PUT", f"/images/{image}", body=data, headers=[("Connection", "close")])
    with key_updater(daemon) as updater:
        parts = [head[:50], head[50:], *(data[start : start + 100] for start in range(0, len(data), 100))]
        updater.socket.sendall(b"".join(updater.updates(20) + updater.data(part) for part in parts))
        end_of(updater.socket)
    assert (daemon.folder / "image").read_bytes()[: len(data)] == data


@pytest.mark.parametrize("before", ["nothing", "a part of a head", "a small body", "a large body"])
def test_flood_of_new_keys_ends_the_connection(daemon: Daemon, image: str, before: str) -> None:
    length = {"a small body": 1000, "a large body": SIZE}.get(before, 0)
    head = request_head("PUT", f"/images/{image}", headers=[("Content-Length", str(length))])
    with key_updater(daemon) as updater:
        if before != "nothing":
            updater.socket.sendall(updater.data(head if length else head[:20]))
        send_flood(updater)
        end_of(updater.socket)
    assert daemon.ticket(image)["active"] is False


def test_flood_of_new_keys_costs_the_daemon_little(daemon: Daemon) -> None:
    """Records that are read before the connection ends, 2,400 of them, take 0.1 s."""
    with key_updater(daemon) as updater:
        flood = updater.updates(10 * FLOOD)  # all of them take 2 s
        before = usage(daemon.pid).cpu
        with contextlib.suppress(ConnectionError):
            updater.socket.sendall(flood)
        end_of(updater.socket)
        assert usage(daemon.pid).cpu - before < 1
