# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Somebody with a ticket, in a process of its own: python -m hostile.probe TARGET.

It reads 4 KiB every few milliseconds over a Unix socket and over TLS, on connections that it keeps.
For each line on standard input it writes the seconds that its requests took since the last one,
as a JSON document; the end of standard input ends it.
"""

from __future__ import annotations

import json
import select
import sys
import time
from typing import Any

from imageio_testing.hostile import Target
from imageio_testing.httppeer import HttpPeer, request_head

PAUSE = 0.002  # seconds: a normal client, no load of its own
PATIENCE = 60.0


def measure(peer: HttpPeer, head: bytes) -> float:
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
    target = Target(**json.loads(sys.argv[1]))
    head = request_head("GET", target.path, headers=[("Range", "bytes=0-4095")])
    with (
        HttpPeer.unix(target.local) as unix,
        HttpPeer.tls("localhost", target.port, ca_file=target.ca_file) as tls,
    ):
        peers: dict[str, Any] = {"unix": unix, "tls": tls}
        for peer in peers.values():
            peer.socket.settimeout(PATIENCE)
        took: dict[str, list[float]] = {name: [] for name in peers}
        while True:
            for name, peer in peers.items():
                took[name].append(measure(peer, head))
            if select.select([sys.stdin], [], [], PAUSE)[0]:
                if not sys.stdin.readline():
                    return
                print(json.dumps(took), flush=True)
                took = {name: [] for name in peers}


if __name__ == "__main__":
    main()
