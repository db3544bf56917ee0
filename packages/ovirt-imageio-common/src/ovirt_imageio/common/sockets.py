# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Stream sockets: addresses, connecting, time limits of the kernel.

A socket with kernel time limits stays a blocking one. So system calls that know no
select, such as splice(2), end in time as well. See socket(7), SO_RCVTIMEO.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from functools import partial
from typing import Any, Iterator, NamedTuple, Union

from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import ConnectionTimeout, PeerGone, shown

_TIMEVAL = struct.Struct("@ll")
_TURN = 0.2  # seconds of a wait that nothing but time ends, between two looks if it was cancelled
_CREDENTIALS = struct.Struct("@iii")  # unix(7), struct ucred


def unix_address(text: str) -> Union[str, bytes]:
    r"""Turn an address as configuration and JSON write it into the kernel's form.

    Args:
        text: A path, or an abstract name that starts with NUL (`\\0name`). The six
            characters `\\u0000`, as written in an INI file, mean NUL as well.

    Raises:
        ValueError: The address is empty or longer than unix(7) allows.
    """
    if text.startswith("\\u0000"):
        text = "\0" + text[6:]
    raw = text.encode("utf-8", "surrogateescape")
    if not raw or raw == b"\0":
        raise ValueError("a Unix socket needs a path or an abstract name, got an empty one")
    if len(raw) > 107:
        raise ValueError(f"Unix socket address is longer than 107 bytes: {shown(text)}")
    if raw.startswith(b"\0"):
        return raw
    if b"\0" in raw:
        raise ValueError(f"Unix socket path holds a NUL: {shown(text)}")
    return text


def connect_unix(address: str, timeout: float | None = None, *, cancel: Cancel | None = None) -> socket.socket:
    """Connect to a Unix socket.

    Args:
        address: As unix_address takes it.
        timeout: Seconds to wait for room in the server's backlog.
        cancel: Ends the wait.

    Returns:
        A blocking socket, without time limits. `set_timeouts` sets them.

    Raises:
        OSError: No server listens, or permission is missing; it names the address.
        ConnectionTimeout: The server accepts no connection.
        OperationCancelled: cancel said so.
    """
    s = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        _connect_unix(s, unix_address(address), timeout, cancel)
        set_timeouts(s, 0)
    except BlockingIOError as e:
        s.close()
        raise ConnectionTimeout(f"the server at {address!r} accepted no connection within {timeout} seconds") from e
    except OSError as e:
        s.close()
        raise _naming(e, address) from e
    except BaseException:
        s.close()
        raise
    return s


def _connect_unix(s: socket.socket, address: str | bytes, timeout: float | None, cancel: Cancel | None) -> None:
    for turn in _turns(timeout, cancel):
        set_timeouts(s, turn or 0)
        try:
            return s.connect(address)
        except BlockingIOError as e:
            failure = e
    raise failure


def _turns(timeout: float | None, cancel: Cancel | None) -> Iterator[float | None]:
    """Cut a wait that nothing but time ends, to look now and then if it was cancelled: seconds of each part.

    Raises:
        OperationCancelled: It was.
    """
    deadline = None if timeout is None else time.monotonic() + timeout
    if cancel is None:
        yield timeout
        return
    while deadline is None or time.monotonic() < deadline:
        cancel.check()
        yield _TURN if deadline is None else max(min(_TURN, deadline - time.monotonic()), 0.001)


def connect_tcp(host: str, port: int, timeout: float | None = None, *, cancel: Cancel | None = None) -> socket.socket:
    """Connect to a TCP port, by IPv6 or IPv4, without Nagle's delay.

    Args:
        host: Name or address.
        port: TCP port.
        timeout: Seconds for each address that the name has.
        cancel: Ends the wait, also for the name's addresses.

    Returns:
        A blocking socket, without time limits. `set_timeouts` sets them.

    Raises:
        OSError: The name is unknown, or no server listens; it names host and port.
        ConnectionTimeout: No address answered.
        OperationCancelled: cancel said so.
    """
    try:
        s = _connect_any(_addresses(host, port, cancel), timeout, cancel)
    except socket.timeout as e:
        raise ConnectionTimeout(f"no connection to {host}:{port} within {timeout} seconds") from e
    except UnicodeError as e:  # of a name that the domain name system cannot hold
        raise socket.gaierror(socket.EAI_NONAME, f"not a host name: {shown(host)}") from e
    except socket.gaierror as e:
        raise socket.gaierror(e.errno, f"{e.strerror}: {host!r}") from e
    except OSError as e:
        raise _naming(e, f"{host}:{port}") from e
    s.setblocking(True)
    s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return s


