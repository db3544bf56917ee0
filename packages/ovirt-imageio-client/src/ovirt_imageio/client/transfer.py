# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The common part of an upload and a download: plan, journal, check, verification.

extents ─► plan ─► without what the journal has ─► executor ─► verification
                          ▲                            │
          both ends equal there, or refused            ├─► journal: flushed steps
                                                       └─► digests of what passed
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Callable, Iterable, Iterator, Optional, Sequence

from ovirt_imageio.client import plan
from ovirt_imageio.client.executor import Checkpoints, Executor, Pair
from ovirt_imageio.client.hashing import Follower, Passed
from ovirt_imageio.client.journal import CannotResume, Journal
from ovirt_imageio.client.patience import Patience
from ovirt_imageio.client.plan import Action, Step, Steps
from ovirt_imageio.client.progress import Counter, Progress, showing
from ovirt_imageio.client.records import merged
from ovirt_imageio.client.result import TransferResult, make_result
from ovirt_imageio.client.verify import (
    OpenImage,
    Scope,
    VerificationFailed,
    check_held,
    compare,
    first_difference,
    verify,
)
from ovirt_imageio.common.checksum import MIN_BLOCK_SIZE, ChecksumResult
from ovirt_imageio.common.units import MiB

if TYPE_CHECKING:
    from ovirt_imageio.common.backends.http import HttpBackend

log = logging.getLogger(__name__)

OpenPair = Callable[[Optional[Follower]], Pair]
"""Opens both ends for a worker; what passes is told to the follower, if there is one."""

CHECKPOINT_LENGTH = 256 * MiB
"""Bytes that a worker copies between two flushes, if there is a journal."""

CHECKPOINT_SECONDS = 2.0
"""Seconds between two flushes of a worker: so much work may be lost."""

UNTOLD_LENGTH = 1024 * MiB
"""Bytes that a worker uploads between two flushes to a server that does not tell if it was restarted. Bytes that no
flush covers are sent again when a connection breaks."""

RESUMABLE_STEP = 32 * MiB
"""Most bytes of a step where a journal is kept: what is not flushed is done again."""


@dataclass(frozen=True)
class Below:
    """The layers that an image shows where a transfer leaves it alone.

    Attributes:
        name: Of it, for a text.
        hint: Words about it that follow its name in an error.
    """

    name: str
    hint: str = ""


