# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The command line by itself: arguments, output, failures, signals, completion."""

from __future__ import annotations

import argparse
import ast
import dataclasses
import errno
import json
import logging
import os
import re
import signal
import ssl
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from ovirt_imageio import client
from ovirt_imageio.client import cli, commands, disks, engine, failures, options
from ovirt_imageio.client.gaveup import gave_up
from ovirt_imageio.client.layers import UnsafeImage
from ovirt_imageio.common.backends.http.errors import Unreachable, Untrusted, refusal
from ovirt_imageio.common.errors import AuthorizationError, ImageioError
from ovirt_imageio.common.units import MiB

URL = "https://host:54322/images/ticket"


def lines(capsys):
    return capsys.readouterr().err.splitlines()


def options_in(text):
    """Options that a text names."""
    return set(re.findall(r"(?<![\w-])--?[a-z][a-z-]*", text))


def options_of(command):
    """Options that a command has, and those of `-h`."""
    parser = argparse.ArgumentParser()
    cli.COMMANDS[command].add(parser)
    return {option for action in parser._actions for option in action.option_strings}


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "disk.raw"
    with open(path, "wb") as f:
        f.truncate(MiB)
        f.write(b"x" * 4096)
    return str(path)


@pytest.fixture
def called(monkeypatch):
    """The arguments that upload or download of the library were called with."""
    calls = []

    def call(*args, **keys):
        calls.append((args, keys))
        return RESULT

    for name in ("upload", "download"):
        monkeypatch.setattr(client, name, call)
    return calls


RESULT = client.TransferResult(
    moved=1 << 20, zeroed=2, skipped=3, resumed=0, seconds=1.5, retries=1, transport="tls", verified=True, checksum="ab"
)


def test_upload_hands_over_its_options(called):
    args = "upload --cafile ca --insecure --proxy-url https://p --max-workers 8 --buffer-size 64k --verify"
    more = "--member m --source-format vmdk --no-backing-chain --allow-external --disk-is-zero --no-check"
    last = "--resume --journal j --timeout 2.5 --retries 0 file"
    assert cli.main([*args.split(), *more.split(), *last.split(), URL]) == 0
    ((positional, keys),) = called
    progress = keys.pop("progress")
    assert progress.phase == "upload completed"
    assert positional == ("file", URL, "ca")
    assert keys == {
        "secure": False,
        "proxy_url": "https://p",
        "max_workers": 8,
        "buffer_size": 64 << 10,
        "verify": True,
        "resume": True,
        "journal": "j",
        "timeout": 2.5,
        "retries": 0,
        "member": "m",
        "fmt": "vmdk",
        "backing_chain": False,
        "allow_external": True,
        "disk_is_zero": True,
        "check": False,
    }


def test_download_hands_over_its_options(called):
    args = "--incremental --backing-file full --backing-format qcow2 --shallow"
    assert cli.main(["download", *args.split(), URL, "file"]) == 0
    ((positional, keys),) = called
    keys.pop("progress")
    assert positional == (URL, "file", None)
    assert keys == {
        "fmt": "qcow2",
        "secure": True,
        "proxy_url": None,
        "max_workers": client.MAX_WORKERS,
        "buffer_size": client.BUFFER_SIZE,
        "verify": False,
        "resume": False,
        "journal": None,
        "timeout": None,
        "retries": None,
        "incremental": True,
        "backing_file": "full",
        "backing_format": "qcow2",
        "shallow": True,
    }


# The output of a transfer.

KEYS = {"transferred": int, "size": int, "elapsed": float, "description": str}
"""Of each line of JSON, and their types."""


def records(capsys):
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


@pytest.mark.parametrize("direction", ["upload", "download"])
def test_json_ends_with_the_result(called, capsys, direction):
    args = ["file", URL] if direction == "upload" else [URL, "file"]
    assert cli.main([direction, "-o", "json", *args]) == 0
    *before, last = records(capsys)
    phases = [record["description"] for record in before]
    assert phases == [f"{direction}ing image", f"{direction} completed", f"{direction} completed"]
    assert all(set(record) <= set(KEYS) for record in before)
    assert {key: last[key] for key in dataclasses.asdict(RESULT)} == dataclasses.asdict(RESULT)
    assert (last["description"], last["transferred"]) == (f"{direction} completed", 0)


