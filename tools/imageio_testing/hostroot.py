# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""A folder that stands for a host: RPMs are installed into it by dnf, and run in it.

    host = HostRoot(tmp_path / "root", tmp_path / "repo")
    host.add_program("/usr/bin/env")
    host.add_python(["requests"])
    host.dnf("install", "ovirt-imageio-daemon")
    host.run("ovirt-imageio", "--show-config")

Programs of this machine are copied with the libraries they load, so that scriptlets and
daemons run as on any host. They run under chroot(2), with namespaces of their own for mounts
and the network. The class needs root, dnf and createrepo_c.
"""

from __future__ import annotations

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Sequence
from pathlib import Path

TIMEOUT = 120.0

PYTHON = f"python{sys.version_info[0]}.{sys.version_info[1]}"
SITELIB = f"/usr/lib/{PYTHON}/site-packages"

# Of a Python: what no program needs, and what says who may install into it.
_UNUSED = (
    *("site-packages", "dist-packages", "test", "tests", "idlelib", "__pycache__", "config-*"),
    "EXTERNALLY-MANAGED",
)

_NAMESPACES = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child")

# Folders that belong to a distribution, not to a package that puts something into them.
_FOLDERS = (
    *("dev", "etc", "proc", "run", "tmp", "usr/bin", "usr/sbin", "usr/lib", "usr/lib64", "var/log"),
    *("usr/lib/systemd/system", "usr/lib/sysusers.d", "usr/share/doc", "usr/share/licenses"),
    *(f"usr/share/man/man{section}" for section in range(1, 9)),
)

# Files that the system's own programs write.
_NOT_COUNTED = re.compile(
    r"/(proc|run|tmp|dev)/|/var/(cache|lib|tmp)/|/var/log/(dnf|hawkey)|/usr/lib/(sysimage|\.build-id)/"
    r"|/etc/(\.pwd\.lock|(passwd|shadow|group|gshadow|subuid|subgid)-?)/|(?!.*/ovirt_imageio/).*/__pycache__/"
)


def missing() -> list[str]:
    """Return what this machine lacks to have such a host; empty if nothing."""
    lacks = [name for name in ("dnf", "createrepo_c", "rpmbuild", "chroot", "unshare") if not shutil.which(name)]
    if os.geteuid() != 0:
        return [*lacks, "root"]
    if not lacks:
        done = subprocess.run([*_NAMESPACES, "true"], capture_output=True, check=False)
        lacks += ["the right to make namespaces"] if done.returncode else []
    return lacks


class HostRoot:
    """One host.

    Args:
        root: its root folder, made anew.
        repo: folder of the RPMs that its dnf finds.
    """

    def __init__(self, root: Path, repo: Path) -> None:
        self.root = root
        self.repo = repo
        for folder in _FOLDERS:
            (root / folder).mkdir(parents=True, exist_ok=True)
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / name).symlink_to(f"usr/{name}")
        for line, name in (("root:x:0:0:root:/root:/bin/sh\n", "passwd"), ("root:x:0:\n", "group")):
            (root / "etc" / name).write_text(line)
        (root / "etc/hosts").write_text("127.0.0.1 localhost\n::1 localhost\n")
        for name, minor in (("null", 3), ("urandom", 9)):
            os.mknod(root / "dev" / name, 0o20666, os.makedev(1, minor))

    # The content before anything is installed.

    def add_program(self, path: str, name: str | None = None) -> None:
        """Copy a program of this machine and the libraries it loads; also called `name`."""
        self._copy(path)
        self._copy_libraries([path])
        if name:
            (self.root / name.lstrip("/")).symlink_to(os.path.realpath(path))

    def add_python(self, distributions: Iterable[str]) -> None:
        """Copy this Python and installed distributions with what they require."""
        stdlib = Path(sysconfig.get_path("stdlib"))
        # Where a Python of the prefix /usr looks.
        target = self.root / "usr" / getattr(sys, "platlibdir", "lib") / PYTHON
        shutil.copytree(stdlib, target, ignore=shutil.ignore_patterns(*_UNUSED))
        program = os.path.realpath(sys.executable)
        self._copy(program, f"/usr/bin/{PYTHON}")
        (self.root / "usr/bin/python3").symlink_to(PYTHON)
        for name in _closure(distributions):
            self._copy_distribution(name)
        extensions = [*stdlib.glob("lib-dynload/*.so"), *(self.root / SITELIB.lstrip("/")).rglob("*.so")]
        self._copy_libraries([program, *map(str, extensions)])

    def _copy_distribution(self, name: str) -> None:
        dist = importlib.metadata.distribution(name)
        for file in dist.files or ():
            source = Path(str(dist.locate_file(file)))
            # Some list compiled modules that are not there.
            if ".." not in file.parts and file.suffix != ".pyc" and source.is_file():
                target = self.root / SITELIB.lstrip("/") / str(file)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(source, target)

    def _copy_libraries(self, programs: Sequence[str]) -> None:
        # Static programs have none, then ldd fails.
        done = subprocess.run(["ldd", *programs], capture_output=True, text=True, timeout=TIMEOUT, check=False)
        for library in sorted(set(re.findall(r"(/\S+) \(0x", done.stdout))):
            self._copy(library)

    def _copy(self, source: str, target: str | None = None) -> None:
        path = self.root / (target or source).lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            shutil.copy2(source, path)

    # Use.

    def write(self, path: str, text: str, *, mode: int = 0o644) -> Path:
        """Write a file of the host."""
        file = self.root / path.lstrip("/")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
        file.chmod(mode)
        return file

    def dnf(self, *args: str, check: bool = True) -> str:
        """Run dnf on this host, with `repo` as the only repository; returns what it said.

        Raises:
            RuntimeError: it failed, and `check` is true.
        """
        options = {
            "installroot": self.root,
            "repofrompath": f"local,file://{self.repo}",
            "repo": "local",
            "releasever": "1",
        }
        settings = {"gpgcheck": "0", "reposdir": "/dev/null", "plugins": "0", "varsdir": "/dev/null"}
        # Else Debian's dnf writes beside the root.
        settings.update(cachedir=f"{self.root}/var/cache/dnf", install_weak_deps="0", metadata_expire="0")
        command = ["dnf", "--assumeyes", "--setopt=tsflags=", *(f"--{k}={v}" for k, v in options.items())]
        command += [f"--setopt={key}={value}" for key, value in settings.items()]
        done = _run([*command, *args])
        if check and done.returncode:
            raise RuntimeError(f"dnf {' '.join(args)} ended with {done.returncode}:\n{done.stdout}")
        return done.stdout

    def rpm(self, *args: str) -> str:
        """Query the host's package database."""
        return subprocess.run(
            ["rpm", "--root", str(self.root), *args], capture_output=True, text=True, check=True, timeout=TIMEOUT
        ).stdout

    def run(self, *command: str, data: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a command in the host, with no network but a loopback of its own.

        Args:
            command: name and arguments.
            data: what it reads from standard input.
            check: whether a failure is an error.

        Raises:
            RuntimeError: it failed, and `check` is true.
        """
        mounted = 'mount -t proc proc "$0/proc" && exec chroot "$0" "$@"'
        environ = {"PATH": "/usr/bin:/usr/sbin", "LANG": "C.UTF-8"}
        if "deb_system" in sysconfig.get_scheme_names():
            environ["PYTHONPATH"] = SITELIB  # Debian's own Python looks into dist-packages only
        done = subprocess.run(
            [*_NAMESPACES, "sh", "-c", mounted, str(self.root), *command],
            env={**environ, "PATH": f"{environ['PATH']}:/bin:/sbin"},
            input=data,
            capture_output=True,
            text=True,
            timeout=TIMEOUT,
        )
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
        return done

    def files(self) -> set[str]:
        """Return all files, links and folders of the host, but those of the package managers."""
        found = set()
        for folder, folders, files in os.walk(self.root):
            for name in (*folders, *files):
                path = "/" + os.path.relpath(os.path.join(folder, name), self.root)
                if not _NOT_COUNTED.match(path + "/"):
                    found.add(path)
        return found


def make_repo(folder: Path) -> None:
    """Index the RPMs of a folder; again after any was added."""
    command = ["createrepo_c", "--quiet", "--general-compress-type=gz", str(folder)]
    subprocess.run(command, check=True, capture_output=True, timeout=TIMEOUT)


def build_stub(spec: str, work: Path, repo: Path) -> None:
    """Build the RPMs of a small spec into a repository.

    Args:
        spec: its text.
        work: folder for the build.
        repo: folder for the results.
    """
    repo.mkdir(parents=True, exist_ok=True)
    work.mkdir(parents=True, exist_ok=True)
    path = work / "stub.spec"
    path.write_text(spec)
    command = ["rpmbuild", "-bb", "--define", f"_topdir {work}", "--define", "_build_id_links none", str(path)]
    done = _run(command)
    if done.returncode:
        raise RuntimeError(f"rpmbuild failed:\n{done.stdout}")
    for built in sorted(work.glob("RPMS/**/*.rpm")):
        shutil.copyfile(built, repo / built.name)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run a command of this machine, with what it says in one stream."""
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=TIMEOUT)


def _closure(names: Iterable[str]) -> list[str]:
    """Distributions and what they require, without extras."""
    found: list[str] = []
    todo = list(names)
    while todo:
        name = todo.pop()
        if name in found:
            continue
        found.append(name)
        for requirement in importlib.metadata.requires(name) or ():
            if ";" not in requirement:
                todo.append(re.split(r"[^\w.-]", requirement, maxsplit=1)[0])
    return found
