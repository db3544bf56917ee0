# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""The manual pages name the options that the commands have, and no others."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import pytest

from ovirt_imageio.admin import cli as admin
from ovirt_imageio.client import cli as client
from ovirt_imageio.daemon import cli as daemon

MAN = Path(__file__).resolve().parents[2] / "docs" / "man"

PARSERS = {
    "ovirt-imageio.8.md": daemon._parser,
    "ovirt-imageioctl.8.md": lambda: admin._parser()[0],
    "ovirt-img.1.md": client.make_parser,
}

OTHERS = {"-h", "--help"}
"""Options that each command has, which no page has to name."""


def parsers_of(parser):
    """The parser, and those of its commands."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from parsers_of(command)


def actions_of(parser):
    """Options that a user may know of, but for help."""
    for one in parsers_of(parser):
        for action in one._actions:
            if action.option_strings and action.help != argparse.SUPPRESS and action.dest != "help":
                yield action


def names_on(page):
    """Options that a page names in bold letters."""
    text = (MAN / page).read_text(encoding="utf-8")
    return set(re.findall(r"\*\*(--?[a-z][a-z-]*)\*\*", text))


@pytest.mark.parametrize("page", PARSERS)
def test_each_option_is_on_the_page(page):
    names = {name for action in actions_of(PARSERS[page]()) for name in action.option_strings}
    assert names - names_on(page) == set()


@pytest.mark.parametrize("page", PARSERS)
def test_each_option_on_the_page_is_one(page):
    names = {name for action in actions_of(PARSERS[page]()) for name in action.option_strings}
    assert names_on(page) - names - OTHERS == set()


@pytest.mark.parametrize("page", PARSERS)
def test_each_command_is_on_the_page(page):
    text = (MAN / page).read_text(encoding="utf-8")
    commands = [
        name
        for action in PARSERS[page]()._actions
        if isinstance(action, argparse._SubParsersAction)
        for name in action.choices
    ]
    assert [name for name in commands if f"**{name}**" not in text] == []


@pytest.mark.parametrize("page", PARSERS)
def test_value_of_an_option_has_the_name_that_the_help_gives_it(page):
    text = (MAN / page).read_text(encoding="utf-8")
    wrong = []
    for action in actions_of(PARSERS[page]()):
        name = action.option_strings[-1]
        right = {f"*{action.metavar or action.dest.upper()}*", "|".join(f"**{one}**" for one in action.choices or ())}
        found = set(re.findall(rf"\*\*{name}\*\* (\*\w+\*|\*\*\w+\*\*(?:\|\*\*\w+\*\*)+)", text))
        if action.nargs != 0 and not right & found:
            wrong.append((name, right, found))
    assert wrong == []
