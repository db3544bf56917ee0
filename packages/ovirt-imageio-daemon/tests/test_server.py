# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The life of a daemon, looked at from outside: a process, its signals, its sockets."""

from __future__ import annotations

import contextlib
import datetime
import grp
import http.client
import os
import pwd
import re
import resource
import signal
import socket
import ssl
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from imageio_testing.daemon import Daemon, public_command
from imageio_testing.pki import make_pki

SIZE = 1 << 20

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can do that")


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(SIZE))
    return path


@contextlib.contextmanager
def upload(daemon: Daemon, ticket_id: str) -> Iterator[socket.socket]:
    """An upload of ten bytes of which five were sent; the other five are the caller's."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(daemon.local_socket)
        # Only a request that is being served is told to continue.
        head = f"PUT /images/{ticket_id} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n"
        sock.sendall(head.encode() + b"Expect: 100-continue\r\n\r\n")
        assert sock.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        sock.sendall(b"01234")
        yield sock


def get(daemon: Daemon, path: str) -> tuple[int, bytes]:
    """A request of its own connection to the local service."""
    client = http.client.HTTPConnection("localhost")
    client.sock = socket.socket(socket.AF_UNIX)
    client.sock.settimeout(30)
    with contextlib.closing(client):
        client.sock.connect(daemon.local_socket)
        client.request("GET", path)
        response = client.getresponse()
        return response.status, response.read()


# Stopping.


def test_running_request_is_finished_while_new_work_is_refused(tmp_path: Path, disk: Path) -> None:
    daemon = Daemon(tmp_path, tls=False)
    daemon.start()
    ticket_id = daemon.add_ticket(f"file://{disk}", size=SIZE)
    with upload(daemon, ticket_id) as sock:
        daemon.send_signal(signal.SIGTERM)
        daemon.wait_for_log("SIGTERM received")
        assert get(daemon, f"/images/{ticket_id}")[0] == 503
        assert daemon.ticket(ticket_id)["active"]
        sock.sendall(b"56789")
        assert sock.recv(1000).startswith(b"HTTP/1.1 200 ")
    daemon.stop(None)
    assert disk.read_bytes()[:10] == b"0123456789"


def test_request_that_outlasts_stop_timeout_is_cancelled(tmp_path: Path, disk: Path) -> None:
    daemon = Daemon(tmp_path, tls=False, config={"daemon": {"stop_timeout": 0}})
    daemon.start()
    ticket_id = daemon.add_ticket(f"file://{disk}", size=SIZE)
    with upload(daemon, ticket_id) as sock:
        daemon.send_signal(signal.SIGTERM)
        assert daemon.wait() == 0
        with contextlib.suppress(ConnectionResetError):
            assert not sock.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert "did not finish in time" in daemon.log
    daemon.kill()


def test_second_signal_ends_at_once(tmp_path: Path, disk: Path) -> None:
    daemon = Daemon(tmp_path, tls=False)
    daemon.start()
    ticket_id = daemon.add_ticket(f"file://{disk}", size=SIZE)
    with upload(daemon, ticket_id):
        daemon.send_signal(signal.SIGTERM)
        daemon.wait_for_log("SIGTERM received")
        daemon.send_signal(signal.SIGINT)
        assert daemon.wait() == 128 + signal.SIGINT
    assert not os.path.exists(daemon.control_socket)
    daemon.kill()


def test_idle_connections_do_not_delay_the_stop(tmp_path: Path) -> None:
    daemon = Daemon(tmp_path, tls=False)
    daemon.start()
    with socket.create_connection(("localhost", daemon.port), 30) as silent:
        with socket.create_connection(("localhost", daemon.port), 30) as slow:
            slow.sendall(b"GET / HT")
            assert get(daemon, "/images/x")[0] == 403
            daemon.stop()
            assert silent.recv(1) == b""


# Reloading.


def test_renewed_certificate_serves_new_connections_after_sighup(tmp_path: Path) -> None:
    (tmp_path / "pki").mkdir()
    pki = make_pki(tmp_path / "pki")
    config = {"daemon": {"poll_interval": 60}}
    with Daemon(tmp_path, pki=pki, config=config) as daemon:
        old = ssl.get_server_certificate(("localhost", daemon.port))
        make_pki(tmp_path / "pki")
        daemon.send_signal(signal.SIGHUP)
        daemon.wait_for_log("TLS files loaded again")
        assert ssl.get_server_certificate(("localhost", daemon.port)) != old


def test_expired_certificate_is_served_with_a_warning(tmp_path: Path) -> None:
    past = [datetime.datetime(year, 1, 1, tzinfo=datetime.timezone.utc) for year in (1999, 2000)]
    (tmp_path / "pki").mkdir()
    pki = make_pki(tmp_path / "pki", not_before=past[0], not_after=past[1])
    with Daemon(tmp_path, pki=pki, config={"daemon": {"poll_interval": 0.01}}) as daemon:
        daemon.wait_for_log(f"WARNING (MainThread) [ovirt_imageio.daemon.tls] The certificate {pki.cert_file} expired")
        assert ssl.get_server_certificate(("localhost", daemon.port))


def test_renewed_certificate_is_noticed_without_a_signal(tmp_path: Path) -> None:
    (tmp_path / "pki").mkdir()
    pki = make_pki(tmp_path / "pki")
    config = {"daemon": {"poll_interval": 0.01}}
    with Daemon(tmp_path, pki=pki, config=config) as daemon:
        Path(pki.key_file).write_text("broken")
        daemon.wait_for_log("New TLS files refused")
        ssl.get_server_certificate(("localhost", daemon.port))
        make_pki(tmp_path / "pki")
        daemon.wait_for_log("TLS files loaded again")


def test_log_level_changes_on_sighup_and_wrong_values_change_nothing(tmp_path: Path) -> None:
    with Daemon(tmp_path, tls=False) as daemon:
        path = Path(daemon.conf_dir, "conf.d", "99-test.conf")
        text = path.read_text()
        path.write_text(text.replace("port = 0", "port = x"))
        daemon.send_signal(signal.SIGHUP)
        daemon.wait_for_log("New configuration refused")
        path.write_text(text.replace("level = INFO", "level = DEBUG"))
        daemon.send_signal(signal.SIGHUP)
        daemon.wait_for_log("root: INFO → DEBUG")


def test_limits_change_on_sighup_and_the_rest_is_named(tmp_path: Path) -> None:
    with Daemon(tmp_path, tls=False) as daemon:
        path = Path(daemon.conf_dir, "conf.d", "99-test.conf")
        path.write_text(path.read_text() + "[metrics]\nenable = true\n[unknown]\n")
        text = path.read_text().replace("[daemon]\n", "[daemon]\nmax_workers = 3\n")
        path.write_text(text)
        daemon.send_signal(signal.SIGHUP)
        daemon.wait_for_log("Configuration read again: daemon.max_workers: 64 → 3")
        daemon.wait_for_log("Needs a restart of the service to apply: metrics.enable: False → True")
        with daemon.admin() as client:
            assert client.status()["workers"]["limit"] == 3
        daemon.send_signal(signal.SIGHUP)
        daemon.wait_for_log("Configuration read again: nothing changed")
        assert daemon.log.count("unknown section [unknown] ignored") == 1


# The log.


def test_debug_tells_requests_operations_and_storage(tmp_path: Path, disk: Path) -> None:
    ticket_id = "b6f7e8a2-6c1b-4c8c-9a55-2a4b3d9c7f10"
    with Daemon(tmp_path, tls=False, level="DEBUG") as daemon:
        daemon.add_ticket(f"file://{disk}", size=SIZE, ticket_id=ticket_id, transfer_id="mine")
        assert get(daemon, f"/images/{ticket_id}")[0] == 200
        daemon.ticket(ticket_id)
        with daemon.admin() as client:
            client.mod_ticket(ticket_id, {"timeout": 7})
        daemon.remove_ticket(ticket_id)
    lines = daemon.log
    client = rf"unix:pid={os.getpid()},uid={os.getuid()}"
    for expected in (
        r"local: .*connected",
        rf"mine: opened file://{disk} in [0-9.]+ s: 1.00 MiB, 8 readers, 1 writer",
        r"mine: read of 1.00 MiB at 0: 1048576 bytes in [0-9.]+ s",
        rf"local: {client}: GET '/images/b6f7e8a2…': 200 in [0-9.]+ s",
        rf"control: {client}: PUT '/tickets/b6f7e8a2…': 200 in ",
        rf"control: {client}: GET '/tickets/b6f7e8a2…': 200 in ",
        rf"control: {client}: PATCH '/tickets/b6f7e8a2…': 200 in ",
        r"mine: valid for 7 s",
        rf"control: {client}: DELETE '/tickets/b6f7e8a2…': 204 in ",
        r"local: .*closed",
    ):
        assert re.search(rf"DEBUG .*{expected}", lines), f"{expected} is not in\n{lines}"
    assert ticket_id not in lines


# Privileges.


@as_root
def test_root_becomes_the_user_and_serves() -> None:
    user = pwd.getpwnam("nobody")
    group = grp.getgrgid(user.pw_gid)
    daemon_keys = {"drop_privileges": True, "user_name": "nobody", "group_name": group.gr_name}
    # Not tmp_path: only root may enter that.
    with tempfile.TemporaryDirectory(prefix="io-") as folder:
        os.chmod(folder, 0o755)
        disk = Path(folder, "disk.raw")
        disk.write_bytes(bytes(SIZE))
        disk.chmod(0o666)
        pki = make_pki(folder)
        os.chmod(pki.key_file, 0o600)
        command = public_command()
        if command is None:
            pytest.skip("no interpreter that an unprivileged user may run")
        with Daemon(folder, pki=pki, config={"daemon": daemon_keys}, command=command) as daemon:
            status = Path(f"/proc/{daemon.pid}/status").read_text()
            assert f"Uid:\t{user.pw_uid}\t{user.pw_uid}\t{user.pw_uid}\t{user.pw_uid}\n" in status
            assert "CapEff:\t0000000000000000\n" in status
            st = os.stat(daemon.control_socket)
            assert (st.st_uid, st.st_gid) == (user.pw_uid, group.gr_gid)
            assert stat.S_IMODE(st.st_mode) == 0o660
            daemon.wait_for_log("key.pem cannot be read without privileges")
            ticket_id = daemon.add_ticket(f"file://{disk}", size=SIZE)
            assert get(daemon, f"/images/{ticket_id}") == (200, bytes(SIZE))


@as_root
def test_tls_files_out_of_sight_without_privileges_are_no_new_ones() -> None:
    group = grp.getgrgid(pwd.getpwnam("nobody").pw_gid)
    daemon_keys = {"drop_privileges": True, "user_name": "nobody", "group_name": group.gr_name, "poll_interval": 0.01}
    with tempfile.TemporaryDirectory(prefix="io-") as folder:
        os.chmod(folder, 0o755)
        Path(folder, "secret").mkdir(mode=0o700)
        pki = make_pki(Path(folder, "secret"))
        command = public_command()
        if command is None:
            pytest.skip("no interpreter that an unprivileged user may run")
        with Daemon(folder, pki=pki, config={"daemon": daemon_keys}, command=command) as daemon:
            # Tickets are looked at right before TLS files are.
            daemon.add_ticket("file:///none", size=SIZE, timeout=0)
            daemon.wait_for_log("expired")
            get(daemon, "/images/x")
            assert "TLS files refused" not in daemon.wait_for_log("key.pem cannot be read without privileges")


def test_file_limit_is_raised(tmp_path: Path) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    with Daemon(tmp_path, tls=False) as daemon:
        assert resource.prlimit(daemon.pid, resource.RLIMIT_NOFILE) == (hard, hard)
