# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""However a download ends, its name has the old image whole or the new one whole.

    kinds ── raw, qcow2, an increment over its backing file; each with and without a journal
    ends ─── success, errors of server, storage and caller, a full disk, a kill at each step,
             another one at the same time, a loss of power at each step

And success is said of the new image alone. With IMAGEIO_TESTS=full each kill is tried, else a
few of them; losses of power are tried at all steps, for they cost little.
"""

from __future__ import annotations

import errno
import functools
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
from typing import NamedTuple

import pytest

from imageio_testing.imageserver import Image, ScriptedServer, response
from imageio_testing.mounts import mount
from imageio_testing.powerloss import VolatileFolder
from imageio_testing.qemu import Backing, Fill, make_image, needs_qemu
from ovirt_imageio import client
from ovirt_imageio.client import executor, part, transfer
from ovirt_imageio.client.executor import Retry
from ovirt_imageio.client.inuse import ImageInUse
from ovirt_imageio.client.records import Identity
from ovirt_imageio.client.verify import VerificationFailed
from ovirt_imageio.common.errors import ImageioError
from ovirt_imageio.common.qemu import img, nbd
from ovirt_imageio.common.units import KiB, MiB

pytestmark = needs_qemu

FULL = os.environ.get("IMAGEIO_TESTS") == "full"

SIZE = 4 * MiB
STEP = 256 * KiB


class Kind(NamedTuple):
    """An image to download, and how it is done."""

    fmt: str
    incremental: bool
    resume: bool

    def options(self):
        """Of `client.download`."""
        more = {"incremental": True, "backing_file": "base", "backing_format": "raw"} if self.incremental else {}
        return {"fmt": self.fmt, "resume": self.resume, "max_workers": 1, **more}


KINDS = {
    f"{name}{', resume' * resume}": Kind(fmt, name == "increment", resume)
    for name, fmt in (("raw", "raw"), ("qcow2", "qcow2"), ("increment", "qcow2"))
    for resume in (False, True)
}

each_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)


@functools.cache
def content(seed):
    """Data, zeroes, and data."""
    data = random.Random(seed).randbytes
    return data(3 * MiB // 2) + bytes(MiB) + data(3 * MiB // 2)


OLD, BASE, NEW = 1, 2, 3


def new_content(kind):
    """The server's disk; of an increment the second half alone differs from its backing file."""
    return content(BASE)[: SIZE // 2] + content(NEW)[SIZE // 2 :] if kind.incremental else content(NEW)


class Server(Image):
    """Has the new image; tells zeroes, and for an increment what has changed."""

    def __init__(self, kind):
        super().__init__(bytearray(new_content(kind)), features=("extents", "flush", "zero"))

    def extents(self, got, query):
        if query == "context=dirty":
            half = SIZE // 2
            listing = [{"start": start, "length": half, "dirty": start > 0, "zero": False} for start in (0, half)]
        else:
            parts = ((0, 3 * MiB // 2, False), (3 * MiB // 2, MiB, True), (5 * MiB // 2, 3 * MiB // 2, False))
            listing = [{"start": start, "length": length, "zero": zero, "hole": False} for start, length, zero in parts]
        return response(200, json.dumps(listing).encode())


@pytest.fixture(autouse=True)
def _short_steps(monkeypatch):
    """Many steps, a flush after each, and no patience."""
    monkeypatch.setattr(transfer, "CHECKPOINT_LENGTH", 1)
    monkeypatch.setattr(transfer, "RESUMABLE_STEP", STEP)
    monkeypatch.setattr(executor, "Retry", lambda: Retry(attempts=1))


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    return folder


def fill(folder, kind):
    """The old image, another name of it, and what it and the new one need."""
    (folder / "base").write_bytes(content(BASE))
    if kind.fmt == "raw":
        (folder / "disk").write_bytes(content(OLD))
    else:
        (folder / "old.raw").write_bytes(content(OLD))
        img.convert(str(folder / "old.raw"), str(folder / "disk"), fmt="raw", target_fmt="qcow2")
        os.unlink(folder / "old.raw")
    os.chmod(folder / "disk", 0o640)
    os.link(folder / "disk", folder / "yesterday")
    (folder / "disk.part").write_bytes(b"of the user")
    return (folder / "disk").read_bytes()


class Reader:
    """Tells what a guest reads from an image; each image is looked at once."""

    def __init__(self, scratch, kind):
        self._scratch = scratch
        self._kind = kind
        self._known = {}
        scratch.mkdir()
        (scratch / "base").write_bytes(content(BASE))

    def __call__(self, image):
        if self._kind.fmt == "raw":
            return image
        key = hashlib.sha256(image).digest()
        if key not in self._known:
            (self._scratch / "image").write_bytes(image)
            self._known[key] = self._read()
        return self._known[key]

    def _read(self):
        try:
            img.check(str(self._scratch / "image"), fmt="qcow2")
            img.convert(str(self._scratch / "image"), str(self._scratch / "raw"), fmt="qcow2", target_fmt="raw")
        except ImageioError as e:
            return str(e)
        return (self._scratch / "raw").read_bytes()


class Scene:
    """A folder before a download, and the rule that holds after it."""

    def __init__(self, folder, kind, scratch=None):
        self.folder = folder
        self.kind = kind
        self.old = fill(folder, kind)
        self.reads = Reader(scratch or folder.parent / "scratch", kind)
        self.temporary = folder.parent / "tmp"
        self.others = {name: (folder / name).read_bytes() for name in ("base", "yesterday", "disk.part")}

    def download(self, url, **options):
        client.download(url, self.folder / "disk", None, **{**self.kind.options(), **options})

    def is_old(self, image):
        return image == self.old

    def is_new(self, image):
        return self.reads(image) == new_content(self.kind)

    def check(self, *, success):
        """The rule."""
        image = (self.folder / "disk").read_bytes()
        assert self.is_new(image) if success else self.is_old(image) or self.is_new(image)
        assert os.stat(self.folder / "disk").st_mode & 0o777 == 0o640
        assert {name: (self.folder / name).read_bytes() for name in self.others} == self.others

    def leftovers(self):
        return sorted({*os.listdir(self.folder)} - {"disk", *self.others})

    def check_next(self, url, *, crashed=False):
        """The next download succeeds, whatever the one before has left, and leaves nothing.

        After a crash an empty part may be left: it ended between making it and writing that down.
        """
        self.download(url)
        self.check(success=True)
        left = self.leftovers()
        assert left == [] or (crashed and left == ["disk.1.part"] and not (self.folder / left[0]).stat().st_size)


@pytest.fixture
def scene(folder, kind):
    return Scene(folder, kind)


# Success.


@each_kind
@pytest.mark.parametrize("verify", [False, True])
def test_success(scene, kind, verify):
    with ScriptedServer(Server(kind)) as server:
        scene.download(server.url, verify=verify)
        scene.check(success=True)
        assert scene.leftovers() == []
        # A complete image can be replaced in turn, also by itself.
        scene.check_next(server.url)


# Errors.

SIZE_PROBE = "bytes=0-0"
"""The first request of the client."""


class Stop(BaseException):
    """The end of a transfer from outside, as by a signal."""


def fail_after(count, error):
    left = [count]

    def progress(done):
        left[0] -= done
        if left[0] <= 0:
            raise error

    return progress


def assert_ends(scene, error, call, may_lose=False):
    """The download fails, the old image stays, and only a journal and its part are left.

    Neither is left if the end came within a flush: what was written may be lost.
    """
    with pytest.raises(error):
        call()
    scene.check(success=False)
    assert scene.is_old((scene.folder / "disk").read_bytes())
    left = scene.leftovers()
    if left or not may_lose:
        assert left == (["disk.1.part", "disk.download.journal"] if scene.kind.resume else [])


@each_kind
@pytest.mark.parametrize("error", [ValueError("no"), KeyboardInterrupt(), Stop()], ids=repr)
@pytest.mark.parametrize("count", [1, 3 * MiB])
def test_caller_that_fails(scene, kind, error, count):
    with ScriptedServer(Server(kind)) as server:
        progress = fail_after(count, error)
        assert_ends(scene, type(error), lambda: scene.download(server.url, progress=progress))
        scene.check_next(server.url)


@each_kind
@pytest.mark.parametrize("answer", ["403", "nothing", "half"])
def test_server_that_fails(scene, kind, answer):
    class Failing(Server):
        left = 3 if kind.resume else 1

        def do_get(self, got, query):
            self.left -= got.headers["range"] != SIZE_PROBE
            if self.left > 0:
                return super().do_get(got, query)
            if answer == "403":
                return response(403, b"the ticket has expired\n")
            if answer == "nothing" or self.left < 0:
                return None
            return super().do_get(got, query).replace(b"\r\n", b"\r\nConnection: close\r\n", 1)[:-5000]

    with ScriptedServer(Failing(kind)) as server:
        assert_ends(scene, (ImageioError, OSError), lambda: scene.download(server.url))
    with ScriptedServer(Server(kind)) as server:
        scene.check_next(server.url)


@each_kind
def test_server_that_sends_something_else_than_it_has(scene, kind):
    class Lying(Server):
        """As if memory or network had damaged what it sends the first time."""

        lies = 1

        def do_get(self, got, query):
            answer = bytearray(super().do_get(got, query))
            if got.headers["range"] != SIZE_PROBE and self.lies:
                self.lies -= 1
                answer[-1] ^= 1
            return bytes(answer)

    with ScriptedServer(Lying(kind)) as server:
        assert_ends(scene, VerificationFailed, lambda: scene.download(server.url, verify=True))


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.fmt != "raw"], ids=str)
def test_qemu_nbd_that_is_killed(scene, kind, monkeypatch):
    started = []

    def spawn(server, fd, spawn=nbd.Server._spawn):
        process = spawn(server, fd)
        started.append(process)
        return process

    monkeypatch.setattr(nbd.Server, "_spawn", spawn)

    def progress(done):
        started[-1].kill()

    with ScriptedServer(Server(kind)) as server:
        assert_ends(
            scene, (ImageioError, OSError), lambda: scene.download(server.url, progress=progress), may_lose=True
        )
        scene.check_next(server.url)


class FailingStorage:
    """One of the calls that bring a file to stable storage, or to its name, fails."""

    CALLS = ("fsync", "fdatasync", "replace", "fchmod")

    def __init__(self, number):
        self.left = number

    def wrapped(self, call):
        def fail(*args):
            self.left -= 1
            if self.left == 0:
                raise OSError(errno.EIO, "Input/output error")
            return call(*args)

        return fail


@each_kind
def test_storage_that_fails_at_each_step(scene, kind, monkeypatch):
    """No success, and one of both images; the last call is made after the new one has its name."""
    with ScriptedServer(Server(kind)) as server:
        for number in range(1, 1000):
            storage = FailingStorage(number)
            with monkeypatch.context() as patch:
                for name in storage.CALLS:
                    patch.setattr(os, name, storage.wrapped(getattr(os, name)))
                if storage_is_whole(scene, server.url, storage):
                    break
            scene.check(success=False)
        scene.check(success=True)
    assert number > 3


def storage_is_whole(scene, url, storage):
    """Download; tell if no call has failed."""
    try:
        scene.download(url)
    except OSError:
        assert storage.left <= 0
        return False
    assert storage.left > 0
    return True


# A full disk.

CLIENT = """
import json, resource, sys
from ovirt_imageio import client
from ovirt_imageio.client import executor, transfer
transfer.CHECKPOINT_LENGTH = 1
transfer.RESUMABLE_STEP = {step}
limit = int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    client.download(sys.argv[1], sys.argv[2], None, **json.loads(sys.argv[4]))
except Exception as e:
    sys.exit(f"{{type(e).__name__}}: {{e}}")
"""


def run_client(scene, url, *, limit=0, before=""):
    """Download in a process of its own."""
    script = before + CLIENT.format(step=STEP)
    command = [sys.executable, "-c", script, url, str(scene.folder / "disk"), str(limit)]
    scene.temporary.mkdir(exist_ok=True)
    return subprocess.run(
        [*command, json.dumps(scene.kind.options())],
        env={**os.environ, "TMPDIR": str(scene.temporary)},
        capture_output=True,
        check=False,
    )


@each_kind
@pytest.mark.parametrize("limit", [1, 100 * KiB, MiB])
def test_file_that_may_not_grow_further(scene, kind, limit):
    """As with a quota: writes fail, and a qemu is killed."""
    with ScriptedServer(Server(kind)) as server:
        done = run_client(scene, server.url, limit=limit)
        assert done.returncode == 1
        scene.check(success=False)
        assert scene.is_old((scene.folder / "disk").read_bytes())
        scene.check_next(server.url)


@each_kind
@pytest.mark.parametrize("room", [0, 4 * KiB, MiB])
def test_full_disk(tmp_path, kind, room):
    mounted = tmp_path / "mounted"
    mounted.mkdir()
    with mount("none", mounted, "-t", "tmpfs", "-o", f"size={5 * SIZE}"):
        scene = Scene(mounted, kind, tmp_path / "scratch")
        scene.others["filler"] = b""
        with ScriptedServer(Server(kind)) as server:
            with open(mounted / "filler", "wb") as f:
                free = os.statvfs(mounted)
                os.posix_fallocate(f.fileno(), 0, free.f_bavail * free.f_frsize - room)
                with pytest.raises((ImageioError, OSError)):
                    scene.download(server.url)
                f.truncate(0)
            scene.check(success=False)
            scene.check_next(server.url)


# A kill.

KILLED = """
import os, signal, sys
sys.path[:0] = {path!r}
from pathlib import Path
from imageio_testing.powerloss import VolatileFolder

def watch(volatile, call):
    if len(volatile.calls) == {number}:
        os.kill(os.getpid(), signal.SIGKILL)

VolatileFolder(Path({folder!r}), watch).__enter__()
"""


def number_of_calls(scene, url):
    with VolatileFolder(scene.folder) as volatile:
        scene.download(url)
    return len(volatile.calls)


@each_kind
def test_kill(tmp_path, folder, kind):
    path = [os.path.join(path) for path in sys.path if path.endswith("tools")]
    with ScriptedServer(Server(kind)) as server:
        scene = Scene(folder, kind)
        calls = number_of_calls(scene, server.url)
        chosen = range(1, calls + 1) if FULL else (calls // 2, calls - 3, calls - 1)
        for number in chosen:
            here = tmp_path / str(number)
            here.mkdir()
            images = here / "images"
            images.mkdir()
            scene = Scene(images, kind)
            before = KILLED.format(path=path, number=number, folder=str(images))
            done = run_client(scene, server.url, before=before)
            assert done.returncode == -signal.SIGKILL, done.stderr
            assert os.listdir(scene.temporary) == []
            scene.check(success=False)
            scene.check_next(server.url, crashed=True)


KILLED_UPLOAD = """
import os, signal, sys
from ovirt_imageio import client

client.upload(sys.argv[1], sys.argv[2], None, progress=lambda count: os.kill(os.getpid(), signal.SIGKILL))
"""


def test_killed_upload_leaves_no_folder(tmp_path):
    (tmp_path / "tmp").mkdir()
    make_image(tmp_path / "base", "qcow2", SIZE, [Fill(0, SIZE, 1)])
    make_image(tmp_path / "disk", "qcow2", SIZE, backing=Backing(tmp_path / "base", "qcow2"))
    with ScriptedServer(Image(bytearray(SIZE))) as server:
        command = [sys.executable, "-c", KILLED_UPLOAD, tmp_path / "disk", server.url]
        done = subprocess.run(command, env={**os.environ, "TMPDIR": str(tmp_path / "tmp")}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert os.listdir(tmp_path / "tmp") == []


# Two at once.


@each_kind
def test_second_one_at_each_step_of_the_first(scene, kind):
    """Refused each time, and nothing changes by it."""
    refused = []

    def watch(volatile, call):
        before = {name: (scene.folder / name).read_bytes() for name in os.listdir(scene.folder)}
        if not {".disk.imageio", "disk.1.part"} <= {*before}:
            return  # the first has not begun, or has ended
        with pytest.raises(ImageInUse):
            scene.download(server.url)
        assert {name: (scene.folder / name).read_bytes() for name in os.listdir(scene.folder)} == before
        refused.append(call)

    with ScriptedServer(Server(kind)) as server:
        with VolatileFolder(scene.folder, watch):
            scene.download(server.url)
        assert len(refused) > 4
        scene.check(success=True)
        assert scene.leftovers() == []


# A loss of power.


def broken_rules(scene, volatile):
    """The parts of the rule that a loss of power would break now."""
    if not volatile.is_settled("disk"):
        yield "the name may have a file whose content is not on stable storage"
    for state in volatile.states():
        image = state.get("disk")
        if image is None:
            yield "the name is gone"
        elif not (scene.is_old(image) or scene.is_new(image)):
            yield "the name has neither image"
        for name in ("base", "yesterday", "disk.part"):
            if state.get(name) != scene.others[name]:
                yield f"{name} is not what it was"
        known = state.get("disk.download.journal" if scene.kind.resume else ".disk.imageio", b"")
        if state.get("disk.1.part") and b'"part"' not in known:
            yield "there is a part that the next run does not know of"


@each_kind
def test_loss_of_power_at_each_step(scene, kind):
    broken = []

    def watch(volatile, call):
        broken.extend(f"after call {len(volatile.calls)}, {call}: {text}" for text in broken_rules(scene, volatile))

    with ScriptedServer(Server(kind)) as server, VolatileFolder(scene.folder, watch) as volatile:
        scene.download(server.url)
        after = list(volatile.states())
    assert broken == []
    # Success was said, and no loss of power takes it back.
    assert {scene.is_new(state["disk"]) for state in after} == {True}
    assert len(volatile.calls) > 5


@pytest.mark.parametrize("forgotten", ["file", "folder"])
def test_loss_of_power_is_noticed_where_an_fsync_is_forgotten(folder, forgotten, monkeypatch):
    """The test above can fail."""
    scene = Scene(folder, KINDS["raw"])
    broken, fsync = [], os.fsync

    def forgetting(fd):
        is_folder = os.path.samestat(os.fstat(fd), os.stat(folder))
        if is_folder is not (forgotten == "folder"):
            fsync(fd)
            volatile._sync(fd)

    with ScriptedServer(Server(scene.kind)) as server:
        with VolatileFolder(folder, lambda volatile, call: broken.extend(broken_rules(scene, volatile))) as volatile:
            monkeypatch.setattr(os, "fsync", forgetting)
            scene.download(server.url)
            after = list(volatile.states())
            monkeypatch.undo()
    if forgotten == "file":
        assert "the name may have a file whose content is not on stable storage" in broken
    else:
        assert {scene.is_new(state["disk"]) for state in after} == {False, True}


@pytest.mark.parametrize("kind", [kind for kind in KINDS.values() if kind.resume], ids=str)
def test_download_continues_after_a_loss_of_power_at_each_step(folder, kind, monkeypatch, caplog):
    """Ranges that the journal calls done are in the part, or both ends are seen to differ."""
    # A copy of a folder has other inodes.
    monkeypatch.setattr(part.Part, "identity", property(lambda self: Identity(os.path.basename(self.path), 0, 0)))
    caplog.set_level("INFO")
    scene, found = Scene(folder, kind), {}

    def watch(volatile, call):
        for state in volatile.states():
            found.setdefault(tuple(sorted((name, hash(image)) for name, image in state.items())), state)

    with ScriptedServer(Server(kind)) as server:
        with VolatileFolder(folder, watch):
            scene.download(server.url)
        states = list(found.values())
        assert len(states) > 10
        for state in states[:: 1 if FULL else len(states) // 5]:
            for name in os.listdir(folder):
                os.unlink(folder / name)
            for name, image in state.items():
                (folder / name).write_bytes(image)
            os.chmod(folder / "disk", 0o640)
            scene.check_next(server.url, crashed=True)
    assert "Continuing: " in caplog.text
