# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Operations end once, tell how, and can be cancelled whatever they wait for."""

from __future__ import annotations

import pytest

from ovirt_imageio.common.errors import OperationCancelled, PeerGone
from ovirt_imageio.daemon.errors import ClientLeft
from ovirt_imageio.daemon.operations import CHECKSUM, READ, WRITE, Operation, WhileHeard


def test_counts_what_was_done():
    op = Operation(WRITE, 100, 50)
    op.advance(20)
    op.advance(30)
    assert op.done == 50
    assert repr(op) == f"<write {op.number}: 50 of 50 at 100>"


def test_numbers_differ():
    assert Operation(READ).number != Operation(READ).number


@pytest.mark.parametrize("error", [None, ValueError("x")])
def test_tells_its_end_once(error):
    ends = []
    op = Operation(READ, on_end=lambda op, error: ends.append((op, error)))
    if error is None:
        with op:
            pass
    else:
        with pytest.raises(ValueError), op:
            raise error
    with op:
        pass
    assert ends == [(op, error)]


def test_cancelled_operation_does_not_go_on():
    op = Operation(READ)
    op.check()
    op.cancel()
    with pytest.raises(OperationCancelled, match="read was cancelled"):
        op.check()
    with pytest.raises(OperationCancelled):
        op.waits_for(lambda: None)


def test_cancelling_wakes_what_it_waits_for_once():
    woken = []
    op = Operation(READ)
    op.waits_for(lambda: woken.append(1))
    op.cancel()
    op.cancel()
    assert woken == [1]


def test_cancelling_wakes_nobody_whose_wait_is_over():
    woken = []
    op = Operation(READ)
    op.waits_for(lambda: woken.append(1))
    op.clear_wait()
    op.cancel()
    with op:
        pass
    assert woken == []


def test_whatever_a_cancelled_operation_failed_with_it_was_cancelled():
    op = Operation(WRITE)
    with pytest.raises(OperationCancelled) as caught, op:
        op.cancel()
        raise PeerGone("the socket was shut down")
    assert isinstance(caught.value.__cause__, PeerGone)


def test_interrupt_of_a_cancelled_operation_passes():
    op = Operation(WRITE)
    with pytest.raises(KeyboardInterrupt), op:
        op.cancel()
        raise KeyboardInterrupt


def test_cancelled_operation_that_succeeded_is_none_the_worse():
    op = Operation(WRITE)
    with op:
        op.cancel()


def test_answer_that_nobody_hears_is_not_worked_for():
    left = []
    op = Operation(CHECKSUM, 0, 10)
    heard = WhileHeard(op, lambda: bool(left))
    heard.check()
    heard.advance(3)
    left.append(True)
    with pytest.raises(ClientLeft, match="the client left during checksum") as e:
        heard.check()
    assert isinstance(e.value, PeerGone)
    assert op.done == 3
    op.cancel()
    with pytest.raises(OperationCancelled):
        heard.check()
