# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Parts of a log that root left, at a first start or an upgrade, become the daemon's user's; nothing else does."""

from __future__ import annotations

import grp
import os
import pwd
import shutil
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from imageio_testing.daemon import Daemon, public_command

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can hand over")

USER = pwd.getpwnam("nobody")
GROUP = grp.getgrgid(USER.pw_gid)

# Opens the log as a starting daemon does, writes a line as the user, and rolls over.
START = """
import logging, sys
from ovirt_imageio.daemon import config, handover, privileges
cfg = config.load_files([sys.argv[1]])
try:
    handover.open_log(cfg)
except config.ConfigError as e:
    sys.exit(str(e))
privileges.drop(cfg)
logging.info("written by the user")
(handler,) = logging.getLogger().handlers
handover.check_rotation([handler])
if handler.maxBytes:
    handler.doRollover()
logging.info("after a rotation")
"""


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that anyone may enter."""
    with tempfile.TemporaryDirectory(prefix="io-") as name:
        os.chmod(name, 0o755)
        yield Path(name)


def configuration(folder: Path) -> Path:
    """Write a configuration whose log is in the folder `log`."""
    path = folder / "test.conf"
    path.write_text(
        f'[handler_logfile]\nargs = ("{folder}/log/daemon.log",)\n'
        f"[daemon]\nuser_name = {USER.pw_name}\ngroup_name = {GROUP.gr_name}\nrun_dir = {folder}/run\n"
    )
    return path


def start(folder: Path, *prefix: str) -> subprocess.CompletedProcess[str]:
    """Run START as root, whose umask is the unit's."""
    command = [*prefix, sys.executable, "-c", f"import os; os.umask(0o077)\n{START}", str(configuration(folder))]
    return subprocess.run(command, stderr=subprocess.PIPE, text=True, timeout=60, check=False)


def make(path: Path, text: str = "of 2.x\n", *, owner: int = 0, mode: int = 0o644) -> Path:
    path.write_text(text)
    path.chmod(mode)
    os.chown(path, owner, owner)
    return path


def log_folder(folder: Path, *, owner: int = 0, mode: int = 0o755) -> Path:
    path = folder / "log"
    path.mkdir()
    path.chmod(mode)
    os.chown(path, owner, owner)
    return path


def owner(path: Path) -> int:
    return path.stat().st_uid


def test_first_start_in_a_folder_of_root(folder: Path) -> None:
    log = log_folder(folder)
    done = start(folder)
    assert done.stderr == ""
    assert sorted(path.name for path in log.iterdir()) == ["daemon.log", "daemon.log.1"]
    assert (owner(log), owner(log / "daemon.log"), owner(log / "daemon.log.1")) == (USER.pw_uid,) * 3
    assert "after a rotation" in (log / "daemon.log").read_text()


def test_upgrade_keeps_what_root_wrote_and_goes_on_in_the_same_file(folder: Path) -> None:
    log = log_folder(folder)
    for name in ("daemon.log", "daemon.log.1", "daemon.log.10"):
        make(log / name, mode=0o600)
    done = start(folder)
    assert done.stderr == ""
    assert (log / "daemon.log.1").read_text().startswith("of 2.x\n")
    assert "written by the user" in (log / "daemon.log.1").read_text()
    assert (log / "daemon.log.2").read_text() == "of 2.x\n"
    assert {owner(path) for path in [log, *log.iterdir()]} == {USER.pw_uid}


def test_files_of_root_in_the_users_folder(folder: Path) -> None:
    log = log_folder(folder, owner=USER.pw_uid, mode=0o750)
    make(log / "daemon.log", mode=0o600)
    make(log / "daemon.log.1", mode=0o600)
    assert start(folder).stderr == ""
    assert {owner(path) for path in log.iterdir()} == {USER.pw_uid}


def test_root_without_capabilities_hands_over_by_the_group(folder: Path) -> None:
    setpriv = shutil.which("setpriv")
    if setpriv is None:
        pytest.skip("no setpriv")
    log = log_folder(folder, owner=USER.pw_uid, mode=0o750)
    os.chown(log, USER.pw_uid, USER.pw_gid)
    make(log / "daemon.log", mode=0o600)
    run_dir = folder / "run"  # systemd gives it to the user before the start
    run_dir.mkdir()
    os.chown(run_dir, USER.pw_uid, USER.pw_gid)
    # All that the unit leaves to root.
    done = start(folder, setpriv, "--bounding-set=-all,+setuid,+setgid", "--inh-caps=-all")
    assert done.stderr == ""
    assert (log / "daemon.log.1").read_text().startswith("of 2.x\n")
    status = (log / "daemon.log.1").stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (0, USER.pw_gid, 0o660)
    assert owner(log / "daemon.log") == USER.pw_uid


def test_log_beside_other_files_is_handed_over_alone_and_not_rotated(folder: Path) -> None:
    log = log_folder(folder)
    other = make(log / "messages")
    done = start(folder)
    assert done.returncode == 0
    assert (owner(log), owner(other), owner(log / "daemon.log")) == (0, 0, USER.pw_uid)
    text = (log / "daemon.log").read_text()
    assert "after a rotation" in text
    assert f"{log}/daemon.log is not rotated and grows: {USER.pw_name} may not write to its folder" in text


@pytest.mark.parametrize("kind", ["symlink", "hardlink", "fifo", "other user"])
def test_what_the_user_may_have_put_there_is_not_touched(folder: Path, kind: str) -> None:
    log = log_folder(folder, owner=USER.pw_uid)
    secret = make(folder / "secret", "secret\n", mode=0o600)
    if kind == "symlink":
        (log / "daemon.log").symlink_to(secret)
    elif kind == "hardlink":
        os.link(secret, log / "daemon.log")
    elif kind == "fifo":
        os.mkfifo(log / "daemon.log", mode=0o600)
    else:
        make(log / "daemon.log", owner=1, mode=0o600)
    done = start(folder)
    assert f"cannot write the log {log}/daemon.log: Permission denied" in done.stderr
    assert (owner(secret), secret.read_text()) == (0, "secret\n")
    assert (log / "daemon.log").lstat().st_uid in (0, 1)


def test_daemon_starts_where_root_owns_all_of_the_log(folder: Path) -> None:
    command = public_command()
    if command is None:
        pytest.skip("no interpreter that an unprivileged user may run")
    log = log_folder(folder)
    make(log / "daemon.log", mode=0o600)
    config = {
        "daemon": {"drop_privileges": True, "user_name": USER.pw_name, "group_name": GROUP.gr_name},
        "handlers": {"keys": "logfile"},
        "handler_logfile": {"args": f'("{log}/daemon.log",)'},
        "logger_root": {"level": "INFO", "handlers": "logfile"},
    }
    with Daemon(folder, tls=False, config=config, command=command):
        pass
    text = (log / "daemon.log").read_text()
    assert text.startswith("of 2.x\n")
    assert f"uid={USER.pw_uid}" in text
    assert "Stopped" in text
