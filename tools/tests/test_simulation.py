# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The short form of `make simulate`: no promise is broken, seeds replay, and planted bugs are found."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from simulation import __main__ as simulate
from simulation import parts, report
from simulation.bugs import BUGS
from simulation.disk import Node
from simulation.kernel import Kernel, active
from simulation.realm import Patch, Realm
from simulation.seeds import Runner
from simulation.store import UNIT, Store

TOOLS = Path(__file__).resolve().parents[1]

_SEARCHED = 1500
"""Seeds in which a planted bug is looked for when the client has changed, and known ones find it no more."""


def run(seeds, patches=()):
    """Run seeds; return the outcome and the trace of each."""
    with Runner(patches) as runner:
        return [(runner.run(seed, trace), trace) for seed in seeds for trace in [[]]]


def test_no_seed_breaks_a_promise():
    outcomes = [outcome for outcome, _ in run(range(1, 61))]
    assert {outcome.seed: outcome.broken for outcome in outcomes if outcome.broken} == {}
    assert {outcome.story for outcome in outcomes} == {"Upload", "Download", "Backup", "Snapshot", "Crowd"}
    total = report.summed(outcomes)["counts"]
    assert min(total[name] for name in ("succeeded", "failed", "killed", "power loss")) > 0


def test_seed_replays_bit_for_bit():
    first, second = run(range(1, 25)), run(range(1, 25))
    assert first == second
    assert len({outcome.digest for outcome, _ in first}) == len(first)


@pytest.fixture
def ended():
    """Return what a simulation in a process of its own prints."""

    def call(*options, hash_seed):
        environ = {**os.environ, "PYTHONHASHSEED": hash_seed, "PYTHONPATH": str(TOOLS)}
        command = [sys.executable, "-m", "simulation", *options]
        done = subprocess.run(command, env=environ, capture_output=True, text=True, timeout=100)
        assert (done.returncode, done.stderr) == (0, "")
        return done.stdout

    return call


def test_seed_replays_bit_for_bit_in_another_process(ended):
    trace = [ended("--show", "8", hash_seed=seed) for seed in ("1", "2")]
    assert trace[0] == trace[1]
    assert len(trace[0].splitlines()) > 50
    (summary,) = {ended("--seeds", "20", "--jobs", "1", hash_seed=seed) for seed in ("3", "4")}
    outcomes = [outcome for outcome, _ in run(range(1, 21))]
    assert summary == report.summary(report.summed(outcomes)) + "\n"


def test_each_kind_of_fault_befalls_a_seed():
    # Those that end a transfer, or damage it, are rare.
    counts = report.summed([outcome for outcome, _ in run(range(1, 201))])["counts"]
    known = {name for name in counts if name.startswith(("server: ", "disk: "))}
    assert known <= set(report.FAULTS)
    assert set(report.FAULTS) <= set(counts)


def test_bugs_are_many_and_have_names():
    assert len(BUGS) >= 20
    assert len({bug.name for bug in BUGS}) == len({bug.patches for bug in BUGS}) == len(BUGS)


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: bug.name.replace(" ", "-"))
def test_planted_bug_is_found(bug):
    """By the seeds that are known to, or, since a change of the client shifts all chance, by others."""
    assert {seed: outcome.broken for seed in bug.seeds for outcome, _ in run([seed]) if outcome.broken} == {}
    with Runner(bug.patches) as runner:
        for seed in [*bug.seeds, *range(1, _SEARCHED)]:
            if runner.run(seed).broken:
                return
    pytest.fail(f"no seed finds it: {bug.what} Renew its seeds in tools/simulation/bugs.py")


@pytest.mark.parametrize(
    ("patch", "error"),
    [
        (Patch("ovirt_imageio.client.plan", "no such text", ""), "plan holds the text 0 times, expected once"),
        (Patch("ovirt_imageio.client.plan", "import", ""), r"plan holds the text \d+ times, expected once"),
    ],
)
def test_bug_that_fits_no_more_is_an_error(patch, error):
    with pytest.raises(ValueError, match=error):
        Runner((patch,))


def test_bug_that_fits_no_more_ends_the_search_for_bugs(monkeypatch):
    monkeypatch.setattr(
        simulate, "BUGS", (*BUGS, BUGS[0]._replace(patches=(Patch(BUGS[0].patches[0].module, "?!", ""),)))
    )
    with pytest.raises(ValueError, match="expected once: '\\?!'"):
        simulate.main(["--bugs", "--seeds", "1", "--jobs", "1"])


def test_simulation_that_fails_names_the_seed():
    broken = Patch("ovirt_imageio.client.plan", "from __future__ import annotations\n", "import turtle\n")
    with Runner((broken,)) as runner, pytest.raises(RuntimeError, match="failed at seed 5: .* knows no module turtle"):
        runner.run(5)


