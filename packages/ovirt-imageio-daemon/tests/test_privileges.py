# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import grp
import json
import os
import pwd
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from ovirt_imageio.daemon import privileges
from ovirt_imageio.daemon.config import Config, ConfigError
from ovirt_imageio.daemon.options import Daemon

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can drop privileges")


def config(tmp_path: Path, **changes: object) -> Config:
    values: dict[str, object] = {"run_dir": str(tmp_path / "run"), **changes}
    return Config(daemon=Daemon(**values))  # type: ignore[arg-type]


def test_only_root_drops_and_only_if_told_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for uid, told, expected in [(0, True, True), (0, False, False), (1000, True, False)]:
        monkeypatch.setattr(os, "geteuid", lambda uid=uid: uid)
        assert privileges.needs_drop(config(tmp_path, drop_privileges=told)) is expected


def test_unknown_user_and_group_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"\[daemon\] user_name = nosuch: expected an existing"):
        privileges.drop(config(tmp_path, user_name="nosuch"))
    with pytest.raises(ConfigError, match=r"\[daemon\] group_name = nosuch: expected an existing"):
        privileges.drop(config(tmp_path, user_name="nobody", group_name="nosuch"))


DROP = """
import json, os, sys
from ovirt_imageio.daemon import privileges
from ovirt_imageio.daemon.config import Config
from ovirt_imageio.daemon.options import Daemon
daemon = Daemon(user_name=sys.argv[1], group_name=sys.argv[2], run_dir=sys.argv[3])
privileges.drop(Config(daemon=daemon))
try:
    os.setuid(0)
    regained = True
except PermissionError:
    regained = False
print(json.dumps([os.getresuid(), os.getresgid(), sorted(os.getgroups()), regained]))
"""


@as_root
def test_drop_becomes_the_user_with_its_supplementary_groups_for_good(tmp_path: Path) -> None:
    # Some account that is a member of further groups, if this system has one.
    member, group = next(
        ((g.gr_mem[0], g) for g in grp.getgrall() if g.gr_mem and g.gr_mem[0] != "root"),
        ("nobody", None),
    )
    user = pwd.getpwnam(member)
    own = grp.getgrgid(user.pw_gid)
    run_dir = tmp_path / "run"
    args = [sys.executable, "-c", DROP, user.pw_name, own.gr_name, str(run_dir)]
    done = subprocess.run(args, stdout=subprocess.PIPE, check=True, timeout=30)
    uids, gids, groups, regained = json.loads(done.stdout)
    assert uids == [user.pw_uid] * 3
    assert gids == [own.gr_gid] * 3
    assert groups == sorted(set(os.getgrouplist(user.pw_name, own.gr_gid)))
    assert group is None or group.gr_gid in groups
    assert not regained
    st = run_dir.stat()
    assert (st.st_uid, st.st_gid, st.st_mode & 0o777) == (user.pw_uid, own.gr_gid, 0o755)


@as_root
def test_folder_that_everybody_may_write_to_is_not_given_away(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    run_dir.chmod(0o1777)
    own = grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name
    args = [sys.executable, "-c", DROP, "nobody", own, str(run_dir)]
    subprocess.run(args, stdout=subprocess.PIPE, check=True, timeout=30)
    assert run_dir.stat().st_uid == 0


def test_run_dir_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    group = grp.getgrgid(pwd.getpwnam("nobody").pw_gid).gr_name
    with pytest.raises(ConfigError, match=r"\[daemon\] run_dir = .*File exists"):
        privileges.drop(config(tmp_path, user_name="nobody", group_name=group))


@pytest.mark.parametrize(("files", "room"), [(65536, 49152), (1024, 768), (200, 136), (64, 8)])
def test_some_files_are_kept_for_what_is_no_connection(files: int, room: int) -> None:
    assert privileges.room_for_connections(files) == room


def test_file_limit_is_raised_to_the_hard_one() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (100, before[1]))
        assert privileges.raise_file_limit() == before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
