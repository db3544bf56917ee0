# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A crowd in a process of its own: python -m hostile.attack CASE COUNT TARGET.

It writes a line when the crowd is there. Then each of the crowd does its step once in a second,
not all at once but one after the other, as strangers would do. Where they leave at once, a tenth
of them comes again in each second. A line on standard input, or its end, ends it. Then it writes
which part of its due steps it had done by then, and the crowd leaves.

It runs when no other process of its group wants to (SCHED_IDLE, see sched(7)). So the result is the
cost of the crowd for the daemon, without the processor time of the crowd itself. Being nice would not
do: a process that wakes up may have to wait until a nice one has used the rest of its slice, some
milliseconds.
"""

from __future__ import annotations

import json
import os
import select
import sys
import time
from typing import Callable

from imageio_testing.hostile import CASES, Target

PERIOD = 1.0
"""Seconds in which everybody acts once."""
PARTS = 500
"""Steps in a period: a thousand clients act two at a time, every other millisecond."""
RETURNING = 10
"""Of those who leave at once one in so many comes again in each period."""


def main() -> None:
    """Entry point."""
    os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))
    name, count, target = sys.argv[1], int(sys.argv[2]), Target(**json.loads(sys.argv[3]))
    with CASES[name](target, count) as crowd:
        crowd.step()
        print("ready", flush=True)
        if crowd.again is not None:
            come = crowd.again
            done = act(lambda _: come(), max(count // RETURNING, 1))
        else:
            done = act(lambda part: crowd.step(part, PARTS), PARTS)
        print(done, flush=True)


def act(step: Callable[[int], None], parts: int) -> float:
    """Do the steps of a period, evenly spread, again and again until it is over.

    Args:
        step: Called with the number of the step in its period.
        parts: Steps in a period.

    Returns:
        Steps done, of those that were due.
    """
    began = due = time.monotonic()
    done = 0
    while True:
        due += PERIOD / parts
        if _is_over(due):
            return min(done / max((time.monotonic() - began) / PERIOD * parts, 1), 1.0)
        step(done % parts)
        done += 1


def _is_over(due: float) -> bool:
    """Wait until a time; True if it shall end before."""
    return bool(select.select([sys.stdin], [], [], max(due - time.monotonic(), 0))[0])


if __name__ == "__main__":
    main()
