# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Sizes as people write them."""

from __future__ import annotations

import re

KiB = 1 << 10
MiB = 1 << 20
GiB = 1 << 30
TiB = 1 << 40

_SUFFIXES = {"": 1, "k": KiB, "m": MiB, "g": GiB, "t": TiB}
_SIZE = r"(?ai)([0-9]+)\s*([kmgt]?)(?:i?b)?"


def parse_size(text: str) -> int:
    """Read a size in bytes.

    Args:
        text: Digits, and maybe one of `k m g t` in any case for 2**10 to 2**40;
            `64k`, `64K`, `64KiB` and `65536` are the same.

    Raises:
        ValueError: text is none of these.
    """
    match = re.fullmatch(_SIZE, text.strip())
    if not match:
        raise ValueError(f"invalid size {text!r}: expected digits and one of k, m, g, t, like 64k")
    return int(match[1]) * _SUFFIXES[match[2].lower()]


def format_size(size: float) -> str:
    """Write a size in bytes for people, like `1.20 GiB`: three significant digits."""
    unit = "TiB"
    for smaller in ("bytes", "KiB", "MiB", "GiB"):
        if abs(size) < 1000:
            unit = smaller
            break
        size /= 1024
    if unit == "bytes":
        return f"{size:.0f} {unit}"
    digits = sum(abs(size) < limit for limit in (0.9995, 9.995, 99.95))
    return f"{size:.{digits}f} {unit}"
