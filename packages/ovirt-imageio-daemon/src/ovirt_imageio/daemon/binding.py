# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Listening sockets: TCP on both IP versions, Unix sockets that outlive no crash.

A Unix socket's file stays when its daemon is killed. Only connect(2) tells whether a file
found is such a leftover or belongs to a running daemon. The check and the bind that follows
are done under a lock on the folder. So of two daemons that start at once only one wins.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
from collections.abc import Iterator

# Connections that wait for accept(2); the kernel caps it at net.core.somaxconn.
BACKLOG = 1024

_ANY = ("", "::")
NO_SUCH_ADDRESS = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)


class AddressInUse(OSError):
    """Another program listens at the address."""

    def __init__(self, text: str) -> None:
        super().__init__(errno.EADDRINUSE, text)


def bind_tcp(host: str, port: int) -> socket.socket:
    """Listen on TCP.

    Args:
        host: name or address; "" and "::" are all interfaces, IPv4 and IPv6, or
            IPv4 alone where the system has no IPv6.
        port: 0 takes any free one.

    Raises:
        AddressInUse: somebody else listens there.
        OSError: the name is unknown or the address not of this host.
    """
    if host in _ANY:
        try:
            return _listen_tcp(socket.AF_INET6, ("::", port), dual_stack=True)
        except OSError as e:
            if e.errno not in NO_SUCH_ADDRESS:
                raise
        return _listen_tcp(socket.AF_INET, ("0.0.0.0", port))
    try:
        # As bytes: Python loads tables of international names (3 ms) to encode any other name.
        name = host.encode() if host.isascii() else host
        family, _, _, _, address = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except UnicodeError as e:  # a name that cannot be one
        raise OSError(errno.EADDRNOTAVAIL, f"not a host name: {e}") from e
    return _listen_tcp(family, address)


def bind_localhost(port: int, *, prefer_ipv4: bool) -> socket.socket:
    """Listen on the loopback address of the preferred IP version, or of the other.

    Raises:
        OSError: as `bind_tcp`.
    """
    hosts = ["127.0.0.1", "::1"]
    if not prefer_ipv4:
        hosts.reverse()
    try:
        return bind_tcp(hosts[0], port)
    except OSError as e:
        if e.errno not in NO_SUCH_ADDRESS and not isinstance(e, socket.gaierror):
            raise
    return bind_tcp(hosts[1], port)


def _listen_tcp(family: int, address: tuple[object, ...], *, dual_stack: bool = False) -> socket.socket:
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not dual_stack))
        sock.bind(address)
        sock.listen(BACKLOG)
    except OSError as e:
        sock.close()
        if e.errno == errno.EADDRINUSE:
            raise AddressInUse(os.strerror(errno.EADDRINUSE)) from e
        raise
    return sock


class UnixListener:
    """A listening Unix socket, and its file if it has one.

    Attributes:
        sock: the socket, listening.
        address: path, or abstract name with its leading NUL.
    """

    def __init__(self, address: str, mode: int) -> None:
        """Listen at a path, an abstract address, or with "" at a free abstract one.

        Args:
            address: as above.
            mode: permissions of the path, which decide who may connect.

        Raises:
            AddressInUse: a running daemon listens there, or a file of another kind is there.
            OSError: the folder is missing or not writable, the path too long.
        """
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if address and not address.startswith("\0"):
                self._bind_path(address, mode)
            else:
                _bind(self.sock, address)
            self.sock.listen(BACKLOG)
        except BaseException:
            self.sock.close()
            raise
        self.address = _name(self.sock)

    def close(self) -> None:
        """Close the socket and remove its file, unless another daemon took the path over."""
        self.sock.close()
        if self.address.startswith("\0") or not self.address:
            return
        with contextlib.suppress(OSError), _locked_folder(self.address):
            _remove_stale(self.address)

    def _bind_path(self, path: str, mode: int) -> None:
        with _locked_folder(path):
            _remove_stale(path)
            # The file gets its permissions as it is made: no moment when others may connect.
            old = os.umask(~mode & 0o777)
            try:
                _bind(self.sock, path)
            finally:
                os.umask(old)


def _bind(sock: socket.socket, address: str) -> None:
    try:
        sock.bind(address)
    except OSError as e:
        if e.errno == errno.EADDRINUSE:
            raise AddressInUse(os.strerror(errno.EADDRINUSE)) from e
        if e.errno is None:  # Python's own check of the length
            raise OSError(errno.ENAMETOOLONG, f"{e}, at most 107 bytes") from e
        raise


@contextlib.contextmanager
def _locked_folder(path: str) -> Iterator[None]:
    """Lock the folder that a path is in against other daemons."""
    fd = os.open(os.path.dirname(path) or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _remove_stale(path: str) -> None:
    """Remove the socket file of a daemon that is gone; refuse anything else."""
    try:
        mode = os.lstat(path).st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise AddressInUse("a file that is not a socket is there")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)  # a full backlog is an answer as well
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
            return
        except BlockingIOError:
            pass
    raise AddressInUse("another daemon listens there")


def _name(sock: socket.socket) -> str:
    name = sock.getsockname()
    return name.decode("utf-8", "surrogateescape") if isinstance(name, bytes) else str(name)
