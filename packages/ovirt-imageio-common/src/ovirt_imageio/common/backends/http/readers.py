# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Readers and writers, such as files, as the `Peer` whose bytes a backend moves."""

from __future__ import annotations

from ovirt_imageio.common.backends.base import Reader, Writer
from ovirt_imageio.common.buffers import Buffer
from ovirt_imageio.common.errors import PeerGone

from .errors import SourceEnded


class ReaderPeer:
    """A reader as a peer that sends."""

    splice_fd = None
    chunked = False

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def begin(self) -> None:
        """Do nothing."""

    def send_all(self, data: Buffer) -> None:
        """Refuse: a reader takes nothing."""
        raise PeerGone("a reader cannot be written to")

    def take(self, limit: int) -> bytes:
        """Return nothing."""
        return b""

    def recv_into(self, view: memoryview) -> int:
        """Read into view."""
        count = self._reader.readinto(view)
        if not count:
            raise SourceEnded("the source ended too early")
        return count


class WriterPeer:
    """A writer as a peer that receives."""

    splice_fd = None

    def __init__(self, writer: Writer) -> None:
        self._writer = writer

    def begin(self) -> None:
        """Do nothing."""

    def send_all(self, data: Buffer) -> None:
        """Write all of data."""
        view = memoryview(data)
        while view:
            count = self._writer.write(view)
            view = view[len(view) if count is None else count :]

    def take(self, limit: int) -> bytes:
        """Return nothing."""
        return b""

    def recv_into(self, view: memoryview) -> int:
        """Return nothing."""
        return 0
