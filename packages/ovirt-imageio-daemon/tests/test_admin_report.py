# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

from typing import Any

from ovirt_imageio.admin import report

IDLE: dict[str, Any] = {
    "uuid": "01234567-89ab",
    "state": "idle",
    "connections": 0,
    "idle_time": 7,
    "size": 1 << 30,
    "rate": 0,
    "reason": "no request came yet",
    "operations": [],
    "finished": {},
}


def test_ticket_without_a_name_is_shown_by_its_id() -> None:
    named = {**IDLE, "transfer_id": "(ticket/01234567-89ab)"}
    assert report.transfers([named])[1].startswith("01234567-89ab  ")


def test_transfers_are_a_table_with_a_heading() -> None:
    active = {
        **IDLE,
        "transfer_id": "my-transfer",
        "state": "active",
        "transferred": 512 << 20,
        "operations": [{"kind": "write", "offset": 0, "length": 1 << 30, "done": 512 << 20, "age": 2.14}],
        "rate": 2 << 30,
    }
    heading, first, second = (line.split("  ") for line in report.transfers([IDLE, active]))
    assert heading[0].strip() == "TICKET"
    assert [text.strip() for text in first if text.strip()] == [
        "01234567-89ab", "idle", "0", "7 s", "1.00 GiB", "-", "-", "no request came yet",
    ]  # fmt: skip
    assert [text.strip() for text in second if text.strip()] == [
        "my-transfer",
        "active",
        "0",
        "7 s",
        "1.00 GiB",
        "512 MiB",
        "2.00 GiB/s",
        "write 1.00 GiB at 0 (50%, 2.1 s)",
    ]


def test_name_cannot_change_the_terminal() -> None:
    _, line = report.transfers([{**IDLE, "uuid": "\x1b[2J\n"}])
    assert line.startswith(r"'\x1b[2J\n'  idle")


def test_last_error_stands_below_its_transfer() -> None:
    failed = {**IDLE, "last_error": {"age": 3, "text": "flush: OSError: No space left on device"}}
    lines = report.transfers([failed, IDLE])
    assert lines[2] == "  last error, 3 s ago: flush: OSError: No space left on device"
    assert len(lines) == 4


def test_operation_of_unknown_length_has_no_share() -> None:
    operation = {"kind": "flush", "offset": 0, "length": 0, "done": 0, "age": 3}
    (_, line) = report.transfers([{**IDLE, "operations": [operation]}])
    assert line.endswith("flush 0 bytes at 0 (3.0 s)")


def test_transfers_that_are_left_out_are_counted() -> None:
    assert report.transfers([IDLE], total=5)[-1] == "and 4 more, see --limit"


def test_no_transfers_are_a_heading_alone() -> None:
    assert len(report.transfers([])) == 1


def test_daemon_is_one_fact_a_line() -> None:
    lines = report.daemon(
        {
            "version": "3.0.0",
            "uptime": 5,
            "stopping": False,
            "services": {"local": "\0/org/ovirt/imageio"},
            "connections": {"open": 3, "idle": 2, "limit": 4096},
            "workers": {"threads": 2, "busy": 1, "waiting": 0, "limit": 64},
            "requests": {"remote": {"200": 4, "403": 1}},
            "operations": {},
            "tickets": {"total": 3, "idle": 2, "active": 1, "expired": 0},
            "transfers": [],
        }
    )
    assert [line.split("  ", 1)[1].strip() for line in lines] == [
        "3.0.0",
        "serving",
        "5 s",
        "@/org/ovirt/imageio",
        "3 of 4096, 2 idle",
        "1 of 64 busy, 2 threads, 0 requests waiting",
        "2 idle, 1 active",
        "4 200, 1 403",
    ]
