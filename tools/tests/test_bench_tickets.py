# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The measurement of very many tickets measures what it says."""

from __future__ import annotations

import re

import pytest

from bench import tickets


def test_each_step_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    tickets.main(["--count", "20", "--seconds", "0"])
    lines = capsys.readouterr().out.splitlines()
    assert [re.split(r"  +", line)[0] for line in lines] == [
        "add 20",
        "memory",
        "nothing",
        "GET /status",
        "its answer",
        "GET, all of them",
        "DELETE /tickets/",
    ]
    assert all(re.search(r" s, loop [0-9.]+ s, longest stop [0-9.]+ ms", lines[n]) for n in (0, 2, 3, 5, 6))
