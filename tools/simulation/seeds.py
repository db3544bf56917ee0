# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Running seeds."""

from __future__ import annotations

import contextlib
import gc
import logging
import os
from collections import Counter
from typing import Iterator, NamedTuple

from .realm import Patch, check
from .scheduler import Crew
from .stories import story
from .world import World


class Outcome(NamedTuple):
    """Outcome of a seed.

    Attributes:
        seed: Its number.
        story: Its subject.
        broken: Promises that were broken, in words.
        told: Its events, in words.
        digest: Of all that happened.
        counts: How many runs, how they ended, and what went wrong.
        seconds: Of simulated time.
    """

    seed: int
    story: str
    broken: tuple[str, ...]
    told: tuple[str, ...]
    digest: str
    counts: Counter[str]
    seconds: float


def _run(seed: int, crew: Crew, patches: tuple[Patch, ...], trace: list[str] | None) -> Outcome:
    with World(seed, crew, patches=patches, raced=seed % 4 == 0) as world:
        plot = story(world)
        plot.play()
        world.note_content()
    if trace is not None:
        trace += world.kernel.trace
    return Outcome(
        seed,
        type(plot).__name__,
        tuple(world.broken),
        tuple(world.told),
        world.kernel.digest(),
        world.kernel.counts,
        world.scheduler.now / 1e6,
    )


class Runner:
    """Runs seeds, one after another. A context manager.

    Args:
        patches: Planted bugs.

    Raises:
        ValueError: A patch does not fit.
    """

    _COLLECT = 25  # seeds between two collections of garbage

    def __init__(self, patches: tuple[Patch, ...] = ()) -> None:
        check(patches)
        self._patches = patches
        self._crew = Crew()
        self._stack = contextlib.ExitStack()
        self._done = 0

    def __enter__(self) -> Runner:
        self._stack.enter_context(_silence())
        self._stack.enter_context(_one_processor())
        self._stack.enter_context(_no_collector())
        self._stack.enter_context(self._crew)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def run(self, seed: int, trace: list[str] | None = None) -> Outcome:
        """Run one seed.

        Args:
            seed: Decides everything.
            trace: Gets a line for each step.

        Raises:
            RuntimeError: The simulation itself failed.
        """
        try:
            outcome = _run(seed, self._crew, self._patches, trace)
        except Exception as e:
            raise RuntimeError(f"the simulation failed at seed {seed}: {e}") from e
        self._done += 1
        if self._done % self._COLLECT == 0:
            gc.collect()
        return outcome


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Keep the library from logging."""
    logger = logging.getLogger("ovirt_imageio")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


@contextlib.contextmanager
def _one_processor() -> Iterator[None]:
    """Keep the threads on one processor: one runs at a time, and a baton passes six times as fast."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {sorted(before)[os.getpid() % len(before)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


@contextlib.contextmanager
def _no_collector() -> Iterator[None]:
    """Keep the collector of garbage from choosing its time: it ends what is forgotten."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.collect()
        if was:
            gc.enable()
