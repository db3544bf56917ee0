# SPDX-FileCopyrightText: ovirt-imageio contributors
# SPDX-License-Identifier: GPL-2.0-or-later
"""Upload a raw image with nothing but requests: the HTTP API is all one needs.

    python upload_by_requests.py disk.raw https://host1:54322/images/TICKET --cafile ca.pem

Slower than the client library, for it uses one connection and sends what is zero; and what
fails has to be started again.
"""

import argparse

import requests

parser = argparse.ArgumentParser(description="Upload a raw image with requests")
parser.add_argument("filename", help="raw image to upload")
parser.add_argument("url", help="transfer URL")
parser.add_argument("--cafile", help="CA certificates to verify the server with")
args = parser.parse_args()

with requests.Session() as session, open(args.filename, "rb") as image:
    # Neither a proxy nor certificates of the environment.
    session.trust_env = False
    session.verify = args.cafile or True

    # Does the ticket permit to write? The server's words are in the body.
    response = session.options(args.url)
    response.raise_for_status()
    if "PUT" not in response.headers["Allow"]:
        raise SystemExit("the ticket does not permit to write")

    # requests finds the size of a file and sends it piece by piece. With flush=y the server
    # answers when the data are on stable storage.
    response = session.put(args.url, params={"flush": "y"}, data=image)
    if not response.ok:
        raise SystemExit(f"{response.status_code}: {response.text.strip()}")