FAILURES = [
    (refusal("GET", 403, "Forbidden", "no such ticket\n"), "Forbidden", 403, 1),
    (refusal("GET", 500, "Internal Server Error", ""), "Refused", 500, 1),
    (gave_up("cannot copy", refusal("PUT", 503, "Busy", "")), "GaveUp", 503, 1),
    (gave_up("cannot copy", ConnectionResetError()), "GaveUpReconnecting", None, 1),
    (engine.EngineError("cannot make the disk", status=409), "EngineError", 409, 1),
    (OSError(errno.ENOSPC, "No space left on device", "file"), "OSError", None, 1),
    (BrokenPipeError(errno.EPIPE, "Broken pipe"), "BrokenPipeError", None, 1),
    (KeyError("a mistake of ours"), "KeyError", None, 1),
    (options.UsageError("give something else"), "UsageError", None, 2),
    (KeyboardInterrupt(), "Interrupted", None, 130),
    (cli.Interrupted(signal.SIGTERM), "Interrupted", None, 143),
]


@pytest.mark.parametrize("form", ["text", "json"])
@pytest.mark.parametrize(("error", "kind", "status", "exit_status"), FAILURES, ids=lambda value: str(value)[:20])
def test_json_ends_with_the_error(monkeypatch, capsys, error, kind, status, exit_status, form):
    def failing(*args, progress, **keys):
        progress.size = 1 << 40
        progress.update(1 << 20)
        raise error

    monkeypatch.setattr(client, "download", failing)
    assert cli.main(["download", "-o", form, URL, "file"]) == exit_status
    out, err = capsys.readouterr()
    line = err.splitlines()[-1]
    if form == "text":
        assert '"kind"' not in out
        return
    last = json.loads(out.splitlines()[-1])
    assert {key: type(last[key]) for key in KEYS} == KEYS
    assert (last["transferred"], last["size"], last["description"]) == (1 << 20, 1 << 40, "download failed")
    assert (last["kind"], last["status"], last["exit_status"]) == (kind, status, exit_status)
    assert line == f"ovirt-img: {last['message']}"


def test_json_ends_with_the_error_where_nothing_had_begun(capsys, no_sdk):
    assert cli.main(["download", "-o", "json", "no-url", "file"]) == 2
    (last,) = records(capsys)
    assert (last["transferred"], last["description"], last["kind"]) == (0, "download failed", "UsageError")
    assert cli.main(["upload-disk", "-o", "json", "-s", "nfs1", *ENGINE, "file"]) == 1
    (last,) = records(capsys)
    assert (last["description"], last["kind"], last["status"]) == ("upload failed", "EngineError", None)


@pytest.mark.parametrize(
    "options",
    [["-o", "json"], ["-ojson"], ["--output=json"], ["--out", "json"], ["-q", "-o", "json"], ["-qojson"]],
    ids="".join,
)
def test_json_ends_with_the_error_of_wrong_arguments(capsys, options):
    with pytest.raises(SystemExit) as e:
        cli.main(["upload", *options, "--max-workers", "9", "file", URL])
    assert e.value.code == 2
    out, err = capsys.readouterr()
    last = json.loads(out)
    assert (last["transferred"], last["status"]) == (0, None)
    assert (last["description"], last["kind"], last["exit_status"]) == ("upload failed", "UsageError", 2)
    assert err == f"ovirt-img: {last['message']}\n"
    assert "--max-workers: '9'" in err
    assert "(see ovirt-img upload --help)" in err


@pytest.mark.parametrize(
    "line",
    [
        ["upload", "--max-workers", "9", "file", URL],
        ["upload", "-o", "xml", "file", URL],
        ["upload", "-o"],
        ["upload", "-o", "text", "file"],
        ["checksum", "-o", "json", "file", "--block-size", "0"],
        ["uplaod", "-o", "json"],
        ["-o", "json"],
    ],
    ids=" ".join,
)
def test_wrong_arguments_are_one_line_for_people(capsys, line):
    with pytest.raises(SystemExit):
        cli.main(line)
    out, err = capsys.readouterr()
    assert (out, err.count("\n"), err[:11]) == ("", 1, "ovirt-img: ")


