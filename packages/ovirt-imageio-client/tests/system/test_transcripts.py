# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The transcripts in the documentation are what the commands show."""

from __future__ import annotations

import pytest
from transcripts import PAGE, make
from transcripts.terminal import screen

from imageio_testing.enginesdk import needs_engine_sdk
from imageio_testing.qemu import needs_qemu
from ovirt_imageio.client import cli

HOW = "write it anew: PYTHONPATH=tools .venv/bin/python -m transcripts"


@pytest.mark.slow
@pytest.mark.system
@pytest.mark.timeout(600)
@needs_qemu
@needs_engine_sdk
def test_page_is_what_the_commands_show(tmp_path):
    assert make(tmp_path) == PAGE.read_text(encoding="utf-8"), HOW


@pytest.mark.parametrize("command", [[], *([name] for name in cli.COMMANDS)])
def test_help_is_on_the_page(command, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        cli.main([*command, "--help"])
    line = " ".join(["ovirt-img", *command, "--help"])
    assert f"$ {line}\n{capsys.readouterr().out}" in PAGE.read_text(encoding="utf-8"), HOW


def test_screen_keeps_what_was_drawn_last():
    assert screen(b"a\r\n 10%\r 20%\rdone\r\nlog\x1b[K\r\n") == "a\ndone\nlog\n"
