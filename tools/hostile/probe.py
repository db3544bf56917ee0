# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A client with tickets, in a process of its own: python -m hostile.probe TARGET TARGET.

It reads 4 KiB every few milliseconds over a Unix socket and over TLS, on connections that it keeps.
It asks the attacked daemon and its twin without a crowd in turn. For each line on standard input it
writes the seconds that its requests took since the last line, as a JSON document. The end of
standard input ends it.
"""

from __future__ import annotations

import contextlib
import gc
import json
import select
import sys
import time
from typing import Any

from imageio_testing.hostile import Target
from imageio_testing.httppeer import HttpPeer, request_head

PAUSE = 0.002  # seconds: a normal client, no load of its own
PATIENCE = 60.0
WAYS = ("unix", "tls", "twin unix", "twin tls")


def measure(peer: Any, head: bytes) -> float:
    """Send one request; return how long its answer took."""
    began = time.perf_counter()
    peer.send(head)
    response = peer.response()
    took = time.perf_counter() - began
    if response.status != 206 or len(response.body) != 4096:
        raise SystemExit(f"the daemon answered {response.status} {response.text!r}")
    return took


def main() -> None:
    """Entry point."""
    with contextlib.ExitStack() as stack:
        ways: list[tuple[str, Any, bytes]] = []
        for text in sys.argv[1:]:
            target = Target(**json.loads(text))
            head = request_head("GET", target.path, headers=[("Range", "bytes=0-4095")])
            tls = HttpPeer.tls("localhost", target.port, ca_file=target.ca_file)
            for peer in (HttpPeer.unix(target.local), tls):
                stack.enter_context(peer)
                peer.socket.settimeout(PATIENCE)
                ways.append((WAYS[len(ways)], peer, head))
        gc.disable()  # a pause of our own is none of the daemon's
        took: dict[str, list[float]] = {name: [] for name, _, _ in ways}
        while True:
            for name, peer, head in ways:
                took[name].append(measure(peer, head))
            if select.select([sys.stdin], [], [], PAUSE)[0]:
                if not sys.stdin.readline():
                    return
                print(json.dumps(took), flush=True)
                took = {name: [] for name, _, _ in ways}
                gc.collect()


if __name__ == "__main__":
    main()
