# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Contents of images: each unit says of which image, version and place it is."""

from __future__ import annotations

from .dice import Dice
from .store import UNIT

_STAMP = 16


def unit(name: str, number: int) -> bytes:
    """Return the content of a unit: never zero, and another at each place of each image."""
    text = f"{name}.{number}|".encode()
    return (text * (UNIT // len(text) + 1))[:UNIT]


def make(dice: Dice, name: str, size: int, *, zeroes: float = 0.4, longest: int = 200) -> bytes:
    """Return an image of runs of data and of zeroes.

    Args:
        dice: Decide where.
        name: In its stamps.
        size: Bytes.
        zeroes: Share of the runs that are zeroes.
        longest: Most units of a run.
    """
    parts = []
    units = -(-size // UNIT)
    at = 0
    while at < units:
        count = min(units - at, dice.about(1, longest))
        zero = dice.chance(zeroes)
        parts += [bytes(UNIT) if zero else unit(name, number) for number in range(at, at + count)]
        at += count
    return b"".join(parts)[:size]


def changed(dice: Dice, data: bytes, name: str, *, times: int = 5, grain: int = UNIT) -> bytes:
    """Return an image of which some runs hold something else, or zeroes.

    Args:
        dice: Decide where.
        data: The image.
        name: In the stamps of what is new.
        times: Most runs.
        grain: Bytes that each run is a multiple of.
    """
    result = bytearray(data)
    grains = -(-len(data) // grain)
    for _ in range(dice.between(1, times)):
        first = dice.below(grains) * grain
        last = min(len(data), first + dice.about(1, 50) * grain)
        zero = dice.chance(0.3)
        for start in range(first, last, grain):
            new = bytes(grain) if zero else (unit(name, start // UNIT) * (grain // UNIT + 1))[:grain]
            result[start : start + grain] = new[: len(result) - start]
    return bytes(result)


def difference(expected: bytes, found: bytes) -> str:
    """Tell where two images first differ, and how much; empty if they are equal."""
    if expected == found:
        return ""
    if len(expected) != len(found):
        return f"{len(found)} bytes, expected {len(expected)}"
    places = [at for at in range(0, len(expected), UNIT) if expected[at : at + UNIT] != found[at : at + UNIT]]
    at = places[0]
    return (
        f"{len(places)} units differ, the first at {at}: {_shown(found[at : at + UNIT])}, "
        f"expected {_shown(expected[at : at + UNIT])}"
    )


def _shown(data: bytes) -> str:
    return "zeroes" if not data.strip(b"\0") else repr(data[:_STAMP])
