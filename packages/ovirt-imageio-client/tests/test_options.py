# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
from __future__ import annotations

import argparse
import getpass

import pytest

from ovirt_imageio.client import folders, options
from ovirt_imageio.client.options import UsageError
from ovirt_imageio.common.units import KiB, MiB

FILE = """\
[east]
engine_url = https://east.example.com
username = admin@internal
password = 100%safe
cafile = /pki/east.pem
secure = no
disk_timeout = 30
log_file = /tmp/east.log
log_level = INFO
description = From the east

[west]
engine_url = https://west.example.com
"""


@pytest.fixture(autouse=True)
def config(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    path = tmp_path / "ovirt-img.conf"
    path.write_text(FILE)
    return path


def given(**keys):
    nothing = dict.fromkeys(
        ["config", "engine_url", "username", "password_file", "cafile", "log_file", "log_level", "description"]
    )
    return argparse.Namespace(**{**nothing, "insecure": False, **keys})


def engine(**keys):
    args = given(**keys)
    return options.with_password(options.engine(args, options.merge_section(args)))


def test_everything_comes_from_the_section():
    assert engine(config="east") == options.Engine(
        url="https://east.example.com",
        username="admin@internal",
        password="100%safe",
        cafile="/pki/east.pem",
        secure=False,
        disk_timeout=30.0,
        description="From the east",
    )


def test_log_comes_from_the_section():
    args = given(config="east")
    options.merge_section(args)
    assert (args.log_file, args.log_level) == ("/tmp/east.log", "info")


def test_options_win_over_the_section(tmp_path):
    (tmp_path / "password").write_text("other\nsecond line\n")
    got = engine(
        config="east",
        engine_url="https://x",
        username="u",
        password_file=str(tmp_path / "password"),
        cafile="ca",
        description="d",
    )
    assert got == options.Engine("https://x", "u", "other", "ca", False, 30.0, "d")


def test_options_of_the_log_win_over_the_section():
    args = given(config="east", log_file="mine", log_level="debug")
    options.merge_section(args)
    assert (args.log_file, args.log_level) == ("mine", "debug")


def test_insecure_wins_over_a_secure_section(config):
    config.write_text(FILE.replace("secure = no", "secure = yes"))
    assert engine(config="east").secure
    assert not engine(config="east", insecure=True).secure


def test_defaults_without_a_section(monkeypatch):
    monkeypatch.setattr(getpass, "getpass", lambda prompt: "typed")
    got = engine(engine_url="https://x", username="u")
    assert got == options.Engine("https://x", "u", "typed", None, True, 120.0, None)


@pytest.mark.parametrize("home", ["", "relative/path"])
def test_config_is_found_at_home_without_an_absolute_xdg_folder(monkeypatch, home):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("XDG_CONFIG_HOME", home)
    assert options.config_path() == "/home/me/.config/ovirt-img.conf"


def test_user_without_a_home_reads_no_configuration_of_the_working_folder(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "~" / ".config").mkdir(parents=True)
    (tmp_path / "~" / ".config" / "ovirt-img.conf").write_text("[east]\n")
    monkeypatch.setattr(folders, "home", lambda: None)
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    with pytest.raises(UsageError, match="no home folder; set HOME or XDG_CONFIG_HOME"):
        options.read_section("east")
    assert options.section_names() == []


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ({"config": "north"}, r"has no section \[north\]; it has: east, west"),
        ({"config": "west"}, "give --username, or -c SECTION"),
        ({"username": "u"}, "give --engine-url, or -c SECTION"),
        ({"config": "east", "engine_url": "x.example.com"}, "'x.example.com' is no address of an engine"),
        ({"config": "east", "password_file": "/none/x"}, "password file /none/x: No such file"),
    ],
)
def test_what_is_missing_is_named(keys, text):
    with pytest.raises(UsageError, match=text):
        engine(**keys)


@pytest.mark.parametrize(
    ("key", "value"),
    [("secure", "maybe"), ("disk_timeout", "soon"), ("disk_timeout", "0"), ("disk_timeout", "nan"), ("log_level", "x")],
)
def test_wrong_value_is_named_with_section_and_key(config, key, value):
    config.write_text(f"[s]\nengine_url = https://x\nusername = u\npassword = p\n{key} = {value}\n")
    with pytest.raises(UsageError, match=rf"{config}, section \[s\]: {key} = '{value}'"):
        engine(config="s")


@pytest.mark.parametrize("text", ["no section", "[s]\nx = 1\nx = 2\n", "[s]\n\xff"])
def test_broken_file_is_one_line(config, text):
    config.write_bytes(text.encode("latin-1"))
    with pytest.raises(UsageError, match=str(config)) as e:
        engine(config="s")
    assert "\n" not in str(e.value)


def test_missing_file_is_named(config):
    config.unlink()
    with pytest.raises(UsageError, match=rf"cannot read {config}: No such file"):
        engine(config="east")
    assert options.section_names() == []


def test_empty_password_file_is_refused(tmp_path):
    (tmp_path / "password").write_text("\n")
    with pytest.raises(UsageError, match="no password on its first line"):
        options.read_password(str(tmp_path / "password"))


def test_password_is_asked_for_by_itself(monkeypatch):
    monkeypatch.setattr(getpass, "getpass", lambda prompt: pytest.fail("asked"))
    args = given(engine_url="https://x", username="u")
    assert options.engine(args, {}).password is None


def test_without_a_terminal_nobody_is_asked(monkeypatch):
    def no_terminal(prompt):
        import warnings

        warnings.warn("no terminal", getpass.GetPassWarning, stacklevel=1)

    monkeypatch.setattr(getpass, "getpass", no_terminal)
    with pytest.raises(UsageError, match="give --password-file"):
        engine(engine_url="https://x", username="u")


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (options.workers, "1", 1),
        (options.workers, "8", 8),
        (options.buffer_size, "64k", 64 * KiB),
        (options.buffer_size, "16M", 16 * MiB),
        (options.block_size, "1m", MiB),
        (options.block_size, "1028k", 1028 * KiB),
        (options.block_size, "512", 512),
        (options.disk_id, "0CD81A7E1F1A4E3B9A8F5B3F7A1F0C52", "0cd81a7e-1f1a-4e3b-9a8f-5b3f7a1f0c52"),
    ],
)
def test_argument_is_read(read, text, value):
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "text"),
    [
        (options.workers, "0"),
        (options.workers, "9"),
        (options.workers, "-1"),
        (options.workers, "four"),
        (options.workers, "²"),
        (options.buffer_size, "63k"),
        (options.buffer_size, "17m"),
        (options.buffer_size, "4x"),
        (options.block_size, "0"),
        (options.block_size, "4x"),
        (options.disk_id, "disk1"),
    ],
)
def test_argument_out_of_its_limits_is_named(read, text):
    with pytest.raises(argparse.ArgumentTypeError, match=text):
        read(text)


@pytest.mark.parametrize("size", [None, MiB, 1028 * KiB, 16 * MiB])
def test_server_takes_some_sizes_of_blocks(size):
    options.check_server_block(size)


@pytest.mark.parametrize("size", [4 * KiB, MiB - 1, MiB + 1, 16 * MiB + 4 * KiB])
def test_size_that_no_server_takes_is_refused(size):
    with pytest.raises(UsageError, match=f"{size} bytes: a server takes 1m to 16m"):
        options.check_server_block(size)
