# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import errno
import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from ovirt_imageio.daemon import binding
from ovirt_imageio.daemon.binding import AddressInUse, UnixListener


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder with a short name, as socket addresses need."""
    with tempfile.TemporaryDirectory(prefix="io-") as name:
        yield Path(name)


# TCP.


@pytest.mark.parametrize("host", ["", "::"])
def test_all_interfaces_take_both_ip_versions(host: str) -> None:
    with binding.bind_tcp(host, 0) as sock:
        port = sock.getsockname()[1]
        assert port > 0
        for address in ("127.0.0.1", "::1"):
            socket.create_connection((address, port), 5).close()


def test_all_interfaces_without_ipv6_are_those_of_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    listen = binding._listen_tcp

    def no_ipv6(family: int, *args: object, **kwargs: object) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "no IPv6")
        return listen(family, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(binding, "_listen_tcp", no_ipv6)
    with binding.bind_tcp("::", 0) as sock:
        assert sock.getsockname()[0] == "0.0.0.0"


@pytest.mark.parametrize(("prefer_ipv4", "expected"), [(True, "127.0.0.1"), (False, "::1")], ids=["ipv4", "ipv6"])
def test_localhost_is_the_preferred_version(prefer_ipv4: bool, expected: str) -> None:
    with binding.bind_localhost(0, prefer_ipv4=prefer_ipv4) as sock:
        assert sock.getsockname()[0] == expected


def test_tcp_port_in_use_is_told() -> None:
    with binding.bind_tcp("127.0.0.1", 0) as sock, pytest.raises(AddressInUse):
        binding.bind_tcp("127.0.0.1", sock.getsockname()[1])


# Unix.


def test_path_gets_its_mode_whatever_the_umask(folder: Path) -> None:
    old = os.umask(0o077)
    try:
        listener = UnixListener(str(folder / "sock"), 0o660)
    finally:
        os.umask(old)
    with listener.sock:
        assert stat.S_IMODE((folder / "sock").stat().st_mode) == 0o660
        assert listener.address == str(folder / "sock")


def test_stale_socket_is_replaced(folder: Path) -> None:
    UnixListener(str(folder / "sock"), 0o600).sock.close()
    with UnixListener(str(folder / "sock"), 0o600).sock, socket.socket(socket.AF_UNIX) as client:
        client.connect(str(folder / "sock"))


def test_socket_of_a_running_daemon_is_refused_and_stays(folder: Path) -> None:
    with UnixListener(str(folder / "sock"), 0o600).sock:
        with pytest.raises(AddressInUse, match="another daemon listens there"):
            UnixListener(str(folder / "sock"), 0o600)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(folder / "sock"))


def test_file_that_is_no_socket_is_refused_and_stays(folder: Path) -> None:
    (folder / "sock").write_text("precious")
    with pytest.raises(AddressInUse, match="not a socket"):
        UnixListener(str(folder / "sock"), 0o600)
    assert (folder / "sock").read_text() == "precious"


def test_close_removes_the_file(folder: Path) -> None:
    listener = UnixListener(str(folder / "sock"), 0o600)
    listener.close()
    listener.close()
    assert list(folder.iterdir()) == []


def test_close_leaves_the_file_of_a_successor(folder: Path) -> None:
    first = UnixListener(str(folder / "sock"), 0o600)
    first.sock.close()
    with UnixListener(str(folder / "sock"), 0o600).sock:
        first.close()
        assert (folder / "sock").exists()


def test_abstract_address_has_no_file() -> None:
    name = f"\0imageio-test-{os.getpid()}"
    listener = UnixListener(name, 0o600)
    assert listener.address == name
    with pytest.raises(AddressInUse):
        UnixListener(name, 0o600)
    listener.close()


def test_empty_address_is_a_free_abstract_one() -> None:
    listener = UnixListener("", 0o600)
    with listener.sock, socket.socket(socket.AF_UNIX) as client:
        assert listener.address.startswith("\0")
        client.connect(listener.address)


def test_missing_folder_and_long_path_are_told(folder: Path) -> None:
    with pytest.raises(FileNotFoundError):
        UnixListener(str(folder / "no" / "sock"), 0o600)
    with pytest.raises(OSError, match="107 bytes"):
        UnixListener(str(folder / ("x" * 120)), 0o600)
