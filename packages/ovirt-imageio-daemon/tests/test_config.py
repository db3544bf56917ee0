# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

from pathlib import Path

import pytest

from ovirt_imageio.daemon import config, options


def drop_in(folder: Path, name: str, text: str) -> Path:
    path = folder / "conf.d" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """The three folders of a host, empty."""
    result = {name: tmp_path / name for name in ("etc", "run", "usr")}
    monkeypatch.setattr(config, "DEFAULT_CONF_DIR", str(result["etc"]))
    monkeypatch.setattr(config, "RUNTIME_CONF_DIR", str(result["run"]))
    monkeypatch.setattr(config, "VENDOR_CONF_DIR", str(result["usr"]))
    return result


# Which files, in which order.


def test_files_are_read_in_order_of_base_names_over_all_folders(folders: dict[str, Path]) -> None:
    expected = [
        drop_in(folders["etc"], "10-a.conf", ""),
        drop_in(folders["usr"], "20-b.conf", ""),
        drop_in(folders["run"], "30-c.conf", ""),
        drop_in(folders["etc"], "40-d.conf", ""),
    ]
    assert config.find_files(str(folders["etc"])) == [str(path) for path in expected]


def test_of_equal_base_names_vendor_runtime_administrator(folders: dict[str, Path]) -> None:
    for name in ("etc", "run", "usr"):
        drop_in(folders[name], "50-same.conf", "")
    found = config.find_files(str(folders["etc"]))
    assert [Path(name).parts[-3] for name in found] == ["usr", "run", "etc"]


def test_later_file_wins_key_by_key(folders: dict[str, Path]) -> None:
    drop_in(folders["usr"], "50-vendor.conf", "[remote]\nport = 1\nhost = 127.0.0.1\n")
    drop_in(folders["etc"], "60-mine.conf", "[remote]\nport = 2\n")
    cfg = config.load(str(folders["etc"]))
    assert cfg.remote == options.Remote(host="127.0.0.1", port=2)


def test_folder_given_stands_in_for_etc_only(folders: dict[str, Path], tmp_path: Path) -> None:
    drop_in(folders["etc"], "50-a.conf", "[daemon]\nmax_workers = 1\n")
    drop_in(folders["usr"], "50-a.conf", "[daemon]\nmax_connections = 3\n")
    drop_in(tmp_path / "mine", "40-a.conf", "[remote]\nport = 5\n")
    cfg = config.load(str(tmp_path / "mine"))
    assert cfg.daemon.max_workers == options.Daemon().max_workers
    assert cfg.daemon.max_connections == 3
    assert cfg.remote.port == 5


@pytest.mark.parametrize("make", [False, True], ids=["missing", "empty"])
def test_folder_given_without_files_is_refused(folders: dict[str, Path], tmp_path: Path, make: bool) -> None:
    drop_in(folders["usr"], "50-a.conf", "")
    given = tmp_path / "given"
    if make:
        (given / "conf.d").mkdir(parents=True)
    with pytest.raises(config.ConfigError, match=r"given/conf\.d: .*at least one \*\.conf"):
        config.load(str(given))


def test_default_folder_may_be_empty_if_a_package_ships_files(folders: dict[str, Path]) -> None:
    drop_in(folders["usr"], "50-a.conf", "[remote]\nport = 7\n")
    assert config.load(config.DEFAULT_CONF_DIR).remote.port == 7


def test_no_file_at_all_is_refused(folders: dict[str, Path]) -> None:
    with pytest.raises(config.ConfigError, match="no configuration"):
        config.load(config.DEFAULT_CONF_DIR)


def test_only_conf_files_are_read(tmp_path: Path) -> None:
    drop_in(tmp_path, "50-a.conf", "")
    drop_in(tmp_path, "60-a.conf.rpmsave", "[remote]\nport = wrong\n")
    assert config.load(str(tmp_path)).remote.port == 54322


# Values.


def load_text(tmp_path: Path, text: str) -> config.Config:
    return config.load_files([str(drop_in(tmp_path, "50-test.conf", text))])


