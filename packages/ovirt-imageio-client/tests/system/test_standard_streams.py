# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""`ovirt-img` with `-`: standard input and output, below a shell, with a real daemon and an engine."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys

import pytest

from fakeengine.site import SECTION, Site
from imageio_testing.daemon import Daemon
from imageio_testing.enginesdk import needs_engine_sdk
from imageio_testing.qemu import Fill, MiB, content, make_image, needs_qemu

pytestmark = pytest.mark.system

SIZE = 4 * MiB
DATA = content(SIZE, [Fill(0, 65536, 0x11), Fill(3 * MiB, 512 * 1024, 0x22)])
IMG = f"{sys.executable} -m ovirt_imageio.client.cli"


@pytest.fixture
def disk(tmp_path):
    (tmp_path / "disk").write_bytes(DATA)
    return tmp_path / "disk"


@pytest.fixture(scope="module")
def daemon(tmp_path_factory):
    with Daemon(tmp_path_factory.mktemp("daemon"), tls=False) as daemon:
        yield daemon


@pytest.fixture
def url(daemon, disk):
    ticket = daemon.add_ticket(f"file://{disk}", size=SIZE, ops=["read", "write"])
    return f"{daemon.url}/images/{ticket}"


@pytest.fixture
def shell(tmp_path, url):
    def run(line, status=0, **env):
        done = subprocess.run(
            ["/bin/bash", "-c", f"set -o pipefail; {line}"],
            env={**os.environ, "IMG": IMG, "URL": url, **env},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == status, done.stderr
        return done

    return run


def test_disk_goes_through_pipes_to_another_disk(shell, tmp_path, daemon):
    (tmp_path / "other").write_bytes(b"\xff" * SIZE)
    ticket = daemon.add_ticket(f"file://{tmp_path}/other", size=SIZE, ops=["write"])
    done = shell("$IMG download -f raw $URL - | $IMG upload -o json - $OTHER", OTHER=f"{daemon.url}/images/{ticket}")
    assert (tmp_path / "other").read_bytes() == DATA
    assert json.loads(done.stdout.splitlines()[-1])["size"] == SIZE
    assert "download completed" in done.stderr


def test_programs_between(shell, tmp_path):
    shell("$IMG download -q -f raw $URL - | gzip > packed && gunzip < packed > plain")
    assert (tmp_path / "plain").read_bytes() == DATA


def test_progress_and_result_of_a_download_go_beside_the_image(shell, tmp_path):
    done = shell("$IMG download -o json -f raw $URL - > image")
    assert (tmp_path / "image").read_bytes() == DATA
    last = json.loads(done.stderr.splitlines()[-1])
    assert (last["description"], last["size"]) == ("download completed", SIZE)


def test_file_that_is_smaller_than_the_disk(shell, tmp_path, disk):
    (tmp_path / "small").write_bytes(b"x" * MiB)
    shell("$IMG upload - $URL < small")
    assert disk.read_bytes() == b"x" * MiB + DATA[MiB:]
    shell("cat small | $IMG upload --size 1m - $URL")


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("head -c 1000 /dev/zero | $IMG upload - $URL", "ended after 1000 of 4194304 bytes; give --size N if that"),
        ("head -c 5m /dev/zero | $IMG upload - $URL", "has more than the 4194304 bytes"),
        (
            "printf 'QFI\\xfb\\0\\0\\0\\3xxxxxxxx' | $IMG upload --size 16 - $URL",
            "is a qcow2 image.*--source-format raw",
        ),
        ("$IMG upload --size 5m - $URL < /dev/zero", "does not fit"),
        ("$IMG upload - $URL <&-", "standard input: Bad file descriptor"),
        ("$IMG download -q -f raw $URL - > /dev/full", "standard output: No space left on device"),
        ("$IMG download -q -f raw $URL - >&-", "standard output: Bad file descriptor"),
    ],
)
def test_failure_is_told_in_the_words_of_the_command(shell, line, words):
    assert_told(shell(line, 1), words)


def test_disk_that_grows_does_not_tell_the_size_of_a_pipe(shell, daemon, tmp_path):
    (tmp_path / "growing").touch()
    ticket = daemon.add_ticket(f"file://{tmp_path}/growing", size=SIZE, ops=["write"])
    growing = f"{daemon.url}/images/{ticket}"
    assert_told(shell("cat disk | $IMG upload - $GROWING", 1, GROWING=growing), "until it grows.*--size")
    shell("cat disk | $IMG upload --size 4m - $GROWING", GROWING=growing)
    assert (tmp_path / "growing").read_bytes() == DATA


