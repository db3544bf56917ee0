# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import os
import platform
import subprocess
import sys

import pytest

from ovirt_imageio.daemon import memory


@pytest.mark.parametrize(
    ("counts", "trims"),
    [
        ([0, 1000, 900, 250], 1),
        ([1000, 0, 0, 0], 1),
        ([1000, 0, 1000, 0], 2),
        ([1000, 500, 400, 300], 0),
        ([199, 0], 0),
        ([], 0),
    ],
)
def test_memory_is_trimmed_once_when_most_connections_have_ended(counts: list[int], trims: int) -> None:
    calls: list[None] = []
    tidier = memory.Tidier(lambda: calls.append(None))
    for count in counts:
        tidier.look(count)
    assert len(calls) == trims


def test_trim_works_here() -> None:
    memory.trim()


FAULTS = """
import resource, sys
from ovirt_imageio.daemon import memory
if sys.argv[1] == "keep":
    memory.keep()
for turn in range(60):
    if turn == 10:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    records = [b"x" * 16408 for _ in range(32)]
    joined = b"".join(records)
    del records, joined
print((resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) // 50)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library is not glibc")
def test_memory_that_is_kept_is_not_filled_again() -> None:
    def faults(how: str) -> int:
        # Where this is set, the C library does not learn from what was freed, as it now and then does.
        env = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "131072"}
        done = subprocess.run([sys.executable, "-c", FAULTS, how], capture_output=True, check=True, text=True, env=env)
        return int(done.stdout)

    pages = 32 * 16408 // 4096
    assert faults("keep") < pages // 10 < faults("as it is")
