# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A pytest plugin: a test that leaves threads, descriptors or processes behind fails.

The look before and after each test costs about 0.1 ms. Fixtures of a wider scope
are set up before the first look. So their open files are not held against the
test that runs first. A test that must leave something says so:
``@pytest.mark.may_leak("why")``.
"""

from __future__ import annotations

import gc
import glob
import os
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from ovirt_imageio.common.linux import pipes

if TYPE_CHECKING:
    from collections.abc import Iterator

# How long a thread that was told to stop may take to be gone, in seconds.
GRACE = 2.0

# Opened late and kept on purpose by libraries; the last one by pytest, for its log.
KEPT_OPEN = frozenset({"/dev/urandom", "/dev/random", os.devnull})


@dataclass(frozen=True)
class Holdings:
    """Threads, descriptors and processes of this process at one moment."""

    threads: frozenset[threading.Thread]
    descriptors: frozenset[tuple[int, str]]
    children: frozenset[int]

    def since(self, before: Holdings) -> list[str]:
        """Name what is held now and was not held `before`."""
        threads = [f"thread {thread.name!r}" for thread in self.threads - before.threads]
        descriptors = [f"descriptor {fd} ({target})" for fd, target in sorted(self.descriptors - before.descriptors)]
        children = [f"process {pid} ({_command(pid)})" for pid in sorted(self.children - before.children)]
        return sorted(threads) + descriptors + children


def holdings() -> Holdings:
    """Look at the threads, descriptors and child processes of this process."""
    return Holdings(
        threads=frozenset(threading.enumerate()),
        descriptors=frozenset(_descriptors()),
        children=frozenset(_children()),
    )


def leaks_since(before: Holdings) -> list[str]:
    """Name what was taken since `before` and is still held.

    If something is left over at the first look, there is a second one. Before it, garbage is
    collected, the process's spare pipes are closed, and ending threads are waited for.
    """
    after = holdings()
    if not after.since(before):
        return []
    gc.collect()
    pipes.close()
    for thread in after.threads - before.threads:
        thread.join(GRACE)
    return holdings().since(before)


@pytest.fixture(autouse=True)
def _no_leaks(request: pytest.FixtureRequest) -> Iterator[None]:
    before = holdings()
    yield
    leaks = leaks_since(before)
    if leaks and request.node.get_closest_marker("may_leak") is None:
        pytest.fail("the test leaves behind: " + ", ".join(leaks), pytrace=False)


def _descriptors() -> Iterator[tuple[int, str]]:
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except OSError:
            continue  # the descriptor of this listing
        if target not in KEPT_OPEN:
            yield int(name), target


def _children() -> Iterator[int]:
    # Absent in kernels without CONFIG_PROC_CHILDREN: then processes go unwatched.
    for path in glob.iglob("/proc/self/task/*/children"):
        try:
            with open(path, encoding="ascii") as f:
                yield from map(int, f.read().split())
        except OSError:
            continue  # the thread is gone


def _command(pid: int) -> str:
    try:
        with open(f"/proc/{pid}/cmdline", "rb") as f:
            return f.read().replace(b"\0", b" ").decode(errors="replace").strip() or "zombie"
    except OSError:
        return "gone"
