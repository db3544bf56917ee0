# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Numbers that both ends share, each with the measurement it comes from.

Figures: two processors, qemu-nbd 7.2, image on tmpfs, Unix sockets. Other values are measured by
`python -m bench.tuning`, also on a disk with cache=none and on storage that takes 1 or 10 ms for a
request. The results stand in docs/performance. Smaller pieces cost more on each storage: 256 KiB
twice the processor time of 1 MiB. Slow storage gains from more in flight.
"""

from __future__ import annotations

from ovirt_imageio.common.units import KiB, MiB

PIECE = 1 * MiB
"""Bytes moved at a time in a stream. Under 512 KiB costs throughput; more than 1 MiB
leaves the processor's caches and exceeds the largest pipe of an unprivileged user."""

INLINE_LIMIT = 128 * KiB
"""Largest request that the daemon's loop serves itself. At 64 KiB the loop serves 5,679
requests a second on eight connections and a worker 3,488; at 256 KiB 3,757 and 3,496. On a loaded
machine 1,712 and 583 at 128 KiB, 147 and 977 at 256 KiB."""

LOOK = 100e-6
"""Seconds the loop looks for events before it sleeps: 237 became 150 µs for 4 KiB."""

WORKERS = 64
"""Most worker threads of a daemon. Four streams need four: one moves 136 MiB/s, two 480, four 514;
on storage that takes 10 ms 54, 143 and 214. The rest is for clients that let a worker wait."""

WORKER_NICE = 10
"""Niceness of workers: beside four bulk transfers, 1,491 small requests a second became
2,764."""

PIPE_SIZE = 1 * MiB
"""Size of a pipe between two sockets, see fcntl(2), F_SETPIPE_SZ. The largest that an
unprivileged user gets."""

NBD_SNDBUF = 4 * MiB
"""Send buffer towards an NBD server: writing by splice became 1.87 times as fast as the
peer's with four requests in flight."""

NBD_RCVLOWAT = PIECE
"""Bytes of a reply that a call on the Unix socket of an NBD server waits for, see socket(7), SO_RCVLOWAT.

A piece moves by two splices instead of ten. Daemon, one bulk GET: 0.315 s/GiB without it, 0.302 with
256 KiB, 0.245 with 512 KiB, 0.252 with 1 MiB."""

HTTP_SNDBUF = 1 * MiB
"""Send buffer of HTTP over a Unix socket: the sender's rules its throughput."""

WRITES_IN_FLIGHT = 4
"""Pipelined NBD writes of a stream."""

READ_CONNECTIONS = 2
"""NBD connections of a bulk read, one request in flight on each: 1.46 times the peer's
speed. More gain nothing on two processors."""

MAX_PIPES = 32
"""Pipes of full size that a process keeps: an unprivileged user gets 64 of them
(`/proc/sys/fs/pipe-user-pages-soft`), and two processes may be his."""

LARGE_READ = 8 * MiB
"""Bytes of the one read after which qemu-nbd keeps its buffers, see `backends.largeread`.

Its processor time for a GiB of bulk fell from 1.45 to 0.59 s writing and from 1.5 to 0.75 s reading.
The allocator of glibc then gives back memory only past twice this. The requests in flight stay below that."""

LARGE_READ_AFTER = 32 * MiB
"""Bytes moved over an export before that read, which costs about what it saves on these."""

MAX_CONNECTIONS = 8
"""Open backends of one ticket. qemu-nbd of 2.x hosts runs with --shared=8."""

MAX_WORKERS = 4
"""Connections of a client's transfer."""

BUFFER_SIZE = 4 * MiB
"""Buffer of a client's worker where payload passes through its memory."""

EXTENT_LIMIT = 128 * MiB
"""Most bytes that a client moves in one HTTP request. At 8 MiB the cost of a request is no longer
measurable. A request that fails is repeated from its start."""

ZERO_LIMIT = 1024 * MiB
"""Most bytes zeroed in one step, between which an operation may be cancelled."""

NBD_TIMEOUT = 900.0
"""Seconds that an NBD server may stay silent when it owes an answer. A discard on slow NFS took more than a
minute. A server that is gone ends the connection. A ticket that is removed ends the wait."""

CONNECT_TIMEOUT = 10.0
"""Seconds for a connection to be established."""

HTTP_TIMEOUT = 60.0
"""Seconds that an HTTP server may stay silent when it owes an answer."""
