# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Addresses of NBD exports in both notations.

The notation of QEMU::

    nbd:unix:/path/sock[:exportname=NAME]
    nbd:HOST:PORT[:exportname=NAME]

and the NBD URI specification
(https://github.com/NetworkBlockDevice/nbd/blob/master/doc/uri.md)::

    nbd://HOST[:PORT]/[NAME]
    nbd+unix:///[NAME]?socket=/path/sock
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from ovirt_imageio.common import hosts, sockets
from ovirt_imageio.common.errors import shown
from ovirt_imageio.common.nbd import wire

if TYPE_CHECKING:
    from urllib.parse import SplitResult

_EXPECTED = (
    "expected nbd:unix:PATH[:exportname=NAME], nbd:HOST:PORT[:exportname=NAME], "
    "nbd://HOST[:PORT]/[NAME] or nbd+unix:///[NAME]?socket=PATH"
)
_EXPORT = ":exportname="


class Address(NamedTuple):
    """Where an export is.

    Attributes:
        transport: ``"unix"`` or ``"tcp"``.
        path: of the Unix socket, empty for TCP.
        host: name or address without brackets, empty for a Unix socket.
        port: TCP port, 0 for a Unix socket.
        export: name of the export, ``""`` is the server's default one.
    """

    transport: str
    path: str = ""
    host: str = ""
    port: int = 0
    export: str = ""

    def uri(self) -> str:
        """Return the address as an NBD URI."""
        from urllib.parse import quote  # 3 ms, and rarely needed

        name = quote(self.export, safe="", errors="surrogateescape")
        if self.transport == "unix":
            return f"nbd+unix:///{name}?socket={quote(self.path, errors='surrogateescape')}"
        return f"nbd://{hosts.in_url(self.host)}:{self.port}/{name}"

    def __str__(self) -> str:
        return self.uri()


def unix(path: str, export: str = "") -> Address:
    """Return the address of an export behind a Unix socket."""
    return Address("unix", path=path, export=export)


def tcp(host: str, port: int = wire.DEFAULT_PORT, export: str = "") -> Address:
    """Return the address of an export behind a TCP port."""
    return Address("tcp", host=host, port=port, export=export)


def parse(url: str) -> Address:
    """Return the address that an NBD URL of either notation names.

    Raises:
        ValueError: the URL is not understood, or nothing can be where it points to; the message
            holds its beginning and what was expected.
    """
    if url.startswith("nbd+unix://"):
        address = _parse_uri_unix(url)
    elif url.startswith("nbd://"):
        address = _parse_uri_tcp(url)
    elif url.startswith("nbd:unix:"):
        address = _parse_qemu_unix(url)
    elif url.startswith("nbd:"):
        address = _parse_qemu_tcp(url)
    else:
        raise _invalid(url, "unknown scheme")
    if len(address.export.encode("utf-8", "surrogateescape")) > wire.MAX_STRING:
        raise _invalid(url, f"export name is longer than {wire.MAX_STRING} bytes")
    if "\0" in address.host or "\0" in address.export:
        raise _invalid(url, "host or export name holds a NUL")
    if address.transport == "unix":
        _check_path(url, address.path)
    return address


def _check_path(url: str, path: str) -> None:
    try:
        sockets.unix_address(path)
    except ValueError as e:
        raise _invalid(url, str(e)) from e


def _parse_qemu_unix(url: str) -> Address:
    path, _, export = url[len("nbd:unix:") :].partition(_EXPORT)
    if not path:
        raise _invalid(url, "no socket path")
    return unix(path, export)


def _parse_qemu_tcp(url: str) -> Address:
    place, _, export = url[len("nbd:") :].partition(_EXPORT)
    host, colon, port = place.rpartition(":")
    if not colon or not host.strip("[]"):
        raise _invalid(url, "no host or no port")
    if ":" in host and not host.startswith("["):
        raise _invalid(url, "an IPv6 address needs brackets")
    return tcp(_unbracketed(url, host), _port(url, port), export)


def _parse_uri_unix(url: str) -> Address:
    from urllib.parse import parse_qs

    parts = _split(url)
    sockets = parse_qs(parts.query, errors="surrogateescape").get("socket", [])
    if len(sockets) != 1:
        raise _invalid(url, "no socket parameter" if not sockets else "several socket parameters")
    if parts.netloc:
        raise _invalid(url, "a host in the URI of a Unix socket")
    return unix(sockets[0], _export(parts.path))


def _parse_uri_tcp(url: str) -> Address:
    parts = _split(url)
    if "@" in parts.netloc:
        raise _invalid(url, "a user name needs TLS, which is not supported")
    host, port = parts.netloc, None
    if not host.endswith("]"):
        head, colon, tail = host.rpartition(":")
        if colon:
            host, port = head, tail
    if not host.strip("[]"):
        raise _invalid(url, "no host")
    return tcp(hosts.decode_zone(_unbracketed(url, host)), _port(url, port), _export(parts.path))


def _split(url: str) -> SplitResult:
    from urllib.parse import urlsplit

    try:
        return urlsplit(url)
    except ValueError as e:
        raise _invalid(url, shown(str(e))) from e


def _export(path: str) -> str:
    """Name in the path of a URI: what follows the first slash, unquoted."""
    from urllib.parse import unquote

    return unquote(path[1:], errors="surrogateescape")


def _port(url: str, port: str | None) -> int:
    if port is None:
        return wire.DEFAULT_PORT
    # isdigit() alone takes digits that int() does not.
    if not (port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise _invalid(url, f"invalid port {shown(port)}")
    return int(port)


def _unbracketed(url: str, host: str) -> str:
    if host.startswith("[") != host.endswith("]"):
        raise _invalid(url, f"invalid host {shown(host)}")
    return host[1:-1] if host.startswith("[") else host


def _invalid(url: str, why: str) -> ValueError:
    return ValueError(f"invalid NBD URL {shown(url)}: {why}; {_EXPECTED}")
