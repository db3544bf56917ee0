# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A crowd in a process of its own: python -m hostile.attack CASE COUNT TARGET.

It writes a line when the crowd is there, and lets it do its step each second. Where it leaves at once
a tenth of it comes again each second. The end of standard input ends it.
"""

from __future__ import annotations

import json
import select
import sys

from imageio_testing.hostile import CASES, Target

INTERVAL = 1.0  # seconds between two steps


def main() -> None:
    """Entry point."""
    name, count, target = sys.argv[1], int(sys.argv[2]), Target(**json.loads(sys.argv[3]))
    told = False
    while True:
        with CASES[name](target, count) as crowd:
            crowd.step()
            if not told:
                print("ready", flush=True)
                told = True
                count = count if crowd.sockets else max(count // 10, 1)
            while True:
                if select.select([sys.stdin], [], [], INTERVAL)[0]:
                    return
                if not crowd.sockets:
                    break
                crowd.step()


if __name__ == "__main__":
    main()