def test_json_of_wrong_arguments_keeps_out_of_the_image(capsys):
    with pytest.raises(SystemExit):
        cli.main(["download", "-o", "json", "-f", "vdi", URL, "-"])
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err.splitlines()[-1])["kind"] == "UsageError"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_json_ends_with_the_error_of_a_signal_before_the_command_runs(monkeypatch, capsys, number):
    monkeypatch.setattr(options, "merge_section", lambda args: signal.raise_signal(number))
    disk_id = "0cd81a7e-1f1a-4e3b-9a8f-5b3f7a1f0c52"
    assert cli.main(["download-disk", "-o", "json", *ENGINE, disk_id, "file"]) == 128 + number
    (last,) = records(capsys)
    assert (last["description"], last["kind"]) == ("download failed", "Interrupted")
    assert last["exit_status"] == 128 + number


def as_forklift_reads(line):
    """Read a line as forklift's cmd/ovirt-populator does: Go's encoding/json into a struct.

    Keys match in any case, what the struct does not have is passed over, and null leaves a
    field as it is. Integers must be written as such; a line has at most 64 KiB (bufio.Scanner).
    """
    assert len(line) < 64 * 1024
    fields = {"transferred": 0, "description": "", "size": None, "elapsed": 0.0}
    for key, value in json.loads(line).items():
        name = key.lower()
        if name not in fields or value is None:
            continue
        if name in ("transferred", "size"):
            assert type(value) is int, f"cannot unmarshal {value!r} into uint64"
            assert 0 <= value < 1 << 64
        elif name == "elapsed":
            assert type(value) in (int, float)
        else:
            assert type(value) is str
        fields[name] = value
    return fields


@pytest.mark.parametrize("error", [None, *(failure[0] for failure in FAILURES)], ids=lambda value: str(value)[:20])
def test_forklift_reads_each_line(monkeypatch, capsys, error):
    """It shows how far it is by `transferred`, which must not fall back."""

    def transfer(*args, progress, **keys):
        progress.size = 1 << 40
        for _ in range(100):
            progress.update(1 << 33)
        if error is not None:
            raise error
        return RESULT

    monkeypatch.setattr(client, "download", transfer)
    cli.main(["download", "-o", "json", URL, "file"])
    read = [as_forklift_reads(line) for line in capsys.readouterr().out.splitlines()]
    transferred = [fields["transferred"] for fields in read]
    assert transferred == sorted(transferred)
    assert transferred[-1] == 100 << 33
    assert {fields["size"] for fields in read[1:]} == {1 << 40}


def test_long_message_is_cut_in_json(monkeypatch, capsys):
    def failing(*args, **keys):
        raise ImageioError("x" * 100_000)

    monkeypatch.setattr(client, "download", failing)
    cli.main(["download", "-o", "json", URL, "file"])
    assert max(map(len, capsys.readouterr().out.splitlines())) < 4400


@pytest.mark.parametrize("form", ["text", "json"])
def test_quiet_shows_no_progress(called, capsys, form):
    assert cli.main(["upload", "-q", "-o", form, "file", URL]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == (1 if form == "json" else 0)
    if lines:
        assert json.loads(lines[0])["description"] == "upload completed"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (["upload", "file", "host:54322"], "'host:54322' is no transfer URL"),
        (["download", "file", "file"], "'file' is no transfer URL"),
        (["download", "-f", "raw", "--incremental", URL, "f"], "--incremental needs -f qcow2"),
        (["download", "-f", "raw", "--backing-file", "b", URL, "f"], "--backing-file needs -f qcow2"),
        (["download", "--backing-format", "raw", URL, "f"], "--backing-format needs --backing-file"),
        (["measure", URL], "not a URL"),
        (["info", "--member", "m", URL], "for files, not for URLs"),
        (["checksum", "--allow-external", URL], "for files, not for URLs"),
        (["info", "--insecure", "file"], "for URLs, not for files"),
        (["checksum", "--timeout", "5", "file"], "for URLs, not for files"),
        (["extents", "--bitmap", "b", URL], "give --dirty"),
        (["extents", "--dirty", "file"], "give --bitmap NAME"),
        (["info", "--log-file", "/none/log", "file"], "cannot write the log file /none/log"),
    ],
)
def test_wrong_use_is_one_line_and_status_2(line, text, capsys):
    assert cli.main(line) == 2
    (error,) = lines(capsys)
    assert text in error
    assert error.endswith(f"(see ovirt-img {line[0]} --help)")
    assert options_in(error) <= options_of(line[0])


