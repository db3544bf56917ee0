# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import contextlib
import socket
import types
from pathlib import Path

import pytest

from bench.machine import Usage
from hostile import __main__ as command
from hostile import attack, measure
from imageio_testing.hostile import CASES, Target

TWIN = {"twin unix": [0.001] * 100, "twin tls": [0.002] * 100}
FAST = {"unix": [0.001] * 100, "tls": [0.002] * 100, **TWIN}
SLOW = {"unix": [0.001] * 98 + [0.01] * 2, "tls": [0.002] * 100, **TWIN}


def found(meanwhile, done=1.0):
    one, two, three = Usage(1, 30 << 20, 2, 10), Usage(2, 60 << 20, 4, 1010), Usage(3, 31 << 20, 3, 10)
    return measure.Found(
        1000,
        [one],
        [two],
        [three],
        [FAST],
        [FAST],
        [meanwhile],
        control=[0.004, 0.002, 0.003],
        busy=[(0.1, 0.25)],
        transfers=[0.5],
        done=[done],
        stolen=[0.002],
    )


def test_page_tells_what_was_seen():
    options = command.arguments(["--note", "A note."])
    page = command.page({"silent": found(FAST)}, options)
    (row,) = [line for line in page.splitlines() if line.startswith("| silent")]
    assert row.startswith("| silent | 1000 | 2 / 4 / 3 | 30 / 60 / 31 | 10 / 1010 / 10 | 10 / 25 | 1.00 | 1.00 | 1.00 ")
    assert row.endswith("| 1.00 | 1.00 | 2.00 | 2.00 | 1.00 | 1.00 | 2.00 | 3.00 | 0.50 | yes |")
    assert "every case keeps that" in page
    assert "**silent**: connect to the TLS port and say nothing." in page
    assert "A note." in page


def test_page_names_who_missed_the_goal():
    page = command.page({"silent": found(FAST), "reset": found(SLOW, 0.9)}, command.arguments([]))
    assert "missed by: reset." in page
    assert "| 10.00 **!** | 1.00 |" in page
    assert "done of what each crowd was to do: 90% or more" in page
    assert [line.split(" | ")[-1] for line in page.splitlines() if line.startswith("| reset")] == ["no |"]


def test_slices_are_compared_in_pairs():
    """One of three rounds was disturbed, without the crowd and with it."""
    seen = found(FAST)
    for unloaded, meanwhile in ((9, 18), (2, 3)):
        seen.unloaded.append({"unix": [unloaded / 1000] * 100})
        seen.meanwhile.append({"unix": [meanwhile / 1000] * 100})
    assert measure.p99(seen.unloaded, "unix") == pytest.approx(0.002)
    assert measure.ratio(seen, "unix") == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("stolen", "taken"),
    [
        ([0.0, 0.004, 0.001, 0.0], [0.0, 0.001, 0.004]),
        ([0.2, 0.0, 0.1, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
        ([0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2, 0.1, 0.0], [0.1, 0.2, 0.3]),
    ],
    ids=["quiet", "disturbed twice", "never quiet"],
)
def test_rounds_that_the_host_disturbs_are_repeated(stolen, taken):
    parts = iter(stolen)
    rounds = measure.least_disturbed(lambda: measure.Found(1, done=[1.0], stolen=[next(parts)]), 3)
    assert rounds.stolen == taken
    assert rounds.done == [1.0] * 3


@pytest.mark.parametrize(("part", "value"), [(0.5, 51), (0.99, 100), (1.0, 100), (0.0, 1)])
def test_percentile(part, value):
    assert measure.percentile(list(range(100, 0, -1)), part) == value


@pytest.mark.parametrize(("seconds", "done"), [(2.0, 1.0), (10.0, 0.3)])
def test_attack_tells_what_part_it_did(monkeypatch, seconds, done):
    """Six steps, and four are due in each period of two seconds."""
    clock, over = iter([100.0, 100.0 + seconds]), iter([False] * 6 + [True])
    monkeypatch.setattr(attack, "PERIOD", 2.0)
    monkeypatch.setattr(attack, "time", types.SimpleNamespace(monotonic=lambda: next(clock)))
    monkeypatch.setattr(attack, "_is_over", lambda due: next(over))
    steps = []
    assert attack.act(steps.append, 4) == done
    assert steps == [0, 1, 2, 3, 0, 1]


def test_returning_clients_say_more_of_their_hello_each_time(pki):
    """A client that comes again does what the crowd did, and prepares nothing."""
    said = []
    with socket.create_server(("localhost", 0)) as server:
        target = Target(server.getsockname()[1], "", pki.ca_file, "/", 0)
        with CASES["reset"](target, 3) as crowd:
            crowd.again()
            for _ in range(5):
                sock, _ = server.accept()
                with sock:
                    said.append(received(sock))
    assert said[0] == 0, "the one that looks the address up"
    assert said[1:] == [0, 1, 2, 3]


def received(sock):
    """Count the bytes that came before the connection was reset."""
    count = 0
    with contextlib.suppress(ConnectionResetError):
        while data := sock.recv(1000):
            count += len(data)
    return count


@pytest.mark.system
def test_crowd_is_sent_and_looked_at(tmp_path, monkeypatch):
    monkeypatch.setattr(measure, "_SETTLE", 0)
    monkeypatch.setattr(measure, "_PAUSE", 0)
    page = tmp_path / "page.md"
    monkeypatch.setenv("PYTHONPATH", str(Path(measure.__file__).parents[1]))  # for its helpers
    command.main(["silent", "reset", "--count", "5", "--rounds", "1", "--seconds", "0.2", "--report", str(page)])
    rows = [line for line in page.read_text().splitlines() if line.startswith(("| silent", "| reset"))]
    assert [row.split(" | ")[:2] for row in rows] == [["| silent", "5"], ["| reset", "5"]]
