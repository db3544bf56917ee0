#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The daemon of ovirt-imageio 2.5.1 makes a file longer than what was uploaded to it.
#
# Software: ovirt-imageio 2.5.1 from PyPI (a C compiler builds it).
# Input: a ticket for an empty file, and a PUT of 5000 bytes.
# Seen: 200, and a file of 8192 bytes: direct I/O writes whole blocks, and the rest of the last one stays as zeroes.
# So: a raw image of odd size gets a tail, and a checksum of the file differs from that of the source.

set -eu
tmp=$(mktemp -d)
daemon=
cleanup() {
    [ -z "$daemon" ] || kill "$daemon"
    rm -rf "$tmp"
}
trap cleanup EXIT
cd "$tmp"
python3 -m venv v
v/bin/pip install -q --disable-pip-version-check "setuptools<81" ovirt-imageio==2.5.1
mkdir -p etc/conf.d
cat >etc/conf.d/50.conf <<INI
[daemon]
run_dir = $tmp
drop_privileges = false
systemd_enable = false
[tls]
enable = false
[remote]
host = 127.0.0.1
port = 0
[local]
socket = $tmp/local
[control]
socket = $tmp/control
[handlers]
keys = stderr
[logger_root]
handlers = stderr
INI
: >disk
cat >ticket.json <<JSON
{"uuid": "t", "size": 1048576, "ops": ["write"], "timeout": 300, "url": "file://$tmp/disk"}
JSON
v/bin/ovirt-imageio -c etc -t ticket.json 2>log &
daemon=$!
for _ in $(seq 300); do
    if [ -S local ] && grep -q 'Ready for requests' log; then break; fi
    sleep 0.1
done
status=$(head -c 5000 /dev/zero | tr '\0' x |
    curl -s -o /dev/null -w '%{http_code}' --unix-socket local -T - -H 'Content-Length: 5000' \
        -H 'Transfer-Encoding:' http://localhost/images/t)
size=$(stat -c %s disk)
echo "status $status, 5000 bytes sent, the file has $size"
[ "$status" = 200 ] && [ "$size" = 8192 ]