@pytest.mark.parametrize(
    "line",
    [
        [],
        ["fly"],
        ["upload"],
        ["upload", "--max-workers", "9", "f", URL],
        ["upload", "-o", "xml", "f", URL],
        ["upload", "--timeout", "0", "f", URL],
        ["upload", "--timeout", "soon", "f", URL],
        ["download", "--retries", "-1", URL, "f"],
        ["info", "--timeout", "inf", URL],
    ],
)
def test_what_argparse_refuses_is_status_2(line):
    with pytest.raises(SystemExit) as e:
        cli.main(line)
    assert e.value.code == 2


def test_help_of_every_command_teaches_with_examples(capsys):
    for name in cli.COMMANDS:
        with pytest.raises(SystemExit) as e:
            cli.main([name, "--help"])
        assert e.value.code == 0
        out = capsys.readouterr().out
        assert f"  ovirt-img {name} " in out.partition("examples:")[2]


def test_examples_of_the_help_are_accepted_by_the_parser():
    for command in cli.COMMANDS.values():
        for line in command.examples.splitlines():
            cli.make_parser().parse_args(line.split())


def test_no_command_names_them_all(capsys):
    with pytest.raises(SystemExit):
        cli.main([])
    error = lines(capsys)[-1]
    assert error == f"ovirt-img: give a command, one of {', '.join(cli.COMMANDS)} (see ovirt-img --help)"


ENGINE = ["--engine-url", "https://engine", "--username", "admin@internal", "--password-file", "password"]
UUID = "0cd81a7e-1f1a-4e3b-9a8f-5b3f7a1f0c52"


