# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later

"""The drop-ins of the programs that set up hosts: which sections and keys each writes.

Sources:
    vdsm: oVirt/vdsm, static/etc/ovirt-imageio/conf.d/60-vdsm.conf, v4.50.7-31-gfd4b0df20.
    engine: oVirt/ovirt-engine, packaging/setup/ovirt_engine_setup/ovirt_imageio/constants.py,
        ovirt-engine-4.5.7-57-g0111fc63036. Before ovirt-engine-4.4.2.3 it wrote no section backend_http.

Paths and ports are those of the test, from a later file.
"""

from __future__ import annotations

VDSM = {
    "60-vdsm.conf": """\
[tls]
enable = true
key_file = /etc/pki/vdsm/keys/vdsmkey.pem
cert_file = /etc/pki/vdsm/certs/vdsmcert.pem
ca_file = /etc/pki/vdsm/certs/cacert.pem

[remote]
port = 54322

[local]
enable = true

[control]
transport = unix
"""
}

ENGINE = {
    "50-engine.conf": """\
[tls]
enable = true
key_file = /etc/pki/ovirt-engine/keys/apache.key.nopass
cert_file = /etc/pki/ovirt-engine/certs/apache.cer
ca_file = /etc/pki/ovirt-engine/apache-ca.pem

[backend_http]
ca_file = /etc/pki/ovirt-engine/ca.pem

[remote]
port = 54323

[local]
enable = false

[control]
transport = tcp
port = 54324

[handlers]
keys = logfile

[logger_root]
handlers = logfile
level = INFO
"""
}

_BACKEND_HTTP = "[backend_http]\nca_file = /etc/pki/ovirt-engine/ca.pem\n"

ENGINE_4_4_0 = {name: text.replace(_BACKEND_HTTP, "") for name, text in ENGINE.items()}
