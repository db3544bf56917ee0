# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""A pytest plugin: fixtures that the tests of all packages share."""

from __future__ import annotations

import pytest

from .pki import Pki, make_pki


@pytest.fixture(scope="session")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Pki:
    """Keys for localhost, and the CA that vouches for them; a test that changes them makes its own."""
    return make_pki(tmp_path_factory.mktemp("pki"))