def assert_told(done, words):
    assert re.search(words, done.stderr.splitlines()[-1])


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("download $URL -", "for standard output give -f raw"),
        ("download -f raw --verify $URL -", "--verify does not work to standard output: a stream passes once"),
        ("download -f raw --resume $URL -", "--resume does not work to standard output"),
        ("download -f raw --journal j $URL -", "--journal does not work to standard output"),
        ("upload --journal j - $URL", "--journal does not work from standard input"),
        ("upload --verify - $URL", "--verify does not work from standard input"),
        ("upload --resume - $URL", "--resume does not work from standard input"),
        ("upload --member m - $URL", "--member does not work from standard input"),
        ("upload --no-backing-chain - $URL", "--no-backing-chain does not work from standard input"),
        ("upload --allow-external - $URL", "--allow-external does not work from standard input"),
        ("upload --source-format qcow2 - $URL", "--source-format qcow2 does not work from standard input"),
        ("upload --size 1m file $URL", "--size is for an image from standard input"),
        ("info -", "- is for upload and download"),
        ("checksum -", "- is for upload and download"),
        ("measure -", "- is for upload and download"),
    ],
)
def test_what_does_not_work_with_streams_is_wrong_use(shell, line, words):
    assert_told(shell(f"$IMG {line} < /dev/null", 2), words)


@pytest.mark.parametrize("command", ["upload", "download"])
def test_terminal_holds_no_image(url, command):
    main, terminal = pty.openpty()
    args = ["upload", "-", url] if command == "upload" else ["download", "-f", "raw", url, "-"]
    streams = {"stdin": terminal} if command == "upload" else {"stdout": terminal}
    try:
        done = subprocess.run(
            [*IMG.split(), *args], **streams, stderr=subprocess.PIPE, text=True, check=False, timeout=60
        )
    finally:
        os.close(main)
        os.close(terminal)
    assert done.returncode == 2
    assert "is a terminal: redirect it, or name a file" in done.stderr


def test_reader_that_leaves_ends_a_download_quietly(shell):
    done = shell("$IMG download -q -f raw $URL - | true", 128 + signal.SIGPIPE)
    assert done.stderr == ""


def test_control_c_while_the_other_program_is_silent(url):
    read, write = os.pipe()
    os.write(write, DATA[:65536])
    with subprocess.Popen(
        [*IMG.split(), "upload", "-o", "json", "-", url],
        stdin=read,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            assert json.loads(process.stdout.readline())["description"] == "uploading image"
            assert json.loads(process.stdout.readline())["size"] == SIZE
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
            os.close(read)
            os.close(write)
    assert process.returncode == 128 + signal.SIGINT, err
    assert json.loads(out.splitlines()[-1])["kind"] == "Interrupted"


# With an engine.


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with Site(tmp_path_factory.mktemp("site")) as site:
        yield site


@needs_qemu
@needs_engine_sdk
@pytest.mark.parametrize("fmt", ["raw", "qcow2"])
def test_disk_of_an_engine_from_a_pipe_and_to_one(site, tmp_path, fmt):
    make_image(tmp_path / "image", "raw", SIZE, [Fill(0, 65536, 0x11)])
    script = (
        f"cat image | $IMG upload-disk -q -o json -c {SECTION} -s nfs1 -f {fmt} --size 4m --name piped-{fmt} - "
        f"> result && $IMG download-disk -q -c {SECTION} -f raw "
        """$(python3 -c 'import json; print(json.load(open("result"))["disk_id"])') - > copy"""
    )
    env = {**site.environ(), "IMG": IMG}
    done = subprocess.run(
        ["/bin/bash", "-c", script], env=env, cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (tmp_path / "copy").read_bytes() == (tmp_path / "image").read_bytes()
    (disk,) = [disk for disk in site.engine.disks.values() if disk.name == f"piped-{fmt}"]
    assert (disk.format, disk.size, disk.description) == (fmt, SIZE, "Uploaded by ovirt-img from standard input")


@needs_engine_sdk
@pytest.mark.parametrize(
    ("options", "words"), [("--name x", "give --size"), ("--size 4m", "give --name"), ("--size 4x --name x", "4x")]
)
def test_disk_needs_what_a_pipe_does_not_tell(site, tmp_path, options, words):
    script = f"true | $IMG upload-disk -c {SECTION} -s nfs1 {options} -"
    done = subprocess.run(
        ["/bin/bash", "-c", script],
        env={**site.environ(), "IMG": IMG},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert words in done.stderr