@pytest.fixture
def no_sdk(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ovirtsdk4", None)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "password").write_text("secret\n")


@pytest.mark.parametrize("command", [["upload-disk", "-s", "nfs1", "image"], ["download-disk", UUID, "image"]])
def test_commands_with_an_engine_say_what_to_install(capsys, no_sdk, command):
    assert cli.main([*command, *ENGINE]) == 1
    (error,) = lines(capsys)
    assert "pip install 'ovirt-imageio-client[engine]'" in error


@pytest.mark.parametrize("command", [["upload-disk", "-s", "nfs1", "image"], ["download-disk", UUID, "image"]])
@pytest.mark.parametrize(
    ("engine", "text"),
    [
        ([], "give --engine-url"),
        (["--engine-url", "engine"], "'engine' is no address of an engine"),
        (["--engine-url", "https://engine"], "give --username"),
        ([*ENGINE[:-1], "none"], "cannot read the password file none"),
    ],
)
def test_arguments_are_checked_before_the_sdk_is_looked_for(capsys, no_sdk, command, engine, text):
    assert cli.main([*command, *engine]) == 2
    (error,) = lines(capsys)
    assert text in error


def test_sdk_is_looked_for_before_the_password_is_asked_for(capsys, no_sdk, monkeypatch):
    monkeypatch.setattr(options.getpass, "getpass", lambda prompt: pytest.fail("asked"))
    assert cli.main(["download-disk", UUID, "image", *ENGINE[:4]]) == 1


# Results.


def test_info_of_a_raw_image(image, capsys):
    assert cli.main(["info", image]) == 0
    assert "virtual size: 1048576 (1.00 MiB)\n" in capsys.readouterr().out


def test_info_as_json_is_what_the_library_says(image, capsys):
    assert cli.main(["info", "-o", "json", image]) == 0
    assert json.loads(capsys.readouterr().out) == client.info(image)


def test_measure_as_json_is_what_the_library_says(image, capsys):
    assert cli.main(["measure", "-f", "raw", "-o", "json", image]) == 0
    assert json.loads(capsys.readouterr().out) == client.measure(image, "raw")


def test_checksum_as_json_is_what_the_library_says(image, capsys):
    options = ["--algorithm", "sha1", "--block-size", "2m"]
    assert cli.main(["checksum", "-o", "json", *options, image]) == 0
    assert json.loads(capsys.readouterr().out) == client.checksum(image, algorithm="sha1", block_size=2 * MiB)


def test_extents_as_json_and_as_a_table(image, capsys):
    assert cli.main(["extents", "-o", "json", image]) == 0
    extents = json.loads(capsys.readouterr().out)
    assert extents == [e._asdict() for e in client.extents(image)]
    assert cli.main(["extents", image]) == 0
    head, first, *_ = capsys.readouterr().out.splitlines()
    assert head.split() == ["start", "length", "what"]
    assert first.split() == ["0", str(extents[0]["length"]), "data"]


def test_extents_of_an_empty_image_are_an_empty_list(tmp_path, capsys):
    (tmp_path / "empty").touch()
    assert cli.main(["extents", "-o", "json", str(tmp_path / "empty")]) == 0
    assert json.loads(capsys.readouterr().out) == []


# Failures.


def test_missing_file_is_one_line_and_status_1(capsys):
    assert cli.main(["info", "/none/disk"]) == 1
    assert lines(capsys) == ["ovirt-img: /none/disk: No such file or directory"]


def test_empty_name_is_seen_in_the_line(capsys):
    assert cli.main(["info", ""]) == 1
    assert lines(capsys) == ["ovirt-img: '': No such file or directory"]


def test_unreachable_server_is_one_line_with_a_hint(image, capsys):
    # Port 1 of this host: only root could listen there, and no program does.
    assert cli.main(["upload", image, "http://127.0.0.1:1/images/ticket"]) == 1
    error = lines(capsys)[-1]
    assert "127.0.0.1:1" in error
    assert error.endswith("(is the address right, and the server running?)")


def untrusted(code):
    cause = ssl.SSLCertVerificationError(1, "certificate verify failed")
    cause.verify_code, cause.verify_message = code, "a reason"
    return Untrusted("a certificate", cause=cause)


LOOKING = {"info", "extents", "checksum"}
MOVING = {"upload", "download", "upload-disk", "download-disk"}
READING = LOOKING | {"measure", "upload", "upload-disk"}

HINTS = [
    (UnsafeImage("a data file; pass allow_external=True if you trust it"), "give --allow-external if", READING),
    (untrusted(20), "give the certificate of its authority by --cafile", LOOKING | MOVING),
    (untrusted(24), "see what --cafile has", LOOKING | MOVING),
    (Unreachable("nobody listens"), "is the address right", LOOKING | MOVING),
    (AuthorizationError("no such ticket"), "start another one", LOOKING | MOVING),
    (KeyError("a mistake of ours"), "--log-level debug shows where", set(cli.COMMANDS)),
]


@pytest.mark.parametrize(("error", "hint", "commands"), HINTS, ids=lambda value: getattr(type(value), "__name__", None))
def test_hint_names_options_that_every_command_has_which_fails_so(error, hint, commands):
    text = failures.one_line(error)
    assert hint in text
    for command in commands:
        assert options_in(text) <= options_of(command), command


@pytest.mark.parametrize("command", sorted(READING))
def test_refused_image_names_an_option_of_the_command(command, tmp_path, capsys, monkeypatch):
    # A qcow2 header of version 3 with a data file: incompatible feature 2, extension "DATA".
    header = bytearray(struct.pack(">4sI92xI", b"QFI\xfb", 3, 104))
    header[72:80] = (4).to_bytes(8, "big")
    (tmp_path / "image").write_bytes(header + b"DATA" + struct.pack(">I8s8x", 8, b"/etc/foo"))
    monkeypatch.setattr(disks, "load_sdk", lambda: None)
    (tmp_path / "password").write_text("secret\n")
    line = {"upload": ["image", URL], "upload-disk": ["-s", "nfs1", *ENGINE, "image"]}.get(command, ["image"])
    monkeypatch.chdir(tmp_path)
    assert cli.main([command, *line]) == 1
    (error,) = lines(capsys)[-1:]
    assert "/etc/foo" in error
    assert "give --allow-external if you trust it" in error
    assert "--allow-external" in options_of(command)


def test_every_option_that_a_text_names_is_one():
    """A text that names a renamed option is found."""
    known = {option for command in cli.COMMANDS for option in options_of(command)} | {"--version"}
    for module in (cli, commands, disks, engine, failures, options):
        tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                assert options_in(node.value) <= known, node.lineno


def test_log_names_the_option_where_the_library_names_its_argument(monkeypatch, image, capsys):
    def failing(*args, **keys):
        logging.getLogger("ovirt_imageio.client.api").warning("run it again with resume=True to continue")

    monkeypatch.setattr(client, "upload", failing)
    assert cli.main(["upload", image, URL]) == 0
    assert lines(capsys) == ["ovirt-img: WARNING: run it again with --resume to continue"]


def test_text_of_several_lines_becomes_one():
    assert failures.one_line(ImageioError("one\n  two")) == "one two"


def test_mistake_of_ours_is_told_as_one(monkeypatch, capsys, image):
    def broken(*args, **keys):
        raise KeyError("oops")

    monkeypatch.setattr(client, "info", broken)
    assert cli.main(["info", image]) == 1
    assert lines(capsys) == ["ovirt-img: internal error: KeyError: 'oops' (--log-level debug shows where)"]
    cli.main(["info", "--log-level", "debug", image])
    assert "Traceback" in capsys.readouterr().err


def test_log_goes_to_the_file_with_names_and_levels(monkeypatch, tmp_path, image, capsys):
    log = tmp_path / "log"
    assert cli.main(["info", "--log-file", str(log), "--log-level", "info", image]) == 0
    assert "INFO    (MainThread) [ovirt_imageio.client.cli] ovirt-img " in log.read_text()
    assert capsys.readouterr().err == ""


# Signals.


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_ends_with_one_line_and_128_plus_its_number(monkeypatch, capsys, image, number):
    monkeypatch.setattr(client, "info", lambda *args, **keys: signal.raise_signal(number))
    before = signal.getsignal(number)
    assert cli.main(["info", image]) == 128 + number
    assert lines(capsys) == [f"ovirt-img: interrupted by {number.name}"]
    assert signal.getsignal(number) is before


def test_closed_standard_output_ends_quietly(tmp_path):
    image = tmp_path / "disk.raw"
    with open(image, "wb") as f:
        f.truncate(MiB)
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "ovirt_imageio.client.cli", "info", str(image)]
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, check=False)
    os.close(write)
    assert (done.returncode, done.stderr) == (128 + signal.SIGPIPE, b"")


