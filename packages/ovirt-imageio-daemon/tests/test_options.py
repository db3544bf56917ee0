# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import pytest

from ovirt_imageio.daemon import options


def test_key_that_was_not_given_has_its_default() -> None:
    section = options.Remote(port=1)
    assert (section.host, section.port) == ("::", 1)


def test_replace_changes_some_keys_of_a_new_section() -> None:
    old = options.Remote(host="a", port=1)
    assert old.replace(port=2) == options.Remote(host="a", port=2)
    assert old.port == 1


def test_sections_are_compared_by_the_values_of_all_keys() -> None:
    assert options.Remote(port=54322) == options.Remote()
    assert options.Remote(port=1) != options.Remote()
    assert options.BackendFile() != options.BackendNbd()


def test_section_cannot_be_changed() -> None:
    section = options.Remote()
    with pytest.raises(AttributeError, match="port"):
        section.port = 1  # type: ignore[misc]
    assert section.port == 54322


def test_section_refuses_a_key_that_it_does_not_have() -> None:
    with pytest.raises(TypeError, match=r"\[Remote\] has no key prot"):
        options.Remote(prot=1)


def test_dict_has_every_key_in_the_order_of_the_reference() -> None:
    assert list(options.Control().to_dict().items())[:2] == [("enable", True), ("transport", "unix")]
    assert list(options.Control(port=1).to_dict()) == [info.key for info in options.describe("control")]


def test_section_is_shown_with_what_was_given() -> None:
    assert repr(options.Remote(port=1)) == "Remote(port=1)"
