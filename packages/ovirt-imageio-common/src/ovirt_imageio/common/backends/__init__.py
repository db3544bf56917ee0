# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Storage behind URLs. `base` holds the contract, every other module keeps it."""

from __future__ import annotations

import os

from ovirt_imageio.common import defaults
from ovirt_imageio.common.backends.base import Backend, Capabilities, NullOperation, Operation, Peer
from ovirt_imageio.common.cancel import Cancel
from ovirt_imageio.common.errors import shown

__all__ = ["Backend", "Capabilities", "NullOperation", "Operation", "Peer", "open"]

_LONGEST_PATH = 4095  # bytes, PATH_MAX of the kernel without the NUL
_SUPPORTED = (
    "nbd:unix:/path/sock, nbd:HOST:PORT, nbd://HOST/NAME, nbd+unix:///NAME?socket=/path/sock, "
    "file:///path, file:/path, https://HOST:PORT/images/ID or http://HOST:PORT/images/ID"
)


def open(
    url: str,
    *,
    mode: str = "r",
    sparse: bool = False,
    dirty: bool = False,
    bitmap: str | None = None,
    cafile: str | None = None,
    secure: bool = True,
    connections: int = defaults.MAX_CONNECTIONS,
    timeout: float = defaults.NBD_TIMEOUT,
    large_read: bool = True,
    grow_to: int = 0,
    cancel: Cancel | None = None,
) -> Backend:
    """Open the storage behind a URL.

    Args:
        url: `nbd:…`, `nbd://…`, `nbd+unix://…`, `file:///…`, `http(s)://…`.
        mode: `r` to read, `r+` to read and write.
        sparse: Zeroing may deallocate.
        dirty: Dirty extents are wanted.
        bitmap: Of NBD: the bitmap that they mean, needed where the export has several.
        cafile: Certificates to verify an https server with; None: the system's.
        secure: Verify an https server.
        connections: Most instances that will be open at a time.
        timeout: Seconds that an NBD server may take for one request; 0 for no limit.
        large_read: Of NBD, see `backends.largeread`.
        grow_to: Bytes up to which writing makes a regular file larger; 0 for no growth.
        cancel: Ends what waits for a server of the storage.

    Raises:
        ValueError: The URL names no storage known here.
        OSError, ImageioError: It cannot be opened.
    """
    if mode not in ("r", "r+"):
        raise ValueError(f"unknown mode {mode!r}: expected 'r' or 'r+'")
    scheme = _scheme(url)
    # Each of them is imported when it is used: a host that serves NBD needs no requests.
    if scheme in ("nbd", "nbd+unix"):
        from ovirt_imageio.common.backends.nbd import NbdBackend

        return NbdBackend(
            url,
            mode=mode,
            sparse=sparse,
            dirty=dirty,
            bitmap=bitmap if dirty else None,
            connections=connections,
            timeout=timeout,
            large_read=large_read,
            cancel=cancel,
        )
    if scheme == "file":
        from ovirt_imageio.common.backends.file import FileBackend

        return FileBackend(file_path(url), mode=mode, sparse=sparse, connections=connections, grow_to=grow_to)
    if scheme in ("http", "https"):
        from ovirt_imageio.common.backends.http import HttpBackend

        return HttpBackend(url, mode=mode, dirty=dirty, cafile=cafile, secure=secure, cancel=cancel)
    raise ValueError(f"unsupported storage URL {shown(url)}: expected {_SUPPORTED}")


def _scheme(url: str) -> str:
    from urllib.parse import urlsplit  # 3 ms, and rarely needed

    try:
        return urlsplit(url).scheme
    except ValueError as e:
        raise ValueError(f"invalid storage URL {shown(url)}: {shown(str(e))}") from e


def file_path(url: str) -> str:
    """Return the path of a file URL: all that follows `file://` or `file:`, as it stands.

    Nothing is decoded, for managers of 2.x put paths there without encoding them; a path
    may hold `%`, `?` and `#`.

    Raises:
        ValueError: It names a host other than localhost, no absolute path, or one that no file has.

    Source: RFC 8089, which has both forms.
    """
    _, _, path = url.partition(":")
    if path.startswith("//"):
        path = path[2:]
        path = path[len("localhost") :] if path.startswith("localhost/") else path
    if not path.startswith("/") or "\0" in path:
        raise ValueError(f"invalid file URL {shown(url)}: expected file:///absolute/path")
    if len(os.fsencode(path)) > _LONGEST_PATH:
        raise ValueError(f"invalid file URL {shown(url)}: expected a path of at most {_LONGEST_PATH} bytes")
    return path