# Completion.


def complete(line, tmp_path):
    """The words that argcomplete offers for a line, over the descriptor that its shell code reads."""
    pytest.importorskip("argcomplete")
    result = tmp_path / "completions"
    env = {
        **os.environ,
        "_ARGCOMPLETE": "1",
        "_ARGCOMPLETE_IFS": "\n",
        "_ARGCOMPLETE_STDOUT_FILENAME": str(result),
        "COMP_LINE": line,
        "COMP_POINT": str(len(line)),
        "COMP_TYPE": "9",
    }
    # Old releases know only descriptor 8.
    with open(result, "wb") as f:
        script = 'exec 8>&0; exec "$@"'
        command = ["/bin/bash", "-c", script, "bash", sys.executable, "-m", "ovirt_imageio.client.cli"]
        subprocess.run(command, stdin=f, env=env, stdout=subprocess.DEVNULL, check=False, timeout=60)
    return [word.strip() for word in result.read_text().split("\n")]


def test_commands_and_options_are_completed(tmp_path):
    assert set(complete("ovirt-img down", tmp_path)) == {"download-disk", "download"}
    assert "--max-workers" in complete("ovirt-img upload --max", tmp_path)


def test_sections_of_the_configuration_are_completed(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "ovirt-img.conf").write_text("[east]\n[west]\n")
    assert set(complete("ovirt-img upload-disk -c ", tmp_path)) >= {"east", "west"}


def test_log_file_on_a_full_disk_is_told_once_and_fails_nothing(image, capsys):
    assert cli.main(["info", "--log-file", "/dev/full", "--log-level", "debug", image]) == 0
    assert lines(capsys) == ["ovirt-img: cannot write the log file /dev/full: [Errno 28] No space left on device"]