def _addresses(host: str, port: int, cancel: Cancel | None) -> list[Any]:
    """Look up a name; an address is its own."""
    look_up = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    if cancel is None or _is_address(host):
        return look_up()
    return cancel.call(look_up, name=f"look up {host}")


def _is_address(host: str) -> bool:
    for family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError, ValueError):
            socket.inet_pton(family, host)
            return True
    return False


def _connect_any(addresses: list[Any], timeout: float | None, cancel: Cancel | None) -> socket.socket:
    """Connect to the first address that answers; the last failure is raised."""
    failure: OSError = OSError(errno.EADDRNOTAVAIL, os.strerror(errno.EADDRNOTAVAIL))
    for family, kind, protocol, _, address in addresses:
        try:
            s = socket.socket(family, kind, protocol)
        except OSError as e:  # this kernel knows no IPv6
            failure = e
            continue
        try:
            _connect_tcp(s, address, timeout, cancel)
            return s
        except OSError as e:
            s.close()
            failure = e
        except BaseException:
            s.close()
            raise
    raise failure


def _connect_tcp(s: socket.socket, address: Any, timeout: float | None, cancel: Cancel | None) -> None:
    s.setblocking(False)
    error = s.connect_ex(address)
    if error == errno.EINPROGRESS:
        poll = select.poll()
        poll.register(s, select.POLLOUT)
        turns = _turns(timeout, cancel)
        if not any(poll.poll(None if turn is None else turn * 1000) for turn in turns):
            raise socket.timeout("timed out")
        error = s.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if error:
        raise OSError(error, os.strerror(error))


def _naming(error: OSError, address: str) -> OSError:
    """Return the same error, of the same class, with the address that connect(2) leaves out."""
    return OSError(error.errno, error.strerror, address) if error.errno else error


class Credentials(NamedTuple):
    """The process at the other end of a Unix socket, see unix(7), SO_PEERCRED.

    Attributes:
        pid: Process, 0 if it is in another pid namespace.
        uid: User, 65534 if it has no number in our user namespace.
        gid: Group.
    """

    pid: int
    uid: int
    gid: int


def peer_credentials(sock: socket.socket) -> Credentials:
    """Return the process that connected a Unix socket; for a client, the one that listens.

    The kernel noted them at connect(2) and listen(2): they cannot be forged.
    """
    return Credentials(*_CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)))


def set_timeouts(sock: socket.socket, seconds: float) -> None:
    """Limit how long each system call on a blocking socket may wait, in both directions.

    A call that waited in vain raises `BlockingIOError`. Zero means no limit.
    """
    whole = int(seconds)
    limit = _TIMEVAL.pack(whole, int((seconds - whole) * 1e6))
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, limit)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


def recv_exactly(sock: socket.socket, view: memoryview) -> None:
    """Fill view from a blocking socket.

    Raises:
        PeerGone: The stream ended before.
        ConnectionTimeout: The socket's time limit passed.
        OSError: The connection broke.
    """
    done = 0
    size = len(view)
    while done < size:
        try:
            n = sock.recv_into(view[done:])
        except (BlockingIOError, socket.timeout) as e:
            raise ConnectionTimeout(f"nothing received after {done} of {size} bytes") from e
        if not n:
            raise PeerGone(f"the connection was closed after {done} of {size} bytes")
        done += n


def is_local_host(host: str) -> bool:
    """Tell if an address of a host name belongs to this machine.

    An address is ours when a datagram socket can be bound to it. Nothing is sent.
    """
    try:
        found = socket.getaddrinfo(host, 0, type=socket.SOCK_DGRAM)
    except OSError:
        return False
    return any(_can_bind(family, address) for family, _, _, _, address in found)


def _can_bind(family: int, address: tuple[object, ...]) -> bool:
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as s:
            s.bind(address)
    except OSError:
        return False
    return True
