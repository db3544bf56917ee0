# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams from a file to a plain socket that never enter our memory.

    file ──► pipe ──► peer     pages of the page cache travel by reference, see splice(2)

A pipe holds a whole piece: `sendfile` moves 64 KiB at a time, for its own pipe is that
small. The sender's processor time falls to half. It pays for the client, behind whose socket a
daemon splices or copies in large pieces. Readers that copy single pages as they come paid more
than a daemon saved, so a daemon copies.

Bytes that are written to the file meanwhile may arrive in place of the former ones, as with any
reading.
"""

from __future__ import annotations

import errno

from ovirt_imageio.common import linux
from ovirt_imageio.common.backends.base import Operation, Peer, pieces
from ovirt_imageio.common.backends.direct import shrunk
from ovirt_imageio.common.backends.pausing import is_paused
from ovirt_imageio.common.backends.splice import drain


class CannotSplice(Exception):
    """The file system knows no splice(2); nothing was sent."""


def send(fd: int, size: int, pipe: linux.Pipe, peer: Peer, offset: int, length: int, op: Operation) -> None:
    """Send a range of a file to a peer that has a `splice_fd`.

    Args:
        fd: The file, buffered.
        size: Bytes it had when it was opened.
        pipe: Empty, and left empty unless this raises.
        peer: Where to send.
        offset: Start of the range in bytes.
        length: Of the range in bytes.
        op: Told of each piece sent.

    A peer that is paused leaves the rest.

    Raises:
        CannotSplice: Copy instead.
        OSError: Storage failed, or the file became shorter.
        OperationCancelled, PeerGone, PeerTimeout.
    """
    for start, count in pieces(offset, length):
        op.check()
        end = start + count
        while start < end:
            try:
                held = linux.splice(fd, pipe.write_fd, end - start, offset_in=start)
            except OSError as e:
                if start == offset and e.errno == errno.EINVAL:
                    raise CannotSplice from e
                raise
            if not held:
                raise shrunk(start, size)
            start += held
            peer.begin()
            drain(pipe, peer, held)
            if is_paused(peer):
                op.advance(start - (end - count))
                return
        op.advance(count)