class Transfer:
    """One run of a transfer.

    Args:
        remote: The server's end.
        open_image: Opens the local end once more.
        size: Bytes that are transferred.
        progress: The caller's.
        workers: Threads.
        journal: Kept up to date; None for none.
        scope: Compared at both ends afterwards; None for nothing.
        below: Shown where the image is left alone, so that all runs must leave the same ranges
            alone; None where each range reads the same at both ends afterwards.
        patience: How to take failures that pass, and what ends it.

    Attributes:
        counter: Counts bytes.
        resumed: An earlier run did some of it, or may have written without getting that far.
        checksum: Block hash of the image, once all of it was found to be what the server has.
    """

    def __init__(
        self,
        remote: HttpBackend,
        open_image: OpenImage,
        size: int,
        *,
        progress: Progress | None,
        workers: int,
        journal: Journal | None = None,
        scope: Scope | None = None,
        below: Below | None = None,
        patience: Patience | None = None,
    ) -> None:
        self._remote = remote
        self._open_image = open_image
        self._size = size
        self._progress = progress
        self._workers = workers
        self._journal = journal
        self._scope = scope
        self._below = below
        self._patience = patience or Patience()
        self._passed = Passed(size) if scope else None
        self._moved: list[tuple[int, int]] = []
        self.counter = Counter(progress, size)
        self.resumed = bool(journal and journal.begun)
        self.checksum: ChecksumResult | None = None

    @property
    def copy_limit(self) -> int:
        """Most bytes of a step."""
        limit = plan.copy_limit(self._size, self._workers)
        return limit if self._journal is None else min(limit, RESUMABLE_STEP)

    def check_done(self) -> None:
        """Make sure that what earlier runs did is still the same at both ends.

        Raises:
            CannotResume: It is not.
        """
        if self._journal is None or not self._journal.done:
            return
        done = self._journal.done
        log.info("Continuing: %d of %d bytes are done", sum(length for _, length in done), self._size)
        blocks = Passed(self._size, block_size=MIN_BLOCK_SIZE)
        with showing(self._progress, "checking what is done"):
            try:
                self._compare(done, blocks)
            except VerificationFailed as e:
                raise CannotResume(
                    f"cannot resume: source or target changed since, {e.length} bytes at {e.offset} differ; "
                    f"remove {self._journal.path} to begin anew"
                ) from e

    def run(self, open_pair: OpenPair, steps: Iterable[Step], *, flush_length: int | None = None) -> None:
        """Do the steps, and compare both ends if that is wanted.

        Args:
            open_pair: Opens both ends for a worker.
            steps: Steps of the plan, in order.
            flush_length: As for `Executor`.

        Raises:
            CannotResume: The source changed since the transfer was begun.
            VerificationFailed: Both ends differ.
            As Executor.run.
        """
        journal, passed = self._journal, self._passed
        checkpoints = None
        if journal is not None:
            checkpoints = Checkpoints(self._record, length=CHECKPOINT_LENGTH, seconds=CHECKPOINT_SECONDS)
        executor = Executor(
            lambda: open_pair(passed.follow() if passed else None),
            self.counter,
            workers=self._workers,
            checkpoints=checkpoints,
            flush_length=flush_length,
            **self._patience.manner(),
        )
        try:
            executor.run(self._planned(steps))
        finally:
            if journal is not None and executor.flush_failed:
                journal.distrust()
        if passed is not None:
            with showing(self._progress, "verifying"):
                self._verify(passed)

    def result(self, seconds: float) -> TransferResult:
        """Return what was done.

        Args:
            seconds: That all of it took.
        """
        return make_result(
            self.counter,
            self._remote,
            self._patience,
            seconds=seconds,
            verified=self._passed is not None,
            checksum=self.checksum,
        )

    def _verify(self, passed: Passed) -> None:
        if self._scope is Scope.WHOLE:
            try:
                self.checksum = verify(
                    self._remote, self._open_image, passed, workers=self._workers, patience=self._patience
                )
            except VerificationFailed as e:
                raise self._explained(e) from e
            return
        self._compare(self._moved, passed)
        if self._scope is Scope.HELD:
            check_held(self._open_image, self._moved, passed.size)

    def _compare(self, ranges: Sequence[tuple[int, int]], passed: Passed) -> None:
        compare(self._remote, self._open_image, ranges, passed, workers=self._workers, patience=self._patience)

    def _explained(self, error: VerificationFailed) -> VerificationFailed:
        """Say so if the first byte that differs was not moved: then it is not of this transfer."""
        if self._below is None:
            return error
        with self._open_image() as image:
            at = self._patience.persist(
                lambda: first_difference(self._remote, image, error.offset, error.length),
                "compare the block that differs",
            )
        if at is None or any(start <= at < start + length for start, length in self._moved):
            return error
        text = f"{error}; byte {at} was not downloaded, for it shows {self._below.name}{self._below.hint}"
        return VerificationFailed(text, block=error.block, offset=error.offset, length=error.length)

    def _planned(self, steps: Iterable[Step]) -> Iterator[Step]:
        if self._below is not None:
            steps = self._noted(steps, self._below)
        journal = self._journal
        if journal is None:
            return iter(steps)
        if self._below is not None:
            # A range that was copied before and is to be left alone now would keep what it got.
            # So all runs must have the same plan, and it is known before the first byte is written.
            steps = Steps(steps)
            journal.begin(steps.digest())
        else:
            journal.begin()
        return plan.resumed(steps, journal.done)

    def _noted(self, steps: Iterable[Step], below: Below) -> Iterator[Step]:
        """Take note of what is moved, and tell if nothing is left alone."""
        is_full = self._size > 0
        for step in steps:
            is_full = is_full and step.action is not Action.SKIP
            if step.action is not Action.SKIP and self._passed is not None:
                self._moved[-1:] = merged([*self._moved[-1:], (step.offset, step.length)])
            yield step
        if is_full:
            log.warning("All of the image is transferred: nothing of %s will show", below.name)

    def _record(self, steps: Sequence[Step]) -> None:
        assert self._journal is not None
        kept = (step for step in steps if self._below is None or step.action is not Action.SKIP)
        self._journal.record((step.offset, step.length) for step in kept)
