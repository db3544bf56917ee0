# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The work that a transfer did, as a value."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from ovirt_imageio.client.patience import Patience
from ovirt_imageio.client.plan import Action
from ovirt_imageio.client.progress import Counter
from ovirt_imageio.common.checksum import ChecksumResult

if TYPE_CHECKING:
    from ovirt_imageio.common.backends.http import HttpBackend

Transport = Literal["unix", "tls", "tcp"]
"""How bytes went: by the Unix socket of a server on this host, encrypted, or in plain text."""


@dataclass(frozen=True)
class TransferResult:
    """The work that an upload or a download did. Each byte of the image counts once.

    Attributes:
        moved: Bytes that were copied, however often they were sent.
        zeroed: Bytes that the other end was told to make zero.
        skipped: Bytes that already read as they should, or were left alone on purpose.
        resumed: Bytes that an earlier run did, and that were found to be as it left them.
        seconds: From the call to its end, with all checks.
        retries: Attempts after a first one that failed, in all of it.
        transport: How bytes went.
        verified: Both ends were compared afterwards, as far as they can be: see `verify`.
        checksum: Block hash of the image, in hexadecimal, if all of it was compared; else None.
        algorithm: That it was made with, see hashlib; None without a checksum.
        block_size: Bytes of a block of it; None without a checksum.
    """

    moved: int
    zeroed: int
    skipped: int
    resumed: int
    seconds: float
    retries: int
    transport: Transport
    verified: bool = False
    checksum: str | None = None
    algorithm: str | None = None
    block_size: int | None = None

    @property
    def size(self) -> int:
        """Bytes of the image."""
        return self.moved + self.zeroed + self.skipped + self.resumed


def make_result(
    counter: Counter,
    remote: HttpBackend,
    patience: Patience,
    *,
    seconds: float,
    verified: bool = False,
    checksum: ChecksumResult | None = None,
) -> TransferResult:
    """Put together what a transfer did.

    Args:
        counter: Of its bytes.
        remote: The server's end.
        patience: Knows the attempts.
        seconds: That all of it took.
        verified: Both ends were compared.
        checksum: Of all of the image; None if only a part was compared, or nothing.
    """
    counts = counter.by_action
    return TransferResult(
        moved=counts[Action.COPY],
        zeroed=counts[Action.ZERO],
        skipped=counts[Action.SKIP],
        resumed=counts[Action.DONE],
        seconds=seconds,
        retries=patience.retried.count,
        transport=remote.transport,
        verified=verified,
        checksum=checksum.checksum if checksum else None,
        algorithm=checksum.algorithm if checksum else None,
        block_size=checksum.block_size if checksum else None,
    )
