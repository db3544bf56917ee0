# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Which storage a URL leads to, however it is spelled.

    nbd:unix:/run/vm/sock:exportname=disk                ┐
    nbd+unix:///disk?socket=/run/vm/./sock               ├─► one storage
    nbd+unix:///%64isk?socket=/run/a-link-to-vm/sock     ┘

A failed flush concerns every writer to the storage, also one that was given another spelling of
its URL.

    NBD, Unix socket    The path without links and dots, and the export.
    NBD, TCP            Host in small letters, port, and the export.
    File                Device and inode; of a block device its number.
    HTTP                Scheme, host in small letters, port, and the path of the image.

Two ways to one storage that no URL tells, as a file and the server that has it open, are two.
"""

from __future__ import annotations

import contextlib
import os
import stat
from typing import Hashable

from ovirt_imageio.common import hosts, nbd
from ovirt_imageio.common.backends import file_path

_PORTS = {"http": 80, "https": 443}


def identity(url: str) -> Hashable:
    """Return what is equal for all URLs of one storage. It may wait for a file system.

    A URL that leads nowhere, or that this package does not know, is equal to itself only.
    """
    scheme = url.partition(":")[0].lower()
    with contextlib.suppress(ValueError, OSError):
        if scheme in ("nbd", "nbd+unix"):
            return _of_export(nbd.parse(url))
        if scheme == "file":
            return _of_file(file_path(url))
        if scheme in _PORTS:
            return _of_image(url)
    return ("url", url)


def _of_export(address: nbd.Address) -> Hashable:
    if address.transport != "unix":
        return ("nbd", _host(address.host), address.port, address.export)
    path = address.path
    if path.startswith("\\u0000"):  # as configuration writes an abstract name
        path = "\0" + path[6:]
    if not path.startswith("\0"):
        path = os.path.realpath(path)
    return ("nbd", "unix", path, address.export)


def _of_file(path: str) -> Hashable:
    status = os.stat(path)
    if stat.S_ISBLK(status.st_mode):  # a device may have several nodes
        return ("device", status.st_rdev)
    return ("file", status.st_dev, status.st_ino)


def _of_image(url: str) -> Hashable:
    from urllib.parse import unquote

    from ovirt_imageio.common import imagesapi

    parts = imagesapi.split_url(url)
    host = _host(hosts.decode_zone(parts.hostname or ""))
    return (parts.scheme, host, parts.port or _PORTS[parts.scheme], unquote(parts.path))


def _host(host: str) -> str:
    """A host in one spelling: an address in its shortest, a name in small letters."""
    import ipaddress  # 5 ms, and rarely needed

    with contextlib.suppress(ValueError):
        return str(ipaddress.ip_address(host))
    return host.lower()
