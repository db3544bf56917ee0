# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Standard output that is closed, full, or has lost its reader: each command tells in the same way."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import sys
from ovirt_imageio.common import standard

def body():
    {body}

status = standard.run("prog", body)
sys.stderr.write(f"returned {{status}}\\n")
sys.exit(status)
"""

BODIES = {
    "show": "standard.show('text\\\\n'); return 0",
    "show much": "standard.show('text\\\\n' * 100_000); return 0",
    "print": "print('text'); return 0",
    "parser": "print('text'); sys.exit(0)",
}

OUTPUTS = {
    "closed": (">&-", 1, "prog: standard output: Bad file descriptor\n"),
    "full": (">/dev/full", 1, "prog: standard output: No space left on device\n"),
    "reader gone": (">&8", 128 + signal.SIGPIPE, ""),
}


def run(body, redirect):
    """Run a program below a shell with a redirection; descriptor 8 is a pipe without a reader."""
    read, write = os.pipe()
    os.close(read)
    try:
        return subprocess.run(
            ["/bin/bash", "-c", f'exec 8>&{write}; "$@" {redirect} 8>&-', "bash", sys.executable, "-c", body],
            capture_output=True,
            text=True,
            pass_fds=[write],
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            check=False,
            timeout=60,
        )
    finally:
        os.close(write)


@pytest.mark.parametrize("output", OUTPUTS)
@pytest.mark.parametrize("body", BODIES)
def test_what_cannot_be_written_is_told_once_and_fails(body, output):
    redirect, status, words = OUTPUTS[output]
    done = run(PROGRAM.format(body=BODIES[body]), redirect)
    assert (done.returncode, done.stderr) == (status, f"{words}returned {status}\n")


@pytest.mark.parametrize("output", OUTPUTS)
def test_error_stream_that_is_lost_as_well_fails_the_same(output):
    redirect, status, _ = OUTPUTS[output]
    done = run(PROGRAM.format(body=BODIES["show"]), f"{redirect} 2>&-")
    assert (done.returncode, done.stderr) == (status, "")


@pytest.mark.parametrize(
    ("body", "status"),
    [("return 0", 0), ("return 3", 3), ("sys.exit(2)", 2), ("sys.exit(0)", 0), ("standard.show('x'); return 3", 3)],
)
def test_status_is_that_of_the_body(body, status):
    done = run(PROGRAM.format(body=body), "")
    assert done.returncode == status


def test_other_failures_are_not_of_the_output():
    done = run(PROGRAM.format(body="open('/nonexistent')"), "")
    assert done.returncode == 1
    assert "FileNotFoundError" in done.stderr


def test_file_that_is_opened_does_not_become_standard_output(tmp_path):
    """Its descriptor would be the one that is free, and what is printed would be in it."""
    path = tmp_path / "file"
    done = run(PROGRAM.format(body=f"f = open({str(path)!r}, 'w'); print('text'); return 0"), ">&-")
    assert done.returncode == 1
    assert path.read_bytes() == b""
