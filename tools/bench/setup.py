# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The set-up of rows: images on tmpfs and on disk, keys, and the two environments."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, Optional

import trustme

from bench.servers import BenchError, Implementation, Keys

PEER_REQUIREMENT = "ovirt-imageio==2.5.1"
OLDEST_PYTHON, NEWEST_PYTHON = 9, 13  # 3.x, that the packages support
KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30


def make_peer(folder: Path, python: str = sys.executable) -> Implementation:
    """Install the last 2.x release into an environment of its own, once.

    Raises:
        BenchError: it cannot be installed; it needs a C compiler and PyPI.
    """
    inside = _environment(folder, python)
    if not (folder / "bin" / "ovirt-imageio").exists():
        command = [inside, "-m", "pip", "install", "-q", PEER_REQUIREMENT]
        if subprocess.run(command).returncode:
            raise BenchError(f"{PEER_REQUIREMENT} cannot be installed (a C compiler is needed)")
    return Implementation("2.5", inside)


def make_ours(folder: Path, python: str = sys.executable) -> Implementation:
    """Install wheels of this checkout: what users have, its modules compiled.

    Raises:
        BenchError: they cannot be built or installed.
    """
    inside = _environment(folder, python)
    tools = str(Path(__file__).parents[1])
    command = [inside, "-m", "release.install", "common", "daemon", "client"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": tools}, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"the packages cannot be installed: {done.stderr.strip()[-800:]}")
    return Implementation("3", inside)


def _environment(folder: Path, python: str) -> str:
    """Make a virtual environment, once, and return its interpreter."""
    inside = folder / "bin" / "python"
    if not inside.exists() and subprocess.run([python, "-m", "venv", str(folder)]).returncode:
        raise BenchError(f"{python} cannot make an environment in {folder}")
    return str(inside)


def make_keys(folder: Path) -> Keys:
    """Make a certificate authority and a server key that live as long as the run."""
    ca = trustme.CA()
    cert = ca.issue_cert("localhost", "127.0.0.1")
    paths = Keys(*(str(folder / name) for name in ("ca.pem", "cert.pem", "key.pem")))
    ca.cert_pem.write_to_path(paths.ca_file)
    with open(paths.cert_file, "wb") as f:
        for blob in cert.cert_chain_pems:
            f.write(blob.bytes())
    cert.private_key_pem.write_to_path(paths.key_file)
    return paths


@dataclass
class Setup:
    """Everything a row may use. Files are made on first use and removed with the folder."""

    ours: Implementation
    peer: Implementation
    memory: Path
    disk: Path
    keys: Keys
    size: int
    seconds: float
    _made: dict[str, Path] = field(default_factory=dict)

    def dense(self, name: str = "dense.raw", *, folder: Optional[Path] = None) -> Path:
        """An image of random bytes."""
        path = (folder or self.memory) / name
        if name not in self._made:
            with open("/dev/urandom", "rb") as source, open(path, "wb") as f:
                block = source.read(64 * MIB)
                for o in range(0, self.size, len(block)):
                    # Blocks that differ, so that a misplaced one is seen.
                    f.write(o.to_bytes(8, "big") + block[8 : min(len(block), self.size - o)])
                settle(f)
            self._made[name] = path
        return path

    def target(self, name: str = "target.raw", *, folder: Optional[Path] = None) -> Path:
        """An allocated image to write to: first touch of memory would be measured else.

        Each MiB of it is made to differ from what it shall become, or a run that moves nothing
        would look right after the first.
        """
        path = (folder or self.memory) / name
        with open(path, "r+b" if name in self._made else "w+b") as f:
            if name not in self._made:
                os.posix_fallocate(f.fileno(), 0, self.size)
            self._made[name] = path
            for o in range(0, self.size, MIB):
                os.pwrite(f.fileno(), os.urandom(16), o + MIB // 2)
            settle(f, keep=False)
        return path

    def vacant(self, name: str, *, folder: Optional[Path] = None) -> Path:
        """A path where nothing is yet, for an image whose memory was in use until now.

        Under a hypervisor that takes free memory back, new memory is several times slower. A library
        that overwrites what is there has it from the old image; one that keeps that until the new one
        is complete has not.
        """
        path = self.target(name, folder=folder)
        self.discard(path)
        return path

    def qcow2(self, name: str = "dense.qcow2") -> Path:
        """The dense image as qcow2."""
        path = self.memory / name
        if name not in self._made:
            source = str(self.dense())
            subprocess.run(["qemu-img", "convert", "-f", "raw", "-O", "qcow2", source, str(path)], check=True)
            self._made[name] = path
        return path

    def sparse(self, size: int, data: int) -> Path:
        """A raw image of which only `data` bytes, spread evenly, are allocated."""
        name = f"sparse-{size}-{data}.raw"
        path = self.memory / name
        if name not in self._made:
            with open(path, "wb") as f:
                f.truncate(size)
                for i in range(data // MIB):
                    f.seek(i * (size * MIB // data) // MIB * MIB)
                    f.write(os.urandom(MIB))
            self._made[name] = path
        return path

    def many_extents(self, count: int) -> Path:
        """A qcow2 image with that many extents: every other cluster is written."""
        name = f"extents-{count}.qcow2"
        path = self.memory / name
        if name not in self._made:
            write_chequered_qcow2(path, count)
            self._made[name] = path
        return path

    def discard(self, path: Path) -> None:
        """Remove an image before the run is over."""
        self._made.pop(path.name, None)
        path.unlink()


def settle(f: BinaryIO, *, keep: bool = True) -> None:
    """Bring a file to its disk, and out of the page cache unless told to keep it there.

    Direct I/O waits for what is dirty there, page by page, and writing drops what is there.
    """
    f.flush()
    os.fsync(f.fileno())
    if not keep:
        os.posix_fadvise(f.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_chequered_qcow2(path: Path, count: int) -> None:
    """Make a qcow2 image in which every other cluster of 512 bytes reads from a data cluster.

    It is written here, since a guest would need hours. One host cluster serves all
    mapped guest clusters, which a read-only export allows (qemu's
    docs/interop/qcow2.txt, "L2 table entry").
    """
    bits, cluster = 9, 512
    entries = cluster // 8
    l2_tables = -(-count // entries)
    l1_clusters = -(-l2_tables * 8 // cluster)
    l1_at = 4 * cluster
    l2_at = l1_at + l1_clusters * cluster
    data_at = l2_at + l2_tables * cluster
    header = bytearray(104)
    header[0:4] = b"QFI\xfb"
    values = (
        (4, 4, 3),
        (20, 4, bits),
        (24, 8, count * cluster),
        (36, 4, l2_tables),
        (40, 8, l1_at),
        (48, 8, cluster),
        (56, 4, 1),
        (96, 4, 4),
        (100, 4, 104),
    )
    for at, width, value in values:
        header[at : at + width] = value.to_bytes(width, "big")
    copied = 1 << 63
    with open(path, "wb") as f:
        f.write(header)
        f.seek(cluster)
        f.write((2 * cluster).to_bytes(8, "big"))
        f.seek(l1_at)
        for i in range(l2_tables):
            f.write((copied | l2_at + i * cluster).to_bytes(8, "big"))
        f.seek(l2_at)
        pair = (copied | data_at).to_bytes(8, "big") + bytes(8)
        f.write(pair * (count // 2))
        f.seek(data_at)
        f.write(b"x" * cluster)


def same_bytes(a: Path, b: Path) -> None:
    """Compare two images.

    Raises:
        BenchError: they differ: a figure of such a run is worth nothing.
    """
    if subprocess.run(["cmp", "-s", str(a), str(b)]).returncode:
        raise BenchError(f"{a.name} and {b.name} differ after the transfer")


def compare_images(a: Path, fmt_a: str, b: Path, fmt_b: str) -> None:
    """Compare the guest's view of two images with qemu-img."""
    command = ["qemu-img", "compare", "-f", fmt_a, "-F", fmt_b, str(a), str(b)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise BenchError(f"{a.name} and {b.name} differ: {done.stdout.strip()}{done.stderr}")


def machine_facts() -> dict[str, str]:
    """Return the facts of the machine that a reader needs to judge a figure."""
    uname = os.uname()
    qemu = subprocess.run([shutil.which("qemu-nbd") or "qemu-nbd", "--version"], capture_output=True)
    return {
        "processors": str(len(os.sched_getaffinity(0))),
        "kernel": uname.release.split("-")[0],
        "architecture": uname.machine,
        "qemu-nbd": qemu.stdout.decode().split()[1] if qemu.stdout else "none",
    }


def find_python(name: str) -> str:
    """Return the path of an interpreter that runs; pyenv keeps those that nobody chose off PATH.

    Args:
        name: a name or path, or ``"newest"`` or ``"oldest"`` of those that the packages support.

    Raises:
        BenchError: there is none of this name.
    """
    if name in ("newest", "oldest"):
        return _find_extreme(name)
    candidates = [shutil.which(name) or name]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True).stdout.strip()
        candidates += sorted(map(str, Path(root, "versions").glob(f"*/bin/{Path(name).name}")))
    for path in candidates:
        try:
            if subprocess.run([path, "-c", ""], capture_output=True).returncode == 0:
                return path
        except OSError:
            continue
    raise BenchError(f"{name} cannot be run")


def _find_extreme(which: str) -> str:
    """Return the path of the ``"newest"`` or ``"oldest"`` interpreter here that the packages support.

    Raises:
        BenchError: there is none.
    """
    minors = range(OLDEST_PYTHON, NEWEST_PYTHON + 1)
    for minor in minors if which == "oldest" else reversed(minors):
        with contextlib.suppress(BenchError):
            return find_python(f"python3.{minor}")
    raise BenchError(f"there is no interpreter from python3.{OLDEST_PYTHON} to python3.{NEWEST_PYTHON}")


def python_version(python: str) -> str:
    """The version of an interpreter."""
    code = "import json, sys; print(json.dumps(list(sys.version_info[:3])))"
    out = subprocess.run([python, "-c", code], capture_output=True, check=True)
    return ".".join(str(n) for n in json.loads(out.stdout))
