# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Bugs to plant in the client, by which the simulation shows what it finds.

Each is a small change of a source, made in memory when the simulation loads it. The first eight are
what was wrong in 3.0 indeed. A change of the source that a bug no longer fits is an error of its own.
"""

from __future__ import annotations

from typing import NamedTuple

from .realm import Patch

_CLIENT = "ovirt_imageio.client."
_COMMON = "ovirt_imageio.common."


class Bug(NamedTuple):
    """A planted bug.

    Attributes:
        name: In one word or two.
        what: The fault in words, for people.
        patches: The change.
        seeds: Some that find it.
    """

    name: str
    what: str
    patches: tuple[Patch, ...]
    seeds: tuple[int, ...] = ()


def _client(module: str, old: str, new: str) -> Patch:
    return Patch(_CLIENT + module, old, new)


BUGS = (
    Bug(
        "no claim",
        "Two downloads to one name do not exclude each other.",
        (_client("inuse", "        return linux.lock_bytes(fd, _BYTE)\n", "        return True\n"),),
        (4, 14, 35),
    ),
    Bug(
        "part by name",
        "A file NAME.part is taken and overwritten, whichever file it is.",
        (_client("part", "_FLAGS | os.O_CREAT | os.O_EXCL, mode", "_FLAGS | os.O_CREAT | os.O_TRUNC, mode"),),
        (47, 49, 102),
    ),
    Bug(
        "own backing",
        "An image may be downloaded onto its own backing file.",
        (_client("backing", "        if _is_same(target, used):\n", "        if False:\n"),),
        (101, 135, 170),
    ),
    Bug(
        "qemu unseen",
        "An image that a running qemu has open is replaced.",
        (_client("standing", "        if locks.is_open_in_qemu(self._fd):\n", "        if False:\n"),),
        (43, 55, 65),
    ),
    Bug(
        "shallow verify",
        "What shows through the new image from its backing file is not compared.",
        (_client("api", "    return Scope.MOVED if shallow else Scope.WHOLE\n", "    return Scope.MOVED\n"),),
        (158, 322, 415),
    ),
    Bug(
        "trusted zero",
        "A resumed upload takes the disk for zero though an earlier run has written.",
        (_client("transfer", "bool(journal and journal.begun)", "bool(journal and journal.done)"),),
        (459,),
    ),
    Bug(
        "unsealed plan",
        "A resumed partial upload does not care that the plan is another now.",
        (_client("journal", "            if plan != self._plan:\n", "            if False:\n"),),
        (1821, 3147, 3804),
    ),
    Bug(
        "cut clusters",
        "Of a cluster that changed in part only that part is fetched, also without a backing file.",
        (_client("api", "cluster=None if has_backing else CLUSTER", "cluster=None"),),
        (96, 100, 158),
    ),
    Bug(
        "early record",
        "The journal has steps before they are flushed.",
        (
            _client(
                "executor",
                "                self._do(_Job(step, executor._counter))\n",
                "                self._do(_Job(step, executor._counter))\n"
                "                if executor._checkpoints is not None:\n"
                "                    executor._checkpoints.record([step])\n",
            ),
        ),
        (16, 137, 159),
    ),
    Bug(
        "one step too many",
        "A resumed run leaves out the step behind those that are done.",
        (
            _client(
                "plan", "            end = min(step.end, stop if inside else start)\n", "            end = step.end\n"
            ),
        ),
        (15, 69, 71),
    ),
    Bug(
        "counted twice",
        "What is moved again after a failure is counted again.",
        (
            _client(
                "executor",
                "position = request.position\n            raise\n",
                "position = request.position\n            job._counted = job.position\n            raise\n",
            ),
        ),
        (12, 77, 132),
    ),
    Bug(
        "last block unseen",
        "Of blocks that are compared together the last one is left out.",
        (
            _client(
                "comparing",
                "        for number, their in zip(numbers, theirs):\n",
                "        for number, their in zip(numbers[:-1], theirs):\n",
            ),
        ),
        (543,),
    ),
    Bug(
        "flush forgotten",
        "A worker does not flush what it wrote over a connection that is gone.",
        (
            _client(
                "executor",
                "        self._owes_flush = self._owes_flush or pair.owes_flush\n",
                "        self._owes_flush = False\n",
            ),
        ),
        (44, 203),
    ),
    Bug(
        "one flush",
        "Only the first worker flushes.",
        (
            _client(
                "executor",
                "                self._opened().flush()\n",
                "                if self.name == 'transfer-0':\n                    self._opened().flush()\n"
                "                elif self._pair is not None:\n                    self._pair.owes_flush = False\n",
            ),
        ),
        (15, 25, 40),
    ),
    Bug(
        "name before data",
        "The image gets its name before it is on stable storage.",
        (_client("staging", "        self.sync()\n        part.check_name()\n", "        part.check_name()\n"),),
        (255, 308, 315),
    ),
    Bug(
        "folder not synced",
        "The new name is not on stable storage when the download returns.",
        (_client("staging", "        sync_folder(self.filename)\n", ""),),
        (1, 2, 3),
    ),
    Bug(
        "endless",
        "A failure that does not pass is repeated for ever.",
        (
            _client(
                "executor",
                "        if failures >= executor._retry.attempts:\n            raise gave_up",
                "        if failures < 0:\n            raise gave_up",
            ),
        ),
        (413, 451),
    ),
    Bug(
        "step taken twice",
        "Two workers may take the same step from the queue, and leave another out.",
        (
            _client(
                "executor",
                "            self._next += 1\n            return self._steps[self._next - 1]\n",
                "            number = self._next\n        with self._changed:\n"
                "            self._next = number + 1\n            return self._steps[number]\n",
            ),
        ),
        (84, 100, 148),
    ),
    Bug(
        "nothing compared",
        "A resumed run does not look if what was done is there still.",
        (_client("transfer", "        if self._journal is None or not self._journal.done:\n", "        if True:\n"),),
        (34, 153, 274),
    ),
    Bug(
        "sent is written",
        "After a failed upload the bytes that were sent count as written.",
        (_client("executor", "            if pair.acknowledges:\n", "            if True:\n"),),
        (13, 187, 327),
    ),
    Bug(
        "error lost",
        "A worker that fails ends the others, but not the transfer.",
        (_client("executor", "        if self._error is not None:\n            raise self._error\n", ""),),
        (16, 34, 37),
    ),
    Bug(
        "stale part",
        "A part that no journal knows is continued.",
        (
            _client(
                "staging",
                "= journal is not None and bool(journal.done) and (journal.is_sealed or not sealed)\n",
                "= journal is not None\n",
            ),
        ),
        (5, 34, 160),
    ),
    Bug(
        "zero left out",
        "Zeroes that are found in the data are not written to a disk that may hold something else.",
        (
            _client(
                "pairs",
                "            if not self._disk_is_zero:\n                self.zero(start, count)\n            elif",
                "            if",
            ),
        ),
        (54, 94, 152),
    ),
    Bug(
        "trust after failure",
        "What was done is relied on after storage has refused a flush.",
        (
            _client(
                "transfer", "            if journal is not None and executor.flush_failed:\n", "            if False:\n"
            ),
        ),
        (573,),
    ),
    Bug(
        "restart unseen",
        "A flush counts though the server was restarted since it acknowledged the writes.",
        (
            Patch(
                _COMMON + "backends.http.backend",
                "        if self.unflushed and (self._in_doubt or life != self.life):\n",
                "        if False:\n",
            ),
        ),
        (187, 439),
    ),
    Bug(
        "attributes lost",
        "The new image has not the attributes of the file that it replaces.",
        (_client("staging", "            old.give_attributes(part.fd)\n", ""),),
        (2, 3, 9),
    ),
)
"""All of them."""
