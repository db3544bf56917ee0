# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Chance that repeats: the same seed throws the same dice in every process and version of Python."""

from __future__ import annotations

import math
import random
from typing import Sequence, TypeVar

T = TypeVar("T")


class Dice:
    """A source of chance.

    Only `random()` is used of `random.Random`: its sequence is promised not to change.

    Args:
        seed: Any text.
    """

    def __init__(self, seed: str) -> None:
        self._random = random.Random(seed).random

    def fraction(self) -> float:
        """Return a number from 0 to 1, without 1."""
        return self._random()

    def chance(self, probability: float) -> bool:
        """Return True as often as that."""
        return probability > 0 and self._random() < probability

    def below(self, limit: int) -> int:
        """Return a whole number from 0 to limit, without limit."""
        return int(self._random() * limit)

    def between(self, first: int, last: int) -> int:
        """Return a whole number from first to last."""
        return first + int(self._random() * (last - first + 1))

    def about(self, first: int, last: int) -> int:
        """Return a whole number from first to last; each order of magnitude is as likely as another."""
        return min(last, int(first * math.exp(self._random() * math.log((last + 1) / first))))

    def pick(self, options: Sequence[T]) -> T:
        """Return one of the options."""
        return options[int(self._random() * len(options))]

    def weighted(self, *options: tuple[float, T]) -> T:
        """Return one of the options, each with its weight."""
        left = self._random() * sum(weight for weight, _ in options)
        for weight, option in options:
            left -= weight
            if left < 0:
                return option
        return options[-1][1]

    def child(self) -> Dice:
        """Return dice of their own, so that what they are thrown for does not shift ours."""
        return Dice(f"{self._random()!r}")
