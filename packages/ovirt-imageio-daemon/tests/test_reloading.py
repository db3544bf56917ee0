# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import pytest

from ovirt_imageio.daemon import options, reloading
from ovirt_imageio.daemon.config import Config

OLD = Config()
NEW = Config(
    daemon=options.Daemon(max_workers=7, inline_limit=5),
    remote=options.Remote(port=1),
    control=options.Control(remove_timeout=3),
)


def test_changes_are_listed_in_reference_order_with_what_they_need() -> None:
    assert [(change.section, change.key, change.live) for change in reloading.changes(OLD, NEW)] == [
        ("daemon", "max_workers", True),
        ("daemon", "inline_limit", False),
        ("remote", "port", False),
        ("control", "remove_timeout", True),
    ]


def test_change_is_written_with_both_values() -> None:
    assert str(reloading.changes(OLD, NEW)[0]) == "daemon.max_workers: 64 → 7"


def test_merged_takes_what_applies_at_once_and_keeps_the_rest() -> None:
    merged = reloading.merged(OLD, NEW)
    assert merged.daemon == OLD.daemon.replace(max_workers=7)
    assert merged.control == NEW.control
    assert merged.remote == OLD.remote
    # Values that need a restart are told again the next time.
    assert [change.key for change in reloading.changes(merged, NEW)] == ["inline_limit", "port"]


def test_equal_configurations_change_nothing() -> None:
    assert reloading.changes(OLD, Config()) == []
    assert reloading.merged(OLD, Config()) == OLD


@pytest.mark.parametrize("section", ["remote", "local", "metrics", "tls"])
def test_addresses_and_encryption_need_a_restart(section: str) -> None:
    assert not any(info.rule.live for info in options.describe(section))