def test_shown_configuration_has_the_types_of_2x() -> None:
    shown = config.Config().to_dict()
    # As 2.5.1 prints it without configuration; ours has more keys, and a formatter more.
    expected: dict[str, dict[str, object]] = {
        "backend_file": {"buffer_size": 8388608},
        "backend_http": {"buffer_size": 8388608, "ca_file": ""},
        "backend_nbd": {"buffer_size": 8388608},
        "control": {
            "enable": True,
            "port": -1,
            "prefer_ipv4": True,
            "remove_timeout": 60,
            "socket": "/run/ovirt-imageio/sock",
            "transport": "unix",
        },
        "daemon": {
            "drop_privileges": True,
            "group_name": "ovirtimg",
            "inactivity_timeout": 60,
            "max_connections": 8,
            "poll_interval": 1.0,
            "run_dir": "/run/ovirt-imageio",
            "systemd_enable": True,
            "user_name": "ovirtimg",
        },
        "formatter_long": {"format": "%(asctime)s %(levelname)-7s (%(threadName)s) [%(name)s] %(message)s"},
        "formatters": {"keys": "long,json"},
        "handler_logfile": {
            "args": '("/var/log/ovirt-imageio/daemon.log",)',
            "class": "logging.handlers.RotatingFileHandler",
            "formatter": "long",
            "kwargs": '{"maxBytes": 20971520, "backupCount": 10}',
            "level": "DEBUG",
        },
        "handler_stderr": {"args": "()", "class": "logging.StreamHandler", "formatter": "long", "level": "DEBUG"},
        "handlers": {"keys": "logfile"},
        "local": {"enable": True, "socket": "\0/org/ovirt/imageio"},
        "logger_root": {"handlers": "logfile", "level": "INFO", "propagate": 0},
        "loggers": {"keys": "root"},
        "profile": {"filename": "/run/ovirt-imageio/profile"},
        "remote": {"host": "::", "port": 54322},
        "tls": {"ca_file": "", "cert_file": "", "enable": True, "enable_tls1_1": False, "key_file": ""},
    }
    found = {name: {key: shown[name][key] for key in keys} for name, keys in expected.items()}
    assert found == expected
    assert [type(v) for keys in found.values() for v in keys.values()] == [
        type(v) for keys in expected.values() for v in keys.values()
    ]


def test_values_of_files_are_shown_with_the_types_of_2x(tmp_path: Path) -> None:
    cfg = load_text(
        tmp_path,
        "[logger_root]\npropagate = 1\n[logger_x]\npropagate = 0\n[daemon]\npoll_interval = 2\n"
        "[remote]\nport = 7\n[tls]\nenable = OFF\n",
    )
    shown = cfg.to_dict()
    found = [shown["logger_root"]["propagate"], shown["logger_x"]["propagate"], shown["daemon"]["poll_interval"]]
    assert [(type(value), value) for value in found] == [(int, 1), (int, 0), (float, 2.0)]
    assert (shown["remote"]["port"], shown["tls"]["enable"]) == (7, False)


@pytest.mark.parametrize("text", ["TCP", "Tcp", " tcp "])
def test_transport_is_known_in_any_letters(tmp_path: Path, text: str) -> None:
    assert load_text(tmp_path, f"[control]\ntransport = {text}\nport = 7\n").control.transport == "tcp"


@pytest.mark.parametrize("section", ["logger_root", "logger_x"])
def test_propagate_that_is_no_integer_is_named(tmp_path: Path, section: str) -> None:
    with pytest.raises(config.ConfigError, match=rf"50-test\.conf: \[{section}\] propagate = yes: expected 0 or 1"):
        load_text(tmp_path, f"[{section}]\npropagate = yes\n")


def test_defaults_are_those_of_the_contract() -> None:
    shown = config.Config().to_dict()
    assert shown["remote"] == {"host": "::", "port": 54322}
    assert shown["local"] == {"enable": True, "socket": "\0/org/ovirt/imageio"}
    assert shown["control"] == {
        "enable": True,
        "transport": "unix",
        "socket": "/run/ovirt-imageio/sock",
        "port": -1,
        "prefer_ipv4": True,
        "remove_timeout": 60,
    }
    assert shown["tls"] == {
        "enable": True,
        "key_file": "",
        "cert_file": "",
        "ca_file": "",
        "enable_tls1_1": False,
        "reload": True,
    }
    assert shown["backend_nbd"] == {"buffer_size": 8388608, "timeout": 900, "large_read": True}
    assert shown["metrics"]["host"] == "127.0.0.1"
    daemon = shown["daemon"]
    assert (daemon["max_connections"], daemon["max_workers"]) == (8, 64)
    assert (daemon["run_dir"], daemon["user_name"]) == ("/run/ovirt-imageio", "ovirtimg")
    assert "maxBytes" in shown["handler_logfile"]["kwargs"]


