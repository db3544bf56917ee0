# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard output that is closed, full, or read by a program that left: a transfer is not about it.

Each case runs in a process of its own, below a shell that makes the streams what they are.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from imageio_testing.daemon import Daemon
from ovirt_imageio.common.units import MiB

pytestmark = pytest.mark.system

SIZE = 8 * MiB
IMG = [sys.executable, "-m", "ovirt_imageio.client.cli"]
OUTPUTS = {"closed": ">&-", "full": ">/dev/full", "reader gone": ">&8"}
REASONS = {"closed": "Bad file descriptor", "full": "No space left on device", "reader gone": "Broken pipe"}

LIBRARY = """
import sys
from ovirt_imageio import client

with client.ProgressBar("mine", format=sys.argv[3]) as progress:
    client.download(sys.argv[1], sys.argv[2], None, fmt="raw", progress=progress)
"""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("output")
    (folder / "disk").write_bytes(os.urandom(SIZE))
    with Daemon(folder, tls=False) as daemon:
        ticket = daemon.add_ticket(f"file://{folder}/disk", size=SIZE, ops=["read", "write"])
        yield f"{daemon.url}/images/{ticket}"


def run(command, redirect, cwd):
    """Run a command below a shell with a redirection; descriptor 8 is a pipe without a reader."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        ["/bin/bash", "-c", f'exec 8>&{write}; "$@" {redirect} 8>&-', "bash", *command],
        capture_output=True,
        text=True,
        cwd=cwd,
        pass_fds=[write],
        check=False,
    )
    os.close(write)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.parametrize("output", ["text", "json"])
@pytest.mark.parametrize("way", OUTPUTS)
def test_transfer_finishes_and_says_once_that_progress_is_not_shown(url, tmp_path, way, output):
    command = [*IMG, "download", "-o", output, "-f", "raw", url, "copy"]
    status, out, err = run(command, OUTPUTS[way], tmp_path)
    assert (status, out) == (0, "")
    assert (tmp_path / "copy").stat().st_size == SIZE
    assert err == f"ovirt-img: WARNING: Progress is not shown any more: {REASONS[way]}\n"


@pytest.mark.parametrize("output", ["text", "json"])
@pytest.mark.parametrize("way", OUTPUTS)
def test_progress_bar_of_a_program_lets_its_transfer_finish(url, tmp_path, way, output):
    command = [sys.executable, "-c", LIBRARY, url, "copy", output]
    status, _, err = run(command, OUTPUTS[way], tmp_path)
    assert status == 0, err
    assert (tmp_path / "copy").stat().st_size == SIZE
    reason = "standard output is closed" if way == "closed" else REASONS[way]
    assert err == f"Progress is not shown any more: {reason}\n"


@pytest.mark.parametrize("errors", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize("way", [*OUTPUTS, "fine"])
def test_standard_error_that_fails_as_well_changes_nothing(url, tmp_path, way, errors):
    command = [*IMG, "download", "-f", "raw", url, "copy"]
    status, out, err = run(command, f"{errors} {OUTPUTS.get(way, '')}", tmp_path)
    assert (status, err) == (0, "")
    assert ("download completed" in out) is (way == "fine")
    assert (tmp_path / "copy").stat().st_size == SIZE


@pytest.mark.parametrize("errors", ["2>&-", "2>/dev/full"])
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (["download", "-f", "raw", "{url}x", "copy"], 1),
        (["download", "-f", "raw", "nothing", "copy"], 2),
        (["download", "-f", "xml", "{url}", "copy"], 2),
        ([], 2),
    ],
)
def test_status_tells_of_failures_where_standard_error_cannot(url, tmp_path, line, expected, errors):
    command = [*IMG, *(word.format(url=url) for word in line)]
    status, out, _ = run(command, errors, tmp_path)
    assert status == expected
    assert "ovirt-img:" not in out


def test_nothing_but_the_image_gets_the_descriptors_that_were_closed(url, tmp_path):
    """A file that is opened gets the lowest free number, and what is printed would go there."""
    status, _, _ = run([*IMG, "download", "-f", "raw", url, "copy"], ">&- 2>&- <&-", tmp_path)
    assert status == 0
    status, _, _ = run([*IMG, "upload", "--verify", "copy", url], ">&- 2>&- <&-", tmp_path)
    assert status == 0


@pytest.mark.parametrize("way", ["closed", "full"])
def test_result_that_cannot_be_written_is_a_failure(tmp_path, way):
    (tmp_path / "image").write_bytes(bytes(MiB))
    status, _, err = run([*IMG, "info", "image"], OUTPUTS[way], tmp_path)
    assert status == 1
    assert err == f"ovirt-img: standard output: {REASONS[way]}\n"


def test_reader_that_reads_nothing_does_not_stop_a_transfer(url, tmp_path):
    """The pipe is full before it begins."""
    read, write = os.pipe()
    os.set_blocking(write, False)
    try:
        while True:
            os.write(write, b"\n" * 4096)
    except BlockingIOError:
        os.set_blocking(write, True)
    command = [*IMG, "download", "-o", "json", "-f", "raw", url, "copy"]
    with subprocess.Popen(command, stdout=write, stderr=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        os.close(write)
        try:
            while not (tmp_path / "copy").exists():
                assert process.poll() is None
            with os.fdopen(read) as pipe:
                text = pipe.read().strip()
            assert process.wait(60) == 0
        finally:
            process.kill()
    last = json.loads(text.splitlines()[-1])
    assert (last["description"], last["transferred"]) == ("download completed", SIZE)
