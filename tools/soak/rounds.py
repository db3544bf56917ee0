# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""One round: clients write and flush, something is killed, everything is compared.

Threads and their work:

    writer 0..3 ──► each in sectors of its own: PUT, zero, with flush or without,
                    small ones and long ones, some repeated when they failed
    flusher ──────► PATCH flush over a connection of its own; one for each ticket of the storage
    main ─────────► kill -9 at random moments, up to three times
    then ─────────► kill -9 of storage, start it, read the image, compare each byte
"""

from __future__ import annotations

import json
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Hashable
from typing import Optional

from imageio_testing.httppeer import ConnectionEnded, HttpPeer, MalformedResponse

from .model import SECTOR, Change, Model, Verdict, content
from .targets import Target

WRITERS = 4
_TRIES = 20


class RoundFailed(Exception):
    """A round could not be carried out. It says nothing about data."""


class _Client:
    """Sends requests to whoever serves at the target's address, on a connection that it keeps."""

    def __init__(self, target: Target, number: int) -> None:
        self._target = target
        self._ticket = target.ticket(number)
        self._peer: Optional[HttpPeer] = None
        self._address = ""

    @property
    def epoch(self) -> Hashable:
        """The ticket, and which of its lives this is."""
        return (self._ticket, self._target.epoch)

    def request(self, method: str, query: str, headers: list[tuple[str, str]], body: bytes) -> bool:
        """Tell whether the request was answered with success."""
        try:
            if self._peer is None or self._address != self._target.address:
                self.close()
                self._address = self._target.address
                self._peer = HttpPeer.unix(self._address)
            response = self._peer.request(method, f"/images/{self._ticket}{query}", headers=headers, body=body)
        except (OSError, ConnectionEnded, MalformedResponse):
            self.close()
            return False
        return response.status == 200

    def close(self) -> None:
        """Close the connection."""
        if self._peer is not None:
            self._peer.close()
            self._peer = None


class Round:
    """One round with a target.

    Args:
        target: Storage and daemons that are written to and killed.
        model: Of its image.
        seed: Everything that is random follows from it, but for when which thread runs.
        seconds: How long clients write, about.

    Attributes:
        counts: How often each event happened.
    """

    def __init__(self, target: Target, model: Model, seed: str, *, seconds: float = 0.3) -> None:
        self.counts: Counter[str] = Counter()
        self._target = target
        self._model = model
        self._seed = seed
        self._rng = random.Random(seed)
        self._seconds = seconds
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._errors: list[BaseException] = []

    def run(self) -> Verdict:
        """Carry it out.

        Raises:
            RoundFailed: Something did not work as it should, apart from losing data.
        """
        self._target.add_ticket()
        jobs = [threading.Thread(target=self._guarded, args=(self._write, n), daemon=True) for n in range(WRITERS)]
        for number in range(WRITERS, WRITERS + self._target.ticket_count):
            jobs.append(threading.Thread(target=self._guarded, args=(self._flush_now_and_then, number), daemon=True))
        for job in jobs:
            job.start()
        try:
            self._inject()
        finally:
            self._stop.set()
            for job in jobs:
                job.join(120)
        if any(job.is_alive() for job in jobs):
            raise RoundFailed("a request hangs")
        if self._errors:
            raise RoundFailed(f"a client failed: {self._errors[0]!r}") from self._errors[0]
        return self._compare()

    # Faults.

    def _inject(self) -> None:
        # A daemon needs long to start, and has no data of its own: storage is killed more often.
        kinds = [*self._target.faults, "replace", *["storage"] * 3 * ("storage" in self._target.faults)]
        kinds += self._target.more * len(kinds)
        for _ in range(self._rng.choice([1, 1, 2, 3])):
            time.sleep(self._rng.random() * self._seconds)
            fault = self._rng.choice(kinds)
            if fault == "replace":
                self._target.replace_ticket()
            else:
                self._target.kill(fault)
            self.counts[fault] += 1
        # Answers to requests after a fault have to be right as well.
        time.sleep(self._rng.random() * self._seconds)

    def _compare(self) -> Verdict:
        target = self._target
        fault = "storage" if "storage" in target.faults else "daemon"
        target.kill(fault)
        self.counts[fault] += 1
        target.add_ticket()
        return self._model.compare(self._image())

    def _image(self) -> bytes:
        why = ""
        for _ in range(_TRIES):
            try:
                with HttpPeer.unix(self._target.address) as peer:
                    response = peer.request("GET", f"/images/{self._target.ticket(0)}")
                if response.status == 200 and len(response.body) == self._target.size:
                    return response.body
                why = f"{response.status} {response.text}"
            except (OSError, ConnectionEnded) as e:
                why = str(e)
            time.sleep(0.1)
        raise RoundFailed(f"the image cannot be read: {why}")

    # Clients.

    def _guarded(self, work: Callable[[_Client, random.Random, int], None], number: int) -> None:
        client = _Client(self._target, number)
        try:
            work(client, random.Random(f"{self._seed}:{number}"), number)
        except BaseException as e:
            self._errors.append(e)
        finally:
            client.close()

    def _write(self, client: _Client, rng: random.Random, number: int) -> None:
        lane = self._model.sectors // WRITERS
        while not self._stop.is_set():
            # Small ones are served in the loop, long ones by workers.
            count = rng.choice([1, 7, 8, 64, 255, 256, 512, 1024, 2048])
            count = min(count, lane)
            first = number * lane + rng.randrange(lane - count + 1)
            zero, flush = rng.random() < 0.2, rng.random() < 0.3
            change = self._model.begin(first, count, zero=zero)
            tries = rng.choice([1, 1, 4])
            for again in range(tries):
                if self._change(client, change, zero, flush, chunked=rng.random() < 0.1):
                    break
                self._count("failed")
                if self._stop.is_set():
                    break
                time.sleep(0.02 * (again + 1))

    def _change(self, client: _Client, change: Change, zero: bool, flush: bool, *, chunked: bool) -> bool:
        epoch = client.epoch
        covered = self._model.flush_begins(epoch) if flush else []
        offset, length = change.first * SECTOR, change.count * SECTOR
        headers: list[tuple[str, str]] = []
        if zero:
            document = {"op": "zero", "offset": offset, "size": length, "flush": flush}
            done = client.request("PATCH", "", headers, json.dumps(document).encode())
        else:
            body = content(change.first, change.count, change.version)
            headers.append(("Content-Range", f"bytes {offset}-{offset + length - 1}/*"))
            if chunked:
                headers.append(("Transfer-Encoding", "chunked"))
                body = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            done = client.request("PUT", f"?flush={'y' if flush else 'n'}", headers, body)
        if not done:
            return False
        # A new life of the ticket owes nothing of the one before.
        same = epoch == client.epoch
        self._count("writes")
        self._model.acknowledge(change, epoch if same else None)
        if flush:
            self._flushed([*covered, change] if same else [change])
        return True

    def _flush_now_and_then(self, client: _Client, rng: random.Random, number: int) -> None:
        while not self._stop.wait(rng.random() * 0.05):
            epoch = client.epoch
            covered = self._model.flush_begins(epoch)
            if client.request("PATCH", "", [], b'{"op": "flush"}'):
                self._flushed(covered if epoch == client.epoch else [])
            else:
                self._count("failed flushes")

    def _flushed(self, covered: list[Change]) -> None:
        self._count("flushes")
        self._model.flushed(covered)

    def _count(self, what: str) -> None:
        with self._lock:
            self.counts[what] += 1