@pytest.mark.parametrize(
    ("section", "line", "value"),
    [
        ("remote", "port = 0", 0),
        ("remote", "host =", ""),
        ("tls", "enable = no", False),
        ("tls", "enable = ON", True),
        ("daemon", "poll_interval = 0.5", 0.5),
        ("daemon", "poll_interval = 2", 2.0),
        ("daemon", "inline_limit = 64k", 65536),
        ("backend_file", "buffer_size = 8388608", 8388608),
        ("control", "remove_timeout = 0", 0),
        ("local", "socket =", ""),
        ("local", r"socket = \u0000/my/name", "\0/my/name"),
        ("local", r"socket = \0/my/name", "\0/my/name"),
        ("local", "socket = /run/my.sock", "/run/my.sock"),
        ("tls", "key_file = /with spaces/%41.pem", "/with spaces/%41.pem"),
    ],
)
def test_value_is_parsed(tmp_path: Path, section: str, line: str, value: object) -> None:
    cfg = load_text(tmp_path, f"[{section}]\n{line}\n")
    got = getattr(getattr(cfg, section), line.split(" ")[0])
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("section", "line", "expected"),
    [
        ("remote", "port = 65536", "an integer from 0 to 65535"),
        ("remote", "port = -1", "an integer from 0 to 65535"),
        ("remote", "port = 1_0", "an integer from 0 to 65535"),
        ("remote", "port = ٣", "an integer from 0 to 65535"),
        ("remote", "port = ", "an integer from 0 to 65535"),
        ("remote", "port = 1.0", "an integer from 0 to 65535"),
        ("tls", "enable = maybe", "true or false"),
        ("tls", "enable =", "true or false"),
        ("control", "transport = udp", "unix or tcp"),
        ("daemon", "poll_interval = nan", "a number of seconds from 0.01 to 60"),
        ("daemon", "poll_interval = inf", "a number of seconds from 0.01 to 60"),
        ("daemon", "inactivity_timeout = 0", "an integer of seconds from 1"),
        ("daemon", "max_connections = 0", "an integer from 1 to 64"),
        ("daemon", "inline_limit = lots", "an integer of bytes"),
        ("backend_nbd", "buffer_size = 1", "an integer of bytes (suffixes k, m, g, t), 4096 or"),
    ],
)
def test_wrong_value_names_file_section_key_value_and_what_was_expected(
    tmp_path: Path, section: str, line: str, expected: str
) -> None:
    with pytest.raises(config.ConfigError) as e:
        load_text(tmp_path, f"[{section}]\n{line}\n")
    key, _, value = line.partition("=")
    text = str(e.value)
    assert text.startswith(f"{tmp_path}/conf.d/50-test.conf: [{section}] {key.strip()} = ")
    assert (value.strip() or "(empty)") in text
    assert f"expected {expected}" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    ("section", "line", "shown"),
    [
        ("tls", "key_file = /a\0b", r"/a\u0000b"),
        ("tls", r"key_file = \u0000/a", r"\u0000/a"),
        ("tls", "cert_file = /a\n b", r"/a\u000ab"),
        ("daemon", "user_name = a\0b", r"a\u0000b"),
        ("remote", "host = a\x1b[1mb", r"a\u001b[1mb"),
        ("local", "socket = \0/a\0b", r"\u0000/a\u0000b"),
    ],
)
def test_text_with_control_characters_is_refused_and_they_are_spelt(
    tmp_path: Path, section: str, line: str, shown: str
) -> None:
    with pytest.raises(config.ConfigError) as e:
        load_text(tmp_path, f"[{section}]\n{line}\n")
    assert str(e.value).endswith(f" = {shown}: expected text on one line without control characters")


def test_wrong_value_that_a_later_file_mends_is_accepted(tmp_path: Path) -> None:
    drop_in(tmp_path, "50-a.conf", "[remote]\nport = wrong\n")
    drop_in(tmp_path, "60-a.conf", "[remote]\nport = 1\n")
    assert config.load(str(tmp_path)).remote.port == 1


def test_error_names_the_file_that_won(tmp_path: Path) -> None:
    drop_in(tmp_path, "50-a.conf", "[remote]\nport = 1\n")
    drop_in(tmp_path, "60-b.conf", "[remote]\nport = wrong\n")
    with pytest.raises(config.ConfigError, match=r"60-b\.conf"):
        config.load(str(tmp_path))


