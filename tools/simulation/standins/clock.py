# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""In place of `time` and `random`: the simulated clock, and the dice of the seed."""

from __future__ import annotations

from typing import MutableSequence, Sequence, TypeVar

from ..kernel import active
from . import StandIn

T = TypeVar("T")

_START = 1_000_000.0
"""Seconds that the clock shows at the beginning: nothing may take it for 0."""


class Time(StandIn):
    """See the module `time`."""

    stands_for = "time"

    @staticmethod
    def monotonic() -> float:
        """Return simulated seconds."""
        return _START + active().scheduler.now / 1e6

    time = perf_counter = monotonic

    @staticmethod
    def monotonic_ns() -> int:
        """Return simulated nanoseconds."""
        return int(_START) * 1_000_000_000 + active().scheduler.now * 1000

    time_ns = perf_counter_ns = monotonic_ns

    @staticmethod
    def sleep(seconds: float) -> None:
        """Wait in simulated time."""
        active().sleep(seconds)


class Random(StandIn):
    """See the module `random`."""

    stands_for = "random"

    @staticmethod
    def random() -> float:
        """Throw the dice."""
        return active().dice.fraction()

    @staticmethod
    def uniform(low: float, high: float) -> float:
        """Throw the dice."""
        return low + (high - low) * active().dice.fraction()

    @staticmethod
    def choice(options: Sequence[T]) -> T:
        """Throw the dice."""
        return active().dice.pick(options)

    @staticmethod
    def randrange(limit: int) -> int:
        """Throw the dice."""
        return active().dice.below(limit)

    @staticmethod
    def getrandbits(count: int) -> int:
        """Throw the dice."""
        return active().dice.below(1 << count)

    @staticmethod
    def shuffle(items: MutableSequence[T]) -> None:
        """Throw the dice."""
        for i in range(len(items) - 1, 0, -1):
            j = active().dice.below(i + 1)
            items[i], items[j] = items[j], items[i]


class Secrets(StandIn):
    """See the module `secrets`: here even these repeat."""

    stands_for = "secrets"

    @staticmethod
    def token_hex(count: int = 32) -> str:
        """Throw the dice."""
        return "".join("0123456789abcdef"[active().dice.below(16)] for _ in range(2 * count))


time = Time()
random = Random()
secrets = Secrets()