def test_what_the_simulation_does_not_know_is_an_error():
    realm = Realm({"os": parts.system.os})
    with pytest.raises(ImportError, match="knows no module sqlite3: add it"):
        realm.module("sqlite3")
    with pytest.raises(AttributeError, match=r"knows no os\.fork: add it"):
        realm.module("os").fork  # noqa: B018


def test_nothing_is_simulated_outside_of_a_seed():
    run([1])
    with pytest.raises(RuntimeError, match="no simulation is running"):
        active()


def test_parts_are_equal_to_all_at_once(tmp_path, capsys):
    results, page = tmp_path / "results.json", tmp_path / "page.md"
    for seeds in ("10", "30"):
        options = ["--seeds", seeds, "--jobs", "1", "--results", str(results), "--report", str(page)]
        assert simulate.main(options) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == report.summary(report.summed([outcome for outcome, _ in run(range(1, 31))]))
    text = page.read_text()
    assert f"$ make simulate\n{told}\n" in text
    rows = [line.split(" | ") for line in text.partition("| story |")[2].partition("| runs |")[0].splitlines()[2:]]
    assert sum(int(row[1][:-2]) for row in rows if len(row) == 2) == 30


def test_page_waits_for_all_seeds(tmp_path, capsys):
    page = tmp_path / "page.md"
    assert simulate.main(["--seeds", "30", "--minutes", "0", "--jobs", "1", "--report", str(page)]) == 0
    assert capsys.readouterr().out == "30 seeds are left: time is over\n"
    assert not page.exists()


def test_broken_promise_is_told(capsys):
    (bug,) = [bug for bug in BUGS if bug.name == "folder not synced"]
    assert simulate.main(["--show", "1", "--bug", bug.name]) == 1
    assert "broken: client-" in capsys.readouterr().out
    results = report.summed([outcome for outcome, _ in run([1], bug.patches)])
    assert list(results["broken"]) == ["1"]
    assert "broken promises: 1" in report.summary(results)
    assert "**seed 1**: client-" in report.page(results, "make simulate")


def test_page_tells_which_bugs_were_found():
    rows = {"no claim": {"first": 4, "share": 57, "said": "a | b"}, "endless": {"first": 0, "share": 0, "said": ""}}
    text = report.page({**report.empty(), "bugs": rows}, "make simulate", "A note.")
    assert "seeds an hour. A note.\n" in text
    assert f"| {BUGS[0].what} | 4 | 57 | `a \\| b` |" in text
    assert "| not found | 0 |  |" in text


# The disk, by which promises are judged.


def stored(*changes, keep=()):
    """Return what is stable after changes by writers, of which those are flushed that are to be kept."""
    store = Store()
    store.fill(bytes(2 * UNIT))
    for writer, offset, data in changes:
        store.write(offset, data, writer)
    for writer in keep:
        store.flush(store.mark(), lambda change, writer=writer: change.writer == writer)
    return bytes(store.stable.data)


def test_only_what_a_flush_covers_is_stable():
    one, two = (1, 0, b"a" * UNIT), (2, UNIT, b"b" * UNIT)
    assert stored(one, two) == bytes(2 * UNIT)
    assert stored(one, two, keep=[1]) == b"a" * UNIT + bytes(UNIT)
    assert stored(one, two, keep=[2, 1]) == b"a" * UNIT + b"b" * UNIT


def test_older_bytes_never_hide_newer_ones_that_were_flushed_before():
    older, newer = (1, 0, b"a" * 2 * UNIT), (2, 8, b"b" * 8)
    assert stored(older, newer, keep=[2, 1]) == b"a" * 8 + b"b" * 8 + b"a" * (2 * UNIT - 16)
    assert stored(newer, older, keep=[2, 1]) == b"a" * 2 * UNIT


def test_names_are_stable_when_their_folder_is():
    folder, file = Node(1, 0o040755, 0, 0), Node(2, 0o100644, 0, 0)
    folder.change({"image": file})
    assert (folder.names, folder.stable_names) == ({"image": file}, {})
    folder.sync()
    assert folder.stable_names == {"image": file}


def test_process_that_is_killed_lets_go_of_all(monkeypatch):
    """Also where its threads hold locks of the library: a qemu-nbd that outlived it held the image's."""
    left = []
    kill = Kernel.close_all

    def close_all(kernel, process):
        kill(kernel, process)
        left.extend([*process.files, *process.held])

    monkeypatch.setattr(Kernel, "close_all", close_all)
    # A kill while qemu-nbd ends, and a cancel that is being taken from a connection.
    assert [outcome.broken for outcome, _ in run([203727, 204768])] == [(), ()]
    assert left == []