def test_unknown_sections_and_keys_are_ignored_with_a_warning(tmp_path: Path) -> None:
    cfg = load_text(tmp_path, "[remote]\nbogus = 1\n[future]\nx = 1\n")
    assert cfg.remote == options.Remote()
    assert [line.split("50-test.conf: ")[1] for line in cfg.warnings] == [
        "unknown key 'bogus' in [remote] ignored",
        "unknown section [future] ignored",
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("port = 1\n", "not an INI file"),
        ("[remote]\nport = 1\nport = 2\n", "not an INI file: .*port"),
        ("[remote]\n[remote]\n", "not an INI file"),
        ("[remote\n", "not an INI file"),
        ("[remote]\nnonsense\n", "not an INI file"),
    ],
)
def test_malformed_file_is_named_on_one_line(tmp_path: Path, text: str, reason: str) -> None:
    with pytest.raises(config.ConfigError, match=reason) as e:
        load_text(tmp_path, text)
    assert "50-test.conf" in str(e.value)
    assert "\n" not in str(e.value)


def test_file_that_is_not_text_is_named(tmp_path: Path) -> None:
    path = drop_in(tmp_path, "50-test.conf", "")
    path.write_bytes(b"\xff\xfe")
    with pytest.raises(config.ConfigError, match=r"50-test\.conf: not UTF-8"):
        config.load_files([str(path)])


def test_unreadable_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "conf.d" / "50-test.conf").mkdir(parents=True)
    with pytest.raises(config.ConfigError, match=r"50-test\.conf: cannot be read: Is a directory"):
        config.load(str(tmp_path))


# Keys that depend on each other.


def test_control_over_tcp_needs_a_port(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=r"\[control\] port = -1: expected a TCP port"):
        load_text(tmp_path, "[control]\ntransport = tcp\n")


def test_control_over_unix_needs_a_socket(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=r"\[control\] socket = \(empty\)"):
        load_text(tmp_path, "[control]\nsocket =\n")


def test_control_socket_is_not_abstract(tmp_path: Path) -> None:
    with pytest.raises(config.ConfigError, match=r"\[control\] socket = .u0000/ctl: expected the path of a Unix"):
        load_text(tmp_path, "[control]\nsocket = \\u0000/ctl\n")
    unused = load_text(tmp_path, "[control]\nsocket = \\u0000/ctl\ntransport = tcp\nport = 0\n")
    assert unused.control.transport == "tcp"


def test_configuration_of_an_image_import_test_suite_is_accepted(tmp_path: Path) -> None:
    # Empty host and socket values and an unknown key, as KubeVirt's CDI has them.
    cfg = load_text(
        tmp_path,
        "[tls]\nenable = false\n[remote]\nhost =\nport = 12346\n[local]\nenable = false\n"
        "socket =\n[control]\ntransport = tcp\nsocket =\nport = 12345\nunknown = 1\n",
    )
    assert (cfg.remote.host, cfg.local.socket, cfg.control.socket) == ("", "", "")
    assert len(cfg.warnings) == 1


# Logging.


def test_logging_sections_merge_with_their_defaults(tmp_path: Path) -> None:
    cfg = load_text(tmp_path, "[logger_root]\nlevel = DEBUG\n[handler_mine]\nclass = logging.NullHandler\n")
    assert cfg.logging["logger_root"] == {
        "level": "DEBUG",
        "handlers": "logfile",
        "propagate": "0",
    }
    assert cfg.logging["handler_mine"] == {"class": "logging.NullHandler"}
    assert cfg.warnings == ()
    assert config.LOGGING_DEFAULTS["logger_root"]["level"] == "INFO"


def test_every_key_is_documented() -> None:
    for info in options.describe():
        assert info.rule.doc.endswith("."), info
        assert info.type in ("bool", "int", "float", "str")
        if info.type in ("int", "float"):
            assert info.rule.minimum is not None, info


def test_every_default_is_a_value_that_the_key_accepts() -> None:
    for info in options.describe():
        text = str(info.default).replace("\0", "\\u0000")
        assert config.parse_value(text, info) == info.default


def test_folder_that_cannot_be_listed_is_named_with_the_reason(tmp_path: Path) -> None:
    (tmp_path / "conf.d").symlink_to("conf.d")
    with pytest.raises(config.ConfigError, match=r"conf\.d: cannot be read: Too many levels of symbolic links"):
        config.find_files(str(tmp_path))
