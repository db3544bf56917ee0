#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# The curl plugin of nbdkit asks an HTTP server for one byte more than it needs.
#
# Software: nbdkit 1.32.5 of Debian 12.
# Input: a file of 4096 bytes behind a server that knows ranges, read in sectors of 512 bytes.
# Seen: the first sector is asked for by "bytes=0-512", which is 513 bytes, and the last by one past the end.
# So: a server that refuses a range past the end, as those of the images API do, cannot be read to its end.

set -eu
tmp=$(mktemp -d)
server=
cleanup() {
    [ -z "$server" ] || kill "$server"
    rm -rf "$tmp"
}
trap cleanup EXIT
cd "$tmp"
# Their libraries come with `apt-get install nbdkit qemu-utils`.
apt-get download -qq nbdkit=1.32.5-1 2>/dev/null
for package in *.deb; do dpkg -x "$package" root; done
cat >server.py <<'PY'
import http.server

DATA = bytes(range(256)) * 16


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_HEAD(self):
        self.send_response(200)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(DATA)))
        self.end_headers()

    def do_GET(self):
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        with open("ranges", "a") as f:
            print(first, last, file=f)
        body = DATA[first : last + 1]
        self.send_response(206)
        self.send_header("Content-Range", f"bytes {first}-{first + len(body) - 1}/{len(DATA)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args):
        pass


with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
    with open("port", "w") as f:
        print(running.server_port, file=f, flush=True)
    running.serve_forever()
PY
python3 server.py &
server=$!
for _ in $(seq 300); do
    [ -s port ] && break
    sleep 0.1
done
# shellcheck disable=SC2016 # the shell of nbdkit expands it
root/usr/bin/nbdkit -U - root/usr/lib/x86_64-linux-gnu/nbdkit/plugins/nbdkit-curl-plugin.so \
    "url=http://127.0.0.1:$(cat port)/disk" --run '
        qemu-io -r -f raw -c "read 0 512" -c "read 3584 512" "$uri" >/dev/null'
sort -u ranges
grep -qx '0 512' ranges && grep -qx '3584 4096' ranges
