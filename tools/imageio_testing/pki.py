# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""Keys and certificates for a server on this host, signed by an authority of their own."""

from __future__ import annotations

import datetime
import os
from dataclasses import dataclass

NAMES = ("localhost", "127.0.0.1", "::1")


@dataclass(frozen=True)
class Pki:
    """PEM files: `ca_file` is what clients trust, the others are the server's."""

    ca_file: str
    cert_file: str
    key_file: str


def make_pki(
    folder: str | os.PathLike[str],
    *,
    names: tuple[str, ...] = NAMES,
    not_before: datetime.datetime | None = None,
    not_after: datetime.datetime | None = None,
) -> Pki:
    """Make a new authority and a certificate for `names`; existing files are replaced.

    Args:
        folder: where the files are made.
        names: of the server.
        not_before: from when on the certificate is valid, by default for long.
        not_after: how long it is valid, by default for centuries.
    """
    import trustme

    ca = trustme.CA()
    server = ca.issue_cert(*names, not_before=not_before, not_after=not_after)
    pki = Pki(*(os.path.join(folder, name) for name in ("ca.pem", "cert.pem", "key.pem")))
    ca.cert_pem.write_to_path(pki.ca_file)
    server.private_key_pem.write_to_path(pki.key_file)
    for number, blob in enumerate(server.cert_chain_pems):
        blob.write_to_path(pki.cert_file, append=number > 0)
    return pki
