#!/usr/bin/env bash
# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
#
# Ten GETs of ten paths through requests-unixsocket open ten connections to one server.
#
# Software: requests-unixsocket 0.4.1 with requests 2.32.3.
# Input: one Session, one server on a Unix socket that keeps connections alive.
# Seen: the adapter keys its pool by the whole URL, path included; requests itself keys by host.
# So: connections are neither reused nor bounded where each object has a path of its own.

set -eu
tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
cd "$tmp"
python3 -m venv v
v/bin/pip install -q --disable-pip-version-check requests-unixsocket==0.4.1 requests==2.32.3
cat >count.py <<'PYTHON'
import http.server, os, socketserver, threading
import requests_unixsocket


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    connections = 0

    def setup(self):
        super().setup()
        Handler.connections += 1

    def address_string(self):
        return "client"

    def log_message(self, *args):
        pass

    def do_GET(self):
        self.send_response(200)
        self.send_header("Content-Length", "0")
        self.end_headers()


class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True


server = Server("sock", Handler)
threading.Thread(target=server.serve_forever, daemon=True).start()
with requests_unixsocket.Session() as session:
    base = "http+unix://" + os.path.abspath("sock").replace("/", "%2F")
    for number in range(10):
        session.get(f"{base}/objects/{number}").raise_for_status()
    different = Handler.connections
    for _ in range(10):
        session.get(f"{base}/objects/0").raise_for_status()
print(f"connections for ten paths: {different}, for ten more requests of one path: {Handler.connections - different}")
server.shutdown()
raise SystemExit(not (different == 10 and Handler.connections == 10))
PYTHON
v/bin/python count.py
