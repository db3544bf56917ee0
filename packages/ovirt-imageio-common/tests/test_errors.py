# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
import errno

import pytest

from ovirt_imageio.common import errors


def test_all_but_storage_and_callers_descend_from_one_root():
    kinds = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]
    assert len(kinds) > 5
    assert all(issubclass(kind, errors.ImageioError) for kind in kinds)


def test_error_of_the_system_is_named():
    with pytest.raises(OSError, match="'/some/disk'") as e, errors.Naming("/some/disk"):
        raise OSError(errno.EIO, "Input/output error")
    assert e.value.filename == "/some/disk"


@pytest.mark.parametrize("error", [OSError(errno.EIO, "broken", "/other"), errors.AlsoOSError("lost"), ValueError("x")])
def test_error_of_something_else_keeps_its_name(error):
    name = getattr(error, "filename", None)
    with pytest.raises(type(error)), errors.Naming("/some/disk"):
        raise error
    assert getattr(error, "filename", None) == name


@pytest.mark.parametrize(
    ("code", "words"), [(errno.ENOSPC, "No space left on device"), (errno.EIO, "Input/output error")]
)
def test_refusal_tells_its_error_number_and_the_words_of_the_system(code, words):
    error = errors.RequestError("the server failed a write", errno=code)
    assert str(error) == "the server failed a write"
    assert error.errno == code
    assert error.strerror == words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a 'b'", "\"a 'b'\""),
        ("a\n\x1b\u2028\ud800", r"'a\n\x1b\u2028\ud800'"),
        ("x" * 98, f"'{'x' * 98}'"),
        ("x" * 99, f"'{'x' * 99}…"),
        ("x" * 60000, f"'{'x' * 99}…"),
    ],
)
def test_texts_are_shown_in_one_short_line(text, expected):
    assert errors.shown(text) == expected
