# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The short form of `make soak`, and that its judge would notice a loss."""

from __future__ import annotations

import pytest
from soak import __main__ as soak
from soak import report
from soak.model import SECTOR, Model, content
from soak.targets import Target, as_it_is, as_uri

from imageio_testing.qemu import needs_qemu
from ovirt_imageio.common.backends.identity import identity


def image(*versions):
    return b"".join(content(sector, 1, version) for sector, version in enumerate(versions))


def written(model, first, count, *, epoch=1, zero=False):
    change = model.begin(first, count, zero=zero)
    model.acknowledge(change, epoch)
    return change


def flushed(model, epoch=1):
    model.flushed(model.flush_begins(epoch))


def test_flushed_content_is_the_only_one():
    model = Model(2)
    new = written(model, 0, 2).version
    flushed(model)
    assert model.compare(image(new, new)).lost == 0
    assert model.compare(image(new, 0)).lost == SECTOR


def test_unflushed_content_may_be_old_or_new_in_each_sector():
    model = Model(3)
    new = written(model, 0, 3).version
    verdict = model.compare(image(new, 0, new))
    assert (verdict.lost, verdict.open, verdict.bytes) == (0, 3, 3 * SECTOR)


def test_failed_write_after_a_flush_may_be_there_or_not():
    for found in 1, 2:
        model = Model(1)
        written(model, 0, 1)
        flushed(model)
        model.begin(0, 1)
        assert model.compare(image(found)).lost == 0
        model.begin(0, 1)
        assert model.compare(image(0)).lost == SECTOR


def test_write_that_begins_after_a_flush_is_not_covered():
    model = Model(1)
    first = written(model, 0, 1)
    covered = model.flush_begins(1)
    written(model, 0, 1)
    model.flushed(covered)
    assert model.compare(image(first.version)).lost == 0


def test_flush_of_another_life_of_the_ticket_covers_nothing():
    model = Model(1)
    written(model, 0, 1, epoch=1)
    flushed(model, epoch=2)
    assert model.compare(image(0)).lost == 0


def test_flush_of_one_ticket_covers_nothing_of_another():
    model = Model(2)
    first = written(model, 0, 1, epoch=("a", 1)).version
    second = written(model, 1, 1, epoch=("b", 1)).version
    flushed(model, epoch=("b", 1))
    assert model.compare(image(0, second)).lost == 0
    assert model.compare(image(first, 0)).lost == 2 * SECTOR


def test_flushed_zeroes_are_zeroes():
    model = Model(1)
    old = written(model, 0, 1).version
    flushed(model)
    written(model, 0, 1, zero=True)
    flushed(model)
    assert model.compare(image(old)).lost == SECTOR
    assert model.compare(image(0)).lost == 0


def test_comparison_goes_on_from_what_is_there():
    model = Model(1)
    written(model, 0, 1)
    model.compare(image(0))
    assert model.compare(image(1)).lost == SECTOR


def test_content_of_another_sector_is_a_loss():
    model = Model(2)
    new = written(model, 0, 2).version
    flushed(model)
    assert model.compare(content(1, 1, new) + content(1, 1, new)).lost == SECTOR


@pytest.mark.parametrize("acknowledged", [False, True])
def test_only_an_unanswered_write_may_end_inside_a_sector(acknowledged):
    model = Model(1)
    change = model.begin(0, 1)
    if acknowledged:
        model.acknowledge(change, 1)
    verdict = model.compare(content(0, 1, change.version)[:100] + bytes(SECTOR - 100))
    assert (verdict.torn, verdict.lost) == ((0, SECTOR) if acknowledged else (1, 0))


@pytest.mark.parametrize("acknowledged", [False, True])
@pytest.mark.parametrize("zeroes_first", [False, True])
def test_only_an_unanswered_write_of_some_storage_may_leave_zeroes(zeroes_first, acknowledged):
    model = Model(1, zeroes_first=zeroes_first)
    written(model, 0, 1)
    flushed(model)
    change = model.begin(0, 1)
    if acknowledged:
        model.acknowledge(change, 1)
    verdict = model.compare(bytes(SECTOR))
    allowed = zeroes_first and not acknowledged
    assert (verdict.torn, verdict.lost) == ((1, 0) if allowed else (0, SECTOR))


class Recorder:
    """A daemon that remembers what was asked of it."""

    def __init__(self, port, calls):
        self.port = port
        self.local_socket = ""
        self._calls = calls

    def __getattr__(self, name):
        return lambda *args, **keys: self._calls.append((self.port, name, *args, *keys.values()))


class Disk:
    zeroes_first = False
    url = "nbd:unix:/run/sock"

    def __init__(self, calls):
        self._calls = calls

    def start(self):
        self._calls.append("start")

    def kill(self):
        self._calls.append("kill")


def test_origin_is_brought_back_behind_a_ticket_that_lives_on():
    calls = []
    target = Target("t", Disk(calls), [Recorder(1, calls), Recorder(2, calls)], 8, more=["origin"])
    target.kill("origin")
    put = (2, "add_ticket", "nbd:unix:/run/sock", 8, "soak")
    assert calls == [(2, "kill"), "kill", "start", (2, "start"), put]
    assert target.epoch == 0, "the proxy's ticket is another one"


def test_two_tickets_spell_one_storage_in_two_ways():
    calls = []
    target = Target("t", Disk(calls), [Recorder(1, calls)], 8, spellings=(as_it_is, as_uri))
    target.replace_ticket()
    urls = {ticket: url for _, _, url, _, ticket in calls}
    assert urls == {"soak": "nbd:unix:/run/sock", "soak-1": "nbd+unix:///?socket=/run/./sock"}
    assert identity(urls["soak"]) == identity(urls["soak-1"])
    assert [target.ticket(number) for number in range(3)] == ["soak", "soak-1", "soak"]


@pytest.mark.system
@needs_qemu
@pytest.mark.timeout(100)
def test_few_rounds_lose_nothing(tmp_path, capsys):
    results = tmp_path / "results.json"
    page = tmp_path / "page.md"
    args = ["file", "nbd-qcow2", "forgetful", "forgetful-single", "proxy-forgetful", "proxy-origin", "two-tickets"]
    args += ["--writing", "0.1", "--size", "2", "--results", str(results)]
    assert soak.main([*args, "--rounds", "2"]) == 0, capsys.readouterr().out
    assert soak.main([*args, "--rounds", "7", "--report", str(page)]) == 0, capsys.readouterr().out
    found = report.load(results)
    assert set(found["targets"]) == set(args[:7])
    total = report.totals(found)
    assert (total["rounds"], total["bytes"], total["lost"]) == (7, 14 * soak.MIB, 0)
    assert total["writes"] > 0
    assert "7 rounds" in page.read_text()
    assert soak.main([*args, "--seed", "2"]) == 2, "results of two seeds were mixed"
