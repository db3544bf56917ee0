# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A crowd in a process of its own: python -m hostile.attack CASE COUNT TARGET.

It writes a line when the crowd is there. Then each of the crowd does its step once in a second,
not all at once but one after the other, as strangers would who do not know of each other. Where
they leave at once, a tenth of them comes again in each second. The end of standard input ends it.

It is as nice as can be: what is measured is what the crowd costs the daemon, and not that it
takes a processor away.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time

from imageio_testing.hostile import CASES, Crowd, Target

PERIOD = 1.0
"""Seconds in which everybody acts once."""
PARTS = 500
"""Steps in a period: a thousand clients act two at a time, every other millisecond."""
RETURNING = 10
"""Of those who leave at once one in so many comes again in each period."""
NICE = 19


def main() -> None:
    """Entry point."""
    os.nice(NICE)
    name, count, target = sys.argv[1], int(sys.argv[2]), Target(**json.loads(sys.argv[3]))
    with CASES[name](target, count) as crowd:
        crowd.step()
        print("ready", flush=True)
        if crowd.sockets:
            _act(crowd)
        else:
            _come_again(name, target, max(count // RETURNING, 1))


def _act(crowd: Crowd) -> None:
    due = time.monotonic()
    while True:
        for part in range(PARTS):
            due += PERIOD / PARTS
            if _is_over(due):
                return
            crowd.step(part, PARTS)


def _come_again(name: str, target: Target, count: int) -> None:
    due = time.monotonic()
    while True:
        due += PERIOD / count
        if _is_over(due):
            return
        with CASES[name](target, 1):
            pass


def _is_over(due: float) -> bool:
    """Wait until a time; True if it shall end before."""
    return bool(select.select([sys.stdin], [], [], max(due - time.monotonic(), 0))[0])


if __name__ == "__main__":
    main()
