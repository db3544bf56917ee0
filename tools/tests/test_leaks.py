# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import subprocess
import threading
from pathlib import Path

import pytest

from imageio_testing import leaks

pytest_plugins = ["pytester"]

LEAKY = """
import subprocess, threading
import pytest

kept = []

def test_descriptor():
    kept.append(open("/dev/zero"))

def test_thread():
    threading.Thread(target=kept.append(threading.Event()) or kept[-1].wait, daemon=True).start()

def test_process():
    kept.append(subprocess.Popen(["cat"], stdin=subprocess.PIPE))

@pytest.mark.may_leak("to show that it may")
def test_allowed():
    kept.append(open("/dev/zero"))

def test_clean():
    with open("/dev/zero"):
        pass

@pytest.fixture(scope="module")
def shared():
    with open("/dev/zero") as f:
        yield f

def test_first_user_of_a_shared_fixture(shared):
    assert not shared.closed
"""


def test_nothing_taken_is_no_leak():
    assert leaks.leaks_since(leaks.holdings()) == []


def test_open_descriptor_is_named():
    before = leaks.holdings()
    with open("/dev/zero") as f:
        assert leaks.leaks_since(before) == [f"descriptor {f.fileno()} (/dev/zero)"]


def test_reused_descriptor_number_is_a_leak():
    with open("/dev/zero") as f:
        number = f.fileno()
        before = leaks.holdings()
        f.close()
        with open("/dev/full") as other:
            assert other.fileno() == number
            assert leaks.leaks_since(before) == [f"descriptor {number} (/dev/full)"]


def test_ending_thread_is_waited_for():
    before = leaks.holdings()
    ended = threading.Event()
    thread = threading.Thread(target=ended.wait)
    thread.start()
    timer = threading.Timer(0.05, ended.set)
    timer.start()
    assert leaks.leaks_since(before) == []
    assert not thread.is_alive()
    assert not timer.is_alive()


def test_child_process_is_named():
    before = leaks.holdings()
    with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as child:
        found = leaks.leaks_since(before)
        assert f"process {child.pid} (cat)" in found


def test_plugin_fails_the_test_that_leaks(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTHONPATH", str(Path(leaks.__file__).parents[1]))
    pytester.makepyfile(LEAKY)
    result = pytester.runpytest_subprocess("-p", "imageio_testing.leaks", "-p", "no:cacheprovider", "-W", "ignore")
    result.assert_outcomes(passed=6, errors=3)
    result.stdout.fnmatch_lines(
        [
            "*the test leaves behind: descriptor * (/dev/zero)",
            "*the test leaves behind: thread *",
            "*the test leaves behind: *process * (cat)*",
        ]
    )
