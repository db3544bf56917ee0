# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

from __future__ import annotations

import logging
from types import SimpleNamespace
from typing import cast

import pytest

from ovirt_imageio.common.errors import OperationCancelled, PeerGone
from ovirt_imageio.daemon.errors import HttpError
from ovirt_imageio.daemon.http import report
from ovirt_imageio.daemon.http.message import Request

ID = "01234567-89ab-cdef"


def request(ticket_id: str | None = ID) -> Request:
    params = {"id": ticket_id} if ticket_id else {}
    fields = {"service": "remote", "peer": "192.0.2.1:7", "method": "GET", "path": f"/images/{ID}", "params": params}
    return cast(Request, SimpleNamespace(**fields))


def test_refusal_names_client_and_reason_but_no_ticket_id(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        report.refused(request(), HttpError(403, f"there is no ticket {ID!r}"))
    assert caplog.messages == ["remote: 192.0.2.1:7: GET '/images/01234567…': 403 there is no ticket '01234567…'"]


@pytest.mark.parametrize("path", [f"/images/{ID}/nothing", f"/tickets/{ID}/x", "/images/%3012345679876/x"])
def test_id_in_a_path_of_no_resource_is_abbreviated(caplog: pytest.LogCaptureFixture, path: str) -> None:
    asked = request(None)
    asked.path = path
    with caplog.at_level(logging.INFO):
        report.refused(asked, HttpError(404, f"there is no resource {path!r}"))
    assert path.split("/")[2] not in caplog.text
    assert path.split("/")[2][:8] in caplog.text


def test_id_that_the_path_encodes_is_abbreviated(caplog: pytest.LogCaptureFixture) -> None:
    asked = request()
    asked.path = "/images/%3" + ID
    with caplog.at_level(logging.DEBUG):
        report.served(asked, 200, 0.0015)
    assert caplog.messages == ["remote: 192.0.2.1:7: GET '/images/%3012345…': 200 in 0.0015 s"]


def test_failure_names_cause_but_no_ticket_id(caplog: pytest.LogCaptureFixture) -> None:
    report.failed(request(), OSError(f"cannot reach /images/{ID}"))
    assert ID not in caplog.text
    assert "OSError: cannot reach /images/01234567…" in caplog.text


@pytest.mark.parametrize("error", [PeerGone("client went"), OperationCancelled("stopped")])
def test_client_that_left_is_no_error(caplog: pytest.LogCaptureFixture, error: Exception) -> None:
    with caplog.at_level(logging.INFO):
        report.broke_off(request(), error)
    assert [record.levelno for record in caplog.records] == [logging.INFO]


def test_storage_that_broke_off_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    report.broke_off(request(), OSError(5, "Input/output error"))
    assert [record.levelno for record in caplog.records] == [logging.ERROR]
    assert "Input/output error" in caplog.text


def test_errors_are_one_short_line_each(caplog: pytest.LogCaptureFixture) -> None:
    text = "bad\n2030-01-01 ERROR forged " + "x" * 60000
    with caplog.at_level(logging.INFO):
        report.refused(request(), HttpError(400, text))
        report.failed(request(), OSError(text))
        report.broke_off(request(), PeerGone(text))
    assert len(caplog.messages) == 3
    for message in caplog.messages:
        assert r"bad\n2030" in message
        assert "\n" not in message
        assert len(message) < 1200


def test_path_without_a_ticket_is_shown_as_it_is(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        asked = request(None)
        asked.path = f"/info/{ID}"
        report.refused(asked, HttpError(404, "there is no such thing"))
    assert f"'/info/{ID}'" in caplog.text
