# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Streams that are left in the middle, for the other end lets the thread wait.

A peer that neither takes nor sends anything keeps the thread that moves the stream, and threads are
few. A `Peer` may therefore have, beyond what the protocol demands:

- `silent(seconds, receiving)`: Told each time a system call reached the time limit of the kernel.
  It raises when that is too long, or becomes paused.
- `paused`: The stream is to be left where it is, without an error.
- `put_back(data)`: Takes back payload that no storage has seen.

A stream that meets a paused peer ends what it began and returns. Received bytes are acknowledged by
storage. The part of a piece that was read is given to the peer, which keeps it. Then all bytes that
the operation counted are done, and the caller goes on behind them when the peer is ready. Without
these three a time limit that passes is the end of the stream.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from ovirt_imageio.common.errors import PeerTimeout

if TYPE_CHECKING:
    from ovirt_imageio.common.backends.base import Peer


def is_paused(peer: Peer) -> bool:
    """Tell if a stream is to be left at the end of its piece."""
    return bool(getattr(peer, "paused", False))


def note_silence(peer: Peer, since: float, *, receiving: bool) -> None:
    """Tell a peer that a system call on its descriptor reached the time limit.

    Args:
        peer: Owner of the descriptor that was used.
        since: When the call began, in monotonic seconds.
        receiving: It was to send; else it was to take something.

    Raises:
        PeerTimeout: It was silent for too long.
    """
    silent = getattr(peer, "silent", None)
    if silent is None:
        raise PeerTimeout(f"the client {'sent' if receiving else 'took'} nothing for too long")
    silent(time.monotonic() - since, receiving)


def put_back(peer: Peer, data: bytes) -> None:
    """Give payload back to a paused peer, before what it will send."""
    if data:
        getattr(peer, "put_back")(data)  # noqa: B009
